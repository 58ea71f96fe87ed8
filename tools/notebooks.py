#!/usr/bin/env python
"""Keep the chapters' stored outputs true: book/NAME.md is the source, book/NAME.ipynb the same cells with outputs.

A chapter is a Markdown file of ``book/`` whose front matter names a kernel. Its pair is stale when a cell changed, or
when the code it runs did: the modules of ``edmnotes`` that its cells import, followed through their own imports, and
the data files those modules read; or when a stored result did that a cell names, as "results/rows.json". Comments,
docstrings and prose do not count: where only prose, captions or front matter changed, the stored outputs are kept and
nothing is executed.

    tools/notebooks.py run [--force] [NAME ...]    execute the stale chapters
    tools/notebooks.py check [NAME ...]            exit 1 if a pair is stale or was never executed

Only scale laptop on the CPU writes ``book/*.ipynb``, which ``pytest --nbval`` compares; any other scale or device
writes to ``_build/notebooks/``.
"""

import argparse
import ast
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jupytext
import nbformat
from jupytext.myst import MystMetadataParsingError
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "edmnotes"
CODE = "executed_code"  # where a stored notebook keeps the fingerprints of the modules and results that it ran
# For the kernel, here and under nbval (see conftest.py): what would make an output depend on the run.
ENVIRONMENT = {"TQDM_DISABLE": "1", "PYTHONHASHSEED": "0"}
TIMEOUT = 600  # seconds a cell


# --- what a chapter runs --------------------------------------------------------------------------------------------


def plain(node: object) -> object:
    """A syntax tree without positions and docstrings, the same under every Python version."""
    if isinstance(node, list):
        return [plain(n) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                fields["body"] = rest
    return type(node).__name__, [(name, plain(value)) for name, value in sorted(fields.items())]


def uses(tree: ast.AST, package: str, bound: set[str] = frozenset()) -> Iterator[str]:  # type: ignore[assignment]
    """Dotted names below ``package`` that the code reaches: imported at any depth, or as attributes of the package.

    ``bound`` are names that already stand for the package. A package that is used as a bare value (``getattr``,
    ``dir``) could reach anything, which is written ``package.*``.
    """
    bound, attributes = set(bound), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"line {node.lineno}: a relative import; write it in full, from {package}...")
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{package}."):
                    yield alias.name
                if alias.name == package or (alias.name.startswith(f"{package}.") and not alias.asname):
                    bound.add(alias.asname or package)
    for node in ast.walk(tree):
        parts = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in bound:
            attributes.add(id(inner))
            yield ".".join([package, *reversed(parts)])
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in bound and id(node) not in attributes:
            yield f"{package}.*"


@dataclass(frozen=True, eq=False)  # each has its own cache: it answers for the source as it was first read
class Library:
    """The package's source: which modules there are, what each imports, and a fingerprint of each."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "__init__.py").is_file():
            raise FileNotFoundError(f"{self.folder} is no package: it has no __init__.py")

    def path(self, module: str) -> Path | None:
        """The file of a module, or None if there is no such module."""
        stem = self.folder.joinpath(*module.split(".")[1:])
        return next((p for p in (stem / "__init__.py", stem.with_suffix(".py")) if p.is_file()), None)

    def modules(self) -> list[str]:
        """Every module, dotted."""
        files = sorted(self.folder.rglob("*.py"))
        names = [p.relative_to(self.folder.parent).with_suffix("").parts for p in files]
        return [".".join(n[:-1] if n[-1] == "__init__" else n) for n in names]

    def resolve(self, name: str) -> set[str]:
        """The modules that reaching the dotted ``name`` loads; a package's modules count, the root's own code apart."""
        if name == f"{PACKAGE}.*":
            return set(self.modules())
        parts = name.split(".")
        prefixes = [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
        # The root package resolves its rooms by name and computes nothing, so it does not count unless a chapter
        # uses something of its own.
        found = {p for p in prefixes if self.path(p)}
        return found or {PACKAGE}

    @cache  # noqa: B019 - one Library a run, which needs it to the end
    def tree(self, module: str) -> ast.Module:
        """The module's syntax tree."""
        path = self.path(module)
        if path is None:
            raise FileNotFoundError(f"{module} is not in {self.folder}")
        return ast.parse(path.read_text(encoding="utf8"), filename=str(path))

    @cache  # noqa: B019
    def imports(self, module: str) -> frozenset[str]:
        """The package's modules that ``module`` imports anywhere in its code."""
        found = {m for name in uses(self.tree(module), PACKAGE) for m in self.resolve(name)}
        return frozenset(found - {module})

    @cache  # noqa: B019
    def fingerprint(self, module: str) -> str:
        """A hash of the module's code and of the data folders that it names."""
        tree = self.tree(module)
        digest = hashlib.sha256(repr(plain(tree)).encode())
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        for folder in sorted(p for p in self.folder.iterdir() if p.is_dir() and not (p / "__init__.py").exists()):
            if any(folder.name in re.split(r"[/\\]", s) for s in strings):
                for file in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
                    digest.update(file.relative_to(self.folder).as_posix().encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:12]

    def closure(self, names: set[str]) -> set[str]:
        """The modules reached from dotted names, through imports."""
        todo = [m for name in names for m in self.resolve(name)]
        seen: set[str] = set()
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo.extend(self.imports(module))
        return seen

    def code_of(self, notebook: nbformat.NotebookNode) -> dict[str, str]:
        """Fingerprints of the modules that a notebook's cells reach."""
        return {m: self.fingerprint(m) for m in sorted(self.closure(set(uses(syntax(notebook), PACKAGE))))}


# --- pairs ----------------------------------------------------------------------------------------------------------


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are executed."""
    return [c for c in notebook.cells if c.cell_type == "code"]


def syntax(notebook: nbformat.NotebookNode) -> ast.Module:
    """The syntax tree of all code cells, without the lines that only IPython understands."""
    return ast.parse("\n".join(re.sub(r"^\s*[%!].*$", "", c.source, flags=re.M) for c in code_cells(notebook)))


def results_of(notebook: nbformat.NotebookNode, folder: Path) -> dict[str, str]:
    """Fingerprints of the stored results that a chapter's cells name, by their path from the chapter's folder."""
    strings = {n.value for n in ast.walk(syntax(notebook)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    named = sorted(s for s in strings if s.startswith("results/") and (folder / s).is_file())
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:12] for name in named}


def read_source(path: Path) -> nbformat.NotebookNode | None:
    """A chapter's Markdown as a notebook without outputs, or None for a plain page."""
    text = path.read_text(encoding="utf8")
    front = re.match(r"---\n(.*?)^---$", text, re.DOTALL | re.MULTILINE)
    if not front or not re.search(r"^kernelspec:", front[1], re.MULTILINE):
        return None
    try:
        notebook = jupytext.reads(text, fmt="md:myst")  # without fmt, ':::' in the text would need pandoc
    except MystMetadataParsingError as error:
        raise ValueError(f"{path.name}: {error}") from error
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"c{i:03d}"
    front_matter = {k: v for k, v in notebook.metadata.items() if k not in ("kernelspec", "jupytext")}
    notebook.metadata = nbformat.from_dict(
        front_matter
        | {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def page(notebook: nbformat.NotebookNode) -> object:
    """All that the source decides."""
    metadata = {k: v for k, v in notebook.metadata.items() if k != CODE}
    return metadata, [(c.cell_type, c.source, c.metadata) for c in notebook.cells]


def program(notebook: nbformat.NotebookNode) -> object:
    """What execution depends on."""
    return [(c.source, c.metadata.get("tags", [])) for c in code_cells(notebook)]


@dataclass(frozen=True)
class Pair:
    """A chapter's source and its stored twin."""

    source: Path
    library: Library

    @property
    def stored(self) -> Path:
        """The notebook that the book shows."""
        return self.source.with_suffix(".ipynb")

    def reached(self, notebook: nbformat.NotebookNode) -> dict[str, str]:
        """Fingerprints of all that the notebook's outputs depend on beside its cells."""
        return self.library.code_of(notebook) | results_of(notebook, self.source.parent)

    def why_stale(self) -> tuple[str, bool]:
        """Why the stored notebook is not what its source says ('' if it is), and whether it must be executed."""
        source = read_source(self.source)
        if source is None:
            raise ValueError(f"{self.source} is a plain page: its front matter names no kernel")
        if not self.stored.exists():
            return "was never executed", True
        stored = nbformat.read(self.stored, as_version=4)
        if program(source) != program(stored):
            return "code cells changed", True
        if empty := [c.source for c in code_cells(stored) if c.source.strip() and c.execution_count is None]:
            return f"{len(empty)} code cells were never executed", True
        then, now = stored.metadata.get(CODE, {}), self.reached(source)
        if changed := sorted(m for m in then.keys() | now.keys() if then.get(m) != now.get(m)):
            return f"changed: {', '.join(changed)}", True
        if page(source) != page(stored):
            return "text changed", False
        return "", False


def pairs(book: Path, library: Library, names: list[str]) -> list[Pair]:
    """The chapters of a folder, or those named."""
    found = {p.stem: Pair(p, library) for p in sorted(book.glob("*.md")) if read_source(p) is not None}
    if unknown := set(names) - set(found):
        raise ValueError(f"no chapter {', '.join(sorted(unknown))} in {book}; there are {', '.join(found)}")
    return [found[n] for n in sorted(names or found)]


# --- commands -------------------------------------------------------------------------------------------------------


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write aside, then rename: a notebook is never half there."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf8")
    os.replace(aside, path)


def explain(error: CellExecutionError, notebook: nbformat.NotebookNode) -> str:
    """The cell that failed and its traceback, without colours."""
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                return f"code cell {number}:\n\n{cell.source}\n\n{trace}"
    return str(error)


def execute(pair: Pair, target: Path) -> None:
    """Run every cell in a fresh kernel, in the chapter's folder, and store the outputs in ``target``."""
    notebook = read_source(pair.source)
    assert notebook is not None
    code = pair.reached(notebook)  # before the run: an edit made meanwhile must leave the pair stale
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(pair.source.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise RuntimeError(explain(error, notebook)) from None
    notebook.metadata[CODE] = code
    notebook.metadata["language_info"] = {"name": "python"}  # the kernel's would name its patch version
    write(notebook, target)


def refresh(pair: Pair) -> None:
    """Give the stored notebook the source's text, captions and front matter; outputs stay."""
    stored, notebook = nbformat.read(pair.stored, as_version=4), read_source(pair.source)
    assert notebook is not None
    for new, old in zip(code_cells(notebook), code_cells(stored), strict=True):
        new["outputs"], new["execution_count"] = old["outputs"], old["execution_count"]
    notebook.metadata[CODE] = stored.metadata[CODE]
    write(notebook, pair.stored)


def place() -> Path | None:
    """Where other scales and devices write; None for the pair's own notebook."""
    from edmnotes import scale  # imports torch: only when something is to be run

    current = scale.current()
    if current.name == "laptop" and current.device.type == "cpu":
        return None
    suffix = "" if current.device.type == "cpu" else f"-{current.device.type}"
    return ROOT / "_build" / "notebooks" / (current.name + suffix)


def run(chosen: list[Pair], *, force: bool, aside: Path | None) -> int:
    """Execute what is stale; the exit status."""
    failed = []
    for pair in chosen:
        reason, must_execute = pair.why_stale()
        if aside is None and not force and not reason:
            continue
        name = pair.source.stem
        if aside is None and not force and not must_execute:
            refresh(pair)
            print(f"{name}: {reason}; outputs kept")
            continue
        print(f"{name}: executing ({'forced' if force else reason or f'for {aside}'})", flush=True)
        start = time.perf_counter()
        try:
            execute(pair, aside / pair.stored.name if aside else pair.stored)
        except RuntimeError as error:
            print(f"{name}: FAILED in {error}", file=sys.stderr, flush=True)
            failed.append(name)
        else:
            print(f"{name}: done in {time.perf_counter() - start:.1f} s", flush=True)
    if failed:
        print(f"not stored: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def check(chosen: list[Pair]) -> int:
    """Say which pairs are stale; the exit status."""
    stale = {p.source.stem: reason for p in chosen if (reason := p.why_stale()[0])}
    for name, reason in stale.items():
        print(f"{name}: {reason}; run 'make notebooks'", file=sys.stderr)
    for path in sorted({p.source.parent for p in chosen}):
        for orphan in sorted(path.glob("*.ipynb")):
            if not orphan.with_suffix(".md").exists():
                stale[orphan.stem] = "orphan"
                print(f"{orphan.name}: has no source {orphan.stem}.md; remove it", file=sys.stderr)
    return bool(stale)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "check"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters; all of them if none is named")
    parser.add_argument("--force", action="store_true", help="run: execute even what is fresh")
    parser.add_argument("--book", type=Path, default=ROOT / "book", help="the folder of the chapters")
    parser.add_argument("--package", type=Path, default=ROOT / PACKAGE, help="the folder of the package")
    args = parser.parse_intermixed_args(argv)
    try:
        chosen = pairs(args.book.resolve(), Library(args.package.resolve()), args.names)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if args.command == "check":
        return check(chosen)
    for name, value in ENVIRONMENT.items():
        os.environ[name] = value
    return run(chosen, force=args.force, aside=place())


if __name__ == "__main__":
    sys.exit(main())

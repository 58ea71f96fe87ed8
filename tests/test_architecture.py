"""The house's rules (DESIGN, section 3): what may import what; how chapters, rooms and tests are found."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from notebooks import Library, code_cells, read_source, uses

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Library(ROOT / "edmnotes")

# A room imports only rooms above it. 'contract' is what all of them agree on.
ORDER = [
    "scale",
    "contract",
    "schedules",
    "steps",
    "noise",
    "networks",
    "preconditioning",
    "targets",
    "exact",
    "fokker_planck",
    "losses",
    "samplers",
    "guidance",
    "likelihood",
    "variational",
    "data",
    "training",
    "metrics",
    "judging",
    "presets",
    "results",
    "interop",
    "derivations",
    "plotting",
    "cli",
]


# The chapters of DESIGN, section 6: a room may name one that is still to be written.
PLAN = """
    intro quickstart forward fokker_planck tweedie preconditioning deterministic stochastic likelihood elbo vdm ddpm
    ddim analytic_dpm guidance metrics inverse_problems design_space cheatsheet notation audit benchmarks
"""


def room(module: str) -> str:
    """The room that a module belongs to: ``edmnotes.samplers.ode`` is in ``samplers``."""
    return module.split(".")[1]


def rooms() -> list[str]:
    return sorted({room(m) for m in LIBRARY.modules() if m.count(".")} - {"__main__"})


def upward(library: Library) -> list[str]:
    """Imports of a room from one that does not stand above it."""
    return [
        f"{module} imports {other}"
        for module in library.modules()
        if module.count(".") and room(module) != "__main__"
        for other in library.imports(module)
        if other.count(".") and room(other) != room(module) and ORDER.index(room(other)) > ORDER.index(room(module))
    ]


def foreign(library: Library, module: str) -> set[str]:
    """Top-level names of everything that a module imports, through the package's own modules too."""
    found = set()
    for reached in library.closure({module}):
        for node in ast.walk(library.tree(reached)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


def copy_with(tmp_path: Path, module: str, line: str) -> Library:
    """The package's source with one line added to a module."""
    for path in (ROOT / "edmnotes").rglob("*.py"):
        target = tmp_path / "edmnotes" / path.relative_to(ROOT / "edmnotes")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf8"), encoding="utf8")
    library = Library(tmp_path / "edmnotes")
    path = library.path(module)
    path.write_text(path.read_text(encoding="utf8") + line + "\n", encoding="utf8")
    return library


def test_every_room_has_its_place():
    assert set(rooms()) <= set(ORDER), "add the room to ORDER, below the rooms that it imports"


def test_rooms_import_only_rooms_above_them(tmp_path):
    assert upward(LIBRARY) == []
    broken = copy_with(tmp_path, "edmnotes.schedules", "def f():\n    from edmnotes import losses")
    assert upward(broken) == ["edmnotes.schedules imports edmnotes.losses"]


def test_no_room_knows_torch_and_sympy_both(tmp_path):
    both = {"torch", "sympy"}
    assert [m for m in LIBRARY.modules() if both <= foreign(LIBRARY, m)] == []
    broken = copy_with(tmp_path, "edmnotes.derivations.core", "from edmnotes.schedules import VP")
    assert both <= foreign(broken, "edmnotes.derivations.core")


def test_only_plotting_imports_matplotlib():
    direct = {m for m in LIBRARY.modules() for n in ast.walk(LIBRARY.tree(m)) if "matplotlib" in imported(n)}
    assert direct <= {"edmnotes.plotting"}


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def test_a_room_and_its_test_share_a_name():
    """A module of a room may have a test file of its own, or share its room's."""
    tests = {p.relative_to(ROOT / "tests").with_suffix("").as_posix() for p in (ROOT / "tests").rglob("test_*.py")}
    untested = []
    for module in LIBRARY.modules():
        *folder, name = module.split(".")[1:] or ["__init__"]
        beside = {t for t in tests if t.startswith("/".join([*folder, name]) + "/test_")}
        own = "/".join([*folder, f"test_{name}"])
        shared = {f"test_{folder[0]}"} if folder else set()
        if name not in ("__init__", "__main__") and not ({own, *shared} & tests or beside):
            untested.append(module)
    assert untested == []


# --- chapters, derivations, rooms -----------------------------------------------------------------------------------


def chapters() -> dict[str, Path]:
    return {p.stem: p for p in sorted((ROOT / "book").glob("*.md")) if read_source(p) is not None}


def taught_by_chapter(path: Path) -> set[str]:
    """The rooms that a chapter's front matter declares."""
    front = yaml.safe_load(re.match(r"---\n(.*?)^---$", path.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)[1])
    return set(front.get("edmnotes", {}).get("rooms", []))


def teachers(docstring: str) -> set[str]:
    """The chapters that a room's docstring names: Taught in the chapter ``forward``."""
    found = re.search(r"[Tt]aught\s+in\s+the\s+chapters?\s+((?:``\w+``(?:,\s*|\s+and\s+)?)+)", docstring)
    return set(re.findall(r"\w+", found[1])) - {"and"} if found else set()


def disagreements(declared: dict[str, set[str]], named: dict[str, set[str]]) -> list[str]:
    """Where the chapters' front matter and the rooms' docstrings differ; a chapter of the plan may not be there yet."""
    of_chapters = {(c, r) for c, found in declared.items() for r in found}
    of_rooms = {(c, r) for r, found in named.items() for c in found if c in declared or c not in PLAN.split()}
    silent = [f"{r}: its docstring does not say 'Taught in the chapter ``{c}``'" for c, r in of_chapters - of_rooms]
    undeclared = [f"{c}: its front matter does not declare the room {r}" for c, r in of_rooms - of_chapters]
    return sorted(silent + undeclared)


def test_chapters_and_rooms_name_each_other():
    declared = {name: taught_by_chapter(path) for name, path in chapters().items()}
    named = {r: teachers(ast.get_docstring(LIBRARY.tree(f"edmnotes.{r}")) or "") for r in rooms()}
    assert disagreements(declared, named) == []
    assert declared, "there is no chapter"
    assert any(named.values()), "no room names a chapter"


def test_a_missing_name_is_noticed_on_either_side():
    assert teachers("Noise.\n\nTaught in the\nchapters ``forward`` and ``ddpm``. More ``code``.") == {"forward", "ddpm"}
    assert len(disagreements({"forward": {"noise"}}, {"noise": set()})) == 1
    assert len(disagreements({"forward": set()}, {"noise": {"forward"}})) == 1
    assert len(disagreements({}, {"noise": {"froward"}})) == 1
    assert disagreements({"forward": {"noise"}}, {"noise": {"forward", "ddpm"}}) == []


def test_a_chapter_and_its_derivation_share_a_name():
    """Every module of derivations is a chapter's, and whoever uses derivations uses its own."""
    machinery = {"core", "latex", "page"}
    modules = {m.split(".")[2] for m in LIBRARY.modules() if m.startswith("edmnotes.derivations.")} - machinery
    used = {}
    for name, path in chapters().items():
        code = "\n".join(re.sub(r"^\s*[%!].*$", "", c.source, flags=re.M) for c in code_cells(read_source(path)))
        names = {tuple(u.split(".")[1:3]) for u in uses(ast.parse(code), "edmnotes")}
        used[name] = {n[1] for n in names if n[0] == "derivations" and len(n) > 1} & modules
    assert modules <= chapters().keys()
    assert [m for m in modules if m not in used[m]] == []
    assert [c for c, found in used.items() if found and c not in found] == []


# --- the cost of an import ------------------------------------------------------------------------------------------


def in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_brings_torch_at_most():
    heavy = {"sympy", "matplotlib", "sklearn", "accelerate", "torchdiffeq"}
    loaded = in_fresh_python("import edmnotes, sys; print(*sys.modules)").split()
    assert heavy & set(loaded) == set()
    rooms_loaded = in_fresh_python("import edmnotes, sys; edmnotes.schedules, edmnotes.samplers; print(*sys.modules)")
    assert heavy & set(rooms_loaded.split()) == set()


def test_import_takes_no_longer_than_torch_and_a_little():
    """What edmnotes adds to an import of torch, the best of three: other work on the machine can only add to it."""
    code = "import time, torch; t = time.perf_counter(); import edmnotes; print(time.perf_counter() - t)"
    assert min(float(in_fresh_python(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", ["nonsense", "path"])
def test_an_unknown_room_is_an_attribute_error(name):
    import edmnotes

    with pytest.raises(AttributeError, match=f"'{name}'.*its rooms are"):
        getattr(edmnotes, name)

"""The chapters' stored outputs: fresh, mostly compared, captioned; and every way to spoil that is noticed."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import notebooks
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebooks import Library, Pair, code_cells, main, uses

ROOT = Path(__file__).resolve().parent.parent.parent
BOOK = ROOT / "book"
CHAPTERS = {p.source.stem: p for p in notebooks.pairs(BOOK, Library(ROOT / "edmnotes"), [])}

HEAD = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A chapter
"""


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(CHAPTERS[name].stored, as_version=4)


# --- what holds for every chapter -----------------------------------------------------------------------------------


def uncompared(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Code cells whose output 'pytest --nbval' does not compare."""
    tags = {"nbval-ignore-output", "nbval-skip"}
    words = re.compile(r"^\s*#\s*NBVAL_(IGNORE_OUTPUT|SKIP)", re.MULTILINE | re.IGNORECASE)
    return [c for c in code_cells(notebook) if tags & set(c.metadata.get("tags", [])) or words.search(c.source)]


def images(cell: nbformat.NotebookNode) -> int:
    return sum(any(k.startswith("image/") for k in o.get("data", {})) for o in cell.get("outputs", []))


def unjudged(notebook: nbformat.NotebookNode) -> list[str]:
    """Cells that are not compared and end neither in an assertion nor in a figure."""
    bad = []
    for cell in uncompared(notebook):
        last = ast.parse(cell.source).body[-1:]
        asserts = any(isinstance(n, ast.Assert) for statement in last for n in ast.walk(statement))
        if not asserts and not images(cell):
            bad.append(cell.source)
    return bad


def undescribed(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the captions and alternative texts of the figures that code makes."""
    wrong = []
    for cell in code_cells(notebook):
        options = cell.metadata.get("mystnb", {})
        caption = " ".join(options.get("figure", {}).get("caption", "").split())
        alt = " ".join(options.get("image", {}).get("alt", "").split())
        problems = {
            "no caption": not caption,
            "no alt text": not alt,
            "the alt text is the caption": bool(alt) and alt == caption,
            "one caption for several figures": images(cell) > 1,
        }
        if images(cell):
            wrong += [f"{problem}: {cell.source}" for problem, there in problems.items() if there]
        elif caption or alt:
            wrong.append(f"described, but there is no figure: {cell.source}")
    return wrong


def untested_exercises(notebook: nbformat.NotebookNode) -> list[str]:
    """Exercises without a solution that holds a cell with an assertion."""
    exercises, tested, inside = [], set(), None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if inside and any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(cell.source))):
                tested.add(inside)
            continue
        directives = r"^(?:`{3,}|:{3,})\{(exercise(?:-start)?|solution(?:-start|-end)?)\}[ \t]*(\S*)(.*(?:\n:\w+:.*)*)"
        for found in re.finditer(directives, cell.source, re.MULTILINE):
            kind, label = found[1], found[2]
            if kind.startswith("exercise"):
                name = re.search(r"^:label:\s*(\S+)", found[3], re.MULTILINE)
                exercises.append(name[1] if name else f"an exercise without label: {found[0]}")
            elif kind == "solution-start":
                inside = label
            elif kind == "solution-end":
                inside = None
    return [e for e in exercises if e not in tested]


def unstable(notebook: nbformat.NotebookNode) -> list[str]:
    """Outputs that depend on the machine or the run: stderr, addresses, paths."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *(t for k, t in output.get("data", {}).items() if k.startswith("text/"))]
            text = "\n".join(t if isinstance(t, str) else "".join(t) for t in texts)
            if output.get("name") == "stderr":
                found.append(f"stderr: {text}")
            if bad := re.search(
                r"0x[0-9a-f]{6,}|(?<![\w:/])/(?:home|root|tmp|usr|Users|work|opt|var)/\S*|site-packages", text
            ):
                found.append(f"{bad[0]} in the output of: {cell.source}")
    return found


def test_there_are_chapters():
    assert {"quickstart", "forward"} <= set(CHAPTERS)


def test_every_pair_is_fresh(capsys):
    assert main(["check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", CHAPTERS)
def test_at_least_70_percent_of_the_cells_are_compared(name):
    notebook = stored(name)
    assert len(uncompared(notebook)) <= 0.3 * len(code_cells(notebook))


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_is_not_compared_is_asserted_or_seen(name):
    assert unjudged(stored(name)) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_median_cell_is_short(name):
    assert median(len(c.source.strip().splitlines()) for c in code_cells(stored(name))) <= 10


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_has_a_caption_and_another_alt_text(name):
    assert undescribed(stored(name)) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_exercise_has_a_tested_solution(name):
    assert untested_exercises(stored(name)) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_outputs_are_the_same_on_every_machine(name):
    assert unstable(stored(name)) == []


# --- each of these rules refuses what it should ---------------------------------------------------------------------


def figure(alt: str = "a line", caption: str = "It rises.", count: int = 1) -> nbformat.NotebookNode:
    outputs = [new_output("display_data", {"image/png": "iVBOR"})] * count
    metadata = {"mystnb": {"image": {"alt": alt}, "figure": {"caption": caption}}}
    return new_code_cell("plt.show()", outputs=outputs, metadata=metadata)


def notebook_of(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return new_notebook(cells=list(cells))


@pytest.mark.parametrize("tags", [["nbval-ignore-output"], ["nbval-skip"]])
def test_ignored_cells_are_counted_and_judged(tags):
    def ignored(source):
        return notebook_of(new_code_cell(source, metadata={"tags": tags}))

    assert len(uncompared(ignored("print(1)"))) == 1
    assert unjudged(ignored("assert x\nprint(x)"))
    assert not unjudged(ignored("print(x)\nassert x"))
    assert uncompared(notebook_of(new_code_cell("# NBVAL_IGNORE_OUTPUT\nprint(1)")))
    assert not uncompared(notebook_of(new_code_cell("print(1)")))


@pytest.mark.parametrize(
    "cell", [figure(alt=""), figure(caption=""), figure("Same.", "Same."), figure(count=2), figure(count=0)]
)
def test_a_figure_badly_described_is_refused(cell):
    assert undescribed(notebook_of(cell))
    assert not undescribed(notebook_of(figure(), new_code_cell("1 + 1")))


def test_an_untested_exercise_is_refused():
    ask = new_markdown_cell("```{exercise} Title\n:label: ex-a\n\nDo.\n```")
    begin, end = (
        new_markdown_cell("```{solution-start} ex-a\n:class: dropdown\n```"),
        new_markdown_cell("```{solution-end}\n```"),
    )
    good, bad = new_code_cell("assert f() == 2"), new_code_cell("f()")
    assert untested_exercises(notebook_of(ask)) == ["ex-a"]
    assert untested_exercises(notebook_of(ask, begin, bad, end)) == ["ex-a"]
    assert untested_exercises(notebook_of(ask, begin, end, good)) == ["ex-a"]
    assert untested_exercises(notebook_of(ask, begin, good, end)) == []
    assert untested_exercises(notebook_of(new_markdown_cell("::::{exercise-start}\n:label: ex-b\n::::"))) == ["ex-b"]


@pytest.mark.parametrize("text", ["<Legend at 0x7f3a5c0d>", "saved to /tmp/x/run", "/a/site-packages/torch/nn.py"])
def test_an_output_of_one_machine_is_refused(text):
    assert unstable(notebook_of(new_code_cell("f()", outputs=[new_output("stream", name="stdout", text=text)])))
    assert unstable(notebook_of(new_code_cell("f()", outputs=[new_output("stream", name="stderr", text="x")])))
    fine = new_output("stream", name="stdout", text="a/b, 1/2, 0x10 and /s")
    assert unstable(notebook_of(new_code_cell("f()", outputs=[fine]))) == []


# --- what makes a pair stale ----------------------------------------------------------------------------------------


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The package, and the chapter 'forward' as it is stored."""
    shutil.copytree(ROOT / "edmnotes", tmp_path / "edmnotes", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "book").mkdir()
    for suffix in (".md", ".ipynb"):
        shutil.copy(BOOK / f"forward{suffix}", tmp_path / "book")
    assert check(tmp_path) == 0
    return tmp_path


def check(root: Path) -> int:
    return main(["check", "--book", str(root / "book"), "--package", str(root / "edmnotes")])


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf8")


def test_an_unexecuted_notebook_fails(copies, capsys):
    path = copies / "book" / "forward.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code_cells(notebook)[3]["execution_count"] = None
    nbformat.write(notebook, path)
    assert check(copies) == 1
    assert "forward: 1 code cells were never executed" in capsys.readouterr().err
    path.unlink()
    assert check(copies) == 1
    assert "forward: was never executed" in capsys.readouterr().err


def test_a_changed_cell_fails(copies, capsys):
    replace(copies / "book" / "forward.md", "import torch\n", "import torch  # changed\n")
    assert check(copies) == 1
    assert "code cells changed" in capsys.readouterr().err


def test_changed_prose_fails_until_it_is_copied_over_without_execution(copies, capsys, monkeypatch):
    before = nbformat.read(copies / "book" / "forward.ipynb", as_version=4)
    replace(copies / "book" / "forward.md", "# The forward process\n", "# The forward process\n\nA new sentence.\n")
    assert check(copies) == 1
    assert "text changed" in capsys.readouterr().err
    monkeypatch.setattr(notebooks, "execute", None)  # calling it would raise
    monkeypatch.setattr(notebooks, "place", lambda: None)
    assert main(["run", "--book", str(copies / "book"), "--package", str(copies / "edmnotes")]) == 0
    assert check(copies) == 0
    after = nbformat.read(copies / "book" / "forward.ipynb", as_version=4)
    assert "A new sentence." in after.cells[0].source + after.cells[1].source
    assert [c.outputs for c in code_cells(after)] == [c.outputs for c in code_cells(before)]


@pytest.mark.parametrize("module", ["schedules", "derivations/core", "noise"])
def test_changed_library_code_fails_but_not_its_docstrings_and_comments(copies, capsys, module):
    path = copies / "edmnotes" / f"{module}.py"
    text = path.read_text(encoding="utf8")
    spoken = re.sub(r'^(r?)"""', r'\1"""Another word. ', text, count=1) + "\n# a comment\n"
    path.write_text(spoken, encoding="utf8")
    assert check(copies) == 0
    path.write_text(text + "\nCONSTANT = 3\n", encoding="utf8")
    assert check(copies) == 1
    assert f"changed: edmnotes.{module.replace('/', '.')}" in capsys.readouterr().err


def test_code_that_the_chapter_does_not_reach_does_not_matter(copies):
    for name in ("cli", "samplers/ode", "__init__"):
        with (copies / "edmnotes" / f"{name}.py").open("a") as file:
            file.write("\nCONSTANT = 3\n")
    assert check(copies) == 0


def test_a_stored_result_that_a_cell_names_counts_and_another_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "place", lambda: None)
    write_chapter(
        tmp_path, "print(open('results/read.json').read())", "print('see results/other.json', 'results/none.json')"
    )
    for name in ("read", "other"):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{name}.json").write_text("1")
    assert main(["run", "--book", str(tmp_path)]) == 0
    assert main(["check", "--book", str(tmp_path)]) == 0
    (tmp_path / "results" / "other.json").write_text("2")
    assert main(["check", "--book", str(tmp_path)]) == 0
    (tmp_path / "results" / "read.json").write_text("2")
    capsys.readouterr()
    assert main(["check", "--book", str(tmp_path)]) == 1
    assert "small: changed: results/read.json" in capsys.readouterr().err
    (tmp_path / "results" / "read.json").unlink()
    assert main(["check", "--book", str(tmp_path)]) == 1


def test_a_notebook_without_its_source_fails(copies, capsys):
    shutil.copy(copies / "book" / "forward.ipynb", copies / "book" / "backward.ipynb")
    assert check(copies) == 1
    assert "backward.ipynb: has no source" in capsys.readouterr().err


def test_a_chapter_that_cannot_be_read_is_named(copies, capsys):
    replace(copies / "book" / "forward.md", "    alt: Three", "    alt: @Three")
    with pytest.raises(SystemExit):
        check(copies)
    assert "forward.md: Code cell" in capsys.readouterr().err


def test_an_unknown_chapter_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["check", "froward"])
    assert "no chapter froward" in capsys.readouterr().err


# --- how imports are followed ---------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> Library:
    files = {
        "__init__.py": "VERSION = 1",
        "a.py": "def f():\n    from edmnotes import b\n    return b",
        "b.py": "import edmnotes.c as c",
        "c.py": "X = 1",
        "d/__init__.py": "from edmnotes.d.e import g",
        "d/e.py": "import torch",
        "loads.py": "import importlib.resources\nFILE = 'models/digits.json'",
        "cli.py": "from edmnotes import a, d, loads",
        "models/digits.json": "{}",
    }
    for name, text in files.items():
        path = tmp_path / "edmnotes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Library(tmp_path / "edmnotes")


@pytest.mark.parametrize(
    ("code", "reached"),
    [
        ("from edmnotes import a", "a b c"),
        ("from edmnotes.a import f", "a b c"),
        ("import edmnotes.b", "b c"),
        ("import edmnotes\nedmnotes.b.c", "b c"),
        ("import edmnotes as n\nprint(n.c.X)", "c"),
        ("import edmnotes.c\nedmnotes.d.g()", "c d d.e"),
        ("from edmnotes.d import g", "d d.e"),
        ("from edmnotes.d import e", "d d.e"),
        ("if True:\n    from edmnotes import c", "c"),
        ("import edmnotes\ngetattr(edmnotes, 'c')", "a b c cli d d.e loads"),
        ("from edmnotes import *", "a b c cli d d.e loads"),
        ("import torch, edmnotes_other", ""),
    ],
)
def test_the_modules_that_code_reaches(library, code, reached):
    found = library.closure(set(uses(ast.parse(code), "edmnotes"))) - {"edmnotes"}
    assert found == {f"edmnotes.{m}" for m in reached.split()}


def test_names_of_the_package_itself_count(library):
    assert library.closure(set(uses(ast.parse("from edmnotes import VERSION"), "edmnotes"))) == {"edmnotes"}


def test_data_files_count_for_the_module_that_names_their_folder(library):
    before = {m: library.fingerprint(m) for m in library.modules()}
    (library.folder / "models" / "digits.json").write_text("{1}")
    after = Library(library.folder)
    assert [m for m in before if after.fingerprint(m) != before[m]] == ["edmnotes.loads"]


def test_a_relative_import_is_refused(library):
    with pytest.raises(ValueError, match="relative import"):
        list(uses(ast.parse("from . import a"), "edmnotes"))


# --- execution ------------------------------------------------------------------------------------------------------


def write_chapter(folder: Path, *cells: str) -> Pair:
    folder.mkdir(exist_ok=True)
    source = folder / "small.md"
    source.write_text(HEAD + "".join(f"\n```{{code-cell}} ipython3\n{c}\n```\n" for c in cells))
    return Pair(source, Library(ROOT / "edmnotes"))


def test_running_twice_gives_the_same_bytes_and_then_nothing_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "place", lambda: None)
    pair = write_chapter(tmp_path, "import os\nprint('one')\nprint(os.environ['TQDM_DISABLE'])", "{1, 2}")
    command = ["run", "--force", "--book", str(tmp_path)]
    assert main(command) == 0
    first = pair.stored.read_bytes()
    assert main(command) == 0
    assert pair.stored.read_bytes() == first
    assert pair.why_stale() == ("", False)
    capsys.readouterr()
    assert main(["run", "--book", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.ipynb", "small.md"]


def test_a_failing_cell_is_shown_and_the_old_outputs_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "place", lambda: None)
    pair = write_chapter(tmp_path, "value = 3", "assert value == 4, 'not four'")
    pair.stored.write_text("what was there")
    with pytest.raises(RuntimeError) as caught:
        notebooks.execute(pair, pair.stored)
    message = str(caught.value)
    assert "code cell 2" in message
    assert "assert value == 4" in message
    assert "AssertionError: not four" in message
    assert "\x1b" not in message
    assert pair.stored.read_text() == "what was there"
    pair.stored.unlink()
    assert main(["run", "--book", str(tmp_path)]) == 1
    assert "small: FAILED in code cell 2" in capsys.readouterr().err
    assert not pair.stored.exists()


@pytest.mark.parametrize(
    ("scale", "cuda", "folder"),
    [
        ("laptop", False, None),
        ("smoke", False, "smoke"),
        ("gpu", False, "gpu"),
        ("gpu", True, "gpu-cuda"),
        ("laptop", True, "laptop-cuda"),
    ],
)
def test_only_the_laptop_scale_on_the_cpu_writes_beside_the_source(monkeypatch, scale, cuda, folder):
    import torch

    monkeypatch.setenv("EDMNOTES_SCALE", scale)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert notebooks.place() == (ROOT / "_build" / "notebooks" / folder if folder else None)


def test_another_scale_leaves_the_pair_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "place", lambda: tmp_path / "aside")
    pair = write_chapter(tmp_path / "book", "print('one')")
    assert main(["run", "--book", str(tmp_path / "book")]) == 0
    assert not pair.stored.exists()
    assert "one" in (tmp_path / "aside" / "small.ipynb").read_text()


# --- nbval sees a changed number ------------------------------------------------------------------------------------


def nbval(folder: Path, package: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "-p",
        "no:cacheprovider",
        "-p",
        "conftest",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    path = f"{package.parent}:{ROOT}"  # the package first: the kernel imports this copy
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": path}
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, env=env, cwd=folder)


@pytest.mark.parametrize("changed", [False, True])
def test_a_changed_constant_of_vp_fails_nbval(copies, changed):
    """On the chapter's first cells, up to the first that prints a number of VP."""
    path = copies / "book" / "forward.ipynb"
    notebook = nbformat.read(path, as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and "VP(" in c.source and texts(c))
    notebook.cells = [c for c in notebook.cells[: last + 1] if c.cell_type == "code"]
    nbformat.write(notebook, path)
    if changed:
        replace(copies / "edmnotes" / "schedules.py", "19.9", "19.8")
    result = nbval(copies / "book", copies / "edmnotes")
    assert result.returncode == (1 if changed else 0), result.stdout
    assert ("Cell outputs differ" in result.stdout) == changed, result.stdout


def texts(cell: nbformat.NotebookNode) -> bool:
    return any(re.search(r"\d", str(o.get("text", ""))) for o in cell.outputs)

"""The check mark means the formula on the page: every displayed equation is a definition or tied to its step."""

import re
from pathlib import Path

import pytest
from sympy import Symbol
from sympy.core.function import AppliedUndef

from edmnotes.derivations.core import Step, registry
from edmnotes.derivations.latex import ReadError
from edmnotes.derivations.page import Equation, PageError, book, check, equations, tie

BOOK = Path(__file__).parents[2] / "book"
PAGES = sorted(path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.md"))
REGISTRY = registry()
EQUATIONS = {equation.label: equation for equation in book(BOOK)}
TIED = sorted(set(REGISTRY.entries) - set(REGISTRY.not_parsed))


def complaints(page: Path) -> list[str]:
    found = []
    for equation in equations(page):
        try:
            check(equation, REGISTRY)
        except PageError as error:
            found.append(str(error))
    return found


def passes(latex: str, label: str) -> bool:
    try:
        tie(latex, REGISTRY.entries[label].step)
    except (PageError, ReadError):
        return False
    return True


@pytest.mark.parametrize("name", PAGES)
def test_every_displayed_equation_is_a_definition_or_proved(name):
    for equation in equations(BOOK / name):
        check(equation, REGISTRY)


def test_every_step_and_every_definition_stands_on_a_page():
    assert not set(REGISTRY.entries) - set(EQUATIONS), "steps that no page shows"
    assert not set(REGISTRY.definitions) - set(EQUATIONS), "definitions that no page shows"


def test_at_most_one_step_in_five_is_compared_by_eye():
    assert 5 * len(REGISTRY.not_parsed) <= len(REGISTRY.entries)


LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")


def has_letters_of(latex: str, step: Step) -> bool:
    """Whether every symbol and function that the step writes has its letter in the LaTeX; without, it cannot pass.

    The arguments of functions do not count, a page may leave them out. It spares reading each definition as each of
    several hundred steps, which is slow.
    """
    functions = step.rhs.atoms(AppliedUndef)
    bare = step.rhs.atoms(Symbol) - {symbol for function in functions for symbol in function.free_symbols}
    names = [str(symbol) for symbol in bare] + [str(function.func) for function in functions]
    letters = {
        LETTER.match(name).group() for name in names if not re.match(r"[A-Za-z]{2}", name) and LETTER.match(name)
    }
    return letters <= set(LETTER.findall(latex))


def test_a_step_that_passes_has_its_letters_on_the_page():
    missing = [label for label in TIED if not has_letters_of(EQUATIONS[label].latex, REGISTRY.entries[label].step)]
    assert missing == []


@pytest.mark.parametrize("label", sorted(REGISTRY.definitions))
def test_a_definition_is_not_what_some_step_proves(label):
    latex = EQUATIONS[label].latex
    similar = [other for other, entry in REGISTRY.entries.items() if has_letters_of(latex, entry.step)]
    assert [other for other in similar if passes(latex, other)] == []


# --- the page alone is changed ----------------------------------------------------------------------------------------


def mutants(latex: str) -> list[str]:
    """The LaTeX with one sign, number 2, square root, index or dot changed, wherever there is one, or its last side."""
    swaps = [(r"\+", "-"), (r"-", "+"), (r"2", "3"), (r"\\sqrt", ""), (r"([ti])-1", r"\1"), (r"\\dot", "")]
    made = [
        latex[: match.start()] + match.expand(new) + latex[match.end() :]
        for old, new in swaps
        for match in re.finditer(old, latex)
    ]
    *rest, last = re.split(r"(?<![\w{])=", latex)
    last = last.strip().rstrip(".,: ")
    return made + ["=".join([*rest, f" {change} ({last})"]) for change in ("-", "2", "1 +")]


def test_the_mutations_find_signs_factors_roots_and_indices():
    found = mutants(r"b = 2 s_t \sqrt{\sigma_t - \dot\sigma_{t-1}} .")
    assert r"b = 2 s_t \sqrt{\sigma_t + \dot\sigma_{t-1}} ." in found
    assert r"b = 3 s_t \sqrt{\sigma_t - \dot\sigma_{t-1}} ." in found
    assert r"b = 2 s_t {\sigma_t - \dot\sigma_{t-1}} ." in found
    assert r"b = 2 s_t \sqrt{\sigma_t - \dot\sigma_{t}} ." in found
    assert r"b = 2 s_t \sqrt{\sigma_t - \sigma_{t-1}} ." in found
    assert r"b = 2 (2 s_t \sqrt{\sigma_t - \dot\sigma_{t-1}})" in found


@pytest.mark.parametrize("label", TIED)
def test_every_mutant_of_every_equation_on_a_page_is_refused(label):
    latex = EQUATIONS[label].latex
    assert passes(latex, label)
    assert [mutant for mutant in mutants(latex) if passes(mutant, label)] == []


@pytest.fixture
def copy(tmp_path):
    """A function that copies an equation's page and changes the one equation there."""

    def change(equation: Equation, old: str, new: str) -> Path:
        text = equation.path.read_text(encoding="utf8")
        assert text.count(old) == 1
        page = tmp_path / equation.path.name
        page.write_text(text.replace(old, new), encoding="utf8")
        return page

    return change


def test_a_sign_flipped_on_the_page_alone_fails(copy):
    equation = EQUATIONS["recursion-noise"]
    (complaint,) = complaints(copy(equation, equation.latex, equation.latex.replace("-", "+", 1)))
    assert f"forward.md:{equation.line} (recursion-noise)" in complaint
    assert "is not the step's" in complaint


def test_an_unlabelled_displayed_equation_fails(copy):
    (complaint,) = complaints(copy(EQUATIONS["recursion-mean"], "$$ (recursion-mean)", "$$"))
    assert "needs a label" in complaint


def test_a_label_without_a_step_fails(copy):
    (complaint,) = complaints(copy(EQUATIONS["recursion-mean"], "$$ (recursion-mean)", "$$ (recursion-average)"))
    assert "no step has this label" in complaint

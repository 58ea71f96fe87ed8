r"""Ties the LaTeX that stands on a page to the step that proves it.

:func:`equations` finds every displayed equation of a MyST page, :func:`tie` compares one with its step:

* *read*: :func:`edmnotes.derivations.latex.read` parses it, and it is compared with the step mathematically, at random
  points with 30 digits. The first member must be the step's subject, every later member its right side.
* *generated*: LaTeX that cannot be read must be, up to white space, what the step renders.
* *by eye*: what can be neither is listed in a chapter's ``NOT_PARSED`` with a reason.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from edmnotes.derivations.core import Registry, Step, VerificationError, compare
from edmnotes.derivations.latex import ReadError, SaidTwice, read

MYST = ("amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist", "tasklist")
VERBATIM = {"code-cell", "code", "code-block", "sourcecode", "literalinclude", "raw", "toctree", "bibliography"}
POINTS = 2


class PageError(ValueError):
    """An equation on a page that has no label or no proof, or does not say what its step says."""


# --- finding equations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equation:
    """A displayed equation: the page, the line it starts on, its label (empty if it has none) and its LaTeX."""

    path: Path
    line: int
    label: str
    latex: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line} ({self.label or 'no label'})"


def equations(path: Path) -> list[Equation]:
    """Return the displayed equations of a MyST page, also those inside admonitions, exercises, lists and quotations.

    Args:
        path: a ``.md`` file of the book.
    """
    return list(_displayed(path, path.read_text(encoding="utf8"), 1))


def book(folder: Path) -> list[Equation]:
    """Return the displayed equations of all pages under a folder.

    Raises:
        PageError: if two have one label.
    """
    found = [equation for path in sorted(folder.rglob("*.md")) for equation in equations(path)]
    first: dict[str, Equation] = {}
    for equation in found:
        if equation.label and first.setdefault(equation.label, equation) is not equation:
            raise PageError(f"{equation}: the label stands on {first[equation.label]} too; a label is one equation")
    return found


@cache
def _parser() -> MarkdownIt:
    return create_md_parser(MdParserConfig(enable_extensions=set(MYST)), RendererHTML)


def _displayed(path: Path, text: str, first: int) -> Iterator[Equation]:
    for token in _parser().parse(text, {}):
        line = first + (token.map[0] if token.map else 0)
        if token.type in ("math_block", "math_block_label", "amsmath"):
            yield Equation(path, line, token.info if token.type == "math_block_label" else "", token.content.strip())
        elif token.type in ("fence", "colon_fence") and (directive := re.match(r"\{([\w:-]+)\}\s*(.*)", token.info)):
            yield from _in_directive(path, token.content, line + 1, directive[1], directive[2])
        elif token.type == "inline" and _broken_display(token):
            yield Equation(path, line, "", token.content)


def _in_directive(path: Path, content: str, first: int, name: str, argument: str) -> Iterator[Equation]:
    if name == "math":
        label = re.search(r"^:label:\s*(\S+)\s*$", content, re.M)
        body = re.sub(r"^:[\w-]+:.*$", "", content, flags=re.M)
        yield Equation(path, first - 1, label[1] if label else "", f"{argument}\n{body}".strip())
    elif name == "eval-rst":
        for math in re.finditer(r"^\s*\.\. math::", content, re.M):
            yield Equation(path, first + content[: math.start()].count("\n"), "", math[0].strip())
    elif name not in VERBATIM:
        yield from _displayed(path, content, first)


def _broken_display(token: Token) -> bool:
    """Say whether ``$$`` stands inside a paragraph, where MyST takes the dollars for text."""
    children = token.children or []
    return any(
        after.type == "math_inline_double" or (after.type == "math_inline" and before.content.endswith("$"))
        for before, after in pairwise(children)
    ) or bool(children and children[0].type == "math_inline_double")


# --- tying ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tie:
    """How an equation is held: ``how`` is one of the words definition, read, generated, by eye."""

    equation: Equation
    how: str


def check(equation: Equation, registry: Registry) -> Tie:
    """Hold one displayed equation against the registry.

    Raises:
        PageError: if it has no label, no step and no reason to be a definition, or does not say what its step says.
    """
    label = equation.label
    if not label:
        raise PageError(f"{equation}: a displayed equation needs a label, '$$ ... $$ (label)':\n{equation.latex}")
    if label in registry.definitions:
        return Tie(equation, "definition")
    if label not in registry.entries:
        raise PageError(f"{equation}: no step has this label; derive it, or list it in DEFINITIONS with a reason")
    entry = registry.entries[label]
    try:
        how = tie(equation.latex, entry.step)
    except ReadError as error:
        if label in registry.not_parsed:
            return Tie(equation, "by eye")
        raise PageError(
            f"{equation}: cannot be read: {error}\n  page: {equation.latex}\n  step: {entry.step.latex()}"
        ) from None
    except PageError as error:
        raise PageError(f"{equation}, proved by {entry.function}: {error}") from None
    if label in registry.not_parsed:
        raise PageError(f"{equation}: is {how} well enough; drop it from NOT_PARSED")
    return Tie(equation, how)


def tie(latex: str, step: Step) -> str:
    """Compare LaTeX with a step.

    Args:
        latex: one equation, ``subject = side (= side ...)``.
        step: what it must say.

    Returns:
        ``"read"`` or ``"generated"``.

    Raises:
        PageError: if it says something else.
        ReadError: if it can neither be read nor is what the step renders.
    """
    try:
        members = read(latex, step)
    except ReadError:
        if _bare(latex) == _bare(step.latex()):
            return "generated"
        raise
    except SaidTwice as error:
        raise PageError(f"{error}\n  page: {latex}") from None
    for i, (member, expected) in enumerate(zip(members, [step.subject] + [step.rhs] * len(members), strict=False)):
        for k in range(0 if member == expected else POINTS):
            try:
                point, on_page, in_step, difference = compare(member, expected, step, f"page {step.label} {k}")
            except VerificationError as error:
                raise PageError(f"{error}\n  page: {latex}\n  step: {step.latex()}") from None
            if difference is not None:
                part = "left side" if i == 0 else f"member {i + 1} of {len(members)}"
                raise PageError(
                    f"the page's {part} is not the step's\n  page: {latex}\n  read: {member}\n  step: {expected}\n"
                    f"  at {point}: {on_page} against {in_step}"
                )
    return "read"


def _bare(latex: str) -> str:
    return re.sub(r"\\left|\\right|\\[,;:! ]|\s|[.,;]+$", "", latex.strip())

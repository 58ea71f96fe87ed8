"""A page's equations are found, read back and held against their steps."""

from pathlib import Path
from types import ModuleType

import pytest
from sympy import (
    Derivative,
    Eq,
    Function,
    Integral,
    Limit,
    Rational,
    Symbol,
    exp,
    oo,
    pi,
    sqrt,
    symbols,
)

from edmnotes.derivations import page
from edmnotes.derivations.core import Derivation, Step, collect, derivation, solve_for
from edmnotes.derivations.latex import ReadError
from edmnotes.derivations.page import PageError, check, equations, tie

t, u, h, y = symbols("t u h y", positive=True)
n, i = symbols("n i", integer=True, positive=True)
s, sigma, f, g, beta, snr = (Function(name) for name in ("s", r"\sigma", "f", "g", r"\beta", "SNR"))
s0, s1, v0, v1 = symbols(r"s_{t-1} s_t \sigma_{t-1} \sigma_t", positive=True)
a, b, data = symbols("a b sigma_data", positive=True)

RECURSION = r"""
# A chapter

Inline $a = 3$ needs no label.

$$
x_t = a\,x_{t-1} + b\,\varepsilon_t , \qquad \varepsilon_t \sim \mathcal N(0, I)
$$ (recursion-ansatz)

$$
a = \frac{s_t}{s_{t-1}} .
$$ (recursion-mean)

:::{admonition} Inside
:class: tip

$$
b = s_t \sqrt{\sigma_t^2 - \sigma_{t-1}^2} .
$$ (recursion-noise)
:::

```{code-cell} ipython3
print("$$ not an equation $$")
```
"""


@derivation
def recursion() -> Derivation:
    solved = solve_for([Eq(s1, a * s0), Eq(s1**2 * v1**2, a**2 * (s0 * v0) ** 2 + b**2)], [a, b])
    return Derivation(
        "One-step recursion",
        [
            Step("recursion-mean", solved[a], s1 / s0, "match the conditional means"),
            Step("recursion-noise", solved[b], s1 * sqrt(v1**2 - v0**2), "match the variances", assuming=[v1 > v0]),
        ],
    )


def registry(**more: object):
    module = ModuleType(__name__)
    module.recursion = recursion
    module.DEFINITIONS = {"recursion-ansatz": "chosen"}
    for name, value in more.items():
        setattr(module, name, value)
    return collect([module])


def written(folder: Path, text: str) -> Path:
    path = folder / "chapter.md"
    path.write_text(text, encoding="utf8")
    return path


def labels(folder: Path, text: str) -> list[str]:
    return [equation.label for equation in equations(written(folder, text))]


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_chapter_is_held_whole(tmp_path):
    found = equations(written(tmp_path, RECURSION))
    assert [(equation.line, check(equation, registry()).how) for equation in found] == [
        (6, "definition"),
        (10, "read"),
        (17, "read"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$$\na = b\n$$ (one)", ["one"]),
        ("$$a = b$$ (one)", ["one"]),
        ("$$\na = b\n$$", [""]),
        ("```{math}\n:label: one\na = b\n```", ["one"]),
        ("```{math}\na = b\n```", [""]),
        ("\\begin{align}\na &= b\n\\end{align}", [""]),
        ("- item\n\n  $$\n  a = b\n  $$ (one)\n", ["one"]),
        ("> $$\n> a = b\n> $$ (one)\n", ["one"]),
        ("````{exercise}\n:label: ex\n:::{dropdown} d\n$$\na\n$$\n:::\n````", [""]),
        ("```{eval-rst}\n.. math:: a = b\n```", [""]),
        ("Text with $$a = b$$ inside.", [""]),
        ("Text\n$$a = b$$ (one)", [""]),  # MyST takes this for text: a blank line is missing
        ("It costs $5 and $6, `$$` is code.", []),
        ("```python\n$$\na\n$$\n```", []),
        ("---\ntitle: $$\n---\n\n$$\na\n$$ (one)", ["one"]),
    ],
)
def test_every_way_to_display_is_found(tmp_path, text, expected):
    assert labels(tmp_path, text) == expected


def test_a_label_stands_on_one_page(tmp_path):
    for name in ("one.md", "two.md"):
        (tmp_path / name).write_text("$$\na = b\n$$ (same)\n", encoding="utf8")
    with pytest.raises(PageError, match=r"two.md:1 \(same\): the label stands on one.md:1"):
        page.book(tmp_path)


# --- holding ----------------------------------------------------------------------------------------------------------


def problem(folder: Path, old: str, new: str, **more: object) -> str:
    """The one complaint about the chapter once ``old`` is ``new``."""
    assert RECURSION.count(old) == 1, old
    found = []
    for equation in equations(written(folder, RECURSION.replace(old, new))):
        try:
            check(equation, registry(**more))
        except PageError as error:
            found.append(str(error))
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"\sigma_t^2 - \sigma_{t-1}^2", r"\sigma_t^2 + \sigma_{t-1}^2"),
        ("b = s_t", "b = 2 s_t"),
        ("b = s_t", "b = -s_t"),
        ("b = s_t", "b = s_{t-1}"),
        (r"\sqrt{", "{"),
        ("b = s_t", "a = s_t"),
        ("b = s_t", "b^2 = s_t"),
        (r"\frac{s_t}{s_{t-1}}", r"\frac{s_t}{s_t}"),
        (r"\frac{s_t}{s_{t-1}}", r"\frac{s_t}{s_{t+1}}"),
        (r"\frac{s_t}{s_{t-1}}", r"\frac{s_{t-1}}{s_t}"),
        (r"a = \frac{s_t}{s_{t-1}} .", r"a = \frac{s_t}{s_{t-1}} = \frac{s_t}{2 s_{t-1}} ."),
        (r"a = \frac{s_t}{s_{t-1}} .", r"a = a ."),
    ],
)
def test_a_page_that_says_something_else_is_refused(tmp_path, old, new):
    assert "chapter.md:" in problem(tmp_path, old, new)


def test_the_complaint_names_page_line_label_function_and_both_expressions(tmp_path):
    message = problem(tmp_path, "b = s_t", "b = 2 s_t")
    assert f"chapter.md:17 (recursion-noise), proved by {__name__}.recursion" in message
    assert r"page: b = 2 s_t \sqrt" in message
    assert "read: 2*s_t*sqrt(" in message
    assert "step: s_t*sqrt(" in message


def test_an_unlabelled_equation_is_refused(tmp_path):
    assert "needs a label" in problem(tmp_path, "$$ (recursion-mean)", "$$")


def test_a_label_without_a_step_is_refused(tmp_path):
    assert "no step has this label" in problem(tmp_path, "(recursion-mean)", "(recursion-average)")


def test_what_cannot_be_read_must_be_listed_with_a_reason(tmp_path):
    unreadable = (r"a = \frac{s_t}{s_{t-1}} .", r"\mathbb E[a] = \frac{s_t}{s_{t-1}} .")
    assert "cannot be read: " in problem(tmp_path, *unreadable)
    path = written(tmp_path, RECURSION.replace(*unreadable))
    listed = registry(NOT_PARSED={"recursion-mean": "an expectation"})
    assert [check(equation, listed).how for equation in equations(path)] == ["definition", "by eye", "read"]


def test_the_excuse_is_refused_for_what_can_be_read(tmp_path):
    equation = equations(written(tmp_path, RECURSION))[1]
    with pytest.raises(PageError, match="drop it from NOT_PARSED"):
        check(equation, registry(NOT_PARSED={"recursion-mean": "lazy"}))


def test_generated_latex_stands_in_for_what_cannot_be_read():
    step = Step("abs", Derivative(a * abs(Symbol("z", real=True)), a), abs(Symbol("z", real=True)), "linear")
    assert tie(step.latex(), step) == "generated"
    with pytest.raises(ReadError):
        tie(step.latex().replace("z", "y"), step)


def test_aligned_rows_go_on_with_an_equals_sign():
    step = Step("x", Derivative(t**2, t), 2 * t, "w", name=g(t))
    assert tie(r"\begin{aligned} g(t) &= 2 t \\ &= t + t . \end{aligned}", step) == "read"
    with pytest.raises(ReadError, match="several statements"):
        tie(r"\begin{aligned} g(t) &= 2 t \\ f &= t \end{aligned}", step)


def test_the_first_member_is_the_name_or_the_computed_side():
    named = Step("drift", Limit((s(t + h) / s(t) - 1) / h, h, 0), s(t).diff(t) / s(t), "limit", name=f(t))
    for latex in (r"f(t) = \frac{\dot s(t)}{s(t)}", r"f = \frac{\dot s}{s} = \frac{\mathrm d}{\mathrm d t} \log s(t)"):
        assert tie(latex, named) == "read"
    for latex in (r"g(t) = \frac{\dot s(t)}{s(t)}", r"\frac{\dot s}{s} = \frac{\mathrm d}{\mathrm d t} \log s(t)"):
        with pytest.raises((PageError, ReadError)):
            tie(latex, named)
    computed = Step(
        "power",
        s(t) ** 2 + s(t) ** 2 * sigma(t) ** 2,
        Rational(1),
        "VP",
        given={sigma(t): sqrt(s(t) ** -2 - 1), s(t): exp(-t)},
    )
    assert tie(r"s(t)^2 \left(1 + \sigma(t)^2\right) = 1", computed) == "read"
    with pytest.raises(PageError, match="left side is not the step's"):
        tie(r"s(t)^2 \left(1 - \sigma(t)^2\right) = 1", computed)


def test_infinity_is_read():
    step = Step("gauss", Integral(exp(-(u**2) / 2), (u, -oo, oo)), sqrt(2 * pi), "Gauss")
    assert tie(r"\int_{-\infty}^{\infty} e^{-u^2/2}\, du = \sqrt{2\pi}", step) == "read"

"""The book's LaTeX is read back, and what is doubtful is not."""

import pytest
from sympy import (
    Derivative,
    Function,
    IndexedBase,
    Integral,
    Product,
    Rational,
    Sum,
    Symbol,
    exp,
    log,
    pi,
    simplify,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Step, compare
from edmnotes.derivations.latex import ReadError, read

t, u, h, y = symbols("t u h y", positive=True)
n, i = symbols("n i", integer=True, positive=True)
s, sigma, beta, snr = (Function(name) for name in ("s", r"\sigma", r"\beta", "SNR"))
s0, v0, v1, data = symbols(r"s_{t-1} \sigma_{t-1} \sigma_t sigma_data", positive=True)


def sees(*expressions):
    """A step that knows the symbols of these expressions."""
    return Step("x", sum(expressions, Rational(0)), Rational(0), "to know its symbols")


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"1 \cdot s(t)", s(t)),  # a product that collapses onto a function
        (r"\sigma(t)^2", sigma(t) ** 2),
        (r"\sigma^2(t)", sigma(t) ** 2),
        (r"\sigma\left(t\right)^{2}", sigma(t) ** 2),
        (r"\dot\sigma(t)\,\sigma(t)", sigma(t) * sigma(t).diff(t)),
        (r"\dot{\sigma}(t)^2", sigma(t).diff(t) ** 2),
        (r"\dot\sigma\sigma", sigma(t) * sigma(t).diff(t)),
        (r"\frac{\dot s}{s}", s(t).diff(t) / s(t)),
        (r"s'(t)", s(t).diff(t)),
        (r"\ddot s(t)", s(t).diff(t, 2)),
        (r"\frac{\mathrm d}{\mathrm d t} s(t)", s(t).diff(t)),
        (r"\frac{\mathrm{d}}{\mathrm{d}t}\left(s(t)^2\right)", (s(t) ** 2).diff(t)),
        (r"\frac{\mathrm d s(t)}{\mathrm d t}", s(t).diff(t)),
        (r"\frac{d \log s(t)}{dt}", log(s(t)).diff(t)),
        (r"\frac{\partial}{\partial t} s(t)", s(t).diff(t)),
        (r"\int_0^t \beta(u)\,\mathrm d u", Integral(beta(u), (u, 0, t))),
        (r"\int_0^t\beta(u)\,du", Integral(beta(u), (u, 0, t))),
        (r"\int_0^t \frac{du}{\beta(u)}", Integral(1 / beta(u), (u, 0, t))),
        (r"\exp\left(-\tfrac12 \int_0^t \beta(u)\, \mathrm d u\right)", exp(-Integral(beta(u), (u, 0, t)) / 2)),
        (r"e^{-t/2}", exp(-t / 2)),
        (r"\mathrm e^{-t}", exp(-t)),
        (r"t(t + 1)", t * (t + 1)),
        (r"2(t + 1)t", 2 * (t + 1) * t),
        (r"\sqrt t", sqrt(t)),
        (r"\sqrt{2 t}", sqrt(2 * t)),
        (r"\sqrt[3]{t}", t ** Rational(1, 3)),
        (r"\sqrt{2\pi}\,t", sqrt(2 * pi) * t),
        (r"\log t^2", log(t**2)),
        (r"\ln(t)\,t", log(t) * t),
        (r"\bigl(t + 1\bigr)^2", (t + 1) ** 2),
        (r"\left[t + 1\right]^2", (t + 1) ** 2),
        (r"\frac12 t", t / 2),
        (r"\frac t2", t / 2),
        (r"0.5\,t", t / 2),
        (r"t/2 + 1", t / 2 + 1),
        (r"\sigma_{\text{data}}^2", data**2),
        (r"\sigma_\mathrm{data}^2", data**2),
        (r"\sigma^2_{\text{data}}", data**2),
        (r"s_{t-1}", s0),
        (r"s_{t - 1}^2", s0**2),
        (r"\sigma_t \sigma_{t-1}", v0 * v1),
        (r"\operatorname{SNR}(t)", snr(t)),
        (r"\mathrm{SNR}(t)", snr(t)),
        (r"\lim_{h \to 0} \frac{s(t + h) - s(t)}{h}", s(t).diff(t)),
        (r"\lim_{h \to 0^+} \frac{(t + h)^2 - t^2}{h}", 2 * t),
        (r"\lim_{n\to\infty} \left(1 + \frac{t}{n}\right)^n", exp(t)),
        (r"\prod_{i=1}^{n} \left(1 + \beta_i\right)", Product(1 + IndexedBase(r"\beta")[i], (i, 1, n))),
        (r"\sum_{i=1}^n \beta_{i-1} t", Sum(IndexedBase(r"\beta")[i - 1] * t, (i, 1, n))),
    ],
)
def test_the_books_notation_is_read(latex, expected):
    known = sees(expected, t, h, n, data) if not expected.has(beta(u)) else sees(expected, t)
    (_, member) = read(f"0 = {latex}", known)
    step = Step("x", Derivative(t, t), Rational(1), "w")
    assert compare(member, expected, step, "seed")[3] is None
    assert compare(member, expected + Rational(1, 10**9), step, "seed")[3] is not None


x, d, w = symbols("x d w", real=True)
density, score = Function("p_t"), Function("D")


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\frac{\partial^2}{\partial x^2}\left(x p_t\right)", (x * density(x, t)).diff(x, 2)),
        (r"\frac{\partial^2 p_t}{\partial x^2}", density(x, t).diff(x, 2)),
        (r"\frac{d^{3} p_t}{dx^{3}}", density(x, t).diff(x, 3)),
        (r"\frac{\partial p_t}{\partial t}", density(x, t).diff(t)),
        (r"\nabla \log p_t", log(density(x, t)).diff(x)),
        (r"t \left[\nabla p_t\right] x", t * x * density(x, t).diff(x)),
        (r"D(x; t)", score(x, t)),
        (r"D(x/t; \sigma)", score(x / t, sigma(t))),
        (r"x\, \mathrm d t + t\, \mathrm d w", d * t * x + d * w * t),  # where d is a symbol of the step
    ],
)
def test_densities_and_their_equations_are_read(latex, expected):
    known = [density(x, t), score(x, t), sigma(t)] + [d, w] * expected.has(d)
    (_, member) = read(f"0 = {latex}", sees(expected, *known))
    assert simplify(member - expected) == 0


@pytest.mark.parametrize(
    ("latex", "message"),
    [
        (r"\frac{\partial^2 p_t}{\partial x}", "above and below"),
        (r"\frac{\partial^2 p_t}{\partial x^3}", "above and below"),
        (r"\frac{\partial^2 p_t}{\partial x \partial t}", "above and below"),
        (r"\nabla \log p_t\, x", "doubtful product"),
        (r"\nabla", "of nothing"),
    ],
)
def test_doubtful_derivatives_are_not_read(latex, message):
    with pytest.raises(ReadError, match=message):
        read(f"0 = {latex}", sees(density(x, t)))


def test_accents_and_indices_are_part_of_the_name():
    bar, hat, minimum = symbols(r"\bar\alpha_t \hat{x}_0 \beta_{\min}")
    skip = Function(r"c_{\text{skip}}")
    step = sees(bar, hat, minimum, skip(t))
    latex = r"\bar{\alpha}_t + \hat x_0 = \beta_{\min} c_{\mathrm{skip}}(t) + \beta_{min}"
    left, right = read(latex, step)
    assert left == bar + hat
    assert simplify(right - minimum * skip(t) - minimum) == 0


@pytest.mark.parametrize(
    ("latex", "message"),
    [
        (r"t \approx t", "no equality"),
        (r"t \le 1", "no equality"),
        ("t + 1", "no equals sign"),
        ("t = ", "no equals sign"),
        (r"t = 1/2t", "doubtful product"),
        (r"t = \log t y", "doubtful product"),
        (r"t = \frac{d}{dt} t\, y", "doubtful product"),
        (r"t = z", "z is unknown to the step"),
        (r"t = \nabla t", r"nabla.*unknown"),
        (r"t = |t|", "unknown"),
        (r"t = 1, y = 2", "',' is unknown|no equals"),
        (r"t = 1 , \quad y > 0", "no equality|several"),
        (r"t = 1 \qquad y", "several statements"),
        (r"t = (t", "never closed"),
        (r"t = \frac{t", "brace is never closed"),
        (r"t = t}", "never opened"),
        (r"t = \log^2 t", "plain argument"),
        (r"t = 2\,3", "two numbers"),
        (r"t = \sum_i t", "first index"),
        (r"t = t)", "gives up|unknown"),
        (r"t = t^", "missing|nothing after"),
    ],
)
def test_what_is_doubtful_is_not_read(latex, message):
    with pytest.raises(ReadError, match=message):
        read(latex, sees(t * y))


def test_a_bare_function_with_two_arguments_in_the_step_is_doubtful():
    with pytest.raises(ReadError, match="could be any of"):
        read(r"\sigma = 1", sees(sigma(t), sigma(u)))


def test_two_things_of_one_name_are_doubtful():
    with pytest.raises(ReadError, match="two things named t"):
        read("t = 1", sees(t, Symbol("t")))

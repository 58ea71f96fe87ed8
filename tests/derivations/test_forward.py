"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

from dataclasses import replace

import pytest
from sympy import Rational, Symbol, exp, simplify, sqrt, symbols

from edmnotes.derivations import forward
from edmnotes.derivations.core import VerificationError, registry

t, h = forward.t, forward.h
x, y = symbols("x y")
s0, s1, level0, level1 = symbols(r"s_{t-1} s_t \sigma_{t-1} \sigma_t", positive=True)
beta_h = Symbol(r"\beta", positive=True) * h
scale, sigma, drift = forward.s(t), forward.sigma(t), forward.f(t)
r, theta = forward.r, forward.theta(t)


def test_expectation_of_a_polynomial_in_independent_variables():
    moments = {x: {1: Rational(2), 2: Rational(5)}, y: {1: Rational(0), 2: Rational(1)}}
    assert forward.expectation((x + 3 * y) ** 2 + x * y + 7, moments) == 5 + 9 + 7


@pytest.mark.parametrize(("order", "moment"), [(1, 0), (2, 1), (3, 0), (4, 3)])
def test_normal_moments(order, moment):
    assert forward.normal_moment(order).doit() == moment


def test_taylor_keeps_the_order_of_its_remainder():
    assert forward.taylor(exp(h), 2).doit() == 1 + h + h**2 / 2 + forward.remainder(h**3)


def test_start_is_data_without_noise():
    assert forward.START[forward.s(t)].subs(t, 0) == 1
    assert forward.START[forward.sigma(t)].subs(t, 0) == 0


def test_the_closed_forms_of_vp_keep_its_constraint():
    alpha_bar = forward.VP_ALPHA_BAR[forward.alpha_bar(t)]
    closed = [forward.VP[f].subs(forward.alpha_bar(t), alpha_bar) for f in (scale, sigma)]
    assert simplify(closed[0] ** 2 * (1 + closed[1] ** 2)) == 1


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("noised-variance", scale**2 * forward.v + sigma**2),  # σ read as the actual standard deviation
        ("noised-variance", scale * (forward.v + sigma**2)),
        ("snr", forward.P * scale**2 / sigma**2),
        ("recursion-noise", s1 * (level1 - level0)),  # the square of a difference
        ("recursion-noise", s0 * sqrt(level1**2 - level0**2)),
        ("diffusion-from-sigma", scale * sqrt(sigma * forward.Derivative(sigma, t))),  # the 2 of d(σ²) lost
        ("quadratic-variation-spread", forward.T**2 / Symbol("n", integer=True, positive=True)),
        ("variance-ode", drift * forward.Function("V", positive=True)(t) + forward.g(t) ** 2),
        ("vp-alpha-bar", exp(-forward.beta_min * t + forward.beta_d * t**2 / 2)),  # the lost bracket
        ("vp-drift", -forward.beta(t)),
        ("vp-sigma", sqrt(1 - forward.alpha_bar(t))),  # the actual standard deviation in place of the relative one
        ("ddpm-taylor", 1 - beta_h / 2 + forward.remainder(h**3)),  # √(1 − β) "is" 1 − β/2
        ("ddpm-log", -beta_h + forward.remainder(h**3)),
        ("vp-variance", Rational(1)),  # preserved whatever the data
        ("geometric-ve-diffusion", sigma * sqrt(forward.log(forward.sigma_max / forward.sigma_min))),
        ("sigma-from-start", forward.Integral(forward.g(r) ** 2 / forward.s(r) ** 2, (r, 0, t))),  # starts at 0
        ("cosine-beta", forward.tan(theta) * forward.Derivative(theta, t)),  # the 2 of the square lost
        ("cosine-angle", forward.pi / 2 * t),
        ("cosine-sigma", forward.tan(theta)),  # the offset forgotten
        ("flow-sigma", t),  # the actual standard deviation in place of the relative one
        ("flow-drift", Rational(-1)),  # the slope of s, not divided by s
        ("flow-diffusion", sqrt(2 * t / (1 - t) ** 3)),  # the factor s forgotten
    ],
)
def test_a_common_mistake_is_refused(label, wrong):
    step = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(step, rhs=wrong, torch=()).verify()

"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

from dataclasses import replace
from itertools import pairwise

import pytest
from sympy import Rational, cos, pi, simplify, sin, sqrt, symbols, tan

from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.ddim import (
    D,
    alpha_bar0,
    alpha_bar1,
    beta,
    c,
    covariance,
    eps,
    eps1,
    eps2,
    eta,
    gaussian_factor,
    j,
    k,
    length,
    level0,
    level1,
    nu,
    omega0,
    omega1,
    s,
    s0,
    s1,
    sigma,
    t,
    theta,
    theta0,
    theta1,
    v,
    w,
    x0,
    x_t,
)

x = symbols("x", real=True)
point, omega = symbols(r"x \omega", positive=True)
before = symbols("x_{t-1}", real=True)


def right_side(label):
    return registry().entries[label].step.rhs


def test_the_covariance_of_two_linear_forms():
    assert simplify(covariance(x0 + 2 * eps1 + 3 * eps2, x0 + 5 * eps1 - eps2) - 7) == 0


def test_a_whole_chain_of_the_family_keeps_every_law_and_no_joint_law_but_one():
    """Five steps by matrices, from the printed factors alone: variances are ω² at each level, whatever the noise."""
    scales = [Rational(9 - i, 10) for i in range(6)]
    actual = [Rational(1 + 2 * i, 7) for i in range(6)]
    correlations = []
    for share in (Rational(0), Rational(1, 2), Rational(9, 10)):
        mean, variance, shared, kept = scales[5], actual[5] ** 2, actual[5], Rational(1)
        for low, high in pairwise(range(5, -1, -1)):
            here = {omega0: actual[high], omega1: actual[low], s0: scales[high], s1: scales[low]}
            here[c] = share * actual[high]
            factor = right_side("family-factor").subs(here)
            mean = factor * mean + right_side("family-share").subs(k, factor).subs(here)
            variance = factor**2 * variance + here[c] ** 2
            shared *= factor  # the covariance with the first of the five, over its standard deviation
            kept *= right_side("family-correlation").subs(here)
            assert simplify(mean - scales[high]) == 0
            assert simplify(variance - actual[high] ** 2) == 0
            assert simplify(shared / actual[high] - kept) == 0
        correlations.append(float(kept))
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] == 1
    assert correlations[-1] < 0.02


def test_the_markov_member_has_the_variance_of_the_ancestral_step():
    """Against the formula of the chapter on stochastic sampling, written there with the forward chain's a and b."""
    a, b = s1 / s0, s1 * sqrt(level1**2 - level0**2)
    ancestral = registry().entries["ancestral-std"].step
    printed = ancestral.rhs.subs({symbol: {"a": a, "b": b}[str(symbol)] for symbol in symbols("a b", positive=True)})
    assert simplify(printed**2 - right_side("family-markov") ** 2) == 0


def test_a_run_of_ddim_steps_on_a_gaussian_ends_at_the_product_of_cosines():
    """From numbers only: the factors multiplied, against the cosines multiplied; the last step ends at level 0."""
    angles = [Rational(14, 10), Rational(1), Rational(6, 10), Rational(2, 10), Rational(0)]
    levels = [sqrt(v) * tan(angle) for angle in angles]
    factors = [gaussian_factor(high, low) if low != 0 else v / (v + high**2) for high, low in pairwise(levels)]
    run, cosines = Rational(1), Rational(1)
    for factor, (high, low) in zip(factors, pairwise(angles), strict=True):
        run, cosines = run * factor, cosines * right_side("ddim-angle").subs({theta1: high, theta0: low})
    exact = sqrt(v / (v + levels[0] ** 2))
    ratio = float((run / exact).subs(v, Rational(1, 4)).evalf(30))
    assert ratio == pytest.approx(float(cosines.evalf(30)), rel=1e-15)


ONE_MISTAKE = [
    ("family-mean", s1 * x0),  # the law of the level one comes from
    ("family-variance", omega0**2 - c**2),
    ("family-factor", sqrt(omega0**2 - c**2) / s1),
    ("family-factor", (omega0 - c) / omega1),  # the difference of standard deviations
    ("family-factor", sqrt(omega0**2 - omega1**2)),  # k² added to the variance, not multiplied by it
    ("family-share", s0 - s1),
    ("family-share", s0 + k * s1),
    ("family-correlation", 1 - c**2 / omega0**2),
    ("family-correlation", sqrt(1 - c**2 / omega1**2)),
    ("family-forward", s1 * x0 + k * (before - s0 * x0)),  # the backward step's factor
    ("family-forward", k * omega1**2 / omega0**2 * before),  # "the forward step is Markov"
    ("family-markov", s1 * level1 * sqrt(1 - level0**2 / level1**2)),  # the noise of the forward step
    ("family-markov", s0 * level0 * (1 - level0 / level1)),
    ("ddim-eta-chain", eta * (1 - alpha_bar0) / (1 - alpha_bar1) * (1 - alpha_bar1 / alpha_bar0)),
    ("ddim-eta-chain", eta**2 * (1 - alpha_bar1) / (1 - alpha_bar0) * (1 - alpha_bar1 / alpha_bar0)),
    ("ddim-eta-chain", eta**2 * (1 - alpha_bar1 / alpha_bar0)),  # β for β̃
    ("ddim-eta-bound", Rational(1)),
    ("ddim-eta-bound", 1 / (1 - level0**2 / level1**2)),
    ("family-loss", (x0 - D) ** 2 / (2 * c**2)),  # the factor of the clean point forgotten
    ("family-loss", j**2 / c**2 * (x0 - D) ** 2),
    ("family-weight", (1 / level1**2 - 1 / level0**2) / 2),
    ("family-weight", 1 / level0**2 - 1 / level1**2),
    ("ddim-step", s0 * D + omega0 * nu + c * eps),  # fresh noise on top of all that is there
    ("ddim-step", s0 * D + (omega0 - c) * nu + c * eps),
    ("ddim-step", D + sqrt(omega0**2 - c**2) * nu + c * eps),
    (
        "ddim-step-chain",
        (x_t - sqrt(1 - alpha_bar1) * nu) / sqrt(alpha_bar1) + sqrt(1 - alpha_bar0 - c**2) * nu + c * eps,
    ),
    ("ddim-euler", x_t / s1 + (level1 - level0) * nu),  # noise put in
    ("ddim-euler", x_t / s1 + (omega0 - omega1) * nu),  # the actual noise for the relative one
    (
        "ddim-limit-drift",
        s(t).diff(t) / s(t) * x + (1 + eta) * sigma(t).diff(t) / sigma(t) * (x - s(t) * D),  # η for its square
    ),
    ("ddim-limit-drift", s(t).diff(t) / s(t) * x + sigma(t).diff(t) / sigma(t) * (x - s(t) * D)),  # the ODE's
    ("ddim-limit-noise", eta * 2 * s(t) ** 2 * sigma(t) * sigma(t).diff(t)),
    ("ddim-limit-noise", eta**2 * s(t) ** 2 * sigma(t) * sigma(t).diff(t)),
    ("vp-euler", (1 - beta * symbols("h", positive=True) / 2) * point),
    ("vp-ddim-difference", Rational(0) * point),  # "DDIM is Euler on the VP ODE"
    ("vp-ddim-difference", beta**2 / 8 * (point - nu / omega)),
    ("ddim-gaussian", v / (v + level1**2)),
    ("ddim-gaussian", (v + level0**2) / (v + level1**2)),  # the exact one's square
    ("ddim-loss-of-variance", Rational(0) * v),
    ("ddim-loss-of-variance", v * (level1**2 - level0**2) / ((v + level0**2) * (v + level1**2))),
    ("ddim-angle", cos(theta0 + theta1)),
    ("ddim-angle", cos(theta1) / cos(theta0)),
    ("ddim-two-steps", (cos(theta1 - theta0) + cos(theta1 + theta0 - theta)) / 2),
    ("ddim-round-trip", Rational(1) + 0 * v),  # "DDIM can be inverted exactly"
    ("ddim-round-trip", 1 + v * (level1 - level0) ** 2 / ((v + level0**2) * (v + level1**2))),
    ("sigma-hat-excess", (alpha_bar0 - alpha_bar1) / (alpha_bar0 * (1 - alpha_bar1))),
    ("sigma-hat-excess", 1 - alpha_bar1 / alpha_bar0),  # all of the noise
    ("linear-length", (1 - 2 * w * (1 - w)) * length**2),  # right for latents at a right angle only
    ("linear-length", length**2),
    ("slerp-length", length**2 * cos(theta) ** 2),
    ("slerp-length", length**2 * sin(theta) ** 2),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    entry = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(entry, rhs=wrong, torch=()).verify()


def test_every_step_of_the_chapter_is_mistaken_once():
    names = registry().entries
    steps = {label for label in names if names[label].function.startswith("edmnotes.derivations.ddim.")}
    assert {label for label, _ in ONE_MISTAKE} == steps


def test_latents_at_a_right_angle_lose_half_their_square_on_the_line_and_nothing_on_the_arc():
    middle = {w: Rational(1, 2), theta: pi / 2, length: Rational(8)}
    assert right_side("linear-length").subs(middle) == 32
    assert right_side("slerp-length").subs(middle) == 64

"""The chapter's own helper, and the mistakes that its formulas are most often written with: each must be refused."""

import math
from dataclasses import replace

import pytest
from sympy import Rational, Symbol, log, sqrt, tanh

from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.guidance import (
    D,
    D_y,
    G,
    a,
    alpha_bar,
    c,
    k,
    level,
    m,
    nu,
    nu_y,
    phi,
    scale,
    tilted_step,
    told,
    top,
    v,
    x,
    x_t,
    y,
)

sigma = Symbol(r"\sigma", positive=True)
slope = log(phi).diff(x)


def test_a_step_without_a_potential_is_left_alone():
    peak, width = tilted_step(Rational(0) * y)
    assert peak.value == m
    assert width == c**2


def test_the_shifted_step_is_what_a_sum_over_a_fine_grid_finds():
    """Mean of N(m, c²) times a bent potential by summation, without completing any square."""
    numbers = {m: Rational(1, 5), c: Rational(1, 3), G: Rational(3, 2), k: Rational(-2)}
    stated = float(registry().entries["chain-shift-exact"].step.rhs.subs(numbers))
    grid = [i / 500 - 4 for i in range(4001)]
    weights = [math.exp(-((u - 0.2) ** 2) * 4.5 + 1.5 * (u - 0.2) - (u - 0.2) ** 2) for u in grid]
    assert sum(w * u for w, u in zip(weights, grid, strict=True)) / sum(weights) == pytest.approx(stated, abs=1e-6)


rate = (1 - scale) / (v + sigma**2) + scale / (told + sigma**2)
ONE_MISTAKE = [
    ("guidance-bayes", slope),  # the prior forgotten
    ("guided-denoiser", D + level * slope),  # σ for σ²
    ("guided-denoiser", D - level**2 * slope),
    ("guided-noise", nu + level * slope),
    ("guided-noise", nu - slope),
    ("guided-noise-chain", nu - (1 - alpha_bar) * G),  # the variance for the standard deviation
    ("guided-noise-chain", nu - sqrt(1 - alpha_bar) / sqrt(alpha_bar) * G),  # σ, with a gradient in x_t
    ("chain-shift", m + c * G),  # the printed noise without its square
    ("chain-shift", m - c**2 * G),
    ("chain-shift-exact", m + c**2 * G),  # the shift of a straight potential
    ("chain-shift-exact", m + c**2 * G / (1 + c**2 * k)),
    ("chain-width-exact", c**2),  # the width is not left alone
    ("chain-shift-error", c**2 * k * G / (1 - c**2 * k)),
    ("gradient-at-start", c**2 * k * (m - x_t)),
    ("extrapolated-denoiser", D_y + scale * (D_y - D)),  # the paper's w for Ω
    ("extrapolated-noise", (1 + scale) * nu_y - scale * nu),
    ("two-point-guided", tanh(x / level**2 + scale * a)),  # "guidance draws the scaled posterior"
    ("two-point-tilted", tanh(x / level**2 + a)),
    ("two-point-tilted", scale * tanh(x / level**2 + a)),
    ("guided-slope", sigma * rate * x + sigma * scale * m / (told + sigma**2)),
    ("guided-slope", sigma * rate * x - sigma * m / (told + sigma**2)),
    ("guided-flow", (v / (v + top**2)) ** (1 - scale) * (told / (told + top**2)) ** scale),  # the root left out
    ("guided-width", v ** (1 - scale) * told**scale),  # the variance
    ("guided-width", 1 / sqrt(scale / told + (1 - scale) / v)),  # the scaled posterior's
    ("tilted-variance", v ** (1 - scale) * told**scale),  # the ODE's
    ("tilted-mean", scale * m),  # right for equal variances only
    ("guided-mean", m),
    ("guided-mean", scale * m * sqrt(v)),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    entry = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(entry, rhs=wrong, torch=()).verify()

"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

import math
from dataclasses import replace

import pytest
from sympy import Derivative, Rational, Symbol, log, simplify, sqrt, symbols

from edmnotes.derivations import ddpm
from edmnotes.derivations.core import VerificationError, collect
from edmnotes.derivations.ddpm import (
    CHAIN,
    LEVELS,
    MISS,
    VARIANCE,
    C,
    S,
    alpha,
    alpha_bar,
    before,
    beta,
    c,
    divergence,
    earlier,
    eps,
    guess,
    level0,
    level1,
    m,
    mean,
    posterior,
    rate,
    sigma,
    t,
    turn,
    varrho,
    x0,
    x_t,
)
from edmnotes.samplers import ChainStep

STEPS = {label: entry.step for label, entry in collect([ddpm]).entries.items()}

x = Symbol("x", real=True)
h, b, product = symbols(r"h \beta \bar\alpha", positive=True)
i, j = symbols(r"\bar\alpha_i \bar\alpha_j", positive=True)
AT = {alpha: Rational(4, 5), earlier: Rational(2, 3)}


def at(expression):
    """A number: an expression of the chain's letters at one point."""
    return float(expression.subs(LEVELS).subs(CHAIN).subs(AT))


def test_the_divergence_of_equal_laws_is_none():
    assert divergence(posterior, Rational(0), posterior) == 0
    assert simplify(divergence(posterior, MISS, posterior) - MISS / (2 * posterior)) == 0


def test_the_mean_goes_from_the_clean_point_to_the_noisy_one():
    """With no noise before the step it is the clean point; with no noise in the step the noisy one."""
    assert simplify(mean(x0).subs(CHAIN).subs(earlier, 1)) == x0
    assert simplify(mean(x0).subs(CHAIN).subs(alpha, 1)) == x_t


def test_the_posterior_is_the_conditional_of_the_joint_normal_law():
    """By the covariances of x_{t−1} and x_t given x_0, without completing a square."""
    own, shared = 1 - earlier, sqrt(alpha) * (1 - earlier)  # the variance of x_{t−1}, its covariance with x_t
    slope = shared / (1 - alpha_bar)
    centre = sqrt(earlier) * x0 + slope * (x_t - sqrt(alpha_bar) * x0)
    assert simplify((centre - STEPS["chain-posterior-mean"].rhs).subs(CHAIN)) == 0
    assert simplify((own - slope * shared - STEPS["chain-posterior-variance"].rhs).subs(CHAIN)) == 0


def test_the_samplers_step_has_the_letters_of_the_book():
    step = ChainStep(at(level1), at(level0))
    assert step.alpha_bar == pytest.approx(at(alpha_bar), rel=1e-14)
    assert step.alpha == pytest.approx(at(alpha), rel=1e-14)
    assert step.beta == pytest.approx(at(beta), rel=1e-14)
    for label in ("chain-posterior-variance", "chain-point-variance"):
        expected = at(STEPS[label].rhs.subs(posterior, VARIANCE))
        assert step.posterior == pytest.approx(expected, rel=1e-14)


def test_a_stride_is_its_steps_in_one():
    """From i over k to j the forward variances add up as those of two steps do."""
    k = Symbol(r"\bar\alpha_k", positive=True)
    stride = STEPS["chain-stride"].rhs
    first, second = stride.subs(i, k), stride.subs(j, k)
    assert simplify(stride - (1 - (1 - first) * (1 - second))) == 0


def test_the_gain_of_the_best_variance_is_the_bounds_own_difference():
    """By a plain minimum over numbers, without a derivative."""
    squared, miss = 0.3, 0.2
    share = [float(divergence(Rational(3, 10), Rational(1, 5), Rational(n, 1000))) for n in range(301, 900, 4)]
    gain = STEPS["learned-variance-gain"].rhs.subs({posterior: squared, varrho: miss})
    start = float(divergence(Rational(3, 10), Rational(1, 5), Rational(3, 10)))
    assert start - min(share) == pytest.approx(float(gain), rel=1e-3)
    assert 301 + 4 * min(range(len(share)), key=share.__getitem__) == pytest.approx(500, abs=4)
    assert math.isclose(start, miss / (2 * squared))


SIMPLE = (x_t - beta / sqrt(1 - alpha_bar) * eps) / sqrt(alpha)
ONE_MISTAKE = [
    ("chain-marginal", sqrt(1 - alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps),  # the signal with the noise's factor
    ("chain-marginal", sqrt(alpha_bar) * x0 + (1 - alpha_bar) * eps),
    ("chain-marginal-variance", beta),
    ("chain-posterior-precision", 1 / beta + 1 / (1 - earlier)),  # the step's own factor forgotten
    ("chain-posterior-variance", beta),
    ("chain-posterior-variance", (1 - alpha_bar) * (1 - earlier) / (1 - alpha_bar)),  # ᾱ_t for α_t
    (
        "chain-posterior-mean",  # √β x_0 with ᾱ_t for α_t
        (sqrt(alpha) * (1 - earlier) * x_t + sqrt(beta) * (1 - alpha_bar) * x0) / (1 - alpha_bar),
    ),
    ("chain-posterior-mean", x_t - beta * x0),
    ("chain-posterior", (before - m) ** 2 / beta),
    ("chain-mean-noise", x_t - eps),  # "subtract the noise"
    ("chain-mean-noise", (x_t - sqrt(alpha) * beta / sqrt(1 - alpha_bar) * eps) / sqrt(alpha)),
    ("chain-mean-noise", (x_t - beta / sqrt(1 - earlier) * eps) / sqrt(alpha)),
    ("chain-mean-score", (x_t + beta / 2 * S) / sqrt(alpha)),  # the ODE's half
    ("chain-mean-score", (2 - sqrt(alpha)) * x_t + beta * S),  # the reverse chain: equal to first order only
    ("chain-mean-v", sqrt(alpha) * x_t - sqrt(alpha_bar) * beta / sqrt(1 - alpha_bar) * turn),
    ("chain-bridge-mean", x0 + level0 / level1 * (x_t / sqrt(alpha_bar) - x0)),  # DDIM's factor
    ("chain-bridge-variance", level1**2 - level0**2),  # forwards
    ("chain-x0-from-noise", (x_t - (1 - alpha_bar) * eps) / sqrt(alpha_bar)),
    ("chain-x0-from-noise", (x_t - sqrt(1 - alpha_bar) * guess) / sqrt(alpha_bar)),
    ("chain-score", -eps),
    ("chain-score", -eps / (1 - alpha_bar)),
    ("chain-x0-from-score", x_t + (1 - alpha_bar) * S),  # the unscaled formula
    ("chain-v", sqrt(alpha_bar) * eps + sqrt(1 - alpha_bar) * x0),
    ("chain-x0-from-v", sqrt(alpha_bar) * x_t + sqrt(1 - alpha_bar) * turn),
    ("chain-noise-from-v", sqrt(alpha_bar) * x_t + sqrt(1 - alpha_bar) * turn),
    ("chain-kl", MISS / (2 * c**2)),  # right for equal variances only
    ("chain-kl", (log(c / posterior) + (posterior + MISS) / c**2 - 1) / 2),
    ("chain-loss-weight", (eps - guess) ** 2),  # the simple loss
    ("chain-loss-weight", beta**2 / (2 * c**2 * alpha * (1 - alpha_bar)) * (eps**2 - guess**2)),
    ("chain-loss-weight", beta**2 / (2 * c * alpha * (1 - alpha_bar)) * (eps - guess) ** 2),
    ("chain-weight-noise", (level1**2 / level0**2 - 1)),
    ("chain-weight-noise", (level1 / level0 - 1) / 2),
    ("chain-weight-clean", (1 / level1**2 - 1 / level0**2) / 2),
    ("chain-weight-limit", Derivative(log(sigma(t)), t) / 2),
    ("chain-weight-vp", rate(t) / 2),
    ("chain-ancestral", SIMPLE.subs(eps, guess) + c * eps),
    ("chain-exact-mean", (x_t + beta * S) / alpha),
    ("chain-exact-variance", posterior + C),
    ("chain-exact-variance", posterior),  # "the posterior's variance is that of the step back"
    ("chain-gaussian-variance", beta),
    ("chain-gaussian-variance", beta * (1 - earlier) / (1 - alpha_bar)),
    ("chain-point-variance", beta),
    ("chain-unit-variance", posterior),
    ("chain-drift-limit", -b / 2 * x + b * S),  # the forward drift's sign
    ("chain-drift-limit", b / 2 * x + b / 2 * S),
    ("chain-variance-limit", b * (1 - product)),
    ("chain-stride", 1 - j / i),
    ("chain-stride", i / j),
    ("chain-last-step", x_t),
    ("learned-variance-slope", log(beta / posterior) / 2 * (1 - posterior / c**2)),
    ("learned-variance-slope", -log(beta / posterior) / 2 * (1 - (posterior + MISS) / c**2)),
    ("learned-variance-best", varrho),
    ("learned-variance-best", posterior + varrho**2),
    ("learned-variance-gain", varrho / (2 * posterior)),
    ("learned-variance-gain", log(1 + varrho / posterior) / 2),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    with pytest.raises(VerificationError, match=label):
        replace(STEPS[label], rhs=wrong, torch=()).verify()

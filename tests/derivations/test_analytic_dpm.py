"""The optimal variances by other ways than the steps', and the mistakes that they are most often written with."""

from dataclasses import replace

import mpmath
import pytest
from sympy import Rational, Symbol, exp, lambdify, log, pi, sqrt, symbols

from edmnotes.derivations import analytic_dpm
from edmnotes.derivations.analytic_dpm import (
    C,
    D,
    Gamma,
    Q,
    Q_hat,
    V,
    after,
    alpha_bar0,
    alpha_bar1,
    best,
    beta,
    c,
    c_theta,
    cross_entropy,
    eps,
    given_noise,
    given_point,
    k,
    level,
    m,
    m_theta,
    nu,
    nu_hat,
    paper,
    v,
    x0,
)
from edmnotes.derivations.core import VerificationError, collect

STEPS = {label: entry.step for label, entry in collect([analytic_dpm]).entries.items()}
one, two = symbols("V_1 V_2", positive=True)
low, high = symbols("a b", real=True)
A = Symbol("A", positive=True)


def test_the_cross_entropy_of_a_law_that_is_not_normal():
    """Against the integral over a lopsided density, with a step about a wrong mean."""
    point = {m: 2, V: 2, m_theta: Rational(5, 2), c_theta: Rational(4, 3)}  # of z e^{-z} on z > 0
    z = Symbol("z", positive=True)
    cost = log(2 * pi * c_theta**2) / 2 + (z - m_theta) ** 2 / (2 * c_theta**2)
    integrand = lambdify(z, (z * exp(-z) * cost).subs(point), "mpmath")
    assert float(mpmath.quad(integrand, [0, 5, 20, 80])) == pytest.approx(float(cross_entropy(c_theta).subs(point)))


def test_means_given_the_point_and_given_its_noise():
    assert given_point((x0 + 3 * eps) ** 2) == C + D**2 + 9
    assert given_noise((eps - 1) ** 2) == Q - 2 * nu + 1


def test_the_noise_square_measures_the_posterior_variance_of_two_points():
    """Both sides of the law by quadrature, for two points with unequal weights at two levels."""
    for sigma in (mpmath.mpf("0.4"), mpmath.mpf("1.5")):

        def moments(x, sigma=sigma):
            left, right = (w * mpmath.npdf(x, at, sigma) for w, at in ((0.3, -1), (0.7, 1)))
            density, denoised = left + right, (right - left) / (left + right)
            return density, denoised, 1 - denoised**2

        def mean(of, moments=moments):
            return mpmath.quad(lambda x: moments(x)[0] * of(x, *moments(x)[1:]), mpmath.linspace(-12, 12, 25))

        square = mean(lambda x, denoised, _, sigma=sigma: ((x - denoised) / sigma) ** 2)
        spread = mean(lambda x, denoised, variance: variance)
        law = STEPS["analytic-trace"].rhs.subs({level: sigma, Gamma: square})
        assert float(spread) == pytest.approx(float(law), rel=1e-10)
        assert 0.05 < square < 0.99


def test_the_optimal_variance_lies_between_its_bounds():
    bounds = STEPS["analytic-lower"].rhs, STEPS["analytic-upper"].rhs
    point = {level: Rational(3, 2), after: Rational(1, 2)}
    lowest, highest = (side.subs(point) for side in bounds)
    inside = [STEPS["analytic-ddpm"].rhs.subs({**point, Gamma: Rational(i, 4)}) for i in range(5)]
    assert inside[0] == highest
    assert inside[-1] == lowest
    assert inside == sorted(inside, reverse=True)


def test_the_slope_changes_its_sign_once_from_below():
    slope = STEPS["matching-slope"].rhs.subs({V: 1, m: 1, m_theta: 0})
    assert [slope.subs(c_theta, value) < 0 for value in (Rational(1, 2), 1, Rational(7, 5), Rational(3, 2), 9)] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_noise_square_form_can_ask_for_a_negative_variance():
    """A guess that is too large by half, with nothing left to be unsure of."""
    too_large = {nu: 1, nu_hat: Rational(3, 2), Q: 1}
    assert (Q - nu_hat**2).subs(too_large) < 0
    assert STEPS["extended-residual"].lhs.subs(too_large) == Rational(1, 4)


ONE_MISTAKE = [
    ("matching-cross-entropy", log(2 * pi * c_theta**2) / 2 + (V + (m - m_theta) ** 2) / c_theta**2),
    ("matching-cross-entropy", log(2 * pi * c_theta**2) / 2 + V / (2 * c_theta**2)),  # the error of the mean lost
    ("matching-slope", (c_theta**2 - V) / c_theta**3),
    ("matching-variance", V),
    ("matching-variance", V - (m - m_theta) ** 2),
    ("matching-cost", log(c_theta / best) + (c_theta**2 / best**2 - 1) / 2),  # the divergence the other way round
    ("matching-cost", log(best / c_theta) + (best**2 / c_theta**2 - 1) / 2),
    ("matching-isotropic-cost", log((one + two) / (4 * one * two)) / 2),
    ("analytic-kept", after / level),  # DDIM's, at any noise
    ("analytic-kept", (after - c) / level),  # a difference for the root of a difference of squares
    ("analytic-mean", D + (1 - k) * level * nu),
    ("analytic-mean", D + k * nu),
    ("analytic-variance", c**2 + k**2 * C),
    ("analytic-variance", c**2 + (1 - k) * C),
    ("analytic-variance", (1 - k) ** 2 * C),  # only one half of the law of total variance
    ("analytic-variance", c**2),  # "the clean point is D"
    ("analytic-noise-variance", nu**2 + C),
    ("analytic-noise-variance", C / level**2),
    ("analytic-trace", level**2 * Gamma),
    ("analytic-trace", 1 - Gamma),
    ("analytic-estimate", c**2 + (1 - k) ** 2 * (1 - Gamma)),
    ("analytic-between", (1 - Gamma) * c**2 + Gamma * (c**2 + (1 - k) ** 2 * level**2)),
    ("analytic-lower", after**2 * (1 - after / level)),
    ("analytic-upper", (level - after) ** 2),  # the square of a difference
    ("analytic-bounded", (high - low) ** 2 / 4 + (D - (low + high) / 2) ** 2 - C),
    ("analytic-clip", c**2 + (1 - k) ** 2 * (high - low) ** 2),  # the width for half of it
    ("analytic-ddpm", (level**2 - after**2) * (1 - Gamma)),
    ("analytic-ddpm", (level**2 - after**2) * (1 - (1 - after / level) * Gamma)),
    ("analytic-ddim", (level**2 - after**2) * (1 - Gamma)),
    ("analytic-ddim", (level - after) ** 2 * Gamma),
    (
        "analytic-paper",  # the coefficient of another member of the family
        paper**2 + (sqrt((1 - alpha_bar1) / (1 - beta)) - sqrt(1 - alpha_bar0)) ** 2 * (1 - Gamma),
    ),
    (
        "analytic-paper",  # the neighbour's level
        paper**2 + (sqrt((1 - alpha_bar0) / (1 - beta)) - sqrt(1 - alpha_bar0 - paper**2)) ** 2 * (1 - Gamma),
    ),
    ("analytic-point", beta),
    ("analytic-unit", beta / (1 - beta)),  # the upper bound
    ("analytic-gaussian", v / (v + level**2)),
    ("analytic-propagation", A * V + c_theta**2),
    ("analytic-exact", v + level**2),
    ("analytic-last", v),  # "the data's variance"
    ("extended-noise-square", c**2 + (1 - k) ** 2 * level**2 * Q),
    ("extended-residual", C / level**2 - (nu - nu_hat) ** 2),
    ("extended-residual", C / level**2),  # the error of the guess lost
    ("extended-wrong-mean", c**2 + (1 - k) ** 2 * level**2 * (Q - nu**2)),
    ("extended-difference", nu_hat * (nu - nu_hat)),
    ("extended-difference", 2 * nu * (nu - nu_hat)),
    ("analytic-term", log(c_theta / c) + (c**2 / c_theta**2 - 1) / 2),  # the means taken for equal
    ("analytic-term-posterior", (level**2 / after**2 - 1) * Q_hat),
    ("analytic-term-posterior", (1 - after**2 / level**2) * Q_hat / 2),
    ("analytic-term-least", log(best / c) + (best**2 / c**2 - 1) / 2),
    ("analytic-term-best", log((level**2 / after**2 - 1) * Q_hat) / 2),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    with pytest.raises(VerificationError, match=label):
        replace(STEPS[label], rhs=wrong, torch=()).verify()


def test_every_step_has_a_mistake_that_is_refused():
    assert STEPS.keys() - {label for label, _ in ONE_MISTAKE} == {"matching-isotropic", "analytic-isotropic"}

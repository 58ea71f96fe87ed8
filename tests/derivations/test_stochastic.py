"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

from dataclasses import replace

import pytest
from sympy import Derivative, Function, Rational, Symbol, exp, log, simplify, sqrt, symbols

from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.stochastic import (
    D,
    S,
    V,
    a,
    alpha,
    alpha_bar,
    b,
    beta,
    delta,
    eps,
    eta,
    f,
    g,
    gamma,
    guess,
    hat,
    k,
    level,
    level0,
    level1,
    r,
    rho,
    s1,
    t,
    u,
    v,
    variance_after,
    x,
    x_t,
)
from edmnotes.samplers import Churn

w = Symbol("w", positive=True)
S_1, S_2 = symbols("S_1 S_2", real=True)
level_i, level_last, step = symbols(r"\sigma_i \sigma_L \epsilon", positive=True)
score_length, noise_length = symbols(r"\ell_S \ell_\varepsilon", positive=True)
part, amount, width, scale = symbols(r"\varphi S_{churn} \Delta S_{noise}", positive=True)
after, q = symbols(r"\sigma' q", positive=True)
omega = Symbol(r"\omega", real=True)
x_1, x_2 = symbols("x_1 x_2", real=True)
W = Function("W", positive=True)(q)
spread = sqrt(level1**2 - level0**2)


def test_the_variance_of_a_linear_step():
    assert simplify(variance_after(Rational(1, 2), Rational(3)) - (V / 4 + 3)) == 0


def test_the_variance_that_langevin_leaves_is_the_recursions_fixed_point():
    """By iterating the numbers, without solving anything."""
    value = Rational(7)
    recursion = variance_after(1 - alpha / (2 * u), alpha).subs({alpha: Rational(1, 2), u: Rational(3, 4)})
    for _ in range(60):
        value = recursion.subs(V, value).evalf(30)
    stated = registry().entries["langevin-variance"].step.rhs.subs({alpha: Rational(1, 2), u: Rational(3, 4)})
    assert abs(value - stated) < 1e-20


def test_churn_in_the_limit_is_the_strength_of_a_long_run():
    """The ratio of the two noises of one step out of a million, on EDM's levels, against the limit's formula."""
    n, exponent, low, high, churned = 10**6, Rational(7), Rational(1, 500), Rational(80), Rational(40)
    span = high ** (1 / exponent) - low ** (1 / exponent)
    here = Rational(1, 2)
    below = (here ** (1 / exponent) - span / n) ** exponent
    squared = registry().entries["churn-strength"].step.rhs
    exact = squared.subs({gamma: churned / n, level: here, after: below}).evalf(30)
    limit = registry().entries["churn-limit"].step.rhs
    stated = limit.subs({amount: churned, level: here, rho: exponent, width: span}).evalf(30)
    assert abs(exact / stated - 1) < 1e-4


ONE_MISTAKE = [
    ("reverse-chain", a * x_t + b**2 * S + b * eps),  # the forward chain's factor
    ("reverse-chain", (2 - a) * x_t - b**2 * S + b * eps),
    ("reverse-chain-rate", -(f(t) * x - g(t) ** 2 * S / 2)),  # the ODE's drift
    ("reverse-chain-rate", f(t) * x - g(t) ** 2 * S),  # dt taken positive
    ("vp-reverse-noise", (2 - sqrt(1 - beta)) * x_t + beta / sqrt(1 - alpha_bar) * guess + sqrt(beta) * eps),
    ("vp-reverse-residual", (2 - sqrt(1 - beta)) * x_t + beta / level1**2 * (D - x_t / s1) + sqrt(beta) * eps),
    ("ve-reverse-noise", x_t + (level1**2 - level0**2) / level1 * guess + spread * eps),  # noise put in, not taken away
    ("ve-reverse-residual", x_t - (1 - level0**2 / level1**2) * (D - x_t) + spread * eps),  # away from the data
    ("ve-reverse-noise", x_t - (level1 - level0) ** 2 / level1 * guess + spread * eps),  # the square of a difference
    ("ancestral-mean", (2 - a) * x_t + b**2 * S),  # equal to first order only
    ("ancestral-std", b * level0 / level1),
    ("ancestral-std", b / a * level1 / level0),
    ("ancestral-difference", (1 - a) / a * x_t + b**2 * (1 - a) / a * S),
    ("ve-ancestral", x_t - (level1**2 - level0**2) / level1 * guess + spread * eps),  # the reverse chain's noise
    ("langevin-recursion", (1 - alpha / u) ** 2 * V + alpha),  # α for α/2
    (
        "langevin-recursion",
        (1 - alpha / (2 * u)) ** 2 * V + 2 * alpha,
    ),  # the convention of the other half of the papers
    ("langevin-variance", u),  # "Langevin dynamics leaves the density alone"
    ("langevin-variance", u / (1 - alpha / (2 * u))),
    ("langevin-bias", alpha / (4 * u)),  # its first order
    ("langevin-approach", (1 - alpha / (2 * u)) * (V - u / (1 - alpha / (4 * u)))),
    ("weight-sensitivity", (S_1 - S_2) / (w * (1 - w))),  # the same everywhere
    ("smld-step-size", step * level_i / level_last),
    ("smld-bias", part * level**2 / (4 * v + 4 * level**2)),
    ("snr-step", 2 * r**2 * noise_length**2 / score_length**2),  # Song's ε, which is α/2
    ("snr-step", 4 * r * noise_length**2 / score_length**2),
    ("snr-variance", u),
    ("snr-variance", u * (1 + r)),
    ("churn-noise", level * gamma),  # the difference of the levels
    ("churn-noise", level * sqrt(2 * gamma)),
    ("churn-bound", Rational(1)),  # the level doubled, not the variance
    ("churn-strength", gamma * level / (level - after)),
    ("churn-limit", amount / (rho * width)),  # the same at every level
    ("churn-limit", 2 * amount * level ** (1 / rho) / (rho * width)),
    ("noise-scale", (scale - 1) * (hat**2 - level**2)),
    ("wrong-score-rate", (k * W + eta**2) / (v + q)),
    ("wrong-score-variance", eta**2 / k),  # the start forgotten
    ("wrong-score-rest", 1 - delta),
    ("jacobian-symmetric", -Derivative(Function("D_2", real=True)(x_1, x_2), x_1)),
    ("rotation-variance", u / (1 - alpha / (4 * u))),  # "a rotation changes nothing"
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    entry = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(entry, rhs=wrong, torch=()).verify()


def test_the_most_churn_of_the_library_is_the_bound():
    bound = registry().entries["churn-bound"].step.rhs
    assert Churn(1e9).gamma(1.0, 10) == pytest.approx(float(bound), rel=1e-15)


def test_the_score_of_a_mixture_knows_its_weight_between_the_modes_only():
    """The written side, with two normal modes put in, in the first mode and between the two, against SymPy's own."""
    first, second = exp(-8 * (x + 1) ** 2), exp(-8 * (x - 1) ** 2)
    density = w * first + (1 - w) * second
    written = registry().entries["weight-sensitivity"].step.rhs
    parts = {Symbol("R", positive=True): w * first / density, S_1: -16 * (x + 1), S_2: -16 * (x - 1)}
    written = written.subs(parts).subs(w, Rational(1, 3))
    computed = Derivative(log(density), x, w).doit().subs(w, Rational(1, 3))
    far, between = ([float(side.subs(x, at).evalf(30)) for side in (written, computed)] for at in (-1, Rational(1, 50)))
    assert far == pytest.approx([far[1]] * 2)
    assert between == pytest.approx([between[1]] * 2)
    assert abs(far[0]) < 1e-10
    assert abs(between[0]) > 1

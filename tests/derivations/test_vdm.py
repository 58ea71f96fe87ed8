"""The chapter's own helpers, its formulas on numbers, and the mistakes they are most often written with."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from sympy import Function, IndexedBase, Integral, Rational, Sum, Symbol, exp, log, pi, simplify, sqrt, symbols

from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.fokker_planck import normal
from edmnotes.derivations.forward import r, sigma_max, sigma_min, t, v
from edmnotes.derivations.vdm import (
    MEAN,
    VARIANCE,
    D,
    K,
    N,
    Phi,
    Psi,
    below,
    c,
    ell,
    ell_max,
    ell_min,
    eps,
    eps_next,
    i,
    last,
    last_but_one,
    level,
    q_bar,
    q_bar0,
    q_here,
    relative_entropy,
    step_cost,
    x,
    x0,
)

p, q, marginal, posterior, levels = (
    IndexedBase(name, positive=True) for name in ("p", "q", r"\bar{q}", r"\tilde{q}", r"\sigma")
)
between = Symbol(r"\sigma''", positive=True)
alpha, alpha_bar, alpha_bar0 = symbols(r"\alpha_t \bar\alpha_t \bar\alpha_{t-1}", positive=True)
b, b_next, data, M, price, A = symbols(r"b b' \sigma_{data} M \Lambda A", positive=True)
g, R, z, now = symbols(r"g R z \ell", real=True)
square = (x0 - D) ** 2


def stated(label):
    return registry().entries[label].step.rhs


def test_the_relative_entropy_of_two_normal_laws():
    """N(1, 4) from N(−2, 9): log(3/2) + (4 + 9)/18 − 1/2."""
    found = relative_entropy(Rational(1), Rational(2), Rational(-2), Rational(3))
    assert simplify(found - (log(Rational(3, 2)) + Rational(13, 18) - Rational(1, 2))) == 0


def test_the_cost_of_a_step_is_the_same_in_any_scale():
    scale = Symbol("s", positive=True)
    assert simplify(step_cost(level, below, square) - step_cost(level, below, square, scale=scale)) == 0


def chain(points, variances, slope):
    """p_i, q_i, q̄_i and q̃_i, by index, along one path of a Gaussian chain whose denoiser is ``slope`` times x."""
    sigma = {k: math.sqrt(s) for k, s in enumerate(variances)}
    top = len(variances) - 1
    found = {name: {} for name in ("p", "q", "marginal", "posterior")}

    def density(at, mean, std):
        return float(normal(at, mean, std).evalf(30))

    for k in range(1, top + 1):
        found["q"][k] = density(points[k], points[k - 1], math.sqrt(variances[k] - variances[k - 1]))
        found["marginal"][k] = density(points[k], points[0], sigma[k])
        if k > 1:
            at = {level: sigma[k], below: sigma[k - 1], x: points[k]}
            std = float(sqrt(VARIANCE).subs(at))
            found["posterior"][k] = density(points[k - 1], float(MEAN.subs(at).subs(x0, points[0])), std)
            found["p"][k] = density(points[k - 1], float(MEAN.subs(at).subs(x0, slope * points[k])), std)
    found["p"][1] = density(points[0], slope * points[1], sigma[1])
    found["p"][top + 1] = density(points[top], 0.0, sigma[top])
    return found


@pytest.mark.parametrize("label", ["consistency-elbo", "denoising-elbo"])
def test_both_forms_are_one_number_along_one_path(label):
    """With real densities, multiplied out by hand."""
    found = chain([0.7, 0.4, 1.3, -0.9, 2.2], [0.0, 0.1, 0.5, 1.4, 4.0], 0.6)
    whole = sum(map(math.log, found["p"].values())) - sum(map(math.log, found["q"].values()))
    form = stated(label).subs(N, 4).doit()
    numbers = {p: found["p"], q: found["q"], marginal: found["marginal"], posterior: found["posterior"]}
    put = {base[k]: value for base, values in numbers.items() for k, value in values.items()}
    assert float(form.subs(put)) == pytest.approx(whole, rel=1e-12)


def gaussian_sum(count):
    """The steps of the bound for Gaussian data of variance 1, on ``count`` geometric levels from 0.1 to 10."""
    sigmas = [10 ** (2 * k / (count - 1) - 1) for k in range(count)]
    return sum((a**-2 - c**-2) / 2 * c**2 / (1 + c**2) for a, c in pairwise(sigmas))


def test_the_sum_falls_to_the_integral_and_its_error_halves():
    integral = float(stated("vlb-gaussian").subs({sigma_min: Rational(1, 10), sigma_max: 10, v: 1}))
    over = [gaussian_sum(count + 1) - integral for count in (64, 128, 256)]
    assert over[0] > over[1] > over[2] > 0
    assert over[1] / over[2] == pytest.approx(2, abs=0.03)


def test_no_density_of_levels_beats_the_best():
    """Second moments of a grid's shares, against the formula; any other shares are worse."""
    sizes = [1.0, 4.0, 0.25, 9.0]

    def moment(shares):
        return sum(m / (4 * share) for m, share in zip(sizes, shares, strict=True))

    best = [float(stated("schedule-best").subs({M: Rational(m), price: 1})) for m in sizes]
    best = [share / sum(best) for share in best]
    total = sum(map(math.sqrt, sizes))
    assert moment(best) == pytest.approx(total**2 / 4)
    for k in range(4):
        moved = [share + (0.02 if j == k else -0.02 / 3) for j, share in enumerate(best)]
        assert moment(moved) > moment(best)


def test_the_excess_of_the_wrong_divergence_on_a_chain_of_numbers():
    """KL(q(x_1|x_0) ‖ p(x_1|x_2)), averaged over x_2, less the mean of the log ratio: all by quadratic forms."""
    s1, s2, slope = 0.8, 1.7, 0.6
    keep = (s1 / s2) ** 2
    gain, c2 = keep + (1 - keep) * slope, s1**2 * (1 - keep)
    # x_1 = s1 e, x_2 = x_1 + √(s2² − s1²) e'; x_0 = 0, and another x_1 that knows nothing of x_2
    alone = (s1**2 + gain**2 * s2**2) / (2 * c2)
    together = (s1**2 - 2 * gain * s1**2 + gain**2 * s2**2) / (2 * c2)
    assert float(stated("consistency-excess").subs({g: gain, b: s1, c: math.sqrt(c2)})) == pytest.approx(
        alone - together
    )


ONE_MISTAKE = [
    ("bridge-mean", x0 + below / level * (x - x0)),  # a ratio of levels, not of variances: DDIM's mean
    ("bridge-mean", x + below**2 / level**2 * (x0 - x)),  # the ends exchanged
    ("bridge-variance", below**2),
    ("bridge-variance", level**2 - below**2),  # that of the step upwards
    ("bridge-variance", below**2 * (1 - below / level)),
    ("bridge-marginal", level**2),
    ("bridge-bayes", q_here * q_bar / q_bar0),
    ("consistency-elbo", log(p[1]) + Sum(log(p[i] / q[i]), (i, 1, N - 1)) + log(p[N + 1] / q[N])),  # the same arrow
    ("consistency-elbo", log(p[1]) + Sum(log(p[i + 1] / q[i]), (i, 1, N)) + log(p[N + 1] / q[N])),
    ("denoising-elbo", log(p[1]) + Sum(log(p[i] / posterior[i]), (i, 2, N)) + log(p[N + 1] / q[N])),  # S3-12's prior
    ("denoising-elbo", log(p[1]) + Sum(log(p[i] / q[i]), (i, 2, N)) + log(p[N + 1] / marginal[N])),  # Bayes forgotten
    ("vlb-prior", x0**2 / last**2),
    ("vlb-prior", Rational(0)),  # "the prior term vanishes"
    ("vlb-prior-step", x0**2 / (2 * last**2)),  # "small, since σ_N is large"
    ("vlb-prior-step", x0**2 / (2 * last**2) + log(1 - last_but_one**2 / last**2) / 2),
    ("vlb-snr", (1 / below**2 - 1 / level**2) * square),
    ("vlb-snr", (1 / below - 1 / level) ** 2 / 2 * square),  # the square of a difference
    ("vlb-snr", (1 / level**2 - 1 / below**2) / 2 * square),  # SNR(t) − SNR(t−1)
    ("snr-weight", (alpha_bar0 - alpha_bar) / 2 * square),
    ("snr-weight", (alpha_bar0 / (1 - alpha_bar0) - alpha_bar / (1 - alpha_bar)) * square),
    (
        "vlb-terms",
        x0**2 / (2 * levels[N] ** 2)
        + Sum(
            (1 / levels[i - 1] ** 2 - 1 / levels[i] ** 2) / 2 * Phi(levels[i - 1]), (i, 2, N)
        )  # the lower end's error
        + R,
    ),
    ("log-ratio", K + K * eps),
    ("log-ratio", -K + sqrt(2 * K) * eps),
    ("consistency-term", (eps_next**2 + eps**2) / 2),
    ("consistency-term", Rational(0)),
    ("consistency-variance", Rational(2)),
    ("consistency-averaged", Rational(0)),  # true of even steps only
    ("consistency-averaged", log(b_next / b) + (b_next**2 - b**2) / (2 * (b_next**2 + b**2)) * z**2),
    ("consistency-averaged", (b_next**2 - b**2) / (2 * (b_next**2 + b**2)) * (z**2 - 1)),  # without the normalisers
    ("consistency-excess", Rational(0)),  # "a relative entropy", as the tutorials have it
    ("consistency-excess", g**2 * b**2 / c**2),
    ("vlb-split", (1 / between**2 - 1 / level**2) / 2 * (Phi(level) - Phi(between))),
    ("vlb-split", (1 / below**2 - 1 / between**2) / 2 * (Phi(between) - Phi(level))),
    ("vlb-continuous", Integral(Phi(r) / r**2, (r, sigma_min, sigma_max))),
    ("vlb-continuous", Integral(Phi(r) / (2 * r**3), (r, sigma_min, sigma_max))),
    ("gaussian-error", v * level / (v + level)),
    ("vlb-gaussian", log((1 + v / sigma_min**2) / (1 + v / sigma_max**2))),
    ("vlb-gaussian-total", log(2 * pi * v) / 2),
    ("vlb-noise", Integral(Psi(r), (r, ell_min, ell_max))),
    ("vlb-invariance", Integral(Psi(r), (r, 0, 1))),
    ("vlb-invariance", Integral(Psi(ell(t)), (t, 0, 1))),  # without the weight ℓ'
    ("schedule-moment", Integral(M / 4, (r, ell_min, ell_max))),
    ("schedule-best", M / (2 * sqrt(price))),  # in proportion to the mean square, not to its root
    ("schedule-best", 1 / (2 * sqrt(M * price))),
    ("schedule-least", A**2 / 4),
    ("schedule-gaussian", log(1 + v * exp(-now))),
    ("unweighted-slope", v * exp(r) / (v + exp(r)) ** 2),
    ("edm-over-bound", Function("q", positive=True)(log(level))),  # EDM's weight taken for the bound's
    ("edm-over-bound", (1 + data**2 / level**2) * Function("q", positive=True)(log(level))),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{k}" for k, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    entry = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(entry, rhs=wrong, torch=()).verify()

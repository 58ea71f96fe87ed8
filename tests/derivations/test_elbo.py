"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from sympy import Derivative, Function, IndexedBase, Rational, Sum, Symbol, exp, log, pi, sqrt, symbols

from edmnotes.derivations import elbo
from edmnotes.derivations.core import VerificationError, collect
from edmnotes.derivations.elbo import (
    LinearSum,
    N,
    Phi,
    U,
    Z,
    a,
    b,
    c,
    eps,
    i,
    j,
    k,
    kappa,
    likelihood,
    m,
    n,
    number,
    over,
    p,
    q,
    r,
    remainder,
    spacing,
    u,
    w,
    x,
    z,
    z1,
    z2,
)
from edmnotes.variational import GreyLevels

REGISTRY = collect([elbo])
spread, D = Symbol("v_w", positive=True), Symbol("D", real=True)
weight, pixels, guesses = IndexedBase("w", positive=True), IndexedBase("x", real=True), IndexedBase("D", real=True)
up, down = IndexedBase("q", positive=True), IndexedBase("p", positive=True)
m1, m2 = symbols("m_1 m_2", real=True)
c1, c2 = symbols("c_1 c_2", positive=True)
q1, q2, p2, p3, r1, r2 = (Function(name, positive=True) for name in ("q_1", "q_2", "p_2", "p_3", "r_1", "r_2"))


def test_a_linear_sum_is_the_sum():
    """With letters it is split, with numbers written out: the same value, nested, its own index in a divisor too."""
    inner = over(number(z1) * p(z1, z2) / over(number(z1), z1), z1)
    nested = over(log(inner * exp(z2)) * z2, z2)
    values = {number: lambda value: value**2 + 1, p: lambda first, second: first + 2 * second}

    def evaluated(expression):
        for function, value in values.items():
            expression = expression.replace(function, value)
        return float(expression.evalf(30))

    shares = [2 / 17, 5 / 17, 10 / 17]
    expected = sum(s * (math.log(sum(f * (g + 2 * s) for g, f in enumerate(shares, 1))) + s) for s in (1, 2, 3))
    assert evaluated(nested.subs(n, 3).doit()) == pytest.approx(expected, rel=1e-14)
    assert evaluated(nested.doit().subs(n, 3).doit()) == pytest.approx(expected, rel=1e-14)
    assert over(1 + number(z)).doit() == n + over(number(z)).doit()
    assert isinstance(over(number(z)).doit(), LinearSum)


def test_the_root_that_is_positive_is_taken():
    root = elbo.positive_root(u**2 - kappa, u, {kappa: 4})
    assert root.value == sqrt(kappa)
    with pytest.raises(ValueError, match="too many"):
        elbo.positive_root((u - 1) * (u - kappa), u, {kappa: 4})


ONE_MISTAKE = [
    ("evidence", over(likelihood(z))),  # the prior forgotten
    ("elbo", over(q(z) * log(p(x, z)))),  # the entropy forgotten
    ("elbo", over(p(x, z) * log(p(x, z) / q(z)))),
    ("evidence-weights", over(w(z))),  # a mean without its law
    ("log-tangent", u / Z - log(u / Z)),
    ("jensen-gap", over(q(z) * (1 - w(z) / Z - log(w(z) / Z) / 2))),
    ("jensen-gap", over(q(z) * log(w(z) / Z))),  # the gap with the wrong sign
    ("evidence-ratio", over(q(z) * log(p(x, z) / q(z)))),  # the bound, called the evidence
    ("elbo-gap", over(r(z) * log(r(z) / q(z)))),  # the divergence the other way round
    ("elbo-gap", over(q(z) * log(r(z) / q(z)))),
    ("free-energy", -over(q(z) * U(z)) + over(q(z) * log(q(z)))),  # the entropy's sign
    ("best-encoder", exp(-U(z) - 1) / Z),
    ("best-encoder", exp(U(z)) / Z),
    ("elbo-at-best", Z),
    ("linear-elbo", -((x - a * m) ** 2) / (2 * b**2) - log(2 * pi * b**2) / 2 - (m**2 + c**2 - 1 - log(c**2)) / 2),
    ("linear-encoder-mean", x / a),  # the decoder, inverted
    ("linear-encoder-mean", a * x / (a**2 + b)),
    ("linear-encoder-std", b / a),
    ("linear-encoder-std", b**2 / (a**2 + b**2)),  # the variance
    ("linear-tight", -(x**2) / (2 * (a**2 + b**2)) - log(2 * pi * b**2) / 2),
    ("mean-field-mean", a * x / (a**2 + b**2)),  # each latent as if it were alone
    ("mean-field-std", sqrt((a**2 + b**2) / (2 * a**2 + b**2))),  # the posterior's own std
    ("mean-field-gap", log(1 + a**2 / b**2) - log(1 + 2 * a**2 / b**2)),
    ("mean-field-gap", Rational(0)),  # "after training the bound is the evidence"
    ("mean-field-variance", kappa),  # "the bound has the same maximum"
    ("mean-field-variance", (kappa - sqrt(kappa**2 + 8 * kappa * b**2)) / 4),
    ("likelihood-variance", kappa - b**2),
    ("iwae-subsets", Sum(Sum(weight[i], (i, 1, k)) - weight[j], (j, 1, k)) / k**2),
    ("iwae-gap", spread / k + remainder(k**-2)),
    ("iwae-gap", spread / (2 * k**2) + remainder(k**-2)),
    ("weight-spread", c / sqrt(2 - c**-2)),  # the mean square
    ("weight-spread", c**2 / sqrt(2 * c**2 + 1) - 1),
    ("elbo-terms", over(q(z) * log(likelihood(z))) + over(q(z) * log(q(z) / p(z)))),
    ("elbo-terms", over(p(z) * log(likelihood(z))) - over(q(z) * log(q(z) / p(z)))),  # latents from the prior
    ("reparameterisation", m + c**2 * eps),  # the variance in place of the std
    ("reparameterisation", m - c * eps),
    ("path-gradient-spread", 4 * m**2 + 4 * c**2),
    ("score-gradient-spread", 2 * m**4 / c**2 + 60 * m**2),
    ("squared-std-excess", -((1 - c**2) ** 2) / 2),  # "it is a worse bound": it is none
    ("squared-std-excess", (1 - c**4) / 2),
    ("gaussian-kl", log(c1 / c2) + (c1**2 + (m1 - m2) ** 2) / (2 * c2**2) - Rational(1, 2)),
    ("gaussian-kl", log(c2 / c1) + (c2**2 + (m1 - m2) ** 2) / (2 * c1**2) - Rational(1, 2)),
    ("gaussian-kl-prior", (m**2 + c**2 - 1) / 2 + log(c)),
    ("gaussian-kl-prior", (m**2 + c**2 - 1 - log(c)) / 2),  # log of the std for that of the variance
    ("gaussian-decoder", Sum((pixels[j] - guesses[j]) ** 2, (j, 1, n))),  # the squared error alone
    ("gaussian-decoder", Sum((pixels[j] - guesses[j]) ** 2, (j, 1, n)) / (2 * b**2) + log(2 * pi * b**2) / 2),
    ("decoder-std", sqrt(Sum((pixels[j] - guesses[j]) ** 2, (j, 1, n)))),
    ("discretised-gaussian", Phi((x + spacing - D) / b) - Phi((x - spacing - D) / b)),  # bins twice as wide
    ("discretised-gaussian", Phi((x - spacing / 2 - D) / b) - Phi((x + spacing / 2 - D) / b)),
    ("collapse-slope", a * (kappa - a**2) / (a**2 + b**2) ** 2),
    ("collapse-factor", sqrt(kappa)),  # the decoder's noise forgotten
    ("collapse-curvature", (kappa - b) / b**4),
    ("collapse-nats", log(kappa / b**2)),
    ("collapse-nats", log(1 + kappa / b**2) / 2),
    ("hvae-elbo", Sum(log(down[i] / up[i]), (i, 1, N))),  # without its prior
    ("hvae-terms", over(q1(z1) * log(likelihood(z1)), z1) - Symbol("H", real=True)),  # without the middle
    ("hvae-terms", over(q1(z1) * log(likelihood(z1)), z1) - Symbol("M", real=True) + Symbol("H", real=True)),
    (
        "hvae-gap",
        over(q1(z1) * log(q1(z1) / r1(z1)), z1)
        + over(r1(z1) * over(q2(z1, z2) * log(q2(z1, z2) / r2(z1, z2)), z2), z1),  # over the posterior
    ),
    ("hvae-gap", over(q1(z1) * log(q1(z1) / r1(z1)), z1)),  # of the first level only
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{place}" for place, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    entry = REGISTRY.entries[label].step
    with pytest.raises(VerificationError, match=f"'{label}': the sides differ"):
        replace(entry, rhs=wrong, torch=()).verify()


def test_every_step_has_a_mistake():
    assert {label for label, _ in ONE_MISTAKE} == set(REGISTRY.entries)


def test_the_multi_sample_bound_rises_to_the_evidence():
    """By writing out all draws of a latent with three values, and against the written second term at many draws."""
    encoder, ratio = (
        (0.2, 0.5, 0.3),
        (0.7, 1.0, 1.2),
    )  # of each value: its probability, and its weight over the evidence
    ratio = [value / sum(e * v for e, v in zip(encoder, ratio, strict=True)) for value in ratio]
    bounds = [
        sum(
            math.prod(encoder[d] for d in draws) * math.log(sum(ratio[d] for d in draws) / count)
            for draws in product(range(3), repeat=count)
        )
        for count in range(1, 9)
    ]
    assert sorted(bounds) == bounds
    assert bounds[-1] < 0
    relative = sum(e * v**2 for e, v in zip(encoder, ratio, strict=True)) - 1
    stated = REGISTRY.entries["iwae-gap"].step.rhs.subs(remainder(k**-2), 0)
    assert -bounds[-1] == pytest.approx(float(stated.subs({spread: relative, k: 8})), rel=0.02)


def test_weights_of_a_narrow_encoder_have_no_variance():
    """The mean square of the weights on growing intervals: it settles for c² = 0.6 and does not for c² = 0.4."""

    def mean_square(variance, reach):
        draws = torch.linspace(-reach, reach, 200_001, dtype=torch.float64)
        integrand = torch.exp(-(draws**2) + draws**2 / (2 * variance)) * math.sqrt(variance / (2 * math.pi))
        return float(torch.trapezoid(integrand, draws))

    stated = REGISTRY.entries["weight-spread"].step.rhs.subs(c, sqrt(Rational(3, 5)))
    assert mean_square(0.6, 15.0) - 1 == pytest.approx(float(stated), rel=1e-6)
    assert mean_square(0.4, 15.0) > 1000 * mean_square(0.4, 5.0)


def test_the_library_gives_a_grey_level_the_stated_mass():
    stated = REGISTRY.entries["discretised-gaussian"].step
    levels = GreyLevels()
    guess, std = torch.tensor(0.3, dtype=torch.float64), 0.2
    for level in levels.values[1:-1:4]:
        mass = stated.lhs.subs({x: float(level), D: 0.3, spacing: levels.spacing, b: std}).evalf(20)
        assert float(levels.log_mass(level, guess, std).exp()) == pytest.approx(float(mass), rel=1e-12)


def test_the_best_factor_is_a_maximum_on_the_right_side_of_the_threshold():
    """The written slope: on both sides of 0 and of the other zero, for a decoder with less noise than data and more."""
    slope = REGISTRY.entries["collapse-slope"].step.rhs
    signs = {noise: [slope.subs({a: at, kappa: 4, b: noise}) > 0 for at in (Rational(1, 10), 1, 3)] for noise in (1, 3)}
    assert signs == {1: [True, True, False], 3: [False, False, False]}
    factor = REGISTRY.entries["collapse-factor"].step.rhs.subs({kappa: 4, b: 1})
    assert slope.subs({a: factor, kappa: 4, b: 1}) == 0


def test_the_biased_model_has_half_of_the_data_in_the_limit():
    stated = REGISTRY.entries["mean-field-variance"].step.rhs / kappa
    assert stated.subs(b, Rational(1, 10**9)).subs(kappa, 1).evalf() == pytest.approx(0.5, abs=1e-8)
    assert Derivative(stated, b).doit().subs({b: 1, kappa: 3}) > 0
    assert stated.subs({kappa: 1, b: 1}) == 1

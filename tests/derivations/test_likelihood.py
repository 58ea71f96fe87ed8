"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

from dataclasses import replace

import pytest
from sympy import Derivative, Function, Integral, Rational, Symbol, exp, log, pi, simplify, sqrt, symbols

from edmnotes.derivations import likelihood
from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.forward import DRIFT, h, r, remainder, s, sigma, sigma_max, sigma_min, t, v

x, y, m, a, n = likelihood.x, likelihood.y, likelihood.m, likelihood.a, likelihood.n
mu, J, L = likelihood.mu, likelihood.J, likelihood.L
level, spacing = likelihood.level, likelihood.spacing
growth = Derivative(sigma(t), t) / sigma(t)
trace = Function("T", real=True)
p, mass = Function("p", positive=True), Symbol("P", positive=True)
cell = (a, -spacing / 2, spacing / 2)
a11, a12, a21, a22 = symbols("A_{11} A_{12} A_{21} A_{22}", real=True)
m11, m12, m22 = symbols("M_{11} M_{12} M_{22}", real=True)


def test_a_rate_along_a_path_is_the_derivative_of_what_a_moving_point_sees():
    """A point that moves as e^t sees x² + t grow at the rate 2 e^{2t} + 1."""
    rate = likelihood.along(x**2 + t, [x], [x])
    assert simplify(rate.subs(x, exp(t)) - (exp(2 * t) + t).diff(t)) == 0


def test_a_density_that_is_carried_along_a_constant_velocity_keeps_its_value():
    assert simplify(likelihood.log_density_rate([x], [Rational(3)]).doit()) == 0


def test_mean_over_a_normal_is_that_of_the_integral():
    found = likelihood.mean_over_normal(x**4, m, sqrt(v))
    density = likelihood.normal(x, m, sqrt(v))
    assert simplify(found - Integral(x**4 * density, (x, -likelihood.oo, likelihood.oo)).doit()) == 0


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("box-determinant", 1 + h * (a11 + a22 + a12 + a21) + remainder(h**2)),
        ("box-determinant", 1 + h * a11 * a22 + remainder(h**2)),  # the determinant in place of the trace
        ("change-of-variables", Derivative(mu, x)),
        ("change-of-variables", -2 * Derivative(mu, x)),
        ("change-of-variables", -Derivative(mu, t)),
        ("flow-divergence", DRIFT - growth * (1 - J)),
        ("flow-divergence", DRIFT + growth * (1 - J / s(t))),  # the chain rule of the scale forgotten
        ("flow-divergence", DRIFT + growth * (1 - s(t) * J)),
        ("log-density-integral", -Integral((n - trace(r)) / r, (r, sigma_min, sigma_max))),
        ("log-density-integral", Integral((n - trace(r)) / r**2, (r, sigma_min, sigma_max))),
        ("log-density-integral", Integral((1 - trace(r)) / r, (r, sigma_min, sigma_max))),
        ("whitened-slope", (y - Symbol("D", real=True)) / sqrt(level**2 + v)),  # the divisor taken as constant
        ("gaussian-log-volume", log((v + sigma_max**2) / (v + sigma_min**2))),
        ("gaussian-log-density", -((x - m) ** 2) / (2 * v) - log(2 * pi * v) / 2),  # σ_min read as 0
        ("typical-gap", n),
        ("hutchinson-signs", 2 * m12**2),
        ("hutchinson-signs", 2 * m11**2 + 4 * m12**2 + 2 * m22**2),  # that of normals
        ("hutchinson-normals", m11**2 + 4 * m12**2 + m22**2),
        ("hutchinson-normals", 2 * m11**2 + 2 * m12**2 + 2 * m22**2),
        ("prior-gap", ((v + m**2) / sigma_max**2 + log(1 + v / sigma_max**2)) / 2),
        ("prior-gap", m**2 / (2 * sigma_max**2)),  # its leading term alone
        ("prior-gap", (log(1 + v / sigma_max**2) - v / (v + sigma_max**2) + m**2 / (v + sigma_max**2)) / 2),  # turned
        (
            "dequantisation-gap",
            log(spacing) + (Integral(log(p(a)), cell) + Integral(log(spacing * p(a) / mass), cell)) / spacing,
        ),
        ("dequantisation-gap", Integral(log(p(a)), cell) / spacing + Integral(log(mass / p(a)), cell)),
        ("bits-per-dim", -L / (n * log(2)) + log(spacing) / log(2)),
        ("bits-per-dim", -L / (n * log(2)) - log(spacing) / (n * log(2))),
        ("bits-per-dim", -L / n - log(spacing)),  # nats
        ("grid-point-cost", log(2 * pi * level**2 / spacing**2) / 2 + spacing**2 / (12 * level**2)),
        ("grid-point-cost", log(2 * pi * level**2) / 2 + spacing**2 / (24 * level**2)),
        ("best-level", spacing / 2),
        ("best-level", spacing / 12),
        ("mixed-codes", (symbols("a_1", real=True) + symbols("a_2", real=True)) ** 2 * sigma_max**2),
    ],
)
def test_a_common_mistake_is_refused(label, wrong):
    step = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(step, rhs=wrong).verify()


def test_a_divergence_of_one_coordinate_alone_is_refused():
    step = registry().entries["change-of-variables-nd"].step
    with pytest.raises(VerificationError, match="change-of-variables-nd"):
        replace(step, rhs=step.rhs.args[0]).verify()

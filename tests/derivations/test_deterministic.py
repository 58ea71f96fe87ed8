"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

from dataclasses import replace

import pytest
from sympy import Derivative, Integral, Rational, Symbol, exp, simplify, sqrt, symbols

from edmnotes.derivations import deterministic
from edmnotes.derivations.core import VerificationError, registry

t, h, r, v, c, drop = (getattr(deterministic, name) for name in ("t", "h", "r", "v", "c", "drop"))
s, sigma, D, D_t, x, omega = (getattr(deterministic, name) for name in ("s", "sigma", "D", "D_t", "x", "omega"))
rho, sigma_min, sigma_max = deterministic.rho, deterministic.sigma_min, deterministic.sigma_max
s_dot, sigma_dot, bend = deterministic.S_DOT, deterministic.SIGMA_DOT, Derivative(x(t), t, 2)
level = Symbol(r"\sigma", positive=True)
here, there, x_i, D_i = *symbols(r"\sigma_i \sigma_{i+1}", positive=True), *symbols("x_i D_i", real=True)
alpha, bend_rate = symbols(r"\alpha \dot{B}", real=True)
hat, newest, before = symbols(r"\hat{x}_i D_i D_{i-1}", real=True)
a, b, e = symbols("a b c", positive=True)
psi = symbols(r"\psi_0 \psi_1 \psi_2 \psi_3", positive=True)
y, p, m, price = symbols(r"y p m \Lambda", positive=True)
top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
u_j, abar, abar_before = symbols(r"u_j \bar\alpha_j \bar\alpha_{j-1}", positive=True)
order, chi, D_chi = deterministic.remainder, deterministic.chi, deterministic.D_t(deterministic.chi)


def test_the_slope_of_a_constant_guess_leads_to_it():
    """s = 1, σ = t: the solution is the straight line D + t u."""
    u = Symbol("u")
    found = deterministic.slope(D).subs({s(t): 1, sigma(t): t}).doit().subs(x(t), D + t * u)
    assert simplify(found - u) == 0


@pytest.mark.parametrize(("k", "value"), [(0, 1 - exp(-h)), (1, h - 1 + exp(-h)), (2, h**2 - 2 * h + 2 - 2 * exp(-h))])
def test_moments(k, value):
    assert simplify(deterministic.moment(k).doit() - value) == 0


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("unscaled-trajectory", sigma_dot / sigma(t) * (x(t) - D)),  # the state not divided by s
        ("tangent-ve", D),  # the tangent of VE taken for EDM's
        ("euler-denoised", here / there * x_i + (1 - here / there) * D_i),  # the levels exchanged
        ("euler-denoised", there / here * x_i + D_i),
        ("noise-guess-rate", -Derivative(D_t(t), t)),
        ("slope-parts", s_dot * D_t(t)),
        ("bend-parts", Derivative(s(t), t, 2) * D_t(t) + Derivative(omega(t), t, 2) * deterministic.nu(t)),  # D at rest
        ("edm-bend", Rational(0)),  # straight whatever D does
        ("level-error", -(drop**2) / (2 * sigma(t)) * Derivative(D_t(t), t) / sigma_dot),  # the clock forgotten
        ("straight-clock", b * t),  # EDM alone
        ("euler-local-error", h**2 * bend + order(h**3)),  # the 1/2 of Taylor's formula lost
        ("alpha-weight", 1 / alpha),
        ("alpha-local-error", h**3 * (Rational(1, 6) - alpha / 4) * bend_rate + order(h**4)),  # no error at α = 2/3
        ("gaussian-path", c * s(t) * (sqrt(v) + sigma(t))),  # standard deviations added
        ("edm-level-error", c * v * drop**2 / (v + level**2) ** Rational(3, 2)),
        ("ve-level-error", c * level**2 * drop**2 / (2 * (v + level**2) ** Rational(3, 2))),  # the side it errs to
        ("edm-steps", (sigma_max + deterministic.i / (deterministic.N - 1) * (sigma_min - sigma_max))),  # ρ = 1
        ("edm-steps", (top + deterministic.i / deterministic.N * (bottom - top)) ** rho),  # never reaches σ_min
        ("rho-spacing", -rho * (top - bottom) * sigma(y) ** (1 / rho)),
        ("rho-infinity", sigma_max + y * (sigma_min - sigma_max)),  # that is ρ = 1
        ("iddpm-levels", sqrt(abar_before / abar * (u_j**2 + 1) - 1)),
        ("equal-error-rho", 1 - (p + 1) / m),
        ("least-error", price),
        ("log-level-trajectory", deterministic.Function(r"\hat x", real=True)(chi) - D_chi),  # χ taken to rise with σ
        ("variation-of-constants", Integral(exp(r - h) * D_t(chi + r), (r, 0, h))),  # the start forgotten
        ("multistep-one", exp(-h) * hat + h * newest),  # Euler in χ: the linear part not solved exactly
        ("multistep-two", exp(-h) * hat + psi[0] * (Rational(3, 2) * newest - before / 2)),  # equal steps assumed
        ("multistep-three", psi[2] / (b * (b - a))),
        ("multistep-four", (psi[3] + (a + b) * psi[2] + a * b * psi[1]) / (e * (e - a) * (e - b))),
        ("multistep-error", h**3 / 2 + order(h**4)),
    ],
)
def test_a_common_mistake_is_refused(label, wrong):
    step = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(step, rhs=wrong, torch=()).verify()

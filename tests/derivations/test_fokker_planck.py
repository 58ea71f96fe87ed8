"""The chapter's own helpers, and the mistakes that its formulas are most often written with: each must be refused."""

from dataclasses import replace

import pytest
from sympy import (
    Derivative,
    DiracDelta,
    Function,
    Integral,
    Rational,
    Symbol,
    diff,
    exp,
    expand,
    integrate,
    log,
    oo,
    pi,
    simplify,
    sqrt,
    symbols,
)

from edmnotes.derivations import fokker_planck
from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.fokker_planck import (
    DIFFUSION,
    DRIFT,
    SCORE,
    SLOPE,
    adjoint,
    d,
    drift_for,
    eta,
    f,
    fokker_planck_side,
    g,
    gamma,
    gamma_x,
    level,
    mean_change,
    mu,
    normal,
    p,
    phi,
    s,
    sde,
    sigma,
    t,
    v,
    w,
    w_bar,
    x,
    y,
)

h = fokker_planck.h
heating = sigma(t) * Derivative(sigma(t), t)
k = fokker_planck.k
D = Function("D", real=True)(x / s(t), sigma(t))
J = Function("J", real=True)(x, t)
p_hat = Function(r"\hat{p}", real=True)(k, t)
low = Symbol(r"\sigma_{\min}", positive=True)


def test_a_total_derivative_has_no_variation():
    """What is a derivative in x integrates to 0 against every test function."""
    a = Function("a")(x)
    assert expand(adjoint(diff(a * phi + a**2 * diff(phi, x), x), phi, [x]).doit()) == 0


def test_the_adjoint_is_what_integration_by_parts_leaves():
    """Against concrete functions that vanish far out: the integrand and phi times the adjoint have one integral."""
    test, weight = exp(-(x**2)), 1 + x + x**3
    integrand = weight * Derivative(phi, (x, 2)) + x * Derivative(phi, x) - phi
    left = integrate(expand(integrand.subs(phi, test).doit()), (x, -oo, oo))
    right = integrate(expand(test * adjoint(integrand, phi, [x]).doit()), (x, -oo, oo))
    assert simplify(left - right) == 0
    assert left != 0


def test_the_adjoint_in_two_coordinates_moves_mixed_derivatives_once():
    a, b = symbols("a b", real=True)
    test, weight = Function("q")(a, b), Function("c")(a, b)
    assert adjoint(weight * diff(test, a, b), test, [a, b]).doit() == diff(weight, a, b)


def test_a_delta_as_the_test_function_reads_off_the_same_equation():
    """d/dt of the mean of delta(x_t - y), for a concrete density, drift and diffusion."""
    density, drift, diffusion = exp(-(x**2)) * (1 + x), x - x**3, 1 + x**2
    rate = drift * DiracDelta(x - y, 1) + diffusion**2 * DiracDelta(x - y, 2) / 2
    by_delta = integrate(expand(density * rate), (x, -oo, oo))
    side = -diff(drift * density, x) + diff(diffusion**2 * density, x, 2) / 2
    assert simplify(by_delta - side.subs(x, y)) == 0


def test_the_mean_change_of_a_square_is_exact():
    """For a test function of degree 2 nothing is left out: the mean of (x + mu h + gamma sqrt(h) e)^2 less x^2."""
    a, b = symbols("a b", real=True)
    assert expand(mean_change(x**2, [x], [a], [[b]], order=2) - (2 * a * x + b**2 + a**2 * h)) == 0


def test_two_noises_of_one_coordinate_add_their_squares():
    a, b = symbols("a b", real=True)
    assert mean_change(x**2, [x], [Rational(0)], [[a, b]], order=2) == a**2 + b**2


def test_normal_is_a_density():
    assert integrate(normal(x, Rational(1), level), (x, -oo, oo)) == 1


def test_the_drift_for_a_current_has_that_current():
    found = drift_for(J, gamma**2 * SLOPE / 2).value
    assert simplify(found * p - gamma**2 * SLOPE / 2 - J) == 0


def test_the_family_on_a_mixture_of_two_point_masses():
    """A density that is no Gaussian, put in with its numbers: the Fokker–Planck equation holds for three strengths."""
    mixture = (normal(x, -1, t) + 2 * normal(x, 1, t)) / 3  # EDM's clock
    for strength in (0, 1, 3):
        noise = strength * sqrt(2 * t)
        drift = (noise**2 / 2 - t) * diff(log(mixture), x)
        rest = diff(mixture, t) + diff(drift * mixture, x) - diff(noise**2 * mixture, x, 2) / 2
        assert abs(rest.subs({x: Rational(3, 10), t: Rational(4, 5)}).evalf(30)) < 1e-20


ONE_MISTAKE = [
    ("generator", mu * Derivative(phi, x)),  # Taylor to first order, as without noise
    ("generator", mu * Derivative(phi, x) + gamma_x**2 * Derivative(phi, (x, 2))),  # the 1/2 lost
    ("fokker-planck", Derivative(mu * p, x) + Derivative(gamma_x**2 * p, (x, 2)) / 2),
    ("fokker-planck", -Derivative(mu * p, x) + gamma_x**2 * Derivative(p, (x, 2)) / 2),  # γ(x, t) taken out
    ("fokker-planck", -mu * SLOPE + Derivative(gamma_x**2 * p, (x, 2)) / 2),  # μ(x, t) taken out
    ("continuity", Derivative(J, x)),
    ("kernel-transform", exp(-(level**2) * k**2)),
    ("transform-rate", -heating * k**2 * Derivative(p_hat, (k, 2))),  # multiplied and differentiated, too
    ("heat-equation", sigma(t) ** 2 * Derivative(p, (x, 2))),
    ("heat-equation", heating * Derivative(p, (x, 2)) / 2),
    ("heat-equation", -heating * Derivative(p, (x, 2))),
    ("forward-fokker-planck", -f(t) * x * SLOPE + g(t) ** 2 * Derivative(p, (x, 2)) / 2),  # x taken out
    ("sde-family", sde((gamma**2 / 2 + heating) * SCORE, gamma, w)),  # its sign on the way back
    ("sde-family", sde((gamma**2 - heating) * SCORE, gamma, w)),
    ("langevin-sde", sde(gamma**2 * SCORE, gamma, w)),  # the reverse SDE's ratio of drift to noise
    ("langevin-stationary", gamma**2 * Derivative(Function("p", positive=True)(x), (x, 2))),
    ("backward-fokker-planck", -Derivative(mu * p, x) + gamma**2 * Derivative(p, (x, 2)) / 2),  # run backwards as it is
    ("scaled-family", sde(f(t) * x - (gamma**2 - g(t) ** 2) * SCORE / 2, gamma, w)),
    ("reverse-sde", sde(f(t) * x, g(t), w_bar)),  # the forward SDE
    ("reverse-sde", sde(f(t) * x - g(t) ** 2 * SCORE / 2, g(t), w_bar)),  # the ODE's drift with noise
    ("reverse-sde", sde(f(t) * x + g(t) ** 2 * SCORE, g(t), w_bar)),
    ("sde-strength", sde(f(t) * x - (1 + eta) * g(t) ** 2 * SCORE / 2, eta * g(t), w_bar)),
    ("sde-strength", sde(f(t) * x - (1 - eta**2) * g(t) ** 2 * SCORE / 2, eta * g(t), w_bar)),
    ("pf-ode", (f(t) * x - g(t) ** 2 * SCORE) * d * t),  # the noise dropped, the drift kept
    ("scaled-score", (D - x / s(t)) / sigma(t) ** 2),  # the chain rule's 1/s
    ("scaled-score", (D - x) / (s(t) * sigma(t) ** 2)),
    (
        "pf-ode-denoiser",
        ((DRIFT + Derivative(sigma(t), t) / sigma(t)) * x - D * Derivative(sigma(t), t) / sigma(t)) * d * t,
    ),
    ("strength-denoiser", sde(DRIFT * x + (1 + eta**2) * (x - s(t) * D), eta * DIFFUSION, w_bar)),
    ("gaussian-flow", fokker_planck.x0 * (1 + level**2 / v)),
    ("memory-of-strength", (v / (v + level**2)) ** (eta / 2)),
    ("fixed-start-variance", v + level**2),  # a fixed start taken for the data's
    ("start-forgotten", (v / (v + level**2)) ** (eta**2 / 2)),
    ("backwards-variance", v),  # noise taken back by turning the time
    ("start-divergence", y**2 / Symbol(r"\sigma_{\max}", positive=True)),
    ("last-step-std", sqrt(v)),
    ("last-step-std", sqrt(v + low**2)),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    step = registry().entries[label].step
    with pytest.raises(VerificationError, match=label):
        replace(step, rhs=wrong, torch=()).verify()


@pytest.mark.parametrize("label", ["fokker-planck-nd", "fokker-planck-isotropic"])
def test_in_two_coordinates_a_lost_term_is_refused(label):
    """Each term of the written side in turn: these two equations are compared by eye, so the step must be tight."""
    step = registry().entries[label].step
    for term in step.rhs.args:
        with pytest.raises(VerificationError, match=label):
            replace(step, rhs=step.rhs - term).verify()


def test_the_written_side_of_one_coordinate_is_the_general_one_with_one():
    density = exp(-(x**2)) / sqrt(pi)
    by_hand = -diff(x * density, x) + diff(4 * density, x, 2) / 2
    found = fokker_planck_side(x, Rational(2)).subs(p, density).doit()
    assert simplify(found - by_hand) == 0
    assert Integral(by_hand, (x, -oo, oo)).doit() == 0

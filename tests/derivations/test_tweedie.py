"""The chapter's helpers, what the library computes of its formulas, and the mistakes they are most often made with."""

from dataclasses import replace

import pytest
import torch
from sympy import Derivative, Function, Integral, Rational, Symbol, exp, lambdify, log, oo, pi, sqrt, symbols

from edmnotes import exact, losses
from edmnotes.derivations import tweedie
from edmnotes.derivations.core import VerificationError, registry

x, y, z, v, w, m, a, b = (getattr(tweedie, name) for name in ("x", "y", "z", "v", "w", "m", "a", "b"))
sigma, mean, i, n = tweedie.sigma, tweedie.mean, tweedie.i, tweedie.n
p, s, S, C, D = (getattr(tweedie, name) for name in ("p", "s", "S", "C", "D"))
P, SLOPE = p(x, sigma), tweedie.LOG_SLOPE
A_11, A_12, A_21, A_22 = symbols("A_{11} A_{12} A_{21} A_{22}", real=True)
LEVEL = 0.7


def step(label):
    return registry().entries[label].step


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_the_normal_density_integrates_to_1_and_has_its_variance():
    for power, moment in ((0, 1), (1, 0), (2, v)):
        assert Integral(z**power * tweedie.normal(z, v), (z, -oo, oo)).doit() == moment


def test_linear_splits_sums_and_takes_constants_out_and_no_more():
    q = Function("q")
    split = tweedie.Linear((x * y + 3) * q(y), (y, a, b)).doit()
    assert split == x * tweedie.Linear(y * q(y), (y, a, b)) + 3 * tweedie.Linear(q(y), (y, a, b))
    assert split.has(Integral)


def test_linear_is_an_integral_to_the_numbers():
    assert lambdify([], tweedie.Linear(exp(-(y**2)), (y, -oo, oo)), "mpmath")() == pytest.approx(float(sqrt(pi)))


def test_the_minimiser_of_a_quadratic():
    assert tweedie.minimiser(3 * (z - x) ** 2 + (z - y) ** 2).value.equals((3 * x + y) / 4)


# --- the library ------------------------------------------------------------------------------------------------------

POINTS = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
AT = torch.linspace(-2, 2, 9, dtype=torch.float64)


def over_three(expression):
    """A step's sums over three points, in numbers, as a function of x."""
    density = tweedie.KERNEL[tweedie.K(tweedie.u)]
    written = expression.subs(n, 3).replace(tweedie.K, lambda u: density.subs(tweedie.u, u)).doit()
    values = {tweedie.point[k + 1]: float(POINTS[k]) for k in range(3)}
    values |= {tweedie.weight[k + 1]: float(WEIGHTS[k]) for k in range(3)} | {sigma: LEVEL}
    function = lambdify(x, written.subs(values))
    return torch.tensor([float(function(float(at))) for at in AT], dtype=torch.float64)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        (tweedie.IDEAL, lambda three: three(AT, LEVEL)),
        (tweedie.SMOOTHED, lambda three: three.log_prob(AT, LEVEL).exp()),
        (tweedie.VARIANCE, lambda three: three.posterior_cov(AT, LEVEL)[:, 0, 0]),
        (Derivative(log(tweedie.SMOOTHED), x), lambda three: three.score(AT, LEVEL)),
    ],
    ids=["denoiser", "density", "variance", "score"],
)
def test_points_with_weights_are_a_mixture_of_point_masses(expression, answer):
    three = exact.GaussianMixture(POINTS, 0.0, WEIGHTS)
    torch.testing.assert_close(answer(three), over_three(expression), rtol=1e-10, atol=1e-12)


def test_the_gaussian_of_the_library_is_the_steps():
    function = lambdify((x, sigma, mean, v), step("gaussian-denoiser").rhs)
    answer = exact.Gaussian(0.3, 0.5)(AT, LEVEL)
    assert answer.tolist() == pytest.approx([function(float(at), LEVEL, 0.3, 0.25) for at in AT])


def test_the_mixture_of_the_library_is_the_steps():
    mixed = step("mixture-denoiser")
    rhs = mixed.rhs
    for name, value in mixed.given.items():
        rhs = rhs.subs(name, value)
    numbers = {r"\mu_1": -1.0, r"\mu_2": 0.5, "v_1": 0.09, "v_2": 0.25, "w_1": 0.4, "w_2": 0.6}
    function = lambdify(
        x, rhs.subs({symbol: numbers.get(symbol.name, symbol) for symbol in rhs.free_symbols} | {sigma: LEVEL})
    )
    answer = exact.GaussianMixture([-1.0, 0.5], [0.3, 0.5], [0.4, 0.6])(AT, LEVEL)
    assert answer.tolist() == pytest.approx([float(function(float(at))) for at in AT])


def test_two_points_are_two_point_masses():
    function = lambdify((x, sigma, m, w), step("two-point-denoiser").rhs)
    answer = exact.GaussianMixture([-1.2, 1.2], 0.0, [0.3, 0.7])(AT, LEVEL)
    assert answer.tolist() == pytest.approx([function(float(at), LEVEL, 1.2, 0.7) for at in AT])


def test_the_sliced_loss_has_the_steps_mean_and_spread_over_signs():
    """Of a linear score, over all four pairs of signs: exactly."""
    matrix = torch.tensor([[0.7, -1.1], [0.4, 0.2]], dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 2)
    at = torch.tensor([[0.3, -0.8]], dtype=torch.float64).repeat(4, 1)
    values = losses.sliced_score_matching(lambda x: x @ matrix.T, at, signs).detach()
    numbers = dict(zip((A_11, A_12, A_21, A_22), matrix.flatten().tolist(), strict=True))
    trace = float(step("sliced-trace").rhs.subs(numbers))
    assert float(values.mean() - (at @ matrix.T)[0].square().sum() / 2) == pytest.approx(trace)
    assert float(values.var(correction=0)) == pytest.approx(float(step("sliced-spread-signs").rhs.subs(numbers)))


def test_the_losses_of_the_library_differ_by_the_constants_of_the_steps():
    """On a Gaussian, whose integrals are a grid's sums: J_E - J_I is half of E S², J_D - J_E half of E C / σ⁴."""
    gaussian = exact.Gaussian(0.3, 0.5)
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    mass = gaussian.log_prob(grid, LEVEL).exp() * (grid[1] - grid[0])

    def wrong(x):
        return torch.sin(x) - 0.3 * x

    explicit = (mass * (wrong(grid) - gaussian.score(grid, LEVEL)) ** 2).sum() / 2
    implicit = (mass * losses.implicit_score_matching(wrong, grid).detach()).sum()
    information = (mass * gaussian.score(grid, LEVEL) ** 2).sum()
    assert float(explicit - implicit) == pytest.approx(float(information / 2))
    spread = (mass * gaussian.posterior_cov(grid[:, None], LEVEL)[:, 0, 0]).sum()
    assert float(information) == pytest.approx(float(1 / LEVEL**2 - spread / LEVEL**4))
    pairs = torch.cartesian_prod(
        torch.linspace(-5, 5, 801, dtype=torch.float64), torch.linspace(-6, 6, 801, dtype=torch.float64)
    )
    clean, eps = 0.3 + 0.5 * pairs[:, 0], pairs[:, 1]
    both = torch.exp(-(pairs**2).sum(1) / 2)
    denoising = (both * losses.denoising_score_matching(wrong, clean, LEVEL, eps)).sum() / both.sum()
    assert float(denoising - explicit) == pytest.approx(float(spread / LEVEL**4 / 2), rel=1e-4)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("best-guess", v),  # the guess forgotten
        ("kernel-slope", (x - y) / sigma**2 * tweedie.K(x - y)),  # away from the data
        ("tweedie-finite", tweedie.IDEAL - x),  # the score "is" the mean of the data, or the way to it
        ("ideal-denoiser-finite", tweedie.over_points(tweedie.point[i])),  # not divided by p
        ("loss-at-a-point", P * (z - D(x, sigma)) ** 2),  # the best loss is 0
        ("ideal-denoiser", tweedie.over_line(y)),
        ("tweedie", x + sigma * SLOPE),  # σ in place of its square
        ("tweedie", x - sigma**2 * SLOPE),
        ("score-from-denoiser", (x - D(x, sigma)) / sigma**2),
        ("score-from-denoiser", D(x, sigma) / sigma**2),  # the score "is" the weighted mean
        ("gaussian-denoiser", mean + sigma**2 / (v + sigma**2) * (x - mean)),  # shrunk by the wrong share
        ("natural-mean", Derivative(log(p(x)), x)),  # h forgotten
        ("natural-gaussian", x + Derivative(log(p(x)), x)),
        ("posterior-variance", sigma**4 * Derivative(D(x, sigma), x)),
        ("posterior-variance", Derivative(D(x, sigma), x)),
        ("second-tweedie", sigma**4 * Derivative(S(x, sigma), x)),
        ("score-of-energy", Derivative(Function("U", real=True)(x), x)),  # uphill in energy
        ("integration-by-parts", p(x) * (s(x) ** 2 / 2 + Derivative(s(x), x)) + Derivative(p(x), x) ** 2 / (2 * p(x))),
        ("hyvarinen-constant", tweedie.Linear(p(x) * S(x) ** 2, (x, a, b)) / 2),  # the ends forgotten
        ("denoising-constant", P * (s(x) - S(x, sigma)) ** 2),  # no constant
        ("denoising-constant", P * (s(x) - S(x, sigma)) ** 2 + P * C(x, sigma) / sigma**2),
        ("fisher-information", P * (1 / sigma**2 - C(x, sigma) / sigma**4)),
        ("sliced-trace", A_11 + A_12 + A_21 + A_22),
        ("sliced-spread-normal", 2 * A_11**2 + 2 * A_22**2 + 2 * A_12**2 + 2 * A_21**2),  # right if symmetric only
        ("sliced-spread-signs", A_12**2 + A_21**2),
        ("de-bruijn", -tweedie.Function("F")(sigma)),  # the σ of dτ lost
        ("kl-from-fisher", Integral(Function("F")(sigma), (sigma, 0, oo))),
        ("kl-gaussians", (mean - tweedie.nu) ** 2 / (v + sigma**2)),
        ("two-point-denoiser", m - m / (1 + w / (1 - w) * exp(2 * m * x / sigma**2))),
        ("two-point-denoiser", m - 2 * m / (1 + exp(2 * m * x / sigma**2))),  # even weights
    ],
)
def test_a_common_mistake_is_refused(label, wrong):
    with pytest.raises(VerificationError, match=label):
        replace(step(label), rhs=wrong, torch=()).verify()


def test_a_normaliser_with_the_wrong_power_of_sigma_leaves_the_score_and_spoils_the_density():
    """The notes print (2πσ) for (2πσ²)."""
    wrong = exp(-(x**2) / (2 * sigma**2)) / sqrt(2 * pi * sigma)
    right = tweedie.normal(x, sigma**2)
    assert (Derivative(log(wrong), x) - Derivative(log(right), x)).doit().simplify() == 0
    assert Integral(wrong, (x, -oo, oo)).doit() == sqrt(sigma)
    assert Symbol("sigma", positive=True) == sigma
    assert Rational(1) == Integral(right, (x, -oo, oo)).doit()

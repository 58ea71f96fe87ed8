"""DDPM and DDIM: on Gaussians a chain ends with a spread in closed form, on mixtures a step has a best variance."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import samplers, steps
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.noise import PerSample
from edmnotes.samplers import (
    Analytic,
    Beta,
    Capped,
    ChainStep,
    Interpolated,
    NoiseSquare,
    Posterior,
    Residual,
    ddim,
    ddpm,
    euler,
    noise_moments,
    predictor_corrector,
)
from edmnotes.schedules import VP, Discrete

BOTH = [ddpm, ddim]
DATA = Gaussian(0.0, 0.5)
MIXTURE = GaussianMixture([-1.0, 1.0], [0.3, 0.5], [0.4, 0.6])
CHAIN = Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
ONE = torch.ones(1, dtype=torch.float64)
LEVELS = torch.tensor([40.0, 7.0, 1.5, 0.4, 0.05, 0.0], dtype=torch.float64)


class Directions:
    """In place of noise: each draw is a direction of its own. On a Gaussian variances are then sums of squares."""

    def __init__(self):
        self.drawn = 0

    def __call__(self, x):
        self.drawn += 1
        return torch.nn.functional.one_hot(torch.tensor([self.drawn]), x.shape[1]).to(x)


def along(first, draws):
    """A start of this size along the first of many directions."""
    x = torch.zeros(1, draws + 1, dtype=torch.float64)
    x[0, 0] = first
    return x


def seeded(seed):
    """Noise for any shape from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def scale(sigma):
    """s of a chain."""
    return 1 / (1 + sigma**2) ** 0.5


def gaussian_analytic(levels, variance=0.25, **options):
    """The exact noise square of N(0, variance): ε̂ = σ y / (variance + σ²)."""
    return Analytic(levels, levels**2 / (variance + levels**2), **options)


def refuse_noise(x):
    raise AssertionError("noise was drawn")


# The final spread on N(0, 0.25), from REFERENCE's table: linear betas, N = 1000, exact ε, start N(0, 1).

COUNTS = [5, 10, 25, 50, 100, 1000]
EVERY_LEVEL = CHAIN.sigma(torch.arange(1, 1001, dtype=torch.float64))
TABLE = {
    "ddpm, posterior": (ddpm, Posterior(), [0.20973, 0.32284, 0.40419, 0.44319, 0.46795, 0.49611]),
    "ddpm, beta": (ddpm, Beta(), [0.74723, 0.59877, 0.53651, 0.51757, 0.50858, 0.50075]),
    "ddpm, analytic": (ddpm, gaussian_analytic(EVERY_LEVEL), [0.49990] * 6),
    "ddim": (ddim, Posterior(), [0.22509, 0.36161, 0.44421, 0.47192, 0.48585, 0.49850]),
    "ddim, analytic": (ddim, gaussian_analytic(EVERY_LEVEL), [0.49990] * 3 + [0.49991] * 3),
}


@pytest.mark.parametrize("count", range(6), ids=COUNTS)
@pytest.mark.parametrize("row", TABLE)
def test_final_spread_on_a_gaussian_is_that_of_the_table(row, count):
    sampler, variance, stds = TABLE[row]
    n = COUNTS[count]
    chosen = torch.from_numpy(np.round(np.linspace(1, 1000, n)))  # the table's rule; halves go to the even neighbour
    levels = torch.cat([CHAIN.sigma(chosen).flip(0), torch.zeros(1).double()])
    found = sampler(DATA, along(1.0, n), levels, variance=variance, noise=Directions()).x
    assert float(found.norm()) == pytest.approx(stds[count], abs=6e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_with_the_analytic_variance_a_gaussian_has_the_right_spread_at_every_level(eta):
    """On any levels; and it ends at the spread of D, which the last step without noise leaves."""
    start = float((scale(LEVELS[0]) ** 2 * (0.25 + LEVELS[0] ** 2)).sqrt())
    found = ddim(
        DATA,
        along(start, 5),
        LEVELS,
        eta=eta,
        variance=gaussian_analytic(LEVELS[:-1]),
        noise=Directions(),
        trajectory=True,
    )
    spread = found.trajectory.square().sum(dim=(1, 2))
    torch.testing.assert_close(spread[:-1], (scale(LEVELS) ** 2 * (0.25 + LEVELS**2))[:-1], rtol=1e-12, atol=0)
    assert float(spread[-1]) == pytest.approx(0.25**2 / (0.25 + 0.05**2), rel=1e-12)


@pytest.mark.parametrize("sampler", BOTH)
def test_a_noise_square_for_each_coordinate_serves_coordinates_of_unlike_spread(sampler):
    variances = torch.tensor([0.01, 4.0], dtype=torch.float64)
    data, levels = Gaussian([0.0, 0.0], variances.sqrt()), LEVELS[:-1, None]
    each = levels**2 / (variances + levels**2)
    alone = Analytic(LEVELS[:-1], each)
    shared = Analytic(LEVELS[:-1], each.mean(1))

    def spread(variance):
        """Final variances: sample k of the batch follows the start (k = 0) or the k-th draw, all else is 0."""
        drawn = iter(range(1, 5))
        x = torch.zeros(5, 2, dtype=torch.float64)
        x[0] = (scale(LEVELS[0]) ** 2 * (variances + LEVELS[0] ** 2)).sqrt()
        source = torch.arange(5)[:, None]
        noise = lambda x: (source == next(drawn)).expand_as(x).to(x)  # noqa: E731
        return sampler(data, x, LEVELS, variance=variance, noise=noise).x.square().sum(0)

    exact = variances**2 / (variances + 0.05**2)
    torch.testing.assert_close(spread(alone), exact, rtol=1e-12, atol=0)
    assert bool(((spread(shared) / exact - 1).abs() > 1e-3).all())


# Variances.


@pytest.mark.parametrize(("sigma", "sigma_next"), [(100.0, 30.0), (1.3, 1.1), (0.4, 0.01), (1e-4, 1e-7)])
def test_unit_variance_needs_beta_and_a_point_needs_the_posterior(sigma, sigma_next):
    step = ChainStep(sigma, sigma_next)
    level = torch.tensor([sigma], dtype=torch.float64)
    unit, point = gaussian_analytic(level, 1.0), gaussian_analytic(level, 0.0)
    assert float(unit(step, ONE, ONE)) == pytest.approx(step.beta, rel=1e-11)
    assert float(point(step, ONE, ONE)) == pytest.approx(step.posterior, rel=1e-12)
    assert step.posterior < step.beta


def draws(step, count=200_000):
    """Pairs (x, x') of the family on the mixture, each by its definition."""
    generator = torch.Generator().manual_seed(0)
    x0 = MIXTURE.sample(count, generator=generator)
    eps, new = torch.randn(2, count, generator=generator, dtype=torch.float64)
    x = math.sqrt(step.alpha_bar) * x0 + math.sqrt(step.beta_bar) * eps
    kept = step.eta**2 * step.beta * (1 - step.alpha_bar_next) / (1 - step.alpha_bar)
    old = 1 - step.alpha_bar_next - kept
    return x, math.sqrt(step.alpha_bar_next) * x0 + math.sqrt(old) * eps + math.sqrt(kept) * new


def step_of(step, x, variance=Posterior()):  # noqa: B008
    """Where the sampler goes from x in one step, without and with noise of 1."""
    levels = torch.tensor([step.sigma, step.sigma_next, 0.0], dtype=torch.float64)
    options = {"eta": step.eta, "variance": variance, "trajectory": True}
    mean = ddim(MIXTURE, x, levels, noise=torch.zeros_like, **options).trajectory[1]
    return mean, ddim(MIXTURE, x, levels, noise=torch.ones_like, **options).trajectory[1] - mean


def unexplained(sigma):
    """E Var[ε | x] on the mixture by quadrature: of x, over a line that holds all of it."""
    y = torch.linspace(-1, 1, 40_001, dtype=torch.float64) * (6 + 8 * sigma)
    return (
        float(torch.trapezoid(MIXTURE.log_prob(y, sigma).exp() * MIXTURE.posterior_cov(y, sigma)[:, 0, 0], y))
        / sigma**2
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(20.0, 1.5), (1.5, 0.6), (0.5, 0.1)])
def test_the_analytic_variance_is_the_mean_square_about_the_mean_and_the_most_likely(sigma, sigma_next, eta):
    step = ChainStep(sigma, sigma_next, eta)
    x, x_next = draws(step)
    mean, _ = step_of(step, x)
    best = step.analytic(unexplained(sigma))
    assert float((x_next - mean).square().mean()) == pytest.approx(best, rel=0.015)  # four standard errors

    def bits(variance):
        return float((x_next - mean).square().mean()) / (2 * variance) + math.log(variance) / 2

    others = [step.beta, step.posterior, step.kept]
    assert all(bits(best) < bits(other) for other in others if other > 0)
    assert step.kept <= best <= step.analytic(1.0)
    square = float(((x / step.alpha_bar**0.5 - MIXTURE(x / step.alpha_bar**0.5, sigma)) / sigma).square().mean())
    assert 1 - square == pytest.approx(unexplained(sigma), abs=0.015)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_extended_variances_are_those_of_the_next_state_given_x(eta):
    """On a mixture, against the posterior of x_0 on a grid."""
    step = ChainStep(0.8, 0.3, eta)
    y = torch.tensor([-1.5, -0.2, 0.1, 0.7], dtype=torch.float64)
    x0 = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    log_weight = MIXTURE.log_prob(x0, 0.0) - (y[:, None] - x0) ** 2 / (2 * step.sigma**2)
    weight = log_weight.softmax(1)
    eps = (y[:, None] - x0) / step.sigma
    centre = math.sqrt(step.alpha_bar_next) * x0 + math.sqrt(step.old) * eps
    mean = (weight * centre).sum(1)
    exact = step.kept + (weight * (centre - mean[:, None]) ** 2).sum(1)
    square, guess = (weight * eps**2).sum(1), (weight * eps).sum(1)

    def at_its_level(value):
        return lambda y, sigma: value * (sigma == step.sigma)

    for variance in (NoiseSquare(at_its_level(square)), Residual(at_its_level(square - guess**2))):
        found_mean, spread = step_of(step, math.sqrt(step.alpha_bar) * y, variance)
        torch.testing.assert_close(found_mean, mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(spread**2, exact, rtol=1e-5, atol=1e-6)
    assert float(exact.max() / exact.min()) > 1.5


def test_a_noise_square_below_the_guesses_own_square_is_held_at_the_lower_bound():
    step = ChainStep(0.8, 0.3)
    found = NoiseSquare(lambda y, sigma: torch.zeros_like(y))(step, ONE, 0 * ONE)
    assert float(found) == step.posterior


def test_the_residual_is_the_best_about_a_wrong_mean_too():
    """A denoiser that is wrong by a factor: the mean square about its mean is what the residual gives, not Γ."""
    step = ChainStep(1.5, 0.6)
    x, x_next = draws(step)

    def wrong(y, sigma):
        return 0.5 * MIXTURE(y, sigma)

    levels = torch.tensor([step.sigma, step.sigma_next, 0.0], dtype=torch.float64)
    mean = ddpm(wrong, x, levels, noise=torch.zeros_like, trajectory=True).trajectory[1]
    about_mean = float((x_next - mean).square().mean())
    x0 = MIXTURE.sample(200_000, generator=torch.Generator().manual_seed(1))
    moments = noise_moments(wrong, x0, levels[:1], noise=seeded(2), batch=200_000)
    by_residual = Analytic(moments.sigmas, 1 - moments.residual)(step, x, x)
    by_square = Analytic(moments.sigmas, moments.square)(step, x, x)
    assert float(by_residual) == pytest.approx(about_mean, rel=0.01)
    assert abs(float(by_square) / about_mean - 1) > 0.05


@given(v=st.floats(0, 1), sigma=st.floats(1e-2, 1e2), ratio=st.floats(1e-3, 0.999))
def test_an_interpolated_variance_lies_between_the_two(v, sigma, ratio):
    step = ChainStep(sigma, sigma * ratio)
    found = Interpolated(v)(step, ONE, ONE)
    by_logarithms = math.exp(v * math.log(step.beta) + (1 - v) * math.log(step.posterior))
    assert found == pytest.approx(by_logarithms, rel=1e-11)
    assert step.posterior * (1 - 1e-12) <= found <= step.beta * (1 + 1e-12)
    learned = Interpolated(lambda y, level: torch.full_like(y, v) * (level == sigma))(step, ONE, ONE)
    assert float(learned) == pytest.approx(found, rel=1e-12)


def test_a_cap_holds_where_it_was_asked_for_only():
    variance = Capped(Beta(), 0.01, 0.4)
    tensor = Capped(gaussian_analytic(LEVELS[:-1]), 0.01, 0.4)
    for sigma, sigma_next in pairwise(LEVELS.tolist()[:-1]):
        step = ChainStep(sigma, sigma_next)
        assert variance(step, ONE, ONE) == (0.01**2 if sigma_next <= 0.4 else step.beta)
        free = float(tensor.variance(step, ONE, ONE))
        assert float(tensor(step, ONE, ONE)) == pytest.approx(0.01**2 if sigma_next <= 0.4 else free, rel=1e-12)
    assert Capped(Beta(), 10.0, 0.4)(ChainStep(0.5, 0.4), ONE, ONE) == ChainStep(0.5, 0.4).beta


def test_levels_between_those_measured_are_read_linearly_in_the_logarithm():
    given_levels = torch.tensor([8.0, 2.0, 0.5])
    analytic = Analytic(given_levels, given_levels.log2() / 8 + 0.25)
    for sigma in (8.0, 5.0, 2.0, 1.9, 1.0, 0.5):
        assert float(analytic.unexplained(sigma)) == pytest.approx(0.75 - math.log2(sigma) / 8, rel=1e-12)
    assert float(Analytic(torch.tensor([2.0]), torch.tensor([0.3])).unexplained(2.0)) == pytest.approx(0.7, rel=1e-7)


def test_what_is_unexplained_is_held_between_its_bounds():
    levels, values = torch.tensor([0.1, 1.0, 10.0]).double(), torch.tensor([1.2, -0.3, 0.5]).double()
    free, bounded = Analytic(levels, values), Analytic(levels, values, radius=1.0)
    assert [float(free.unexplained(s)) for s in (0.1, 1.0, 10.0)] == [0.0, 1.0, 0.5]
    assert float(bounded.unexplained(float(levels[-1]))) == pytest.approx(0.01, rel=1e-12)
    # Two points, the widest data within the radius: the bound is met where nothing is known of x_0.
    ends = GaussianMixture([-1.0, 1.0], 0.0)
    assert float(ends.posterior_cov(0 * ONE, 10.0)) / 100 == pytest.approx(float(bounded.unexplained(10.0)), rel=1e-7)


# The measurement of the noise square.


def test_the_moments_of_a_gaussian_are_those_of_its_closed_form():
    levels, count = torch.tensor([0.1, 0.5, 3.0]).double(), 200_000
    x0 = 0.5 * seeded(0)(torch.empty(count).double())
    moments = noise_moments(DATA, x0, levels, noise=seeded(1))
    share = levels**2 / (0.25 + levels**2)
    torch.testing.assert_close(moments.square, share, rtol=0.015, atol=0)  # four standard errors of a mean square
    torch.testing.assert_close(moments.residual, 1 - share, rtol=0.015, atol=0)
    assert torch.equal(moments.sigmas, levels)


def test_moments_do_not_depend_on_the_batch_and_conditions_go_with_their_samples():
    def shifted(y, sigma, *, labels, gain):
        assert len(labels) == len(y)
        return gain * DATA(y - labels[:, None], sigma) + labels[:, None]

    labels = torch.arange(10).double()
    x0 = labels[:, None] + 0.5 * PerSample(range(10)).normal((3,))
    found = [
        noise_moments(shifted, x0, LEVELS[:-1], noise=PerSample(range(10)), batch=b, labels=labels, gain=1.0)
        for b in (1, 4, 512)
    ]
    for moments in found[:2]:
        torch.testing.assert_close(moments.square, found[2].square, rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.residual, found[2].residual, rtol=1e-12, atol=0)
    assert found[0].square.shape == (5, 3)
    alone = noise_moments(DATA, x0 - labels[:, None], LEVELS[:-1], noise=PerSample(range(10)))
    torch.testing.assert_close(found[0].square, alone.square, rtol=1e-9, atol=1e-12)


def test_the_moments_of_a_denoiser_that_knows_the_data_are_one_and_nothing():
    """ε̂ = ε: however few the draws, Γ is 1 and not their mean square. A single draw is taken as it is."""
    x0 = torch.full((4, 2), 0.7, dtype=torch.float64)
    for count in (4, 1):
        moments = noise_moments(lambda y, _: torch.full_like(y, 0.7), x0[:count], ONE, noise=PerSample(range(count)))
        drawn = PerSample(range(count)).normal((2,)).square().mean(0)
        expected = torch.ones(2).double() if count == 4 else drawn
        torch.testing.assert_close(moments.square[0], expected, rtol=1e-12, atol=0)
        assert float(moments.residual.abs().max()) == 0
        assert float((drawn - 1).abs().min()) > 0.05


def test_the_noise_square_is_exact_where_it_matters_to_more_digits_than_a_mean_square():
    """At σ = 20 the share 1 − Γ of N(0, 0.25) is 6e-4; a mean of 20 000 squares has a standard error of 1e-2."""
    x0 = 0.5 * seeded(0)(torch.empty(20_000).double())
    share = 1 - noise_moments(DATA, x0, 20 * ONE, noise=seeded(1)).square
    assert float(share) == pytest.approx(0.25 / 400.25, rel=0.75)  # three standard errors


# One family.


def test_ddim_with_eta_one_is_ddpm():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for variance in (Posterior(), Beta(), gaussian_analytic(LEVELS[:-1])):
        one = ddpm(MIXTURE, x, LEVELS, variance=variance, noise=seeded(0), trajectory=True)
        other = ddim(MIXTURE, x, LEVELS, eta=1.0, variance=variance, noise=seeded(0), trajectory=True)
        torch.testing.assert_close(one.trajectory, other.trajectory, rtol=1e-12, atol=1e-13)


def test_ddim_is_euler_in_the_noise_level():
    y = LEVELS[0] * torch.linspace(-2, 2, 9, dtype=torch.float64)
    chain = ddim(MIXTURE, scale(LEVELS[0]) * y, LEVELS, trajectory=True).trajectory
    unscaled = euler(MIXTURE, y, LEVELS, trajectory=True).trajectory
    torch.testing.assert_close(chain / scale(LEVELS).reshape(-1, 1), unscaled, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [VP(), CHAIN], ids=str)
def test_ddpm_is_the_ancestral_sampler_of_any_schedule_of_its_scale(schedule):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    chain = ddpm(MIXTURE, x, LEVELS, noise=seeded(0), trajectory=True)
    other = predictor_corrector(
        MIXTURE,
        x,
        LEVELS,
        schedule=schedule,
        predictor=samplers.ancestral,
        corrections=0,
        noise=seeded(0),
        trajectory=True,
    )
    torch.testing.assert_close(chain.trajectory, other.trajectory, rtol=1e-9, atol=1e-10)


def test_ddim_converges_to_the_flow_with_order_one():
    errors = []
    for n in (128, 256, 512):
        grid = torch.linspace(80 ** (1 / 7), 0.05 ** (1 / 7), n + 1, dtype=torch.float64) ** 7
        levels = torch.cat([grid, torch.zeros(1).double()])
        found = ddim(DATA, scale(80.0) * 57 * ONE, levels, trajectory=True).trajectory[-2] / scale(0.05)
        errors.append(abs(float(found) - 57 * math.sqrt((0.05**2 + 0.25) / (80.0**2 + 0.25))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 1, atol=0.1)


@pytest.mark.parametrize("sampler", BOTH)
def test_a_chain_may_be_left_and_entered_at_any_level(sampler):
    """Nothing of a step depends on those before it: a sub-sequence of levels is a chain."""
    x, noise = torch.linspace(-2, 2, 9, dtype=torch.float64), seeded(0)
    whole = sampler(MIXTURE, x, LEVELS, variance=Beta(), noise=seeded(0), trajectory=True).trajectory
    ends = torch.tensor([LEVELS[0], LEVELS[1], 0.0], dtype=torch.float64)
    first = sampler(MIXTURE, x, ends, variance=Beta(), noise=noise, trajectory=True).trajectory[1]
    assert torch.equal(first, whole[1])
    assert torch.equal(sampler(MIXTURE, first, LEVELS[1:], variance=Beta(), noise=noise).x, whole[-1])


@given(
    sigma=st.floats(1e-3, 1e3), ratio=st.floats(1e-3, 0.99), eta=st.floats(0, 1), u=st.floats(0, 1), v=st.floats(0, 1)
)
def test_the_numbers_of_a_step_are_those_of_their_definitions(sigma, ratio, eta, u, v):
    step = ChainStep(sigma, sigma * ratio, eta)
    bar, bar_next = 1 / (1 + sigma**2), 1 / (1 + (sigma * ratio) ** 2)
    assert (step.alpha_bar, step.alpha_bar_next) == (bar, bar_next)
    near = {"rel": 1e-9, "abs": 1e-15}  # the definitions themselves lose digits at low levels
    assert step.beta_bar == pytest.approx(1 - bar, **near)
    assert step.beta_bar_next == pytest.approx(1 - bar_next, **near)
    assert step.alpha == pytest.approx(bar / bar_next, rel=1e-14)
    assert step.beta == pytest.approx(1 - bar / bar_next, **near)
    assert step.posterior == pytest.approx(step.beta * (1 - bar_next) / (1 - bar), **near)
    assert step.kept + step.old == pytest.approx(step.beta_bar_next, rel=1e-12)
    assert step.kept == pytest.approx(eta**2 * step.posterior, rel=1e-12)
    assert step.kept <= step.analytic(u * v) <= step.analytic(u) <= step.analytic(1.0)
    # The chain of three levels composes.
    through = ChainStep(sigma * ratio, sigma * ratio / 2)
    assert ChainStep(sigma, sigma * ratio / 2).alpha == pytest.approx(step.alpha * through.alpha, rel=1e-14)


# The contract.


@pytest.mark.parametrize("sampler", BOTH)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_step_costs_one_call_and_the_last_draws_nothing(sampler, n):
    drawn = []
    options = {"variance": Beta(), "noise": lambda x: drawn.append(0) or torch.zeros_like(x)}
    levels = steps.linear(n, CHAIN)
    found = sampler(DATA, torch.ones(3).double(), levels, trajectory=True, **options)
    assert (found.nfe, len(drawn)) == (n, n - 1)
    before = found.trajectory[-2] / scale(levels[-2])
    torch.testing.assert_close(found.x, DATA(before, levels[-2]), rtol=1e-14, atol=0)


def test_without_eta_nothing_is_drawn():
    before = torch.random.get_rng_state()
    ddim(DATA, ONE, LEVELS)
    ddim(DATA, ONE, LEVELS, noise=refuse_noise)
    ddpm(DATA, ONE, LEVELS[-2:], variance=Beta(), noise=refuse_noise)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(AssertionError, match="noise was drawn"):
        ddim(DATA, ONE, LEVELS, eta=0.1, noise=refuse_noise)


@pytest.mark.parametrize("sampler", BOTH)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(sampler, shape, dtype):
    x = PerSample(range(3)).normal(shape[1:]).to(dtype)
    level = Residual(lambda y, sigma: torch.full_like(y, 0.5))
    for variance in (Beta(), gaussian_analytic(LEVELS[:-1]), level):
        found = sampler(DATA, x, LEVELS, variance=variance, noise=PerSample(range(3)), trajectory=True)
        assert (found.x.shape, found.x.dtype) == (shape, dtype)
        assert found.trajectory.shape == (6, *shape)
        torch.testing.assert_close(found.trajectory[-1].to(dtype), found.x)
        alone = sampler(DATA, x[1:2], LEVELS, variance=variance, noise=PerSample([1])).x
        torch.testing.assert_close(found.x[1:2], alone)


@pytest.mark.parametrize("sampler", BOTH)
def test_the_callback_hears_of_each_step_and_conditions_reach_the_denoiser(sampler):
    heard = []

    def conditional(x, sigma, *, labels):
        assert float(sigma) in LEVELS.tolist()  # the level itself, not what a schedule's clock makes of it
        return labels + 0 * x

    labels = torch.tensor([1.0, 2.0]).double()
    found = sampler(conditional, torch.zeros(2).double(), LEVELS, labels=labels, callback=lambda **s: heard.append(s))
    torch.testing.assert_close(found.x, labels)
    assert [step["sigma"] for step in heard] == LEVELS[:-1].tolist()
    assert all(torch.equal(step["denoised"], labels) for step in heard)


@pytest.mark.parametrize("sampler", BOTH)
@given(
    levels=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5, unique=True),
    eta=st.floats(0, 1),
    shape=st.sampled_from([(2,), (2, 3), (2, 1, 2, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    variance=st.sampled_from([Posterior(), Beta(), Interpolated(0.3), gaussian_analytic(torch.logspace(-3, 3, 30))]),
)
def test_legal_levels_give_finite_samples(sampler, levels, eta, shape, dtype, variance):
    sigmas = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    options = {"eta": eta} if sampler is ddim else {}
    found = sampler(DATA, torch.ones(shape, dtype=dtype), sigmas, variance=variance, noise=PerSample([0, 1]), **options)
    assert (found.x.shape, found.x.dtype) == (shape, dtype)
    assert bool(found.x.isfinite().all())


def test_eta_above_one_is_legal_until_the_new_noise_is_all_there_is():
    largest = (1 - (1.5 / 7.0) ** 2) ** -0.5
    assert ChainStep(7.0, 1.5, 0.999999 * largest).old < 1e-5
    with pytest.raises(ValueError, match=r"eta = .* from level 7 to 1.5 it must lie between 0 and 1.024"):
        ChainStep(7.0, 1.5, 1.000001 * largest)


@pytest.mark.parametrize("eta", [-0.1, 1.01, 1.5, float("nan"), float("inf")])  # 1.01 is possible in the first step
def test_an_impossible_eta_is_refused_before_the_first_step(eta):
    with pytest.raises(ValueError, match=f"eta = {eta}"):
        ddim(lambda *_: pytest.fail("the denoiser was called"), ONE, LEVELS, eta=eta)


@pytest.mark.parametrize(
    ("sigma", "sigma_next"), [(1.0, 1.0), (1.0, 2.0), (1.0, -0.1), (math.inf, 1.0), (1.0, math.nan)]
)
def test_a_step_that_does_not_go_down_is_refused(sigma, sigma_next):
    with pytest.raises(ValueError, match="need 0 <= sigma_next < sigma"):
        ChainStep(sigma, sigma_next)


@pytest.mark.parametrize("sampler", BOTH)
@pytest.mark.parametrize("levels", [[1.0], [1.0, 2.0, 0.0], [2.0, 1.0], [2.0, -1.0, 0.0], [float("nan"), 0.0]])
def test_levels_that_do_not_decrease_to_zero_are_refused(sampler, levels):
    with pytest.raises(ValueError, match="sigmas"):
        sampler(DATA, ONE, torch.tensor(levels))


@pytest.mark.parametrize("sampler", BOTH)
def test_an_integer_start_is_refused(sampler):
    with pytest.raises(ValueError, match="int64"):
        sampler(DATA, torch.ones(2, dtype=torch.int64), LEVELS)


@pytest.mark.parametrize(
    ("variance", "message"),
    [
        (lambda *_: -1.0, "variance = -1.0 in the step to level 7"),
        (lambda *_: math.nan, "variance = nan"),
        (lambda *_: torch.ones(3, 2), r"variance has shape \(3, 2\), which does not fit samples of \(2,\)"),
        (lambda *_: torch.ones(3), r"variance has shape \(3,\)"),
    ],
)
def test_a_variance_that_does_not_fit_is_refused(variance, message):
    with pytest.raises(ValueError, match=message):
        ddpm(DATA, torch.ones(2), LEVELS, variance=variance)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction = {fraction}"):
        Interpolated(fraction)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigmas": torch.tensor([1.0, 0.0])}, "sigmas has shape"),
        ({"sigmas": torch.tensor([[1.0, 2.0]])}, "sigmas has shape"),
        ({"sigmas": torch.tensor([1.0, 1.0])}, "sigmas holds a level twice"),
        ({"noise_square": torch.tensor([0.5])}, r"noise_square has shape \(1,\)"),
        ({"noise_square": torch.tensor([0.5, math.nan])}, "noise_square has shape"),
        ({"radius": 0.0}, "radius = 0.0"),
        ({"radius": math.nan}, "radius = nan"),
    ],
)
def test_measured_noise_squares_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Analytic(**{"sigmas": torch.tensor([1.0, 2.0]), "noise_square": torch.tensor([0.5, 0.6]), **changed})


@pytest.mark.parametrize("sigma", [0.1, 50.0])
def test_a_level_at_which_nothing_was_measured_is_refused(sigma):
    with pytest.raises(ValueError, match=r"measured from 0\.5 to 20 only"):
        Analytic(torch.tensor([20.0, 0.5]), torch.tensor([0.9, 0.5])).unexplained(sigma)


@pytest.mark.parametrize(
    ("std", "below", "message"), [(-1.0, 1.0, "std = -1.0"), (math.nan, 1.0, "std"), (1.0, 0.0, "below")]
)
def test_an_impossible_cap_is_refused(std, below, message):
    with pytest.raises(ValueError, match=message):
        Capped(Beta(), std, below)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x0": torch.ones(0, 2)}, r"x0 has shape \(0, 2\)"),
        ({"x0": torch.ones(2, dtype=torch.int64)}, "int64"),
        ({"sigmas": LEVELS}, "sigmas has shape"),
        ({"batch": 0}, "batch = 0"),
    ],
)
def test_moments_of_what_is_no_data_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        noise_moments(DATA, **{"x0": torch.ones(2), "sigmas": ONE, **changed})

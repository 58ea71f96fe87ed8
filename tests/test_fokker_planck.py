"""Particles and grid of the Fokker–Planck equation against exact densities: the distance falls as theory says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.fokker_planck import family_drift, reverse_drift, simulate, solve
from edmnotes.schedules import EDM, VE, VP, FlowMatching

MIXTURE = GaussianMixture([-1.0, 1.0], [0.3, 0.5], [0.4, 0.6])
SCHEDULES = [EDM(), VP(), VE(), FlowMatching()]
LEVELS = (0.2, 0.5, 1.0, 2.0)
MEMBERS = {
    "half g": lambda schedule: lambda t: 0.5 * schedule.diffusion(t),
    "g": lambda schedule: schedule.diffusion,
    "twice g": lambda schedule: lambda t: 2 * schedule.diffusion(t),
    "its own": lambda schedule: lambda t: 0.5 + torch.sin(3 * t) ** 2,
}


def zero(t):
    return torch.zeros_like(t)


def exact(schedule, t):
    """The density of x_t."""
    scale = schedule.scale(t)
    return lambda x: MIXTURE.log_prob(x / scale, schedule.sigma(t)).exp() / scale


def times(schedule, levels=LEVELS):
    return schedule.sigma_inv(torch.tensor(levels, dtype=torch.float64))


def seeded(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


# The grid.


def grid_error(schedule, diffusion, cells, *, substeps=30, drift=None):
    """The largest L1 distance over the times to the exact density."""
    t = times(schedule)
    reach = 14 * float(schedule.scale(t).max())
    drift = drift or family_drift(MIXTURE.score, schedule, diffusion)
    edges = torch.linspace(-reach, reach, cells + 1, dtype=torch.float64)
    found = solve(drift, diffusion, exact(schedule, t[0]), edges, t, substeps=substeps)
    width = edges[1] - edges[0]
    apart = [(p - exact(schedule, time)(found.centres)).abs().sum() for p, time in zip(found.densities, t, strict=True)]
    return float(width * max(apart))


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_member_keeps_the_exact_densities_and_the_error_falls_as_the_square_of_the_cell(schedule, member):
    diffusion = MEMBERS[member](schedule)
    errors = [grid_error(schedule, diffusion, cells) for cells in (200, 400)]
    assert errors[1] < 0.004
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=str)
def test_without_noise_the_grid_is_of_first_order(schedule):
    errors = [grid_error(schedule, zero, cells) for cells in (400, 800, 1600)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("member", ["half g", "its own"])
def test_the_error_falls_as_the_square_of_the_step(member):
    """On one grid, against very many steps on the same grid."""
    schedule, diffusion = VP(), MEMBERS[member](VP())
    drift, t = family_drift(MIXTURE.score, schedule, diffusion), times(VP())[[0, 3]]
    edges = torch.linspace(-6, 6, 201, dtype=torch.float64)

    def end(substeps):
        return solve(drift, diffusion, exact(schedule, t[0]), edges, t, substeps=substeps).densities[-1]

    finest = end(256)
    errors = [float((end(n) - finest).abs().sum()) for n in (4, 8, 16)]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2, atol=0.3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_drift_of_another_family_is_far_from_the_exact_density(schedule):
    diffusion = MEMBERS["half g"](schedule)
    right = family_drift(MIXTURE.score, schedule, diffusion)
    backwards = reverse_drift(MIXTURE.score, schedule, diffusion)
    without_score = lambda x, t: schedule.drift(t) * x  # noqa: E731
    for wrong in (backwards, without_score, lambda x, t: 1.05 * right(x, t)):
        assert grid_error(schedule, diffusion, 400, drift=wrong) > 5 * grid_error(schedule, diffusion, 400)


@pytest.mark.parametrize("substeps", [1, 40])
def test_mass_is_kept_and_no_density_is_negative(substeps):
    """A bad case on purpose: a narrow start, a drift into the wall, long steps, hardly any noise."""
    edges = torch.linspace(-1, 1, 101, dtype=torch.float64)
    found = solve(
        lambda x, t: 3 + torch.sin(20 * x),
        lambda t: 0.01 + 0.1 * t,
        lambda x: (x.abs() < 0.011).double() / 0.04,
        edges,
        torch.linspace(0, 2, 5),
        substeps=substeps,
    )
    assert float(found.mass[0]) == pytest.approx(1, rel=1e-12)
    torch.testing.assert_close(found.mass, torch.ones(5).double(), rtol=1e-12, atol=0)
    assert float(found.densities.min()) >= 0


def test_with_no_drift_and_no_noise_nothing_moves():
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    found = solve(lambda x, t: 0 * x, zero, lambda x: 2 * x, edges, torch.tensor([0.0, 1.0]))
    assert torch.equal(found.densities[1], found.densities[0])


def test_the_heat_equation_gives_a_gaussian_of_the_summed_variance():
    edges = torch.linspace(-12, 12, 601, dtype=torch.float64)
    start = lambda x: torch.from_numpy(norm.pdf(x.numpy(), 0.5, 0.6))  # noqa: E731
    found = solve(lambda x, t: 0 * x, lambda t: 1.5, start, edges, torch.tensor([0.0, 1.0]))
    expected = norm.pdf(found.centres.numpy(), 0.5, math.sqrt(0.36 + 2.25))
    assert float(abs(found.densities[-1].numpy() - expected).max()) < 2e-4


def test_langevin_diffusion_goes_to_its_own_density():
    """From a Gaussian in the wrong place; the drift and the noise of p(x; 0.5) alone."""
    edges = torch.linspace(-8, 8, 401, dtype=torch.float64)
    drift = lambda x, t: MIXTURE.score(x, 0.5)  # noqa: E731
    start = lambda x: torch.from_numpy(norm.pdf(x.numpy(), 3, 0.4))  # noqa: E731
    found = solve(drift, lambda t: math.sqrt(2), start, edges, torch.tensor([0.0, 1.0, 40.0]))
    apart = (found.densities - MIXTURE.log_prob(found.centres, 0.5).exp()).abs().sum(1) * 0.04
    assert float(apart[0]) > 1.5
    assert float(apart[2]) < 1e-3


# The particles.


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_particles_of_every_member_have_the_exact_moments(schedule, member):
    diffusion, count, t = MEMBERS[member](schedule), 4000, times(schedule)
    data = MIXTURE.sample(count, generator=torch.Generator().manual_seed(5))
    x = schedule.scale(t[0]) * (data + LEVELS[0] * seeded(1)(data))
    drift = family_drift(MIXTURE.score, schedule, diffusion)
    found = simulate(drift, diffusion, x, t, substeps=60, noise=seeded(2))
    assert found.shape == (4, count)
    assert torch.equal(found[0], x)
    mean = float((MIXTURE.weights * MIXTURE.means).sum())
    data_variance = float((MIXTURE.weights * (MIXTURE.variances[:, 0] + MIXTURE.means**2)).sum()) - mean**2
    for state, time, level in zip(found, t, LEVELS, strict=True):
        scale, spread = float(schedule.scale(time)), math.sqrt(data_variance + level**2)
        # Standard errors of mean and std; 60 steps leave the std about 1 % off.
        assert abs(float(state.mean()) / scale - mean) < 4 * spread / math.sqrt(count) + 0.01
        assert abs(float(state.std()) / scale / spread - 1) < 4 / math.sqrt(2 * count) + 0.01


def distance(x, schedule, t):
    """Kolmogorov's: the largest gap between the particles' distribution function and the exact one."""
    scale, level = float(schedule.scale(t)), float(schedule.sigma(t))
    y = np.sort(x.numpy() / scale)
    parts = zip(MIXTURE.weights.tolist(), MIXTURE.means.tolist(), MIXTURE.variances[:, 0].tolist(), strict=True)
    cdf = sum(w * norm.cdf(y, m, math.sqrt(v + level**2)) for w, m, v in parts)
    ranks = np.arange(len(y) + 1) / len(y)
    return max(np.abs(cdf - ranks[1:]).max(), np.abs(cdf - ranks[:-1]).max())


def test_the_particles_distance_falls_as_the_root_of_their_number():
    """Mean of √N times Kolmogorov's distance over independent clouds: 0.8687 (Kolmogorov's law) whatever N."""
    schedule, t, clouds = VP(), times(VP(), (0.2, 1.0)), 16
    diffusion = MEMBERS["half g"](schedule)
    drift = family_drift(MIXTURE.score, schedule, diffusion)
    for count in (64, 512, 4096):
        data = MIXTURE.sample(clouds * count, generator=torch.Generator().manual_seed(count))
        x = schedule.scale(t[0]) * (data + 0.2 * seeded(count + 1)(data))
        end = simulate(drift, diffusion, x, t, substeps=150, noise=seeded(count + 2))[-1]
        gaps = np.array([distance(cloud, schedule, t[-1]) for cloud in end.reshape(clouds, count)]) * math.sqrt(count)
        # The std of one is 0.26; the finite N lowers the mean by about 1/(6 √N), the 150 steps raise it a little.
        assert gaps.mean() == pytest.approx(0.8687, abs=3.5 * 0.26 / math.sqrt(clouds) + 0.02), (count, gaps.mean())


@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=str)
def test_the_reverse_family_leads_back_and_the_forward_sde_run_backwards_does_not(schedule):
    t, count = times(schedule, tuple(np.geomspace(20, 0.1, 120))), 4000
    data = MIXTURE.sample(count, generator=torch.Generator().manual_seed(5))
    x = schedule.scale(t[0]) * (data + 20 * seeded(1)(data))
    expected = math.sqrt(float(MIXTURE.sample(200_000, generator=torch.Generator().manual_seed(0)).var()) + 0.01)

    def std(drift, diffusion):
        return float(simulate(drift, diffusion, x, t, noise=seeded(2))[-1].std() / schedule.scale(t[-1]))

    for eta in (0.0, 0.5, 1.0, 1.5):
        diffusion = lambda time, eta=eta: eta * schedule.diffusion(time)  # noqa: E731
        found = std(reverse_drift(MIXTURE.score, schedule, diffusion), diffusion)
        assert found == pytest.approx(expected, rel=4 / math.sqrt(2 * count) + 0.04)
    assert std(lambda x, time: schedule.drift(time) * x, schedule.diffusion) > 10 * expected


def test_the_flow_forwards_from_data_keeps_quantiles_and_draws_nothing():
    """The probability-flow ODE is the member with no noise: Gaussian data stay at the same number of stds."""
    gaussian, schedule, t = Gaussian(0.3, 0.5), VP(), times(VP(), (0.1, 3.0))
    x, before = schedule.scale(t[0]) * torch.linspace(-1, 2, 7).double(), torch.random.get_rng_state()
    end = simulate(family_drift(gaussian.score, schedule, zero), zero, x, t, substeps=2000)[-1]
    assert torch.equal(torch.random.get_rng_state(), before)
    ratio = math.sqrt((0.25 + 9.0) / (0.25 + 0.01))
    expected = schedule.scale(t[1]) * (0.3 + ratio * (x / schedule.scale(t[0]) - 0.3))
    torch.testing.assert_close(end, expected, rtol=2e-3, atol=2e-3)


def test_substeps_are_steps_and_noise_is_a_stream():
    t = torch.linspace(0.5, 1, 9, dtype=torch.float64)
    drift, diffusion, x = family_drift(MIXTURE.score, EDM(), EDM().diffusion), EDM().diffusion, torch.zeros(3).double()
    fine = simulate(drift, diffusion, x, t, noise=seeded())
    coarse = simulate(drift, diffusion, x, t[::4], substeps=4, noise=seeded())
    torch.testing.assert_close(coarse, fine[::4], rtol=1e-12, atol=1e-12)


def test_one_step_is_the_formula_to_the_last_digits():
    """A diffusion given as a plain number included, which torch would by itself round to float32."""
    x, t = torch.tensor([0.3, -1.7]).double(), torch.tensor([2.0, 1.3], dtype=torch.float64)
    found = simulate(lambda x, t: x**2 * t, lambda t: 0.1, x, t, noise=lambda x: x + 1)[-1]
    torch.testing.assert_close(found, x - 0.7 * 2 * x**2 + 0.1 * math.sqrt(0.7) * (x + 1), rtol=1e-15, atol=1e-15)


# What is refused.


@pytest.mark.parametrize("bad", [[0.0], [0.0, 0.0], [0.0, 1.0, 0.5], [0.0, math.inf], [math.nan, 1.0], [[0.0, 1.0]]])
def test_times_that_do_not_go_one_way_are_refused(bad):
    with pytest.raises(ValueError, match="times"):
        simulate(lambda x, t: x, zero, torch.zeros(2).double(), torch.tensor(bad))


@pytest.mark.parametrize("substeps", [0, -1])
def test_no_substeps_are_refused(substeps):
    with pytest.raises(ValueError, match="substeps"):
        simulate(lambda x, t: x, zero, torch.zeros(2).double(), torch.tensor([0.0, 1.0]), substeps=substeps)


@pytest.mark.parametrize("edges", [[0.0, 1.0], [0.0, 1.0, 2.0, 4.0], [3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
def test_edges_that_are_no_grid_are_refused(edges):
    with pytest.raises(ValueError, match="edges"):
        solve(lambda x, t: x, zero, torch.ones_like, torch.tensor(edges), torch.tensor([0.0, 1.0]))


def test_decreasing_times_and_negative_densities_are_refused():
    edges = torch.linspace(0, 1, 11)
    with pytest.raises(ValueError, match="forwards"):
        solve(lambda x, t: x, zero, torch.ones_like, edges, torch.tensor([1.0, 0.0]))
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="density"):
            solve(lambda x, t: x, zero, lambda x, v=value: x * 0 + v, edges, torch.tensor([0.0, 1.0]))


@given(
    level=st.floats(0.05, 2),
    speed=st.floats(-5, 5),
    rate=st.floats(0, 3),
    cells=st.integers(3, 40),
    substeps=st.integers(1, 3),
)
def test_legal_input_gives_finite_densities_and_particles(level, speed, rate, cells, substeps):
    edges = torch.linspace(-3, 3, cells + 1, dtype=torch.float64)
    drift, diffusion = (lambda x, t: speed * torch.cos(x)), (lambda t: rate)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    grid = solve(drift, diffusion, lambda x: MIXTURE.log_prob(x, level).exp(), edges, t, substeps=substeps)
    assert bool(grid.densities.isfinite().all())
    assert float(grid.densities.min()) >= 0
    torch.testing.assert_close(grid.mass, grid.mass[:1].expand(3), rtol=1e-11, atol=1e-14)
    x = simulate(drift, diffusion, torch.ones(2, 3), t, substeps=substeps, noise=seeded())
    assert (x.shape, x.dtype) == ((3, 2, 3), torch.float32)
    assert bool(x.isfinite().all())

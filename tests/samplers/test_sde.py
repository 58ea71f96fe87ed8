"""The reverse SDE: strong and weak order against exact answers, its marginals, and what a wrong drift does."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import steps
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.noise import BrownianPath, PerSample
from edmnotes.samplers import euler, reverse_sde
from edmnotes.schedules import EDM, VE, VP, Cosine, FlowMatching, GeometricVE

SCHEDULES = [EDM(), VE(), VP()]
EVERY = [*SCHEDULES, FlowMatching(), GeometricVE(0.05, 80.0)]
CASES = [*((schedule, 1.0) for schedule in EVERY), (EDM(), 0.5), (VP(), 1.5)]
STD = 0.5
DATA = Gaussian(0.0, STD)
ONE = torch.ones(1, dtype=torch.float64)


def nested_levels(n):
    """n steps from 80 to 0.05, each halved by 2n, then 0."""
    ends = (80 ** (1 / 7), 0.05 ** (1 / 7))
    between = torch.linspace(*ends, n + 1, dtype=torch.float64) ** 7
    return torch.cat([between.clamp(0.05, 80.0), torch.zeros(1).double()])


def times(schedule, n):
    """The times of these levels above 0."""
    return schedule.sigma_inv(nested_levels(n)[:-1])


def start(schedule, unscaled, sigma=80.0):
    """The state at level ``sigma`` in the schedule's coordinates."""
    return schedule.scale(schedule.sigma_inv(sigma)) * unscaled


def variance(schedule, sigmas):
    """The exact variance of x_t at noise levels."""
    return schedule.scale(schedule.sigma_inv(sigmas)) ** 2 * (STD**2 + sigmas**2)


# On a centred Gaussian the sampler is linear: x_n = c_0 x_0 + Σ c_j ε_j. One run tells all c_j, without sampling error.


class Directions:
    """In place of noise: each draw is a direction of its own."""

    def __init__(self):
        self.drawn = 0

    def __call__(self, x):
        self.drawn += 1
        return torch.nn.functional.one_hot(torch.tensor([self.drawn]), x.shape[1]).to(x)


@cache
def coefficients(schedule, n, strength=1.0, denoiser=DATA):
    """States at the levels above 0 as sums of directions: the start, then one a step."""
    x = torch.zeros(1, n + 1, dtype=torch.float64)
    x[0, 0] = 1.0
    options = {"schedule": schedule, "strength": strength, "noise": Directions()}
    return reverse_sde(denoiser, x, nested_levels(n), trajectory=True, **options).trajectory[:-1, 0]


def kernel(schedule, t, strength=1.0):
    """K of the exact solution at level 0.05, K(start) x_0 + ∫ K(t) η g(t) dw̄: the ratio (s/s_t) (u/u_t)^((1 + η²)/2).

    With y = x/s the SDE is dy = ½ (1 + η²) (d ln u / dt) y dt + η (g/s) dw̄, where u = STD² + σ².
    """
    end = schedule.sigma_inv(0.05)
    ratio = (STD**2 + 0.05**2) / (STD**2 + schedule.sigma(t) ** 2)
    return schedule.scale(end) / schedule.scale(t) * ratio ** ((1 + strength**2) / 2)


def strong_error(schedule, n, strength=1.0):
    """Root mean square distance of the sampler to the exact solution on the same Brownian path, at level 0.05."""
    t, found = times(schedule, n), coefficients(schedule, n, strength)[-1]
    from_start = (found[0] - kernel(schedule, t[0], strength)) ** 2 * variance(schedule, torch.tensor(80.0).double())
    lengths = -t.diff()
    nodes, weights = np.polynomial.legendre.leggauss(6)
    inside = t[:-1, None] - lengths[:, None] * torch.from_numpy((1 + nodes) / 2)
    exact = kernel(schedule, inside, strength) * strength * schedule.diffusion(inside)
    apart = (found[1:] / lengths.sqrt())[:, None] - exact
    return float((from_start + (apart**2 * torch.from_numpy(weights / 2) * lengths[:, None]).sum()).sqrt())


def rates(errors):
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@pytest.mark.parametrize(("schedule", "strength"), CASES, ids=str)
def test_strong_order_is_one(schedule, strength):
    found = rates([strong_error(schedule, n, strength) for n in (256, 512, 1024)])
    assert np.all(np.abs(found - 1) < 0.1), found


@pytest.mark.parametrize(("schedule", "strength"), CASES, ids=str)
def test_weak_order_is_one(schedule, strength):
    """Mean and variance obey recursions; the factor on the start is the mean's."""
    means, variances = [], []
    for n in (256, 512, 1024):
        found = coefficients(schedule, n, strength)[-1]
        begin, end = variance(schedule, torch.tensor([80.0, 0.05]).double())
        means.append(abs(float(found[0] / kernel(schedule, times(schedule, n)[0], strength) - 1)))
        variances.append(abs(float((found[0] ** 2 * begin + found[1:].square().sum()) / end - 1)))
    if isinstance(schedule, VE) and strength == 1:  # t = σ²: a step's factor 1 − h/u is the exact one
        assert max(means) < 1e-13
    else:
        assert np.all(np.abs(rates(means) - 1) < [0.25, 0.15]), rates(means)
    assert np.all(np.abs(rates(variances) - 1) < [0.2, 0.1]), rates(variances)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_every_strength_has_the_exact_std_at_every_level(schedule, strength):
    """The largest relative error over all levels, which falls as the step does."""
    worst = []
    for n in (200, 800):
        found = coefficients(schedule, n, strength).clone()
        exact = variance(schedule, nested_levels(n)[:-1])
        found[:, 0] *= exact[0].sqrt()
        worst.append(float((found.norm(dim=1) / exact.sqrt() - 1).abs().max()))
    assert worst[1] < 0.03
    assert worst[1] < worst[0] / 3


# The same orders from samples, on Brownian paths shared by the step counts, with confidence bands.

PATHS, BAND = 200, 3.5
"""Number of paths, and the half width of the bands in standard errors (a false alarm in 2000)."""


def sampled_errors(schedule, counts, denoiser=DATA):
    """Squared distance to the exact solution at level 0.05 on each path, for each number of steps."""
    t = times(schedule, 8 * counts[-1])
    path = BrownianPath(range(PATHS), (), float(t[0]), float(t[-1]))
    x = start(schedule, np.sqrt(80.0**2 + STD**2) * PerSample([PATHS]).normal((PATHS,))[0])
    # The exact integral, its kernel replaced by its mean over each cell of a grid 8 times as fine as the finest.
    nodes, weights = np.polynomial.legendre.leggauss(4)
    inside = t[:-1, None] + t.diff()[:, None] * torch.from_numpy((1 + nodes) / 2)
    cells = (kernel(schedule, inside) * schedule.diffusion(inside)) @ torch.from_numpy(weights / 2)
    read = torch.stack([path(float(time)) for time in t])
    exact = kernel(schedule, t[0]) * x + (cells[:, None] * read.diff(dim=0)).sum(0)
    errors = []
    for n in counts:
        options = {"schedule": schedule, "path": path, "trajectory": True}
        found = reverse_sde(denoiser, x, nested_levels(n), **options).trajectory[-2]
        errors.append((found - exact) ** 2)
    return errors


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_strong_order_on_shared_paths_with_bands(schedule):
    counts = (32, 64, 128)
    errors = sampled_errors(schedule, counts)
    exact = [strong_error(schedule, n) for n in counts]
    for coarse, fine, expected in zip(errors[:-1], errors[1:], rates(exact), strict=True):
        rate = 0.5 * float(torch.log2(coarse.mean() / fine.mean()))
        spread = (coarse / coarse.mean() - fine / fine.mean()).std() / np.sqrt(PATHS)
        band = BAND * float(spread) / (2 * np.log(2))
        assert band < 0.3
        # The reference's own grid adds at most 2^-6 of the error's square.
        assert abs(rate - expected) < band + 0.02, (rate, expected, band)
        assert rate - band > 0.5, "an order of one half is outside the band"
    for error, expected in zip(errors, exact, strict=True):
        assert float(error.mean().sqrt()) == pytest.approx(expected, rel=BAND / np.sqrt(PATHS))


def no_score(x, sigma):
    """D(x) = x has score 0: the forward SDE, run backwards."""
    return x


def flipped(x, sigma):
    """The score with the wrong sign."""
    return 2 * x - DATA(x, sigma)


def seeded(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def z_of_std(denoiser, schedule, *, count=4000, n=256, strength=1.0):
    """How many standard errors the std at level 0.05 is away from the exact one."""
    x = start(schedule, np.sqrt(80.0**2 + STD**2) * seeded(1)(torch.empty(count).double()))
    options = {"schedule": schedule, "strength": strength, "noise": seeded(), "trajectory": True}
    found = reverse_sde(denoiser, x, nested_levels(n), **options).trajectory[-2].std()
    exact = variance(schedule, torch.tensor(0.05).double()).sqrt()
    return float((found / exact - 1) * np.sqrt(2 * count))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_weak_error_from_samples_is_that_of_the_recursion(schedule):
    """At 16 to 64 steps the bias is far larger than the band, and just as large as the recursion says."""
    count = 4000
    for n in (16, 32, 64):
        found = coefficients(schedule, n)[-1].clone()
        begin, end = variance(schedule, torch.tensor([80.0, 0.05]).double())
        bias = float(((found[0] ** 2 * begin + found[1:].square().sum()) / end).sqrt() - 1)
        found = z_of_std(DATA, schedule, count=count, n=n)
        assert abs(found - bias * np.sqrt(2 * count)) < BAND * (1 + bias)
        assert n > 32 or abs(found) > BAND


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_wrong_drift_fails_at_the_same_sample_size(schedule):
    assert abs(z_of_std(DATA, schedule, n=512)) < BAND
    assert abs(z_of_std(no_score, schedule, n=512)) > 20
    assert abs(z_of_std(flipped, schedule, n=512)) > 20


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_a_mixture_is_sampled_with_its_weights_and_moments(strength):
    mixture = GaussianMixture([-1.0, 1.0], [0.3, 0.5], [0.4, 0.6])
    count, schedule, sigmas = 4000, VP(), steps.edm(300)
    x = start(schedule, 80.0 * seeded(2)(torch.empty(count).double()))
    found = reverse_sde(mixture, x, sigmas, schedule=schedule, strength=strength, noise=seeded(3)).x
    drawn = mixture.sample(200_000, generator=torch.Generator().manual_seed(0))
    for moment in (lambda y: y, lambda y: y**2, lambda y: (y > 0).double()):
        band = BAND * float(moment(drawn).std()) / np.sqrt(count)
        assert abs(float(moment(found).mean() - moment(drawn).mean())) < band + 0.01


# The contract.


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_without_strength_it_is_euler_and_draws_nothing(schedule):
    def refuse(x):
        raise AssertionError("noise was drawn")

    x, before = start(schedule, 57.0 * ONE), torch.random.get_rng_state()
    options = {"schedule": schedule, "trajectory": True}
    found = reverse_sde(DATA, x, nested_levels(20), strength=0.0, noise=refuse, **options)
    reverse_sde(DATA, x, nested_levels(20), strength=0.0, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    expected = euler(DATA, x, nested_levels(20), **options)
    assert torch.equal(found.trajectory[:-1], expected.trajectory[:-1])
    if isinstance(schedule, EDM | GeometricVE):  # elsewhere Euler's last step is not D
        torch.testing.assert_close(found.x, expected.x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_the_last_step_is_the_denoiser(schedule):
    states = reverse_sde(DATA, start(schedule, 57.0 * ONE), nested_levels(5), schedule=schedule, trajectory=True)
    t = schedule.sigma_inv(nested_levels(5)[-2])
    expected = DATA(states.trajectory[-2] / schedule.scale(t), 0.05)
    torch.testing.assert_close(states.x, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [*EVERY, Cosine()], ids=str)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_step_costs_one_call_of_the_denoiser(schedule, n):
    sigmas = steps.edm(n, 0.05, 80.0)
    solution = reverse_sde(DATA, start(schedule, 80 * ONE), sigmas, schedule=schedule, noise=PerSample([0]))
    assert solution.nfe == n
    assert bool(solution.x.isfinite().all())


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_a_sample_depends_on_its_own_path_only(schedule):
    sigmas, x = nested_levels(12), start(schedule, 80 * torch.ones(3, 2).double())
    ends = [float(schedule.sigma_inv(sigmas[0])), float(schedule.sigma_inv(schedule.levels.low))]
    together = reverse_sde(DATA, x, sigmas, schedule=schedule, path=BrownianPath([4, 9, 5], (2,), *ends)).x
    alone = reverse_sde(DATA, x[:1], sigmas, schedule=schedule, path=BrownianPath([9], (2,), *ends)).x
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_a_path_may_end_at_the_last_level_above_zero_and_begin_earlier():
    sigmas = steps.edm(10)
    whole = reverse_sde(DATA, 80 * ONE, sigmas, path=BrownianPath([3], (), 80.0, 0.0))
    assert bool(whole.x.isfinite().all())
    last = float(sigmas[-2])
    assert bool(reverse_sde(DATA, 80 * ONE, sigmas, path=BrownianPath([3], (), 100.0, last)).x.isfinite().all())


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(shape, dtype):
    x = (80 * PerSample(range(3)).normal(shape[1:])).to(dtype)
    for options in ({"noise": PerSample(range(3))}, {"path": BrownianPath(range(3), shape[1:], 80.0, 0.0)}):
        solution = reverse_sde(DATA, x, steps.edm(4), trajectory=True, **options)
        assert (solution.x.shape, solution.x.dtype) == (shape, dtype)
        assert solution.trajectory.shape == (5, *shape)
        torch.testing.assert_close(solution.trajectory[-1].to(dtype), solution.x)


def test_the_callback_hears_of_each_step_and_conditions_reach_the_denoiser():
    heard = []

    def conditional(x, sigma, *, labels):
        return labels + 0 * x

    labels = torch.tensor([1.0, 2.0]).double()
    sigmas = steps.edm(3)
    solution = reverse_sde(
        conditional, torch.zeros(2).double(), sigmas, labels=labels, callback=lambda **step: heard.append(step)
    )
    torch.testing.assert_close(solution.x, labels)
    assert [step["sigma"] for step in heard] == sigmas[:-1].tolist()
    assert all(torch.equal(step["denoised"], labels) for step in heard)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_an_impossible_strength_is_refused(strength):
    with pytest.raises(ValueError, match="strength = "):
        reverse_sde(DATA, ONE, steps.edm(3), strength=strength)


def test_noise_and_path_together_are_refused():
    with pytest.raises(ValueError, match="noise and path"):
        reverse_sde(DATA, ONE, steps.edm(3), noise=PerSample([0]), path=BrownianPath([0], (), 80.0, 0.0))


@pytest.mark.parametrize(
    ("seeds", "shape", "ends", "message"),
    [
        ([0, 1], (), (80.0, 0.0), r"path has shape \(2,\), x \(1,\)"),
        ([0], (1,), (80.0, 0.0), r"path has shape \(1, 1\), x \(1,\)"),
        ([0], (), (79.0, 0.0), "the run needs all from t = 80"),
        ([0], (), (80.0, 1.0), "path runs from 80.0 to 1.0"),
    ],
)
def test_a_path_that_does_not_hold_the_run_is_refused(seeds, shape, ends, message):
    with pytest.raises(ValueError, match=message):
        reverse_sde(DATA, ONE, steps.edm(5), path=BrownianPath(seeds, shape, *ends))


@pytest.mark.parametrize("levels", [[1.0], [1.0, 2.0, 0.0], [2.0, 1.0], [2.0, -1.0, 0.0], [float("nan"), 0.0]])
def test_levels_that_do_not_decrease_to_zero_are_refused(levels):
    with pytest.raises(ValueError, match="sigmas"):
        reverse_sde(DATA, ONE, torch.tensor(levels))


def test_an_integer_start_is_refused():
    with pytest.raises(ValueError, match="int64"):
        reverse_sde(DATA, torch.ones(2, dtype=torch.int64), steps.edm(3))


@pytest.mark.parametrize("schedule", [*SCHEDULES, FlowMatching(), Cosine()], ids=str)
@given(
    levels=st.lists(st.floats(1e-3, 100), min_size=1, max_size=5, unique=True),
    strength=st.floats(0, 3),
    shape=st.sampled_from([(2,), (2, 3), (2, 1, 2, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_legal_levels_and_strength_give_finite_samples(schedule, levels, strength, shape, dtype):
    sigmas = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    path = BrownianPath([0, 1], shape[1:], float(schedule.sigma_inv(sigmas[0])), 0.0)
    solution = reverse_sde(
        DATA, torch.ones(shape, dtype=dtype), sigmas, schedule=schedule, strength=strength, path=path
    )
    assert (solution.x.shape, solution.x.dtype) == (shape, dtype)
    assert bool(solution.x.isfinite().all())

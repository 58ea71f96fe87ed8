"""Langevin dynamics and its annealed and correcting forms: on a Gaussian all of them have closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import steps
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.noise import PerSample
from edmnotes.samplers import (
    Proportional,
    SignalToNoise,
    ancestral,
    annealed_langevin,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)
from edmnotes.schedules import EDM, VE, VP, Cosine, Discrete, FlowMatching, GeometricVE

SCHEDULES = [EDM(), VE(), VP(), FlowMatching(), GeometricVE(0.05, 80.0)]
PREDICTORS = [reverse_diffusion, ancestral]
STD = 0.5
DATA = Gaussian(0.0, STD)
POINT = Gaussian(0.0, 0.0)
ONE = torch.ones(1, dtype=torch.float64)


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


def seeded(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def geometric(n, high=80.0, low=0.05):
    """n levels that fall by one factor, then 0."""
    return torch.cat([torch.from_numpy(np.geomspace(high, low, n)).clamp(low, high), torch.zeros(1).double()])


# Langevin dynamics at one level.

LEVEL = 0.3
U = STD**2 + LEVEL**2


def langevin_variance(alpha, n, first):
    """Of the AR(1) process that Langevin dynamics is on a Gaussian, after n steps from a start of variance first²."""
    factor = 1 - alpha / (2 * U)
    return factor ** (2 * n) * first**2 + alpha * (1 - factor ** (2 * n)) / (1 - factor**2)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 1.3])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_langevin_has_the_variance_of_its_closed_form(alpha, n):
    found = langevin(DATA, along(2.0, n), LEVEL, n, step=alpha, noise=Directions())
    assert float(found.x.square().sum()) == pytest.approx(langevin_variance(alpha, n, 2.0), rel=1e-12)
    assert found.nfe == n


def test_langevins_stationary_bias_falls_as_the_step():
    """u / (1 − α/(4u)): of first order, slope 1."""
    biases = []
    for alpha in (0.08, 0.04, 0.02):
        n = int(40 / alpha)
        found = float(langevin(DATA, along(0.0, n), LEVEL, n, step=alpha, noise=Directions()).x.square().sum())
        assert found == pytest.approx(U / (1 - alpha / (4 * U)), rel=1e-10)
        biases.append(found / U - 1)
    np.testing.assert_allclose(np.log2(np.array(biases[:-1]) / np.array(biases[1:])), 1, atol=0.05)


def test_langevin_with_steps_of_four_variances_settles_nowhere():
    found = [
        float(langevin(DATA, along(1.0, n), LEVEL, n, step=4.2 * U, noise=Directions()).x.norm()) for n in (10, 50)
    ]
    assert found[1] > 10 * found[0]


def test_langevin_goes_to_a_mixture_whose_modes_are_near():
    mixture, count = GaussianMixture([-0.6, 0.6], 0.4, [0.3, 0.7]), 4000
    found = langevin(mixture, torch.zeros(count).double(), 0.3, 400, step=0.05, noise=seeded()).x
    drawn = mixture.sample(200_000, generator=torch.Generator().manual_seed(0)) + 0.3 * seeded(1)(torch.zeros(200_000))
    assert abs(float(found.mean() - drawn.mean())) < 4 * float(drawn.std()) / math.sqrt(count)
    assert abs(float(found.std() / drawn.std()) - 1) < 4 / math.sqrt(2 * count) + 0.03


APART = GaussianMixture([-4.0, 4.0], 0.3, [0.2, 0.8])


def test_langevin_keeps_the_wrong_weights_of_separated_modes_and_annealing_does_not():
    """Started half and half: each mode gets its shape, but no sample crosses the gap. Noise fills the gap."""
    count = 2000
    x = torch.where(torch.arange(count) % 2 == 0, -4.0, 4.0).double()
    stuck = langevin(APART, x, 0.5, 500, step=0.05, noise=seeded()).x
    assert float((stuck > 0).double().mean()) == 0.5
    assert float((stuck.abs() - 4).std()) == pytest.approx(math.hypot(0.3, 0.5), rel=0.1)
    levels = geometric(30, 20.0, 0.05)
    annealed = annealed_langevin(APART, 20 * seeded(1)(x), levels, 20, step=Proportional(0.2), noise=seeded(2)).x
    # The standard error of the share is 0.009; what is left is the bias of the steps.
    assert abs(float((annealed > 0).double().mean()) - 0.8) < 0.06
    assert float((annealed.abs() - 4).std()) == pytest.approx(0.3, rel=0.1)


def test_noise_scaled_as_the_step_and_not_its_root_fails_the_same_test():
    wrong = torch.zeros(1, 51).double()
    wrong[0, 0], draw = 2.0, Directions()
    for _ in range(50):
        wrong = wrong + 0.05 * DATA.score(wrong, LEVEL) + 0.1 * draw(wrong)
    assert abs(float(wrong.square().sum()) / langevin_variance(0.1, 50, 2.0) - 1) > 0.5


# Annealed.


@pytest.mark.parametrize("fraction", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_annealed_langevin_has_the_variance_of_its_recursion(fraction, n):
    sigmas = geometric(12)
    found = annealed_langevin(
        DATA, along(80.0, 12 * n), sigmas, n, step=Proportional(fraction), noise=Directions(), trajectory=True
    )
    expected = 80.0**2
    for state, sigma in zip(found.trajectory, sigmas[:-1].tolist(), strict=False):
        assert float(state.square().sum()) == pytest.approx(expected, rel=1e-10)
        u, alpha = STD**2 + sigma**2, fraction * sigma**2
        for _ in range(n):
            expected = (1 - alpha / (2 * u)) ** 2 * expected + alpha
    end = expected * (STD**2 / (STD**2 + 0.05**2)) ** 2
    assert float(found.x.square().sum()) == pytest.approx(end, rel=1e-10)
    assert found.nfe == 12 * n + 1


def test_the_rule_of_smld_is_proportional():
    """α_i = ε σ_i² / σ_L² with the paper's ε and σ_L."""
    sigmas = geometric(10, 1.0, 0.01)
    for sigma in sigmas[:-1]:
        assert float(Proportional()(sigma, ONE, ONE)) == pytest.approx(2e-5 * float(sigma) ** 2 / 0.01**2, rel=1e-12)


def test_many_small_steps_on_many_levels_reach_the_std_of_the_data():
    errors = []
    for levels, n in ((40, 25), (80, 50)):
        draws = levels * n
        found = annealed_langevin(
            DATA,
            along(math.hypot(80, STD), draws),
            geometric(levels),
            n,
            step=Proportional(4.0 / n),
            noise=Directions(),
        )
        errors.append(abs(float(found.x.norm()) / STD - 1))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 1.5


# The rule by signal-to-noise ratio.


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.4])
def test_a_fixed_signal_to_noise_ratio_never_leaves_the_density_alone(ratio):
    """In many coordinates the variance settles at u (1 + r²), however many steps are taken."""
    dim = 40_000
    start = math.sqrt(U) * seeded()(torch.zeros(1, dim).double())
    found = langevin(DATA, start, LEVEL, int(2 / ratio**2), step=SignalToNoise(ratio), noise=seeded(1)).x
    # Standard error √(2/dim) = 0.007 of the variance; r² = 0.01, 0.04, 0.16.
    assert float(found.var()) / U == pytest.approx(1 + ratio**2, abs=4 * math.sqrt(2 / dim))


def test_the_rule_makes_the_drift_the_ratio_times_as_long_as_the_noise():
    score, drawn = PerSample([0, 1]).normal((3, 4)), PerSample([2, 3]).normal((3, 4))
    alpha = SignalToNoise(0.16)(torch.tensor(1.0), score, drawn)
    assert alpha.shape == (2, 1, 1)
    lengths = [v.flatten(1).norm(dim=1) for v in (alpha / 2 * score, alpha.sqrt() * drawn)]
    torch.testing.assert_close(lengths[0] / lengths[1], torch.full((2,), 0.16).double())


@pytest.mark.parametrize("ratio", [0.2, 0.4])
def test_the_correctors_bias_against_its_ratio(ratio):
    """Corrected to the full at every level, the variance is 1 + r² of the right one at all of them."""
    dim, sigmas = 20_000, geometric(6, 5.0, 0.1)
    x = math.hypot(5, STD) * seeded()(torch.zeros(1, dim).double())
    options = {"step": SignalToNoise(ratio), "corrections": int(3 / ratio**2), "trajectory": True, "noise": seeded(1)}
    found = predictor_corrector(DATA, x, sigmas, **options).trajectory[1:-1, 0]
    excess = found.var(dim=1) / (STD**2 + sigmas[1:-1] ** 2)
    torch.testing.assert_close(excess, torch.full((5,), 1 + ratio**2).double(), rtol=0, atol=5 * math.sqrt(2 / dim))


# Predictors.


def nested_levels(n):
    """n steps from 80 to 0.05, each halved by 2n, then 0."""
    ends = (80 ** (1 / 7), 0.05 ** (1 / 7))
    between = torch.linspace(*ends, n + 1, dtype=torch.float64) ** 7
    return torch.cat([between.clamp(0.05, 80.0), torch.zeros(1).double()])


def start(schedule, unscaled, sigma=80.0):
    return schedule.scale(schedule.sigma_inv(sigma)) * unscaled


def variances(predictor, schedule, n, data=DATA):
    """Of the states at all levels above 0, over the exact ones, without sampling error."""
    sigmas, std = nested_levels(n)[:-1], float(data.std)
    options = {"schedule": schedule, "predictor": predictor, "corrections": 0, "trajectory": True}
    x = along(start(schedule, math.hypot(80.0, std)), n)
    states = predictor_corrector(data, x, nested_levels(n), noise=Directions(), **options).trajectory[:-1, 0]
    scale = schedule.scale(schedule.sigma_inv(sigmas))
    return states.square().sum(1) / (scale**2 * (std**2 + sigmas**2))


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_predictors_are_of_weak_order_one(predictor, schedule):
    errors = [abs(float(variances(predictor, schedule, n)[-1]) - 1) for n in (128, 256, 512)]
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(rates - 1) < [0.15, 0.1]), rates


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_ancestral_step_is_exact_for_a_point(schedule):
    """It is the posterior given x_0, so data of one point leave it no error at any step; the reverse diffusion's is."""
    torch.testing.assert_close(variances(ancestral, schedule, 5, POINT), torch.ones(6).double(), rtol=1e-12, atol=0)
    assert float((variances(reverse_diffusion, schedule, 5, POINT) - 1).abs().max()) > 0.1


def one_step(predictor, schedule, t, t_next):
    x, score, drawn = (PerSample([seed]).normal((4,)) for seed in range(3))
    times = torch.tensor([t, t_next], dtype=torch.float64)
    return predictor(schedule, times[0], times[1], x, score, drawn), (x, score, drawn)


def test_the_predictors_are_the_papers_on_vp_and_ve():
    """Song et al. 2021, appendices E and F, on the chains of both; DDPM with the variance of its posterior."""
    betas = torch.linspace(1e-3, 0.3, 20, dtype=torch.float64)
    chain, beta = Discrete(betas), float(betas[9])
    bar = torch.cumprod(1 - betas, 0)
    found, (x, score, z) = one_step(reverse_diffusion, chain, 10.0, 9.0)
    torch.testing.assert_close(found, (2 - math.sqrt(1 - beta)) * x + beta * score + math.sqrt(beta) * z)
    found, (x, score, z) = one_step(ancestral, chain, 10.0, 9.0)
    posterior = beta * (1 - bar[8]) / (1 - bar[9])
    torch.testing.assert_close(found, (x + beta * score) / math.sqrt(1 - beta) + posterior.sqrt() * z)
    high, low = 1.3**2, 0.7**2
    found, (x, score, z) = one_step(reverse_diffusion, EDM(), 1.3, 0.7)
    torch.testing.assert_close(found, x + (high - low) * score + math.sqrt(high - low) * z)
    found, (x, score, z) = one_step(ancestral, EDM(), 1.3, 0.7)
    torch.testing.assert_close(found, x + (high - low) * score + math.sqrt(low * (high - low) / high) * z)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.__name__)
def test_a_corrector_repairs_what_the_predictor_leaves(predictor, schedule):
    """Few levels; with small steps, in proportion to the variance, the corrector's own bias is the lesser error."""

    def small(sigma, score, drawn):
        return 0.03 * (STD**2 + sigma**2)

    n, found = 12, []
    for corrections in (0, 150):
        x = along(start(schedule, math.hypot(80.0, STD)), n * (1 + corrections))
        options = {"corrections": corrections, "step": small, "noise": Directions(), "trajectory": True}
        solution = predictor_corrector(DATA, x, nested_levels(n), schedule=schedule, predictor=predictor, **options)
        found.append(abs(float(solution.trajectory[-2].norm() / start(schedule, math.hypot(0.05, STD), 0.05)) - 1))
    assert found[1] < 0.005
    assert found[0] > 5 * found[1]


def test_without_a_predictor_it_is_annealed_langevin():
    """The same variances at levels below the first, where the annealed sampler has not been."""

    def stay(schedule, t, t_next, x, score, drawn):
        return x

    sigmas, n = geometric(8), 5
    options = {"step": Proportional(0.3), "trajectory": True}
    first = predictor_corrector(
        DATA, along(70.0, 60), sigmas, predictor=stay, corrections=n, noise=Directions(), **options
    )
    second = annealed_langevin(DATA, along(70.0, 60), sigmas[1:], n, noise=Directions(), **options)
    torch.testing.assert_close(first.x.norm(), second.x.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        first.trajectory[1:-2].norm(dim=2), second.trajectory[1:-1].norm(dim=2), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=str)
def test_a_mixture_in_many_coordinates_is_sampled_with_its_weights_and_its_bias(predictor, schedule):
    """64 coordinates, two modes; r = 0.1 leaves less than 1 % of the variance."""
    centre = torch.full((64,), 1.0, dtype=torch.float64)
    mixture = GaussianMixture(torch.stack([-centre, centre]), 0.3, [0.3, 0.7])
    x = start(schedule, 80.0 * seeded()(torch.zeros(1000, 64).double()))
    options = {"predictor": predictor, "schedule": schedule, "step": SignalToNoise(0.1), "noise": seeded(1)}
    found = predictor_corrector(mixture, x, steps.edm(150, 0.02, 80.0), **options).x
    right = found.mean(1) > 0
    assert abs(float(right.double().mean()) - 0.7) < 4 * 0.0145 + 0.02
    assert float((found - torch.where(right, 1.0, -1.0)[:, None]).std()) == pytest.approx(0.3, rel=0.05)


# The contract.


@pytest.mark.parametrize("schedule", [*SCHEDULES, Cosine()], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("corrections", [0, 1, 3])
def test_costs_and_few_levels(schedule, n, corrections):
    sigmas = steps.edm(n, 0.05, 80.0)
    x = start(schedule, 80 * ONE)
    found = predictor_corrector(DATA, x, sigmas, schedule=schedule, corrections=corrections, noise=PerSample([0]))
    assert found.nfe == n + (n - 1) * corrections
    assert bool(found.x.isfinite().all())
    annealed = annealed_langevin(DATA, x, sigmas, 1 + corrections, noise=PerSample([0]))
    assert annealed.nfe == n * (1 + corrections) + 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_last_step_is_the_denoiser(schedule):
    sigmas = steps.edm(4, 0.05, 80.0)
    x = start(schedule, 80 * ONE)
    found = predictor_corrector(DATA, x, sigmas, schedule=schedule, noise=PerSample([0]), trajectory=True)
    state = found.trajectory[-2] / schedule.scale(schedule.sigma_inv(sigmas[-2]))
    torch.testing.assert_close(found.x, DATA(state, sigmas[-2]), rtol=1e-12, atol=0)


RUNS = {
    "langevin": lambda denoiser, x, **options: langevin(denoiser, x, 0.5, 3, step=0.05, **options),
    "annealed": lambda denoiser, x, **options: annealed_langevin(denoiser, x, steps.edm(3), 2, **options),
    "corrected": lambda denoiser, x, **options: predictor_corrector(denoiser, x, steps.edm(4), **options),
    "by ratio": lambda denoiser, x, **options: annealed_langevin(
        denoiser, x, steps.edm(3), 2, step=SignalToNoise(), **options
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_a_sample_of_its_own_seed(run, shape, dtype):
    x = (80 * PerSample(range(3)).normal(shape[1:])).to(dtype)
    found = run(DATA, x, noise=PerSample([4, 9, 5]), trajectory=True)
    assert (found.x.shape, found.x.dtype) == (shape, dtype)
    assert found.trajectory.shape == (len(found.trajectory), *shape)
    torch.testing.assert_close(found.trajectory[-1].to(dtype), found.x)
    alone = run(DATA, x[1:2], noise=PerSample([9])).x
    torch.testing.assert_close(found.x[1:2], alone, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
    assert run(DATA, x).trajectory is None


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_callback_hears_of_each_step_and_conditions_reach_the_denoiser(run):
    heard = []

    def conditional(x, sigma, *, labels):
        return labels + 0 * x

    labels = torch.tensor([1.0, 2.0]).double()
    found = run(conditional, torch.zeros(2).double(), labels=labels, callback=lambda **step: heard.append(step))
    assert [step["i"] for step in heard] == list(range(len(heard)))
    assert all(torch.equal(step["denoised"], labels) for step in heard)
    assert torch.equal(heard[-1]["x"], found.x)
    assert [step["sigma"] for step in heard] == sorted((step["sigma"] for step in heard), reverse=True)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_an_integer_start_is_refused(run):
    with pytest.raises(ValueError, match="int64"):
        run(DATA, torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("levels", [[1.0], [1.0, 2.0, 0.0], [2.0, 1.0], [2.0, -1.0, 0.0], [math.nan, 0.0]])
def test_levels_that_do_not_decrease_to_zero_are_refused(levels):
    with pytest.raises(ValueError, match="sigmas"):
        annealed_langevin(DATA, ONE, torch.tensor(levels), 3)
    with pytest.raises(ValueError, match="sigmas"):
        predictor_corrector(DATA, ONE, torch.tensor(levels))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_steps_levels_and_rules_are_refused(value):
    with pytest.raises(ValueError, match="step = "):
        langevin(DATA, ONE, 0.5, 3, step=value)
    with pytest.raises(ValueError, match="sigma = "):
        langevin(DATA, ONE, value, 3, step=0.1)
    with pytest.raises(ValueError, match="fraction = "):
        Proportional(value)
    with pytest.raises(ValueError, match="ratio = "):
        SignalToNoise(value)


def test_counts_below_their_least_are_refused():
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"n = {n}"):
            langevin(DATA, ONE, 0.5, n, step=0.1)
        with pytest.raises(ValueError, match=f"n = {n}"):
            annealed_langevin(DATA, ONE, steps.edm(3), n)
    with pytest.raises(ValueError, match="corrections = -1"):
        predictor_corrector(DATA, ONE, steps.edm(3), corrections=-1)
    with pytest.raises(ValueError, match="fraction = 4"):
        Proportional(4.0)


@pytest.mark.parametrize("schedule", [EDM(), VP(), FlowMatching()], ids=str)
@given(
    levels=st.lists(st.floats(1e-3, 100), min_size=1, max_size=5, unique=True),
    step=st.one_of(st.floats(0.01, 3.9).map(Proportional), st.floats(0.01, 1).map(SignalToNoise)),
    predictor=st.sampled_from(PREDICTORS),
    corrections=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_legal_input_gives_finite_samples(schedule, levels, step, predictor, corrections, dtype):
    sigmas = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    options = {"step": step, "noise": PerSample([0, 1])}
    x = torch.ones(2, 16, dtype=dtype)
    for found in (
        predictor_corrector(
            DATA, x, sigmas, schedule=schedule, predictor=predictor, corrections=corrections, **options
        ),
        annealed_langevin(DATA, x, sigmas, 1 + corrections, **options),
        langevin(DATA, x, float(sigmas[0]), 1 + corrections, **options),
    ):
        assert (found.x.shape, found.x.dtype) == (x.shape, dtype)
        assert bool(found.x.isfinite().all())

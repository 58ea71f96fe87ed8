"""Learned schedules, the bound in continuous time on a Gaussian, and the variance that a schedule leaves."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from edmnotes import losses
from edmnotes.exact import Gaussian
from edmnotes.noise import PerSample
from edmnotes.variational import (
    Density,
    LearnedSchedule,
    LinearSchedule,
    LogVarianceSchedule,
    ScheduleSigmas,
    continuous_vlb,
    diffusion_loss,
    fit_schedule,
    fit_vdm,
    low_discrepancy,
    prior_kl,
    vdm,
    vlb,
)

DOUBLE = torch.float64
LOW, HIGH, STD = 0.05, 20.0, 0.5
DATA = Gaussian(0.3, STD)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def warped(seed=0, size=3.0, **options):
    """A schedule with parameters of any size and sign."""
    schedule = LearnedSchedule(LOW, HIGH, **options)
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in schedule.shape():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    return schedule


SCHEDULES = [LinearSchedule(LOW, HIGH), LearnedSchedule(LOW, HIGH), warped(1), warped(2)]
NAMES = ["linear", "start", "warped 1", "warped 2"]


# The schedule.


@given(st.integers(0, 2**31), st.floats(0.01, 6.0), st.sampled_from([1, 3, 32]))
def test_a_learned_schedule_rises_between_its_ends_for_any_parameters(seed, size, width):
    schedule = warped(seed, size, width=width)
    t = torch.linspace(0, 1, 201, dtype=DOUBLE)
    levels = schedule(t)
    assert bool((levels.diff() > 0).all())
    assert bool((schedule.deriv(t) > 0).all())
    ends = schedule.sigma(torch.tensor([0.0, 1.0], dtype=DOUBLE))
    torch.testing.assert_close(ends, torch.tensor([LOW, HIGH], dtype=DOUBLE), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_the_derivative_is_that_of_autograd(schedule):
    t = torch.linspace(0, 1, 33, dtype=DOUBLE, requires_grad=True)
    (truth,) = torch.autograd.grad(schedule(t).sum(), t)
    torch.testing.assert_close(schedule.deriv(t), truth)


def test_it_starts_near_a_line():
    t = torch.linspace(0, 1, 33, dtype=DOUBLE)
    start, line = LearnedSchedule(LOW, HIGH), LinearSchedule(LOW, HIGH)
    assert float((start(t) - line(t)).detach().abs().max()) < 0.05 * float(line(t)[-1] - line(t)[0])
    assert float((start.deriv(t) / line.deriv(t) - 1).detach().abs().max()) < 0.3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_levels_are_a_samplers(schedule):
    assert isinstance(schedule, LogVarianceSchedule)
    levels = schedule.levels(5)
    assert levels.shape == (6,)
    assert levels.dtype == DOUBLE
    assert not levels.requires_grad
    assert float(levels[0]) == pytest.approx(HIGH)
    assert float(levels[-2]) == pytest.approx(LOW)
    assert bool((levels.diff() < 0).all())
    assert schedule.levels(1).tolist() == pytest.approx([HIGH, 0.0])
    torch.testing.assert_close(levels[:-1].log() * 2, schedule(torch.linspace(1, 0, 5, dtype=DOUBLE)).detach())


def test_learned_ends_are_parameters_and_stay_in_order():
    schedule = LearnedSchedule(LOW, HIGH, learn_ends=True)
    assert len(schedule.ends()) == 2
    assert len(list(schedule.parameters())) == 6
    assert LearnedSchedule(LOW, HIGH).ends() == []
    with torch.no_grad():
        schedule.log_gap.fill_(-3.0)
        schedule.low.fill_(5.0)
    assert bool((schedule(torch.linspace(0, 1, 9, dtype=DOUBLE)).diff() > 0).all())


def test_times_are_even_and_each_is_uniform():
    t = low_discrepancy(8, generator=seeded())
    torch.testing.assert_close(t.sort().values.diff(), torch.full((7,), 0.125, dtype=DOUBLE))
    firsts = torch.stack([low_discrepancy(3, generator=seeded(i)) for i in range(2000)])
    assert bool((firsts >= 0).all())
    assert bool((firsts < 1).all())
    # Standard error of the mean of a uniform: √(1/12/2000) = 0.0065; of its square, √(4/45/2000) = 0.0067.
    assert float((firsts.mean(0) - 1 / 2).abs().max()) < 0.026
    assert float((firsts.square().mean(0) - 1 / 3).abs().max()) < 0.027


def test_sigmas_of_a_schedule_are_a_training_distribution():
    sigmas = ScheduleSigmas(warped(1))
    assert isinstance(sigmas, losses.Sigmas)
    drawn = sigmas.sample(200, generator=seeded())
    assert drawn.shape == (200,)
    assert drawn.dtype == DOUBLE
    assert not drawn.requires_grad
    assert bool(((drawn >= LOW * 0.999) & (drawn <= HIGH * 1.001)).all())
    line = ScheduleSigmas(LinearSchedule(LOW, HIGH)).sample(400, generator=seeded()).log().sort().values
    torch.testing.assert_close(line.diff(), torch.full((399,), math.log(HIGH / LOW) / 400, dtype=DOUBLE))


# The bound.

POINT = 0.9
GAP = POINT - 0.3


def diffusion_term():
    """∫ E|x_0 − D|²/σ² d ln σ of the point under the exact denoiser, in closed form."""

    def integral(sigma):
        u, v = sigma**2, STD**2
        return -(GAP**2) / 2 / (v + u) + (math.log(u / (v + u)) + v / (v + u)) / 2

    return integral(HIGH) - integral(LOW)


def quadrature(schedule, loss=diffusion_loss, n=20_000):
    """The mean of the loss over t by midpoints, and over ε exactly: signs do, for the loss is quadratic in it."""
    t = ((torch.arange(n, dtype=DOUBLE) + 0.5) / n).repeat(2)
    signs = torch.ones(2 * n, 1, dtype=DOUBLE)
    signs[n:] = -1
    with torch.no_grad():
        return float(loss(DATA, torch.full((2 * n, 1), POINT, dtype=DOUBLE), schedule, t, signs).mean())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_the_diffusion_term_depends_on_the_ends_alone(schedule):
    assert quadrature(schedule) == pytest.approx(diffusion_term(), rel=1e-5)


def test_without_the_derivative_of_the_schedule_it_depends_on_the_shape():
    """The mean of ½|ε − ε̂|², times the rise of ℓ: right for the line, another number for each learned schedule."""

    def forgetful(denoiser, x0, schedule, t, noise):
        return diffusion_loss(denoiser, x0, schedule, t, noise) / schedule.deriv(t) * 2 * math.log(HIGH / LOW)

    assert quadrature(SCHEDULES[0], forgetful) == pytest.approx(diffusion_term(), rel=1e-5)
    assert abs(quadrature(SCHEDULES[2], forgetful) / diffusion_term() - 1) > 0.05


def test_many_steps_tend_to_the_bound_in_continuous_time_at_rate_one():
    errors = []
    x0, signs = torch.full((2, 1), POINT, dtype=DOUBLE), torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    for n in (50, 100, 200):
        found = vlb(DATA, x0, LinearSchedule(LOW, HIGH).levels(n), decoder=Density(), noise=lambda _: signs)
        errors.append(float(found.diffusion.mean()) - diffusion_term())
    assert all(error > 0 for error in errors)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_with_exact_ends_the_bound_is_the_log_density():
    """An exact denoiser loses nothing to infinitely many steps."""
    lowest = STD**2 * LOW**2 / (STD**2 + LOW**2)
    x0 = torch.full((2, 1), POINT, dtype=DOUBLE)
    ends = prior_kl(DATA, x0, HIGH, HIGH) - Density().log_prob(
        x0, DATA(x0 + LOW * torch.tensor([[1.0], [-1.0]], dtype=DOUBLE), LOW), math.sqrt(lowest)
    )
    total = float(ends.mean()) + diffusion_term()
    assert total == pytest.approx(-float(Normal(0.3, STD).log_prob(torch.tensor(POINT))), rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_the_continuous_bound_has_its_terms(schedule):
    n, draws = 4000, 3
    x0 = torch.full((n, 1), POINT, dtype=DOUBLE)
    generator, drawn = seeded(1), seeded(2)
    found = continuous_vlb(
        DATA,
        x0,
        schedule,
        draws=draws,
        prior=DATA,
        decoder=Density(),
        std=0.1,
        noise=lambda x: torch.randn(x.shape, generator=drawn, dtype=x.dtype),
        generator=generator,
    )
    assert found.steps.shape == (draws, n)
    # Times are even, so that this error bar, of independent ones, is too wide.
    error = float(found.diffusion.std()) / math.sqrt(n)
    assert abs(float(found.diffusion.mean()) - diffusion_term()) < 4 * error
    torch.testing.assert_close(found.prior, prior_kl(DATA, x0, HIGH, HIGH))
    share = STD**2 / (STD**2 + LOW**2)
    end = ((1 - share) ** 2 * GAP**2 + (share * LOW) ** 2) / 2 / 0.1**2 + math.log(0.1 * math.sqrt(2 * math.pi))
    assert float(found.reconstruction.mean()) == pytest.approx(end, abs=4 * float(found.reconstruction.std()) / n**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=NAMES[:2])
def test_shapes_and_dtypes(schedule, shape, dtype):
    x0 = torch.zeros(3, *shape, dtype=dtype)
    noise = PerSample(range(3)).normal(shape, dtype=dtype)
    loss = diffusion_loss(Gaussian(0.0, 0.5), x0, schedule, torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE), noise)
    assert loss.shape == (3,)
    assert loss.dtype == dtype
    found = continuous_vlb(Gaussian(0.0, 0.5), x0, schedule, draws=2, noise=PerSample(range(3)), generator=seeded())
    assert found.steps.shape == (2, 3)
    assert found.total.dtype == DOUBLE
    assert bool(found.total.isfinite().all())


# Learning.

DIM = 8
CENTRED = Gaussian(0.0, STD)
MANY = CENTRED.sample(4000, shape=(DIM,), generator=seeded())


def mean_square(schedule, n=2000):
    """E of the squared loss on data of DIM coordinates: |ε − ε̂|² is STD²/(STD² + σ²) times a chi-square number."""
    t = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    with torch.no_grad():
        share = STD**2 / (STD**2 + schedule.sigma(t) ** 2)
        return float((schedule.deriv(t) ** 2 * share**2).mean()) * (DIM**2 + 2 * DIM) / 4


def least_mean_square():
    """Of all schedules with these ends: ℓ' ∝ 1/√E[|ε − ε̂|⁴ | ℓ] gives (∫ √E dℓ)²/4."""
    root = math.log((STD**2 + LOW**2) / LOW**2) - math.log((STD**2 + HIGH**2) / HIGH**2)
    return root**2 * (DIM**2 + 2 * DIM) / 4


def test_a_fitted_schedule_is_near_the_best_one():
    schedule, line = LearnedSchedule(LOW, HIGH), LinearSchedule(LOW, HIGH)
    before = schedule.sigma(torch.tensor([0.0, 1.0], dtype=DOUBLE))
    fit_schedule(schedule, CENTRED, MANY, steps=200, batch=64)
    best = least_mean_square()
    assert mean_square(line) > 2 * best
    assert best < mean_square(schedule) < 1.15 * best
    torch.testing.assert_close(schedule.sigma(torch.tensor([0.0, 1.0], dtype=DOUBLE)), before)


class Affine(nn.Module):
    """A denoiser of two parameters; the exact one at the start."""

    def __init__(self):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, sigma, **cond):
        return self.scale.to(x) * CENTRED(x, sigma) + self.offset.to(x)


def test_one_backward_pass_gives_the_gradients_of_the_mean_and_of_the_mean_square():
    """The shape of ℓ descends on E loss², its ends on E loss, both as autograd has them through the whole loss."""
    schedule, x0 = LearnedSchedule(LOW, HIGH, width=4, learn_ends=True), MANY[:16]
    t, noise = low_discrepancy(16, generator=seeded()), PerSample(range(16)).normal((DIM,))
    loss = diffusion_loss(Affine(), x0, schedule, t, noise)
    of_shape = torch.autograd.grad(loss.square().mean(), schedule.shape(), retain_graph=True)
    of_ends = torch.autograd.grad(loss.mean(), schedule.ends())
    level, speed = schedule(t), schedule.deriv(t)
    at = level.detach().requires_grad_(), speed.detach().requires_grad_()
    again = vdm._loss(Affine(), x0, *at, noise)
    slopes = torch.autograd.grad(again.mean(), at)
    vdm._descend(schedule, [level, speed], list(slopes), again.detach())
    for parameter, truth in zip([*schedule.shape(), *schedule.ends()], [*of_shape, *of_ends], strict=True):
        torch.testing.assert_close(parameter.grad, truth)


@pytest.mark.parametrize("make", [LinearSchedule, LearnedSchedule], ids=lambda m: m.__name__)
def test_training_lowers_the_loss_and_repeats(make):
    def run(seed=0):
        denoiser, schedule = Affine(), make(LOW, HIGH)
        with torch.no_grad():
            denoiser.offset.fill_(0.3)
            denoiser.scale.fill_(0.7)
        found = fit_vdm(
            denoiser, schedule, MANY, steps=100, batch=64, rate=0.03, schedule_rate=0.1, decoder=Density(), seed=seed
        )
        return found, denoiser, schedule

    found, denoiser, schedule = run()
    assert found.shape == (100,)
    assert torch.equal(found, run()[0])
    assert not torch.equal(found, run(1)[0])
    assert abs(float(denoiser.offset.detach())) < 0.03
    assert abs(float(denoiser.scale.detach()) - 1) < 0.03
    if make is LearnedSchedule:
        assert mean_square(schedule) < 0.8 * mean_square(LinearSchedule(LOW, HIGH))


def test_learned_ends_go_where_the_bound_is_lower():
    """From a highest level of 1, which the prior N(0, 1 + σ²) does not fit, and a decoder as wide as the lowest."""
    prior = Gaussian(0.0, 3.0)

    def bound(schedule):
        options = {"prior": prior, "decoder": Density(), "draws": 4, "generator": seeded(3)}
        return float(
            continuous_vlb(CENTRED, MANY[:1000], schedule, noise=PerSample(range(1000)), **options).total.mean()
        )

    schedule = LearnedSchedule(0.4, 1.0, learn_ends=True)
    before = bound(schedule)
    denoiser = Affine()
    fit_vdm(
        denoiser.requires_grad_(True),
        schedule,
        MANY,
        steps=150,
        batch=64,
        rate=1e-6,
        schedule_rate=0.05,
        prior=prior,
        decoder=Density(),
    )
    assert bound(schedule) < before - 1
    assert float(schedule.sigma(torch.ones(1, dtype=DOUBLE)).detach()) > 2


def test_training_reports_only_when_asked(capsys):
    fit_vdm(Affine(), LinearSchedule(LOW, HIGH), MANY, steps=2, decoder=Density())
    assert capsys.readouterr().err == ""
    fit_vdm(Affine(), LinearSchedule(LOW, HIGH), MANY, steps=2, decoder=Density(), show=True)
    assert "2/2" in capsys.readouterr().err


# Bad input.


@pytest.mark.parametrize("make", [LinearSchedule, LearnedSchedule], ids=lambda m: m.__name__)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, math.inf), (math.nan, 1.0)], ids=str)
def test_impossible_ends_are_refused(make, ends):
    with pytest.raises(ValueError, match="sigma_min"):
        make(*ends)


def test_impossible_arguments_are_refused():
    schedule, x0, t = LinearSchedule(LOW, HIGH), torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match="width"):
        LearnedSchedule(LOW, HIGH, width=0)
    with pytest.raises(ValueError, match="n = 0"):
        schedule.levels(0)
    with pytest.raises(ValueError, match="n = 0"):
        low_discrepancy(0)
    with pytest.raises(ValueError, match="noise has shape"):
        diffusion_loss(DATA, x0, schedule, t, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="t has shape"):
        diffusion_loss(DATA, x0, schedule, torch.zeros(2), x0)
    with pytest.raises(ValueError, match="draws"):
        continuous_vlb(DATA, x0, schedule, draws=0)
    with pytest.raises(ValueError, match="grey levels"):
        continuous_vlb(DATA, x0 + 0.01, schedule)
    with pytest.raises(ValueError, match="steps = 0"):
        fit_schedule(LearnedSchedule(LOW, HIGH), DATA, x0, steps=0)
    with pytest.raises(ValueError, match="batch = 0"):
        fit_vdm(Affine(), schedule, x0, batch=0)
    with pytest.raises(ValueError, match="grey levels"):
        fit_vdm(Affine(), schedule, x0 + 0.01)

"""The noise distribution's law, and the loss of denoisers whose loss is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edmnotes.losses import LogNormal, LogUniform, UniformLevels, UniformTime, denoising
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.schedules import VP, FlowMatching

PAIR = torch.tensor([0.5, 2.0], dtype=torch.float64)


class Zero(nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_normal_has_its_mean_and_std():
    logs = LogNormal(-1.2, 1.2).sample(100_000, generator=seeded()).log()
    # Standard errors 0.0038 and 0.0027.
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.015)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.011)


def test_a_generator_gives_the_same_levels():
    first, again = (LogNormal().sample(5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_a_zero_network_loses_one_at_every_level_on_centred_data(sigma):
    x0 = 0.5 * torch.randn(20_000, 10, generator=seeded(), dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=seeded(1), dtype=torch.float64)
    loss = denoising(Denoiser(Zero(), EDM(0.5)), x0, torch.full((20_000,), sigma).double(), eps)
    assert loss.shape == (20_000,)
    # 2e5 squared normals: standard error √(2/2e5) = 0.0032.
    assert float(loss.mean()) == pytest.approx(1, abs=0.013)


def test_a_perfect_denoiser_of_a_point_loses_nothing():
    class Perfect(nn.Module):
        """F for which D is the constant 0.3: F = (0.3 − c_skip x) / c_out."""

        def forward(self, x, c_noise):
            sigma = (4 * c_noise).exp()[:, None]
            c = EDM(0.5)
            return (0.3 - c.c_skip(sigma) * x / c.c_in(sigma)) / c.c_out(sigma)

    x0, sigma = torch.full((4, 2), 0.3).double(), torch.tensor([0.1, 0.5, 1.0, 5.0]).double()
    loss = denoising(Denoiser(Perfect(), EDM(0.5)), x0, sigma, torch.randn(4, 2, generator=seeded()).double())
    torch.testing.assert_close(loss, torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_gradients_reach_the_network():
    network = nn.Linear(2, 2)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, c_noise):
            return self.inner(x)

    denoising(Denoiser(Wrapped(), EDM()), torch.ones(3, 2), torch.ones(3), torch.ones(3, 2)).mean().backward()
    assert float(network.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("arguments", "name"), [({"std": 0.0}, "std"), ({"std": math.nan}, "std"), ({"mean": math.inf}, "mean")]
)
def test_impossible_constants_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        LogNormal(**arguments)


def test_shapes_that_do_not_fit_are_refused():
    denoiser = Denoiser(Zero(), EDM())
    with pytest.raises(ValueError, match="noise has shape"):
        denoising(denoiser, torch.zeros(3, 2), torch.ones(3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="sigma has shape"):
        denoising(denoiser, torch.zeros(3, 2), torch.ones(2), torch.zeros(3, 2))


def test_log_uniform_is_uniform_in_the_logarithm():
    logs = LogUniform(0.02, 100.0).sample(100_000, generator=seeded()).log()
    low, high = math.log(0.02), math.log(100.0)
    assert low <= float(logs.min()) < low + 0.01
    assert high - 0.01 < float(logs.max()) <= high
    quartiles = torch.quantile(logs, torch.tensor([0.25, 0.5, 0.75]).double())
    # Standard error of a quartile: 8.5 √(3/16 / 1e5) = 0.012.
    torch.testing.assert_close(
        quartiles, low + (high - low) * torch.tensor([0.25, 0.5, 0.75]).double(), rtol=0, atol=0.06
    )


def test_uniform_time_is_uniform_in_the_time():
    distribution = UniformTime(VP(), 1e-5, 1.0)
    times = VP().sigma_inv(distribution.sample(100_000, generator=seeded()))
    assert float(times.min()) >= 1e-5 * (1 - 1e-9)
    assert float(times.max()) <= 1
    # Standard errors 0.0009 and 0.0004.
    assert float(times.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(times.var()) == pytest.approx(1 / 12, abs=0.0015)


def test_uniform_levels_are_drawn_equally_often():
    levels = torch.tensor([0.1, 1.0, 10.0])
    drawn = UniformLevels(levels).sample(30_000, generator=seeded())
    for level in levels.double():
        # Standard error of a count: 82.
        assert int((drawn == level).sum()) == pytest.approx(10_000, abs=330)


@pytest.mark.parametrize(
    "distribution",
    [LogNormal(), LogUniform(), UniformTime(), UniformTime(FlowMatching(), 1e-3, 0.999), UniformLevels(PAIR)],
    ids=lambda d: type(d).__name__,
)
@given(n=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_every_distribution_draws_positive_levels_from_the_generator_alone(distribution, n, seed):
    before = torch.random.get_rng_state()
    drawn = distribution.sample(n, generator=seeded(seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (drawn.shape, drawn.dtype, drawn.device.type) == ((n,), torch.float64, "cpu")
    assert bool(((drawn > 0) & (drawn < torch.inf)).all())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LogUniform(0.0, 1.0), "sigma_min"),
        (lambda: LogUniform(2.0, 1.0), "sigma_min"),
        (lambda: UniformTime(VP(), 1.0, 0.5), "start"),
        (lambda: UniformTime(VP(), 0.0, 1.0), "start"),
        (lambda: UniformTime(FlowMatching(), 0.1, 1.0), "outside the domain"),
        (lambda: UniformLevels(torch.tensor([])), "levels"),
        (lambda: UniformLevels([1.0, 0.0]), "levels"),
        (lambda: UniformLevels([[1.0]]), "levels"),
    ],
)
def test_impossible_distributions_are_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()

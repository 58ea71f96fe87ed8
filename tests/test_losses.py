"""The noise distribution's law, and the loss of denoisers whose loss is known."""

import math

import pytest
import torch
from torch import nn

from edmnotes.losses import LogNormal, denoising
from edmnotes.preconditioning import EDM, Denoiser


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

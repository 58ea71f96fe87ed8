"""EDM's coefficients keep the promises they are derived from; the denoiser is put together as the formula says."""

import math

import pytest
import torch
from torch import nn

from edmnotes.preconditioning import EDM, Denoiser

SIGMAS = torch.logspace(-3, 2, 11, dtype=torch.float64)


class Recorder(nn.Module):
    """A network that keeps what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x, c_noise, labels=None):
        self.seen = x, c_noise, labels
        return self.weight * x


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 2.0])
def test_input_and_target_have_unit_variance(sigma_data):
    c = EDM(sigma_data)
    total = SIGMAS**2 + sigma_data**2
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c.c_in(SIGMAS) ** 2 * total, ones)
    # The target of F is (x_0 − c_skip (x_0 + σ ε)) / c_out.
    target = ((1 - c.c_skip(SIGMAS)) ** 2 * sigma_data**2 + c.c_skip(SIGMAS) ** 2 * SIGMAS**2) / c.c_out(SIGMAS) ** 2
    torch.testing.assert_close(target, ones)
    torch.testing.assert_close(c.weight(SIGMAS) * c.c_out(SIGMAS) ** 2, ones)
    torch.testing.assert_close(c.c_noise(SIGMAS), SIGMAS.log() / 4)


def test_skip_is_the_one_that_amplifies_errors_least():
    c, sigma_data = EDM(0.5), 0.5
    for shift in (-1e-3, 1e-3):
        skip = c.c_skip(SIGMAS) + shift
        other = (1 - skip) ** 2 * sigma_data**2 + skip**2 * SIGMAS**2
        assert bool((other > c.c_out(SIGMAS) ** 2).all())


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 8, 8)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_denoiser_is_the_formula(shape, per_sample):
    c, network = EDM(0.5), Recorder()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = SIGMAS[:4] if per_sample else SIGMAS[3]
    wide = sigma.reshape(-1, *[1] * (len(shape) - 1)) if per_sample else sigma
    out = Denoiser(network, c)(x, sigma, labels="kept")
    seen, told, labels = network.seen
    assert (seen.dtype, told.dtype, labels) == (torch.float32, torch.float32, "kept")
    assert told.shape == (4,)
    torch.testing.assert_close(told.double(), (sigma.log() / 4).expand(4), rtol=1e-6, atol=0)
    expected = c.c_skip(wide) * x + c.c_out(wide) * (c.c_in(wide) * x).float().double()
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected)


def test_skip_path_keeps_float64_beside_a_float32_network():
    x = torch.full((1, 2), 1 + 1e-12, dtype=torch.float64)
    out = Denoiser(Recorder(), EDM(0.5))(x, 1e-9)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-8)
    assert not torch.equal(out.float().double(), out)


def test_one_level_and_the_same_level_for_each_agree():
    denoiser, x = Denoiser(Recorder(torch.float64), EDM(0.5)), torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, 0.7), denoiser(x, torch.full((3,), 0.7).double()))


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_sigma_data_is_refused(sigma_data):
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(sigma_data)


def test_shapes_that_do_not_fit_are_refused():
    denoiser = Denoiser(Recorder(), EDM())
    with pytest.raises(ValueError, match=r"sigma has shape \(2,\)"):
        denoiser(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"sigma has shape \(3, 1\)"):
        denoiser(torch.zeros(3, 2), torch.ones(3, 1))
    with pytest.raises(ValueError, match="int64"):
        denoiser(torch.zeros(3, 2, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="batch"):
        denoiser(torch.tensor(1.0), 1.0)


def test_a_network_that_returns_another_shape_is_refused():
    class Wrong(nn.Module):
        def forward(self, x, c_noise):
            return x[:, :1]

    with pytest.raises(ValueError, match=r"returned shape \(3, 1\)"):
        Denoiser(Wrong(), EDM())(torch.zeros(3, 2), 1.0)

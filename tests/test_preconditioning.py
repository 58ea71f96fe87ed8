"""EDM's coefficients keep the promises they are derived from; the denoiser is put together as the formula says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edmnotes import schedules, steps
from edmnotes.preconditioning import EDM, IDDPM, VE, VP, Denoiser, Flow

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


# The other rows of EDM's Table 1.


def test_vp_row():
    c = VP()
    torch.testing.assert_close(c.c_skip(SIGMAS), torch.ones_like(SIGMAS))
    torch.testing.assert_close(c.c_out(SIGMAS), -SIGMAS)
    torch.testing.assert_close(c.c_in(SIGMAS), (SIGMAS**2 + 1) ** -0.5)
    torch.testing.assert_close(c.c_noise(SIGMAS), 999 * schedules.VP().sigma_inv(SIGMAS))
    torch.testing.assert_close(c.weight(SIGMAS), SIGMAS**-2)


def test_ve_row():
    c = VE()
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c.c_skip(SIGMAS), ones)
    torch.testing.assert_close(c.c_out(SIGMAS), SIGMAS)
    torch.testing.assert_close(c.c_in(SIGMAS), ones)
    torch.testing.assert_close(c.c_noise(SIGMAS), (SIGMAS / 2).log())
    torch.testing.assert_close(c.weight(SIGMAS), SIGMAS**-2)


def test_iddpm_row_tells_the_nearest_step():
    c, levels = IDDPM(), steps.iddpm_levels()[:-1]
    asked = torch.cat([levels, levels[:-1] * 0.7 + levels[1:] * 0.3, torch.tensor([1e-9, 1e9]).double()])
    nearest = (levels[None] - asked[:, None]).abs().argmin(1)
    torch.testing.assert_close(c.c_noise(asked), 999 - nearest.double())
    assert float(c.c_noise(levels[-1])) == 0


def test_flow_row_predicts_the_velocity_from_the_point_on_the_line():
    c, t = Flow(), SIGMAS / (1 + SIGMAS)
    torch.testing.assert_close(c.c_in(SIGMAS), 1 - t)
    torch.testing.assert_close(c.c_noise(SIGMAS), t)
    x0, eps = torch.tensor(0.3).double(), torch.tensor(-1.1).double()
    x = x0 + SIGMAS * eps
    torch.testing.assert_close(c.c_skip(SIGMAS) * x + c.c_out(SIGMAS) * (eps - x0), x0.expand_as(x))
    torch.testing.assert_close(c.weight(SIGMAS) * c.c_out(SIGMAS) ** 2, torch.ones_like(SIGMAS))


@pytest.mark.parametrize("c", [VP(), VE(), IDDPM(), Flow()], ids=lambda c: type(c).__name__)
def test_each_row_makes_a_denoiser(c):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for sigma in (0.7, torch.tensor([0.01, 0.7, 50.0])):
        out = Denoiser(Recorder(), c)(x, sigma)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        assert bool(out.isfinite().all())


def test_a_ddpm_chain_is_told_its_step():
    chain = schedules.Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    c = VP(chain, time_factor=1.0)
    steps_of_it = torch.tensor([1.0, 500.0, 1000.0]).double()
    torch.testing.assert_close(c.c_noise(chain.sigma(steps_of_it)), steps_of_it)


ROWS = [
    EDM(0.5),
    VP(),
    VE(),
    IDDPM(),
    Flow(),
    VP(schedules.Discrete(torch.tensor([0.01, 0.1, 0.5, 0.9])), time_factor=1.0),
]


@pytest.mark.parametrize("c", ROWS, ids=lambda c: type(c).__name__)
@given(
    sigma=st.floats(1e-3, 4.0),
    shape=st.sampled_from([(2,), (2, 3), (2, 1, 4, 4)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    per_sample=st.booleans(),
)
def test_every_row_gives_finite_answers_of_the_right_shape_and_dtype(c, sigma, shape, dtype, per_sample):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    level = torch.tensor([sigma, sigma / 2], dtype=dtype) if per_sample else sigma
    out = Denoiser(Recorder(), c)(x, level)
    assert (out.shape, out.dtype) == (shape, dtype)
    assert bool(out.isfinite().all())
    assert float(c.weight(torch.tensor(sigma))) > 0


@pytest.mark.parametrize("levels", [[1.0], [1.0, 2.0], [1.0, 0.0], [[2.0, 1.0]], [math.nan, 1.0]])
def test_impossible_levels_of_a_chain_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        IDDPM(torch.tensor(levels))

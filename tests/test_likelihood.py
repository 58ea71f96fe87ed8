"""Log densities along the probability-flow ODE against closed forms; error bars; codes and back; bits a dimension."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from edmnotes import data, steps
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.likelihood import bits_per_dim, decode, dequantised, encode, gaussian_probes, log_prob, rademacher_probes
from edmnotes.noise import PerSample
from edmnotes.preconditioning import EDM, Denoiser

LOW, HIGH = 0.002, 80.0
LINE = GaussianMixture([-1.0, 1.0], [0.3, 0.5], [0.4, 0.6])
PLANE = GaussianMixture(
    [[-1.0, 0.0], [1.0, 0.5]], covs=[[[0.2, 0.1], [0.1, 0.1]], [[0.25, -0.1], [-0.1, 0.3]]], weights=[0.4, 0.6]
)


def levels(n):
    """n steps between the ends, geometric."""
    return steps.ve(n + 1, LOW, HIGH)


def points(mixture, n):
    return mixture.sample(n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mixture", [LINE, PLANE], ids=["line", "plane"])
def test_log_prob_of_a_mixture_is_the_exact_one(mixture):
    """With the exact terminal density: 1e-6 nats, out to four stds and more from the centres."""
    far = torch.linspace(-4, 4, 9, dtype=torch.float64)
    x = torch.cat([points(mixture, 32), far if mixture is LINE else torch.stack([far, -far], 1)])
    found = log_prob(mixture, x, levels(384), prior=mixture)
    torch.testing.assert_close(found.nats, mixture.log_prob(x, LOW), rtol=0, atol=1e-6)
    assert found.nfe == 4 * 384
    assert found.error is None


def test_log_prob_has_order_four():
    x = points(PLANE, 32)
    exact = PLANE.log_prob(x, LOW)
    errors = [float((log_prob(PLANE, x, levels(n), prior=PLANE).nats - exact).abs().mean()) for n in (48, 96, 192)]
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(np.abs(rates - 4) < 0.2), rates


def test_a_gaussian_of_the_solvers_own_std_needs_one_step():
    gaussian = Gaussian(0.0, 0.5)
    x = torch.tensor([[-1.0, 0.2, 3.0], [0.0, 0.5, 0.1]], dtype=torch.float64)
    exact = gaussian.log_prob(x, LOW)
    torch.testing.assert_close(log_prob(gaussian, x, levels(1), prior=gaussian).nats, exact, rtol=1e-12, atol=0)
    # Another std is another start for the solver, not another answer: it needs more steps for it.
    for sigma_data in (0.2, 1.0):
        found = log_prob(gaussian, x, levels(128), prior=gaussian, sigma_data=sigma_data).nats
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
        assert float((found - exact).abs().max()) > 1e-12


def test_the_gap_of_the_gaussian_prior_is_that_of_two_gaussians():
    """log N(y; 0, σ²) − log N(y; m, σ² + s²) at the latent y; over the data it costs a relative entropy."""
    mean, std, high = 0.7, 0.5, 5.0
    gaussian = Gaussian(mean, std)
    sigmas = steps.ve(129, LOW, high)
    x = mean + std * torch.from_numpy(norm.ppf((np.arange(2000) + 0.5) / 2000))
    gap = log_prob(gaussian, x, sigmas).nats - log_prob(gaussian, x, sigmas, prior=gaussian).nats
    y = (mean + (x - mean) * math.sqrt((std**2 + high**2) / (std**2 + LOW**2))).numpy()
    exact = norm.logpdf(y, 0, high) - norm.logpdf(y, mean, math.hypot(std, high))
    np.testing.assert_allclose(gap.numpy(), exact, rtol=0, atol=1e-7)
    ratio = (std / high) ** 2
    entropy = (ratio - math.log1p(ratio)) / 2 + mean**2 / (2 * high**2)
    # The data lie at quantiles: their mean square is 3e-4 short of the variance.
    assert float(gap.mean()) == pytest.approx(-entropy, abs=1e-5)


# Hutchinson's estimate.


@pytest.mark.parametrize(("make", "count"), [(rademacher_probes, 32), (gaussian_probes, 128)], ids=["signs", "normals"])
def test_the_error_bar_covers_the_exact_value(make, count):
    """200 samples, each with a seed of its own: the normalised errors are those of a standard normal, nearly.

    Squares of normals are skewed: with 32 of them the errors are 1.3 bars wide, not 1.
    """
    x = points(PLANE, 200)
    sigmas = levels(16)
    exact = log_prob(PLANE, x, sigmas, prior=PLANE).nats  # the same steps: nothing but the probes differs
    found = log_prob(PLANE, x, sigmas, prior=PLANE, probes=make(x, count, PerSample(range(200))))
    score = ((found.nats - exact) / found.error).numpy()
    # Standard errors: 0.07 of the mean, 0.05 of the std, 0.015 of the share.
    assert abs(score.mean()) < 0.25
    assert abs(score.std() - 1) < 0.2
    assert abs((np.abs(score) < 1.96).mean() - 0.95) < 0.05


def test_signs_are_exact_where_the_jacobian_is_diagonal():
    gaussian = Gaussian(torch.tensor([0.1, -0.3]), torch.tensor([0.2, 0.9]))
    x = torch.tensor([[0.3, 0.1], [-0.2, 1.0]], dtype=torch.float64)
    exact = log_prob(gaussian, x, levels(16))
    signs = log_prob(gaussian, x, levels(16), probes=rademacher_probes(x, 2, PerSample([0, 1])))
    torch.testing.assert_close(signs.nats, exact.nats, rtol=1e-12, atol=1e-12)
    assert float(signs.error.max()) < 1e-12
    normals = log_prob(gaussian, x, levels(16), probes=gaussian_probes(x, 2, PerSample([0, 1])))
    assert float(normals.error.min()) > 1e-3


def test_probes_are_what_their_names_say():
    x = torch.zeros(2, 3, 4)
    signs, normals = (make(x, 500, PerSample([0, 1])) for make in (rademacher_probes, gaussian_probes))
    assert signs.shape == normals.shape == (500, 2, 3, 4)
    assert signs.dtype == torch.float32
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    # 12 000 numbers: standard errors 0.009 and 0.013.
    for drawn in (signs, normals):
        assert abs(float(drawn.mean())) < 0.04
        assert abs(float(drawn.square().mean()) - 1) < 0.06


def test_a_sample_has_its_likelihood_whatever_stands_beside_it():
    x = points(PLANE, 6)
    together = log_prob(PLANE, x, levels(16), probes=rademacher_probes(x, 4, PerSample(range(6))))
    alone = log_prob(PLANE, x[4:5], levels(16), probes=rademacher_probes(x[4:5], 4, PerSample([4])))
    torch.testing.assert_close(together.nats[4:5], alone.nats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.error[4:5], alone.error, rtol=1e-9, atol=1e-12)


# Codes and back.


def test_codes_of_a_gaussian_are_the_exact_ones():
    gaussian = Gaussian(0.7, 0.3)
    x = torch.tensor([-0.5, 0.7, 1.2], dtype=torch.float64)
    exact = 0.7 + (x - 0.7) * math.sqrt((0.09 + HIGH**2) / (0.09 + LOW**2))
    code = encode(gaussian, x, levels(256))
    torch.testing.assert_close(code.x, exact, rtol=1e-6, atol=0)
    assert code.nfe == 4 * 256
    assert torch.equal(code.x, log_prob(gaussian, x, levels(256)).latent)


def test_codes_decode_to_what_was_encoded():
    x = points(PLANE, 32)
    there_and_back = [decode(PLANE, encode(PLANE, x, levels(n)).x, levels(n)) for n in (48, 96, 192)]
    errors = [float((solution.x - x).abs().max()) for solution in there_and_back]
    assert errors[-1] < 1e-6
    # The method's errors are of even and odd powers: going back does not undo them, they fall at order four or more.
    assert np.all(np.log2(np.array(errors[:-1]) / np.array(errors[1:])) > 3.8)
    assert there_and_back[0].nfe == 4 * 48


# Bits a dimension.


def cells(spacing, count, draws=8):
    """Averages of 2^−bits and of bits over each of the cells around -2 … 2, for LINE, and the cells' exact masses."""
    x = spacing * torch.arange(-(count // 2), count // 2 + 1, dtype=torch.float64)
    # In place of noise: normal quantiles of Gauss's nodes, so that averages over the cell are integrals.
    nodes, weights = np.polynomial.legendre.leggauss(draws)
    noise = torch.from_numpy(norm.ppf((1 + nodes) / 2)).repeat_interleave(count)
    found = bits_per_dim(LINE, x.repeat(draws), levels(256), spacing=spacing, noise=lambda _: noise, prior=LINE)
    bits = found.bits.reshape(draws, count).numpy()
    low, high = (x - spacing / 2).numpy(), (x + spacing / 2).numpy()
    mass = sum(
        w * (norm.cdf(high, m, math.hypot(s, LOW)) - norm.cdf(low, m, math.hypot(s, LOW)))
        for m, s, w in ((-1.0, 0.3, 0.4), (1.0, 0.5, 0.6))
    )
    return weights / 2 @ 2.0**-bits, weights / 2 @ bits, mass


def test_bits_are_those_of_the_cells_around_the_grey_levels():
    """The constant: with it, and no other, the averages of 2^−bits are the cells' masses."""
    averages, _, mass = cells(2 / 16, 33)
    np.testing.assert_allclose(averages, mass, rtol=1e-5)
    for wrong in (2 / 17, 2 / 15, 1 / 16):
        assert abs(averages.sum() * wrong / (2 / 16) - mass.sum()) > 0.05


def test_dequantisation_gives_a_bound_that_tightens_with_the_spacing():
    gaps = []
    for spacing, count in ((0.5, 9), (0.25, 17), (0.125, 33)):
        _, bits, mass = cells(spacing, count)
        assert np.all(bits > -np.log2(mass))
        gaps.append(float((mass * (bits + np.log2(mass))).sum()))
    # Jensen's gap is half the variance of log p in the cell, of second order in its width.
    assert np.all(np.abs(np.log2(np.array(gaps[:-1]) / np.array(gaps[1:])) - 2) < 0.2), gaps


def test_bits_of_a_gaussian_in_many_dimensions():
    """Sixteen coordinates, each the same: bits are a dimension's. Probes' errors come in bits a dimension too."""
    gaussian, x = Gaussian(0.0, 0.5), torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    found = bits_per_dim(gaussian, x, levels(8), spacing=0.125, noise=torch.zeros_like, prior=gaussian)
    assert found.bits.tolist() == pytest.approx([-norm.logpdf(0, 0, math.hypot(0.5, LOW)) / math.log(2) + 3] * 2)
    assert found.nfe == 32
    probes = gaussian_probes(x, 4, PerSample([0, 1]))
    x = dequantised(x, 0.125, noise=torch.zeros_like)
    noisy = bits_per_dim(PIXELS, x, levels(8), spacing=0.125, noise=torch.zeros_like, probes=probes)
    nats = log_prob(PIXELS, x, levels(8), probes=probes)
    torch.testing.assert_close(noisy.error, nats.error / (16 * math.log(2)), rtol=1e-12, atol=0)


def test_dequantised_values_fill_their_cells():
    x = data.digits().train.x[:200]
    moved = dequantised(x, 2 / 16, noise=PerSample(range(200))) - x
    assert moved.dtype == torch.float32
    assert float(moved.abs().max()) <= 1 / 16 + 1e-6
    # 12 800 numbers: standard errors 0.0003 and 0.00012.
    assert abs(float(moved.mean())) < 0.0013
    assert float(moved.std()) == pytest.approx(0.125 / math.sqrt(12), abs=0.0005)


@pytest.mark.parametrize("spacing", [2 / 17, 2 / 15, 2 / 255, 1.0])
def test_values_off_the_grid_are_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        dequantised(data.digits().train.x[:20], spacing)


@pytest.mark.parametrize("spacing", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        bits_per_dim(LINE, torch.zeros(2), levels(2), spacing=spacing)


# The contract.


PIXELS = GaussianMixture(torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4), [0.3, 0.5])


@pytest.mark.parametrize(
    ("mixture", "shape"), [(LINE, (3,)), (PLANE, (3, 2)), (PIXELS, (3, 1, 4, 4))], ids=["line", "plane", "pixels"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(mixture, shape, dtype):
    x = points(mixture, 3).to(dtype)
    found = log_prob(mixture, x, levels(32), prior=mixture)
    assert (found.nats.shape, found.nats.dtype) == ((3,), torch.float64)
    assert (found.latent.shape, found.latent.dtype) == (shape, dtype)
    torch.testing.assert_close(found.nats, mixture.log_prob(x.double(), LOW), rtol=0, atol=1e-2)
    estimate = log_prob(mixture, x, levels(4), probes=rademacher_probes(x, 2, PerSample(range(3))))
    assert (estimate.error.shape, estimate.error.dtype) == ((3,), torch.float64)
    for carried in (encode(mixture, x, levels(4)), decode(mixture, x, levels(4))):
        assert (carried.x.shape, carried.x.dtype) == (shape, dtype)


def test_one_level_is_the_prior_itself():
    found = log_prob(LINE, torch.zeros(2), steps.edm(1), prior=LINE)
    assert found.nfe == 0
    torch.testing.assert_close(found.nats, LINE.log_prob(torch.zeros(2).double(), 80.0), rtol=1e-12, atol=0)


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x, c_noise, labels):
        return self.inner(x) * labels[:, None]


def test_a_network_with_labels_in_float32_keeps_no_gradient():
    torch.manual_seed(0)
    network = Conditional()
    denoiser, x = Denoiser(network, EDM(0.5)), torch.ones(2, 2)
    found = [log_prob(denoiser, x, levels(8), labels=torch.tensor([0.0, scale])).nats for scale in (1.0, 2.0)]
    assert float(found[0][0]) == float(found[1][0]) != float(found[0][1]) != float(found[1][1])
    assert network.inner.weight.grad is None
    assert not found[0].requires_grad
    assert not x.requires_grad
    codes = encode(denoiser, x, levels(8), labels=torch.tensor([0.0, 1.0]))
    assert not decode(denoiser, codes.x, levels(8), labels=torch.tensor([0.0, 1.0])).x.requires_grad


def test_a_denoiser_without_gradients_is_refused():
    with pytest.raises(ValueError, match="no gradient"):
        log_prob(torch.no_grad()(LINE.__call__), torch.zeros(2), levels(2))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"sigma_data": math.inf}, "sigma_data"),
        ({"sigma_data": math.nan}, "sigma_data"),
        ({"probes": torch.ones(1, 2)}, "probes"),
        ({"probes": torch.ones(4, 3)}, "probes"),
        ({"probes": torch.ones(2)}, "probes"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        log_prob(LINE, torch.zeros(2), levels(2), **options)


@pytest.mark.parametrize("function", [log_prob, encode, decode])
def test_impossible_levels_and_samples_are_refused(function):
    for wrong in ([1.0, 2.0, 0.0], [2.0, 1.0], [2.0, -1.0, 0.0], [math.inf, 1.0, 0.0], []):
        with pytest.raises(ValueError, match="sigmas"):
            function(LINE, torch.zeros(2), torch.tensor(wrong))
    with pytest.raises(ValueError, match="int64"):
        function(LINE, torch.zeros(2, dtype=torch.int64), levels(2))
    with pytest.raises(ValueError, match="sigma_data"):
        function(LINE, torch.zeros(2), levels(2), sigma_data=-1.0)


@given(
    sigmas=st.lists(st.floats(1e-3, 100), min_size=1, max_size=4, unique=True),
    value=st.floats(-10, 10),
    sigma_data=st.floats(0.1, 10),
    seed=st.integers(0, 100),
)
def test_legal_levels_give_finite_answers(sigmas, value, sigma_data, seed):
    x = torch.full((2, 2), value, dtype=torch.float64)
    sigmas = torch.tensor([*sorted(sigmas, reverse=True), 0.0], dtype=torch.float64)
    probes = rademacher_probes(x, 2, PerSample([seed, seed + 1]))
    found = log_prob(PLANE, x, sigmas, probes=probes, sigma_data=sigma_data)
    assert bool(found.nats.isfinite().all() and found.error.isfinite().all() and found.latent.isfinite().all())

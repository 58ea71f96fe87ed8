"""Exact distributions: Tweedie's formula ties denoiser, score, density and covariance; quadrature ties them to p_0."""

import math

import pytest
import torch
from scipy.integrate import quad

from edmnotes.exact import Gaussian, GaussianMixture

SIGMAS = [1e-3, 0.1, 0.7, 3.0, 80.0]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributions():
    """Each with a batch of points: on the line, in the plane, and as one-channel images."""
    g = seeded()
    return [
        pytest.param(Gaussian(0.3, 0.5), torch.randn(6, generator=g, dtype=torch.float64), id="gaussian-line"),
        pytest.param(
            Gaussian([0.3, -1.0], [0.5, 2.0]), torch.randn(6, 2, generator=g, dtype=torch.float64), id="gaussian-plane"
        ),
        pytest.param(
            GaussianMixture([-1.0, 0.5, 2.0], [0.1, 0.3, 0.2], [0.2, 0.5, 0.3]),
            torch.randn(6, generator=g, dtype=torch.float64),
            id="mixture-line",
        ),
        pytest.param(
            GaussianMixture([[-1.0, 0.0], [1.0, 1.0]], 0.4, [1, 3]),
            torch.randn(6, 2, generator=g, dtype=torch.float64),
            id="mixture-plane",
        ),
        pytest.param(
            GaussianMixture(torch.randn(3, 1, 2, 2, generator=g), [0.2, 0.3, 0.4]),
            torch.randn(6, 1, 2, 2, generator=g, dtype=torch.float64),
            id="mixture-images",
        ),
    ]


each = pytest.mark.parametrize(("distribution", "x"), distributions())


@each
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_of_the_log_density(distribution, x, sigma):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distribution.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(distribution.score(x, sigma), gradient, rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("sigma", SIGMAS)
def test_tweedies_formula_ties_denoiser_and_score(distribution, x, sigma):
    tweedie = x + sigma**2 * distribution.score(x, sigma)
    torch.testing.assert_close(distribution(x, sigma), tweedie, rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0])
def test_posterior_covariance_is_the_scaled_jacobian(distribution, x, sigma):
    """Cov[x_0 | x] = σ² ∂D/∂x."""
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: distribution(p, sigma), point[None]) for point in x]
    )
    dim = x[0].numel()
    torch.testing.assert_close(distribution.posterior_cov(x, sigma), sigma**2 * jacobian.reshape(len(x), dim, dim))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0])
def test_mixture_on_the_line_agrees_with_quadrature(sigma):
    """The smoothed density and the posterior mean, from their defining integrals over x_0."""
    means, stds, weights = [-1.0, 0.5, 2.0], [0.1, 0.3, 0.2], [0.2, 0.5, 0.3]

    def normal(x, mean, std):
        return math.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))

    def joint(x0, x):
        prior = sum(w * normal(x0, m, s) for m, s, w in zip(means, stds, weights, strict=True))
        return prior * normal(x, x0, sigma)

    mixture = GaussianMixture(means, stds, weights)
    for x in (-2.0, 0.0, 1.3):
        options = {"limit": 400, "points": [*means, x], "epsabs": 1e-14}
        evidence = quad(joint, -9, 9, args=(x,), **options)[0]
        first = quad(lambda x0, x=x: x0 * joint(x0, x), -9, 9, **options)[0]
        point = torch.tensor([x], dtype=torch.float64)
        assert float(mixture.log_prob(point, sigma)) == pytest.approx(math.log(evidence), abs=1e-9)
        assert float(mixture(point, sigma)) == pytest.approx(first / evidence, abs=1e-9)


def test_one_component_is_the_gaussian():
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    one, gaussian = GaussianMixture([[0.3, -1.0]], 0.5), Gaussian([0.3, -1.0], 0.5)
    for name in ("__call__", "score", "log_prob", "posterior_cov"):
        torch.testing.assert_close(getattr(one, name)(x, 0.7), getattr(gaussian, name)(x, 0.7))


@each
def test_samples_have_the_mean_of_the_distribution(distribution, x):
    """E[x_0] is what the denoiser says when the noise has drowned everything."""
    samples = distribution.sample(40_000, generator=seeded(1))
    assert samples.shape[1:] == x.shape[1:]
    # No std above 2.3 in these distributions: standard error at most 0.012.
    torch.testing.assert_close(samples.mean(0), distribution(torch.zeros_like(x[:1]), 1e6)[0], rtol=0, atol=0.05)


def test_gaussian_samples_take_the_shape_asked_for():
    samples = Gaussian(0.3, 0.5).sample(20_000, shape=(2, 2), generator=seeded())
    assert samples.shape == (20_000, 2, 2)
    torch.testing.assert_close(samples.std(0), torch.full((2, 2), 0.5).double(), rtol=0, atol=0.01)


@each
def test_far_from_the_data_everything_is_finite(distribution, x):
    """The trap of log(pdf): −inf and nan where the density underflows."""
    far = 1e4 * torch.ones_like(x)
    for value in (distribution(far, 1e-3), distribution.score(far, 1e-3), distribution.log_prob(far, 1e-3)):
        assert bool(value.isfinite().all())


@each
def test_without_noise_the_denoiser_returns_its_input(distribution, x):
    torch.testing.assert_close(distribution(x, 0.0), x)
    assert bool(distribution.score(x, 0.0).isfinite().all())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_level_a_sample_and_dtypes(distribution, x, dtype):
    x, sigma = x.to(dtype), torch.logspace(-1, 1, len(x), dtype=dtype)
    many = distribution(x, sigma)
    assert (many.dtype, many.shape) == (dtype, x.shape)
    for i in range(len(x)):
        torch.testing.assert_close(many[i : i + 1], distribution(x[i : i + 1], float(sigma[i])), rtol=1e-4, atol=1e-5)
    assert distribution.log_prob(x, sigma).shape == (len(x),)


def test_impossible_parameters_are_refused():
    with pytest.raises(ValueError, match=r"std = -1"):
        Gaussian(0.0, -1.0)
    with pytest.raises(ValueError, match="std"):
        Gaussian(0.0, math.nan)
    with pytest.raises(ValueError, match="means has shape"):
        GaussianMixture(0.0, 1.0)
    with pytest.raises(ValueError, match="stds has shape"):
        GaussianMixture([0.0, 1.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="stds = "):
        GaussianMixture([0.0, 1.0], [1.0, -1.0])
    with pytest.raises(ValueError, match="weights has shape"):
        GaussianMixture([0.0, 1.0], 1.0, [1.0])
    with pytest.raises(ValueError, match="weights = "):
        GaussianMixture([0.0, 1.0], 1.0, [1.0, 0.0])


def test_points_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="samples of shape"):
        Gaussian([0.0, 1.0], 1.0)(torch.zeros(3, 5), 1.0)
    with pytest.raises(ValueError, match="samples of shape"):
        GaussianMixture([[0.0, 1.0]], 1.0)(torch.zeros(3, 5), 1.0)
    with pytest.raises(ValueError, match="sigma has shape"):
        Gaussian(0.0, 1.0)(torch.zeros(3), torch.ones(2))

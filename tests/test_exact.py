"""Exact distributions: Tweedie's formula ties denoiser, score, density and covariance; quadrature ties them to p_0."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from edmnotes import exact
from edmnotes.exact import ByClass, Empirical, Gaussian, GaussianMixture

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
        pytest.param(
            GaussianMixture(
                [[-1.0, 0.0], [1.0, 1.0]], weights=[1, 3], covs=[[[0.5, 0.3], [0.3, 0.2]], [[1, 0], [0, 0.1]]]
            ),
            torch.randn(6, 2, generator=g, dtype=torch.float64),
            id="mixture-covs",
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


def test_full_covariances_that_are_round_give_the_isotropic_mixture():
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    means, stds = [[-1.0, 0.0], [1.0, 1.0]], torch.tensor([0.4, 0.7]).double()
    covs = stds[:, None, None] ** 2 * torch.eye(2).double()
    for name in ("__call__", "score", "log_prob", "posterior_cov"):
        torch.testing.assert_close(
            getattr(GaussianMixture(means, covs=covs), name)(x, 0.7),
            getattr(GaussianMixture(means, stds), name)(x, 0.7),
        )


def test_one_component_with_a_covariance_is_the_gaussian_in_its_density():
    cov = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    reference = torch.distributions.MultivariateNormal(torch.zeros(2).double(), cov + 0.49 * torch.eye(2).double())
    torch.testing.assert_close(GaussianMixture([[0.0, 0.0]], covs=cov[None]).log_prob(x, 0.7), reference.log_prob(x))


def test_samples_of_a_mixture_with_covariances_have_them():
    cov = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    samples = GaussianMixture([[0.0, 0.0]], covs=cov[None]).sample(100_000, generator=seeded())
    # Standard errors at most √2 · 0.5 / √1e5 = 0.0023.
    torch.testing.assert_close(torch.cov(samples.T), cov, rtol=0, atol=0.01)


# The empirical distribution.


def clustered(count, dim, *, distances=(1e-3, 0.01, 0.1, 1.0, 10.0), seed=0):
    """Near-duplicates: clusters of 25 around a common centre, five at each of several distances from it."""
    g = seeded(seed)
    centres = 0.5 * torch.randn(count // 25, 1, dim, generator=g, dtype=torch.float64)
    directions = torch.nn.functional.normalize(
        torch.randn(count // 25, 25, dim, generator=g, dtype=torch.float64), dim=2
    )
    radii = torch.tensor(distances, dtype=torch.float64).repeat(5)[:, None]
    return (centres + radii * directions).flatten(0, 1).float()


def weights_in_float64(x, data, sigma):
    """Softmax over −|x − y|²/(2σ²) from the differences themselves, one sample at a time."""
    squared = torch.stack([((point - data.double()) ** 2).sum(1) for point in x.double()])
    return torch.softmax(-squared / (2 * sigma**2), dim=1)


def naive_float32(x, data, sigma):
    """The formula as one would write it: |x|² + |y|² − 2 x·y in float32."""
    squared = (x**2).sum(1, keepdim=True) + (data**2).sum(1) - 2 * x @ data.T
    return torch.softmax(-squared / (2 * sigma**2), dim=1) @ data


SIGMAS_OF_DATA = (0.002, 0.01, 0.1, 1.0, 80.0)


def relative_errors(denoiser):
    """Largest relative error of D at each level, and the median effective number of neighbours."""
    data = clustered(1000, 3072)
    errors, neighbours = {}, {}
    for sigma in SIGMAS_OF_DATA:
        x = data[::125] + sigma * torch.randn(8, 3072, generator=seeded(1))
        share = weights_in_float64(x, data, sigma)
        right = share @ data.double()
        errors[sigma] = float(((denoiser(x, data, sigma) - right).norm(dim=1) / right.norm(dim=1)).max())
        neighbours[sigma] = float((1 / (share**2).sum(1)).median())
    return errors, neighbours


def test_empirical_denoiser_is_exact_at_every_level_on_near_duplicates():
    errors, neighbours = relative_errors(lambda x, data, sigma: Empirical(data)(x, sigma))
    assert max(errors.values()) < 1e-5, errors
    assert any(1.1 < n < 100 for n in neighbours.values()), neighbours


def test_the_naive_float32_formula_fails_the_same_test():
    errors, _ = relative_errors(naive_float32)
    assert max(errors.values()) > 1e-5, errors


def test_slices_do_not_change_the_answer(monkeypatch):
    data = clustered(200, 12)
    x = data[:7] + 0.1 * torch.randn(7, 12, generator=seeded())
    whole = [f(x, 0.1) for f in (Empirical(data), Empirical(data).log_prob, Empirical(data).posterior_cov)]
    monkeypatch.setattr(exact, "SLICE", 12 * 30)
    for got, expected in zip(
        (Empirical(data)(x, 0.1), Empirical(data).log_prob(x, 0.1), Empirical(data).posterior_cov(x, 0.1)),
        whole,
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_no_array_of_all_pairs_and_coordinates_is_made(monkeypatch):
    """Bounded memory: no tensor on the way is larger than a slice."""
    monkeypatch.setattr(exact, "SLICE", 4096)
    data = clustered(2000, 64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != data.data_ptr():
                    largest = max(largest, tensor.numel())
            return out

    denoiser = Empirical(data)
    with Watch():
        denoiser(data[:16] + 0.1, 0.1)
    assert largest <= 4096


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empirical_is_the_mixture_of_points(shape, dtype):
    data = torch.randn(30, *shape, generator=seeded(), dtype=torch.float64)
    x = torch.randn(5, *shape, generator=seeded(1), dtype=torch.float64).to(dtype)
    points, mixture = Empirical(data.to(dtype)), GaussianMixture(data, 0.0)
    for sigma in (0.3, torch.logspace(-0.5, 0.5, 5, dtype=dtype)):
        for name in ("__call__", "score", "log_prob", "posterior_cov"):
            got = getattr(points, name)(x, sigma)
            assert got.dtype == dtype
            torch.testing.assert_close(got, getattr(mixture, name)(x, sigma), rtol=1e-3, atol=1e-4)


def test_empirical_samples_are_data():
    data = clustered(50, 3)
    drawn = Empirical(data).sample(40, generator=seeded())
    assert drawn.shape == (40, 3)
    assert bool((drawn[:, None] == data).all(2).any(1).all())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 3), "shape"),
        (torch.tensor(1.0), "shape"),
        (torch.zeros(3, 2, dtype=torch.int64), "int64"),
        (torch.tensor([[math.nan]]), "not finite"),
    ],
)
def test_impossible_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Empirical(data)


def test_points_of_another_shape_than_the_data_are_refused():
    with pytest.raises(ValueError, match="samples of shape"):
        Empirical(torch.zeros(3, 2))(torch.zeros(3, 5), 1.0)


@pytest.mark.parametrize(
    ("covs", "message"),
    [
        (torch.eye(3)[None], "covs has shape"),
        ([[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
        ([[[1.0, 2.0], [2.0, 1.0]]], "negative eigenvalue"),
        ([[[math.nan, 0.0], [0.0, 1.0]]], "finite"),
    ],
)
def test_impossible_covariances_are_refused(covs, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture([[0.0, 0.0]], covs=covs)


@given(
    count=st.integers(1, 4),
    dim=st.integers(1, 3),
    batch=st.integers(1, 3),
    sigma=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_legal_mixtures_give_finite_answers_of_the_right_shape(count, dim, batch, sigma, seed):
    g = seeded(seed)
    means = torch.randn(count, dim, generator=g, dtype=torch.float64)
    root = torch.randn(count, dim, dim, generator=g, dtype=torch.float64)
    x = means.mean(0) + (1 + sigma) * torch.randn(batch, dim, generator=g, dtype=torch.float64)
    for distribution in (
        GaussianMixture(means, covs=root @ root.mT),
        GaussianMixture(means, 0.3),
        Gaussian(means[0], 0.3),
        Empirical(means),
    ):
        shapes = {"__call__": (batch, dim), "score": (batch, dim), "log_prob": (batch,)}
        for name, shape in {**shapes, "posterior_cov": (batch, dim, dim)}.items():
            answer = getattr(distribution, name)(x, sigma)
            assert answer.shape == shape
            assert bool(answer.isfinite().all())


def test_impossible_parameters_are_refused():
    with pytest.raises(ValueError, match="either stds or covs"):
        GaussianMixture([0.0, 1.0])
    with pytest.raises(ValueError, match="either stds or covs"):
        GaussianMixture([0.0], 1.0, covs=[[[1.0]]])
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


# Three components in two classes, and the same as one mixture.
CLASSES = ByClass([GaussianMixture([-1.0, 0.5], [0.1, 0.3], [1, 3]), Gaussian(2.0, 0.2)], [0.4, 0.6])
WHOLE = GaussianMixture([-1.0, 0.5, 2.0], [0.1, 0.3, 0.2], [0.1, 0.3, 0.6])
POINTS = torch.tensor([-1.2, 0.1, 1.3, 1.9], dtype=torch.float64)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_classes_untold_are_their_mixture(sigma):
    assert torch.allclose(CLASSES(POINTS, sigma), WHOLE(POINTS, sigma), rtol=0, atol=1e-12)
    assert torch.allclose(CLASSES.log_prob(POINTS, sigma), WHOLE.log_prob(POINTS, sigma), rtol=0, atol=1e-12)
    assert torch.allclose(CLASSES.score(POINTS, sigma), WHOLE.score(POINTS, sigma), rtol=1e-9)


def test_a_class_told_is_its_distribution_and_a_negative_label_is_none_told():
    labels, sigma = torch.tensor([0, 1, 1, -1]), 0.7
    parts = [*(CLASSES.parts[y] for y in (0, 1, 1)), WHOLE]
    for answer, name in (
        (CLASSES(POINTS, sigma, labels=labels), "__call__"),
        (CLASSES.log_prob(POINTS, sigma, labels), "log_prob"),
    ):
        alone = [getattr(part, name)(POINTS[i : i + 1], sigma) for i, part in enumerate(parts)]
        assert torch.allclose(answer, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_class_given_the_point_is_bayes_rule(sigma):
    told = torch.stack([CLASSES.log_prob(POINTS, sigma, torch.full((4,), y)) for y in (0, 1)], 1)
    joint = told + torch.tensor([0.4, 0.6], dtype=torch.float64).log()
    expected = joint - WHOLE.log_prob(POINTS, sigma)[:, None]
    assert torch.allclose(CLASSES.class_log_prob(POINTS, sigma), expected, rtol=0, atol=1e-10)


def test_classes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="parts is empty"):
        ByClass([])
    with pytest.raises(ValueError, match="weights has shape"):
        ByClass([Gaussian(0.0, 1.0)], [1.0, 2.0])


MEASURED = GaussianMixture(
    [[-1.0, 0.0], [1.0, 1.0]], weights=[1, 3], covs=[[[0.5, 0.3], [0.3, 0.2]], [[1.0, 0.0], [0.0, 0.1]]]
)


@pytest.mark.parametrize(
    "forward", [[[1.0, 0.0]], [[0.5, -2.0]], [[1.0, 0.0], [0.3, 1.0]]], ids=["one", "slanted", "two"]
)
def test_a_measured_mixture_is_bayes_rule_on_the_densities(forward):
    """log p(x | y) − log p(x) − log p(y | x) is one constant for all x."""
    matrix = torch.tensor(forward, dtype=torch.float64)
    seen, std = torch.tensor([0.7, -0.4], dtype=torch.float64)[: len(matrix)], 0.3
    x = torch.randn(40, 2, generator=seeded(), dtype=torch.float64)
    likelihood = -((seen - x @ matrix.T) ** 2).sum(1) / (2 * std**2)
    left = MEASURED.given(matrix, seen, std).log_prob(x, 0.0) - MEASURED.log_prob(x, 0.0) - likelihood
    assert float(left.max() - left.min()) < 1e-9


def test_a_measurement_with_much_noise_changes_nothing():
    x = torch.randn(10, 2, generator=seeded(), dtype=torch.float64)
    after = MEASURED.given(torch.eye(2, dtype=torch.float64), torch.zeros(2), 1e6)
    assert torch.allclose(after.log_prob(x, 0.1), MEASURED.log_prob(x, 0.1), atol=1e-6)


def test_a_mixture_on_the_line_and_one_of_images_can_be_measured():
    line = GaussianMixture([-1.0, 2.0], [0.5, 0.1]).given(torch.ones(1, 1), torch.tensor([1.9]), 0.2)
    assert line.means.shape == (2,)
    assert float(line.weights[1]) > 0.99
    images = GaussianMixture(torch.zeros(1, 1, 2, 2), 1.0).given(torch.ones(1, 4), torch.tensor([4.0]), 0.1)
    assert images.means.shape == (1, 1, 2, 2)
    assert torch.allclose(images.means, torch.full((1, 1, 2, 2), 4 / 4.01, dtype=torch.float64))


@pytest.mark.parametrize(
    ("forward", "seen", "std", "named"),
    [
        (torch.ones(1, 3), torch.ones(1), 1.0, "forward has shape"),
        (torch.ones(1, 2), torch.ones(2), 1.0, "measurement"),
        (torch.ones(1, 2), torch.ones(1), 0.0, "std = 0"),
        (torch.ones(1, 2), torch.ones(1), math.nan, "std = nan"),
    ],
    ids=["wide", "long", "zero", "nan"],
)
def test_measurements_that_do_not_fit_are_refused(forward, seen, std, named):
    with pytest.raises(ValueError, match=named):
        MEASURED.given(forward, seen, std)

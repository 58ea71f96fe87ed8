"""Fréchet distance against closed forms, SciPy and torchmetrics."""

import itertools
import math

import pytest
import scipy.linalg
import torch
import torchmetrics.image.fid
from hypothesis import given, settings
from hypothesis import strategies as st

from edmnotes import metrics


def covariance(d, seed):
    """A full-rank covariance whose axes are not aligned with the coordinates."""
    g = torch.Generator().manual_seed(seed)
    half = torch.randn(d, d, generator=g, dtype=torch.float64)
    return half @ half.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def rows_with(mean, cov, n, seed):
    """n rows whose *sample* mean and unbiased covariance are exactly the given ones."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, len(mean), generator=g, dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return white @ torch.linalg.cholesky(cov).T + mean


def gaussian_frechet(mean_a, cov_a, mean_b, cov_b):
    """The textbook formula, with SciPy's matrix square root."""
    root = torch.from_numpy(scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real)
    return float((mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace())


@pytest.mark.parametrize(("d", "n", "m"), [(1, 5, 9), (3, 10, 400), (16, 50, 17), (64, 300, 300)])
def test_two_gaussians_of_known_moments(d, n, m):
    g = torch.Generator().manual_seed(d)
    mean_a, mean_b = torch.randn(2, d, generator=g, dtype=torch.float64)
    cov_a, cov_b = covariance(d, 1), covariance(d, 2)
    expected = gaussian_frechet(mean_a, cov_a, mean_b, cov_b)
    found = metrics.frechet_distance(rows_with(mean_a, cov_a, n, 3), rows_with(mean_b, cov_b, m, 4))
    assert found == pytest.approx(expected, rel=1e-10)


def test_commuting_covariances_compare_their_standard_deviations():
    """Covariances with common axes: the sum of squared differences of the standard deviations along them."""
    axes = torch.linalg.qr(covariance(5, 1)).Q
    std_a, std_b = torch.tensor([[1.0, 2.0, 0.5, 0.1, 3.0], [2.0, 2.0, 0.1, 0.7, 1.0]], dtype=torch.float64)
    mean = torch.zeros(5, dtype=torch.float64)
    a = rows_with(mean, axes @ torch.diag(std_a**2) @ axes.T, 50, 1)
    b = rows_with(mean, axes @ torch.diag(std_b**2) @ axes.T, 60, 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(float((std_a - std_b).square().sum()), rel=1e-12)


def test_shift_of_the_mean_alone_is_its_squared_length():
    a = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert metrics.frechet_distance(a, a + shift) == pytest.approx(25.0, rel=1e-12)


def test_scaling_about_the_mean():
    """C_b = k² C_a gives (k − 1)² tr C_a."""
    a = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = a.mean(0) + 3 * (a - a.mean(0))
    assert metrics.frechet_distance(a, b) == pytest.approx(4 * float(a.var(0).sum()), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (10, 30), (2, 2)])
def test_rotation_permutation_and_exchange_change_nothing(n, m):
    g = torch.Generator().manual_seed(5)
    a = torch.randn(n, 12, generator=g, dtype=torch.float64)
    b = 2 * torch.randn(m, 12, generator=g, dtype=torch.float64) + 1
    turn = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64)).Q
    distance = metrics.frechet_distance(a, b)
    assert metrics.frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, rel=1e-11)
    assert metrics.frechet_distance(a[torch.randperm(n, generator=g)], b) == pytest.approx(distance, rel=1e-11)
    assert metrics.frechet_distance(b, a) == pytest.approx(distance, rel=1e-11)


@pytest.mark.parametrize("n", [3, 20, 500])
def test_a_set_is_at_distance_zero_from_itself(n):
    """Also where the covariance is singular: a root taken through eigenvalues leaves 1e-8 there."""
    a = 100 * torch.randn(n, 40, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert 0 <= metrics.frechet_distance(a, a.flip(0)) < 1e-20 * float(a.square().sum())


def test_fewer_rows_than_features():
    """Two sets in orthogonal subspaces share no axis: nothing is taken off the two traces."""
    g = torch.Generator().manual_seed(7)
    a, b = torch.zeros(2, 5, 20, dtype=torch.float64)
    a[:, :10] = torch.randn(5, 10, generator=g, dtype=torch.float64)
    b[:, 10:] = torch.randn(5, 10, generator=g, dtype=torch.float64)
    apart = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(float(apart), rel=1e-12)


def test_bias_falls_like_one_over_n():
    """Two samples of one standard normal law: the mean alone adds 2 d / n; the covariances as much again, and more."""
    d, found = 8, []
    for n in (100, 200, 400, 800):
        g = torch.Generator().manual_seed(n)
        draws = torch.randn(40, 2, n, d, generator=g, dtype=torch.float64)
        found.append(sum(metrics.frechet_distance(a, b) for a, b in draws) / len(draws))
    assert found[0] > 2 * d / 100
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(found)]
    assert all(abs(slope - 1) < 0.2 for slope in slopes), slopes


def test_distance_does_not_depend_on_dtype_or_graph():
    a = torch.randn(30, 4, generator=torch.Generator().manual_seed(8)).requires_grad_()
    b = torch.randn(30, 4, generator=torch.Generator().manual_seed(9))
    assert metrics.frechet_distance(a, b) == metrics.frechet_distance(a.double(), b.double())


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 10), st.floats(1e-6, 1e6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_distance_is_finite_non_negative_and_symmetric(n, m, d, scale, seed):
    g = torch.Generator().manual_seed(seed)
    a = scale * torch.randn(n, d, generator=g, dtype=torch.float64)
    b = torch.randn(m, d, generator=g, dtype=torch.float64)
    distance = metrics.frechet_distance(a, b)
    assert math.isfinite(distance)
    assert distance >= 0
    assert metrics.frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("d", [2, 16, 64])
def test_torchmetrics_finds_the_same(d):
    """Features of different spread and scale, 3 d rows; its class adds up moments, ours never makes a product."""
    g = torch.Generator().manual_seed(d)
    a, b = (torch.randn(3 * d + k, d, generator=g, dtype=torch.float64) @ covariance(d, k) + k for k in (0, 1))
    theirs = torchmetrics.image.fid.FrechetInceptionDistance(feature=Passed(d)).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert metrics.frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-6)


class Passed(torch.nn.Module):
    """An extractor that takes features and gives them back."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, x):
        return x


@pytest.mark.parametrize("d", [1, 3, 64])
def test_given_moments_give_the_distance_of_the_samples(d):
    g = torch.Generator().manual_seed(d)
    a, b = torch.randn(2, 2 * d + 3, d, generator=g, dtype=torch.float64) @ covariance(d, 1)
    moments = [moment for x in (a, 2 * b + 1) for moment in (x.mean(0), x.T.cov().reshape(d, d))]
    found = metrics.frechet_from_moments(*moments)
    assert found == pytest.approx(metrics.frechet_distance(a, 2 * b + 1), rel=1e-10)
    assert found == pytest.approx(gaussian_frechet(*moments), rel=1e-9)


def test_given_singular_covariances():
    """A point and a line: SciPy's root is not defined for them, the distance is."""
    origin, line = torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([4.0, 0, 0], dtype=torch.float64))
    point = torch.zeros(3, 3, dtype=torch.float64)
    assert metrics.frechet_from_moments(origin, point, origin + 1, line) == pytest.approx(3 + 4)
    assert metrics.frechet_from_moments(origin, line, origin, line.roll((1, 1), (0, 1))) == pytest.approx(8)
    assert metrics.frechet_from_moments(origin, line, origin, line) < 1e-14


def test_moments_that_are_none_are_refused():
    mean, cov = torch.zeros(2), torch.eye(2)
    for bad, message in [
        ((mean[:1], cov, mean, cov), r"mean_a has shape \(1,\), mean_b \(2,\)"),
        ((mean, cov[:1], mean, cov), r"cov_a has shape \(1, 2\)"),
        ((mean, cov, mean, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "cov_b .* must be symmetric"),
        ((mean, cov, mean, -cov), "cov_b has the negative eigenvalue -1"),
        ((mean, cov / 0, mean, cov), "cov_a holds 4 values that are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.frechet_from_moments(*bad)


def test_bias_of_one_normal_law_is_the_books():
    """Label frechet-bias-dim: v d (d + 5) / (2 n) to first order in 1 / n; frechet-bias-line, without any order."""
    g = torch.Generator().manual_seed(3)
    for d, n in ((1, 50), (4, 400)):
        draws = torch.randn(1500, 2, n, d, generator=g, dtype=torch.float64)
        found = torch.tensor([metrics.frechet_distance(a, b) for a, b in draws])
        assert float(found.mean()) == pytest.approx(d * (d + 5) / (2 * n), abs=4 * float(found.std()) / 1500**0.5)

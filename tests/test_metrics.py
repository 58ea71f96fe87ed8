"""Fréchet distance and nearest neighbours, against closed forms."""

import itertools
import math

import pytest
import scipy.linalg
import torch
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


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"a has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2, 1), r"b has shape \(3, 2, 1\)"),
        (torch.zeros(1, 2), torch.zeros(3, 2), r"a has shape \(1, 2\)"),
        (torch.zeros(3, 2), torch.zeros(0, 2), r"b has shape \(0, 2\)"),
        (torch.zeros(3, 0), torch.zeros(3, 0), r"a has shape \(3, 0\)"),
        (torch.zeros(3, 2), torch.zeros(3, 4), "a has 2 features and b has 4"),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), "a holds 6 values that are not finite"),
        (torch.zeros(3, 2), torch.full((3, 2), math.inf), "b holds 6 values that are not finite"),
    ],
)
def test_wrong_features_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.frechet_distance(a, b)


def test_nearest_distance_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    reference = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    assert metrics.nearest_distance(x, reference).tolist() == pytest.approx([1.0, 4.0, math.sqrt(2)])


def test_nearest_distance_of_a_copy_is_exactly_zero_in_a_large_set():
    """More rows than a chunk, far from the origin: where the expanded square would lose its digits."""
    reference = 100 + torch.rand(2500, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert metrics.nearest_distance(reference.flip(0), reference).abs().max() == 0


def test_ratio_of_copies_is_zero_and_of_unseen_data_one():
    g = torch.Generator().manual_seed(2)
    train, held_out, fresh = torch.randn(3, 600, 4, generator=g)
    assert metrics.nearest_neighbour_ratio(train[:50], train, held_out) == 0
    assert metrics.nearest_neighbour_ratio(held_out, train, held_out) == 1
    assert metrics.nearest_neighbour_ratio(fresh, train, held_out) == pytest.approx(1, abs=0.1)
    assert metrics.nearest_neighbour_ratio(3 * fresh, train, held_out) > 2


def test_ratio_has_no_unit():
    g = torch.Generator().manual_seed(3)
    samples, train, held_out = torch.randn(3, 50, 4, generator=g, dtype=torch.float64)
    ratio = metrics.nearest_neighbour_ratio(samples, train, held_out)
    assert metrics.nearest_neighbour_ratio(7 * samples, 7 * train, 7 * held_out) == pytest.approx(ratio, rel=1e-12)


def test_wrong_samples_are_refused():
    good = torch.zeros(4, 1, 2, 2)
    with pytest.raises(ValueError, match=r"x holds samples of shape \(2, 2\)"):
        metrics.nearest_distance(torch.zeros(4, 2, 2), good)
    with pytest.raises(ValueError, match=r"reference has shape \(0, 1, 2, 2\)"):
        metrics.nearest_distance(good, good[:0])
    with pytest.raises(ValueError, match="x holds 16 values that are not finite"):
        metrics.nearest_distance(good / 0, good)
    with pytest.raises(ValueError, match="held_out: every image is also in train"):
        metrics.nearest_neighbour_ratio(good, good, good)

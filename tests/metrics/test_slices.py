"""Sliced Wasserstein distance against Gaussians, mixtures, and POT."""

import math

import ot
import pytest
import torch

from edmnotes import metrics
from edmnotes.exact import GaussianMixture


def sets(n, m, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g).double(), 1.5 * torch.randn(m, d, generator=g).double() + 0.4


def test_directions_have_length_one_and_begin_alike():
    few, many = metrics.directions(7, 5), metrics.directions(7, 50)
    assert torch.equal(few, many[:5])
    torch.testing.assert_close(many.norm(dim=1), torch.ones(50, dtype=torch.float64))
    assert abs(float(metrics.directions(3, 1000).mean())) < 0.02


@pytest.mark.parametrize(("n", "m", "d"), [(30, 30, 1), (30, 30, 5), (30, 47, 5), (12, 8, 64), (2, 3, 2)])
def test_pot_finds_the_same(n, m, d):
    (a, b), along = sets(n, m, d), metrics.directions(d, 20)
    expected = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=along.numpy().T, p=2)
    assert metrics.sliced_wasserstein(a, b, along) == pytest.approx(expected, rel=1e-10)


def test_unequal_sizes_by_hand():
    """Quantile functions 0 | 1 and 0 | 1 | 2: they differ by 0, 1 (on 1/3 to 1/2), 0, 1 (on the last third)."""
    a, b = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0], [1.0]])
    assert metrics.sliced_wasserstein(a, b, torch.ones(1, 1)) == pytest.approx(math.sqrt(1 / 6 + 1 / 3))
    assert metrics.sliced_wasserstein(a, torch.cat([a, a]), torch.ones(1, 1)) == 0


def test_two_isotropic_gaussians():
    """Label sliced-line along each direction, and its mean over all of them, label sliced-gaussians."""
    g, along = torch.Generator().manual_seed(1), metrics.directions(3, 100)
    a, b = torch.randn(2, 10_000, 3, generator=g, dtype=torch.float64)
    a, b = (100 * torch.linalg.qr(x - x.mean(0)).Q for x in (a, b))  # sample mean 0, covariance I: no chance in them
    b = 1.5 * b + 0.4
    shift = 0.4 * along.sum(1)
    found = metrics.sliced_wasserstein(a, b, along)
    assert found == pytest.approx(float((shift**2 + 0.5**2).mean().sqrt()), rel=0.005)
    assert found == pytest.approx(math.sqrt(3 * 0.4**2 / 3 + 0.5**2), rel=0.05)


@pytest.mark.parametrize("full", [False, True])
def test_quantiles_of_a_mixtures_projections_are_far_less_than_chance_away(full):
    """Against a large sample of the mixture, along the same directions."""
    means, weights = [[-1.0, 0.0], [2.0, 1.0]], [0.3, 0.7]
    covs = [[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]
    mixture = GaussianMixture(means, weights=weights, **({"covs": covs} if full else {"stds": [0.5, 0.2]}))
    x = mixture.sample(200, generator=torch.Generator().manual_seed(0)) + 1.0
    many = mixture.sample(40_000, generator=torch.Generator().manual_seed(1))
    along = metrics.directions(2, 10)
    found = metrics.sliced_wasserstein_to(mixture, x, along)
    assert found == pytest.approx(metrics.sliced_wasserstein(x, many, along), rel=0.01)
    assert found > 0.5


def test_points_of_no_width_are_a_mixture_too():
    mixture = GaussianMixture([[0.0], [1.0]], 0.0)
    x = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert metrics.sliced_wasserstein_to(mixture, x, torch.ones(1, 1)) < 1e-12
    assert metrics.sliced_wasserstein_to(mixture, x + 2, torch.ones(1, 1)) == pytest.approx(2)
    three = GaussianMixture([[0.0], [1.0], [2.0]], 0.0)  # the search begins on a point
    assert metrics.sliced_wasserstein_to(three, torch.tensor([[0.0], [1.0], [2.0]]), torch.ones(1, 1)) < 1e-12


def test_quantiles_of_a_normal_law():
    levels = torch.tensor([[0.01, 0.5], [0.8, 0.999]], dtype=torch.float64)
    found = metrics.quantiles(torch.special.ndtr, levels, -10.0, torch.tensor([[10.0], [20.0]]))
    torch.testing.assert_close(found, torch.special.ndtri(levels), rtol=1e-12, atol=1e-12)


def test_wrong_directions_are_refused():
    a, mixture = torch.zeros(4, 2), GaussianMixture([[0.0, 0.0]], 1.0)
    for bad, message in [
        (torch.ones(1, 2), r"shape \(1, 2\) and lengths from 1.41 to 1.41; it must hold unit vectors of 2"),
        (torch.eye(3), r"directions has shape \(3, 3\)"),
        (torch.zeros(0, 2), r"directions has shape \(0, 2\)"),
    ]:
        for measure in (
            lambda along: metrics.sliced_wasserstein(a, a, along),
            lambda along: metrics.sliced_wasserstein_to(mixture, a, along),
        ):
            with pytest.raises(ValueError, match=message):
                measure(bad)
    with pytest.raises(ValueError, match="dim is 0 and count is 3"):
        metrics.directions(0, 3)
    with pytest.raises(ValueError, match=r"x has 3 columns, the mixture samples of shape \(2,\)"):
        metrics.sliced_wasserstein_to(mixture, torch.zeros(4, 3), torch.eye(3))

"""Copies and regions: by hand, by scikit-learn, and where chance puts them."""

import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from edmnotes import metrics
from edmnotes.metrics import checks


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


def by_scikit_learn(points, among, k):
    """The share of points inside a ball, by another package's neighbours."""
    tree = NearestNeighbors(n_neighbors=k + 1, algorithm="ball_tree").fit(among.numpy())
    radii = tree.kneighbors(among.numpy())[0][:, -1]
    apart = NearestNeighbors(n_neighbors=len(among), algorithm="ball_tree").fit(among.numpy())
    distances, order = apart.kneighbors(points.numpy())
    return (distances <= radii[order]).any(axis=1).mean()


@pytest.mark.parametrize(("n", "m", "d", "k"), [(40, 60, 2, 1), (60, 40, 8, 3), (30, 30, 64, 5), (4, 200, 3, 3)])
def test_scikit_learn_finds_the_same_regions(n, m, d, k):
    g = torch.Generator().manual_seed(n)
    samples, real = torch.randn(n, d, generator=g).double() * 1.2 + 0.3, torch.randn(m, d, generator=g).double()
    found = metrics.precision_recall(samples, real, k=k)
    assert found.precision == by_scikit_learn(samples, real, k)
    assert found.recall == by_scikit_learn(real, samples, k)


def test_regions_by_hand():
    """Real points 0, 1, 3 have the radii 1, 1, 2 for k = 1; samples 4, 5.5, 6.5 the radii 1.5, 1, 1."""
    real, samples = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[4.0], [5.5], [6.5]])
    assert metrics.precision_recall(samples, real, k=1) == metrics.PrecisionRecall(1 / 3, 1 / 3)
    assert metrics.precision_recall(samples, real, k=2).precision == 2 / 3  # radii 3, 2, 3
    edges = torch.tensor([[-1.0], [5.0], [5.001], [9.0]])  # a ball has its edge
    assert metrics.precision_recall(edges, real, k=1).precision == 1 / 2


def test_a_dropped_mode_costs_recall_and_a_foreign_one_precision():
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 200, 2, generator=g) + torch.tensor([[[-9.0, 0.0]], [[9.0, 0.0]]])
    both = torch.cat([left, right])
    again = torch.randn(200, 2, generator=g) - torch.tensor([9.0, 0.0])
    dropped, foreign = metrics.precision_recall(again, both), metrics.precision_recall(both, again)
    assert dropped.precision > 0.9
    assert dropped.recall == foreign.precision
    assert 0.4 < dropped.recall < 0.5
    assert (foreign.recall, foreign.precision) == (dropped.precision, dropped.recall)


def test_copies_have_precision_one_and_a_copied_set_both():
    g = torch.Generator().manual_seed(0)
    real = torch.randn(100, 5, generator=g)
    assert metrics.precision_recall(real.flip(0), real) == metrics.PrecisionRecall(1.0, 1.0)
    assert metrics.precision_recall(real[:10], real).precision == 1


def test_two_sets_of_one_law_on_a_line_get_three_quarters():
    """Label precision-equal, for k = 1 and any density; the share has a standard error of 0.008."""
    g = torch.Generator().manual_seed(4)
    for law in (torch.rand, torch.randn):
        found = metrics.precision_recall(law(2500, 1, generator=g), law(2500, 1, generator=g), k=1)
        assert found.precision == pytest.approx(0.75, abs=0.03)
        assert found.recall == pytest.approx(0.75, abs=0.03)


def test_chunks_change_nothing(monkeypatch):
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 50, 3, generator=g)
    whole = metrics.precision_recall(a, b), metrics.kid(a, b), metrics.nearest_distance(a, b).tolist()
    monkeypatch.setattr(checks, "CHUNK", 7)
    assert metrics.precision_recall(a, b) == whole[0]
    assert metrics.kid(a, b) == pytest.approx(whole[1], rel=1e-12)
    assert metrics.nearest_distance(a, b).tolist() == whole[2]


def test_a_wrong_neighbour_is_refused():
    a = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="k is 0"):
        metrics.precision_recall(a, a, k=0)
    with pytest.raises(ValueError, match=r"samples has shape \(3, 2\); it must be \(n, features\) with n of 4 or more"):
        metrics.precision_recall(a[:3], a)
    with pytest.raises(ValueError, match=r"real has shape \(3, 2\)"):
        metrics.precision_recall(a, a[:3])

"""What nearest neighbours tell: copies, and which regions are filled."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.metrics import checks


def nearest_distance(x: Float[Tensor, "n *shape"], reference: Float[Tensor, "m *shape"]) -> Float[Tensor, " n"]:
    r"""Euclidean distance of each sample to the nearest one of a reference set, in the units of the samples.

    Args:
        x: samples, shape (n, \*shape).
        reference: samples of the same shape.

    Returns:
        n distances in float64; exactly 0 for a copy.

    Raises:
        ValueError: if the shapes of a sample differ, a set is empty, or a value is not finite.
    """
    x, reference = checks.samples("x", x), checks.samples("reference", reference)
    if x.shape[1:] != reference.shape[1:]:
        raise ValueError(f"x holds samples of shape {tuple(x.shape[1:])}, reference {tuple(reference.shape[1:])}")
    x, reference = x.flatten(1), reference.flatten(1)
    return torch.cat([distances.amin(dim=1) for distances in _distances(x, reference)])


def nearest_neighbour_ratio(
    samples: Float[Tensor, "n *shape"], train: Float[Tensor, "m *shape"], held_out: Float[Tensor, "k *shape"]
) -> float:
    r"""How far from the training set the samples lie, compared with real data the training set does not hold.

    The mean distance of a sample to its nearest training image, over the mean distance of a held-out image to its own.
    1: as far as unseen real data. 0: every sample is a copy. Well below 1: the model remembers. Above 1: the samples
    lie off the data (blurred, noisy or broken ones do), so a large ratio alone is no praise. It is a ratio of means:
    copies and broken samples together can average to 1, which :func:`frechet_distance` and a classifier would show.

    Args:
        samples: generated, shape (n, \*shape); the same mix of classes as ``held_out``, since classes differ in spread.
        train: what the model was trained on.
        held_out: real data it has not seen.

    Raises:
        ValueError: if the shapes of a sample differ, a set is empty, a value is not finite, or every held-out image is
            also a training image (the unit would be 0).
    """
    unit = nearest_distance(held_out, train).mean()
    if unit == 0:
        raise ValueError("held_out: every image is also in train; give images the model has not seen")
    return float(nearest_distance(samples, train).mean() / unit)


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of samples and of real data that lie in each other's region.

    Attributes:
        precision: share of the samples that lie among real data.
        recall: share of the real data that lie among samples.
    """

    precision: float
    recall: float


def precision_recall(
    samples: Float[Tensor, "n features"], real: Float[Tensor, "m features"], *, k: int = 3
) -> PrecisionRecall:
    """Precision and recall of regions (Kynkäänniemi et al. 2019, eqs. 1 and 2; label ``region``).

    The region of a set is the union of balls, one about each of its points, that reach to the k-th nearest other point
    of the set. Precision is the share of the samples in the region of the real data, recall the share of the real data
    in that of the samples. Neither sees how densely a region is filled. A single sample far out has a ball that covers
    much, and raises recall.

    Two sets of one law do not get 1: on a line, with k = 1 and many points, they get 3/4 (label ``precision-equal``).
    Compare beside real-to-real at equal sizes.

    Args:
        samples: features of generated samples, one row each.
        real: features of real data; as many columns.
        k: which neighbour sets the radius; the paper has 3.

    Returns:
        Both shares.

    Raises:
        ValueError: if a set is not two-dimensional, has no more than k rows, no column, or a value that is not finite,
            if the numbers of columns differ, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    samples, real = checks.pair(least=k + 1, samples=samples, real=real)
    return PrecisionRecall(_share_inside(samples, real, k), _share_inside(real, samples, k))


def _share_inside(points: Float[Tensor, "n features"], among: Float[Tensor, "m features"], k: int) -> float:
    """The share of the points that a ball about one of the others covers."""
    # k + 1: a point is its own nearest.
    radii = torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(among, among)])
    return float(torch.cat([(d <= radii).any(dim=1) for d in _distances(points, among)]).double().mean())


def _distances(x: Float[Tensor, "n features"], reference: Float[Tensor, "m features"]) -> Iterator[Tensor]:
    """Distances of the rows to all of a reference, some rows at a time.

    Without the matrix product, whose cancellation would put a copy at 1e-7 instead of 0.
    """
    for rows in x.split(checks.CHUNK):
        yield torch.cdist(rows, reference, compute_mode="donot_use_mm_for_euclid_dist")

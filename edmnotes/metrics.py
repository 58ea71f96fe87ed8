r"""Numbers that say how far generated samples are from real ones. Features are an argument; torch only.

Everything is computed in float64 on the CPU, so a number does not depend on the device that made the features.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1024
"""Rows of a distance matrix computed at once."""


def frechet_distance(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> float:
    r"""Fréchet distance between the Gaussians fitted to two feature sets (Heusel et al. 2017, eq. 6; "FID").

    ``|mean_a − mean_b|² + tr(C_a + C_b − 2 (C_a C_b)^{1/2})`` with unbiased covariances C. It is the *square* of the
    2-Wasserstein distance of the two Gaussians, in squared units of the features: as a lower bound it says nothing
    about what mean and covariance do not see.

    No square root of a matrix is taken. With C_a = R_aᵀ R_a and C_b = R_bᵀ R_b the trace of (C_a C_b)^{1/2} is the sum
    of the singular values of R_a R_bᵀ = U S Vᵀ, and the whole trace term is ``|Uᵀ R_a − Vᵀ R_b|²`` (orthogonal
    Procrustes). So the result is never negative, and a set is at distance 0 from itself to machine precision, where
    square roots of eigenvalues leave half of the digits.

    *Few rows.* With no more rows than features a covariance is singular. The distance is still defined and finite,
    but two samples of one law then lie in different subspaces and are far apart. The estimate is biased upwards at
    every n, by an amount that falls like 1/n and that grows with the number of features: compare only at equal n and
    beside real-to-real.

    Args:
        a: features of one set, one row a sample.
        b: features of the other; as many columns.

    Returns:
        The distance, symmetric in its arguments up to rounding.

    Raises:
        ValueError: if a set is not two-dimensional, has fewer than two rows, no column, or a value that is not finite,
            or if the numbers of columns differ.
    """
    a, b = _rows("a", a), _rows("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has {a.shape[1]} features and b has {b.shape[1]}; they must be of one kind")
    root_a, root_b = _root(a), _root(b)
    left, _, right = torch.linalg.svd(root_a @ root_b.T)
    spread = (left.T @ root_a - right @ root_b).square().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


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
    x, reference = _samples("x", x), _samples("reference", reference)
    if x.shape[1:] != reference.shape[1:]:
        raise ValueError(f"x holds samples of shape {tuple(x.shape[1:])}, reference {tuple(reference.shape[1:])}")
    x, reference = x.flatten(1), reference.flatten(1)
    # Without the matrix product, whose cancellation would put a copy at 1e-7 instead of 0.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(rows, reference, compute_mode=exact).amin(dim=1) for rows in x.split(CHUNK)])


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


def _root(rows: Float[Tensor, "n features"]) -> Float[Tensor, "features features"]:
    """A matrix R with RᵀR the unbiased covariance of the rows."""
    n, features = rows.shape
    root = torch.linalg.qr((rows - rows.mean(0)) / math.sqrt(n - 1), mode="r").R
    return torch.cat([root, root.new_zeros(features - len(root), features)])


def _rows(name: str, value: Tensor) -> Float[Tensor, "n features"]:
    if value.ndim != 2 or len(value) < 2 or value.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be (n, features) with n of 2 or more")
    return _finite(name, value)


def _samples(name: str, value: Tensor) -> Float[Tensor, "n *shape"]:
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be (n, *shape) with n of 1 or more")
    return _finite(name, value)


def _finite(name: str, value: Tensor) -> Tensor:
    value = value.detach().to("cpu", torch.float64)
    if not value.isfinite().all():
        raise ValueError(f"{name} holds {int((~value.isfinite()).sum())} values that are not finite")
    return value

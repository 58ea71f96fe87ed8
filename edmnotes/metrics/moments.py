"""Distance of two sets of features by their means and covariances."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.metrics import checks


def frechet_distance(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> float:
    r"""Fréchet distance between the Gaussians fitted to two feature sets ("FID"; Heusel et al. 2017, eq. 6).

    ``|mean_a − mean_b|² + tr(C_a + C_b − 2 (C_a C_b)^{1/2})`` with unbiased covariances C (label ``frechet``). It is
    the *square* of the 2-Wasserstein distance of the two Gaussians, in squared units of the features: as a lower bound
    it says nothing about what mean and covariance do not see.

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
    a, b = checks.pair(a=a, b=b)
    return _frechet(a.mean(0), _root(a), b.mean(0), _root(b))


def frechet_from_moments(
    mean_a: Float[Tensor, " features"],
    cov_a: Float[Tensor, "features features"],
    mean_b: Float[Tensor, " features"],
    cov_b: Float[Tensor, "features features"],
) -> float:
    r"""Fréchet distance of two Gaussians given by their moments (label ``frechet``), such as stored ones of a data set.

    As :func:`frechet_distance`, with roots of the covariances by their eigenvalues. They may be singular; eigenvalues
    that rounding has left a little below 0 count as 0. Next to 0 the distance then keeps half of the digits only, since
    a root does: where the samples are at hand, give them to :func:`frechet_distance`.

    Args:
        mean_a: mean of one Gaussian.
        cov_a: its covariance.
        mean_b: mean of the other.
        cov_b: its covariance.

    Returns:
        The distance, in squared units of the features.

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, or a covariance is not symmetric or has a negative
            eigenvalue.
    """
    mean_a, mean_b = checks.finite("mean_a", mean_a), checks.finite("mean_b", mean_b)
    if mean_a.ndim != 1 or mean_a.shape != mean_b.shape:
        raise ValueError(
            f"mean_a has shape {tuple(mean_a.shape)}, mean_b {tuple(mean_b.shape)}; both must be (features,)"
        )
    root_a, root_b = (_eigen_root(name, cov, len(mean_a)) for name, cov in (("cov_a", cov_a), ("cov_b", cov_b)))
    return _frechet(mean_a, root_a, mean_b, root_b)


def _frechet(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    """The distance by roots R of the covariances, RᵀR = C: turned into each other as well as can be (Procrustes)."""
    left, _, right = torch.linalg.svd(root_a @ root_b.T)
    spread = (left.T @ root_a - right @ root_b).square().sum()
    return float((mean_a - mean_b).square().sum() + spread)


def _root(rows: Float[Tensor, "n features"]) -> Float[Tensor, "features features"]:
    """A matrix R with RᵀR the unbiased covariance of the rows."""
    n, features = rows.shape
    root = torch.linalg.qr((rows - rows.mean(0)) / math.sqrt(n - 1), mode="r").R
    return torch.cat([root, root.new_zeros(features - len(root), features)])


def _eigen_root(name: str, cov: Tensor, features: int) -> Float[Tensor, "features features"]:
    """A matrix R with RᵀR the given covariance."""
    cov = checks.finite(name, cov)
    if cov.shape != (features, features) or (cov - cov.T).abs().max() > 1e-8 * cov.abs().max():
        raise ValueError(f"{name} has shape {tuple(cov.shape)}; it must be symmetric, ({features}, {features})")
    values, axes = torch.linalg.eigh(cov)
    if values[0] < -1e-6 * values.abs().max():
        raise ValueError(f"{name} has the negative eigenvalue {float(values[0]):.3g}; a covariance has none below 0")
    return values.clamp(min=0).sqrt()[:, None] * axes.T

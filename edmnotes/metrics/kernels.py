"""Distance of two laws by a kernel: MMD, and KID, which is MMD with a cubic kernel."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.metrics import checks

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Rows (n, features) and (m, features) in, a matrix (n, m) out."""


@dataclass(frozen=True)
class PolynomialKernel:
    """The kernel (x·y / features + 1)^degree: MMD sees the moments up to that order, and no more.

    Attributes:
        degree: at least 1.

    Raises:
        ValueError: if ``degree`` is below 1.
    """

    degree: int = 3

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"degree is {self.degree}; it must be at least 1")

    def __call__(self, a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
        """Return the kernel of every pair of rows."""
        return (a @ b.T / a.shape[1] + 1) ** self.degree


@dataclass(frozen=True)
class GaussianKernel:
    """The kernel exp(−``|x − y|²`` / (2 bandwidth²)): MMD is 0 for equal laws only.

    Attributes:
        bandwidth: in units of the features; differences much finer or much coarser than it count little.

    Raises:
        ValueError: if ``bandwidth`` is not positive and finite.
    """

    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < float("inf"):
            raise ValueError(f"bandwidth is {self.bandwidth}; it must be positive and finite")

    def __call__(self, a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
        """Return the kernel of every pair of rows."""
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-((apart / self.bandwidth) ** 2) / 2)


def mmd_squared(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"], kernel: Kernel) -> float:
    r"""Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, eq. 3; label ``mmd``).

    The mean kernel of two different rows of ``a``, plus the same of ``b``, less twice that of a row of ``a`` with one
    of ``b``. No row is paired with itself, which is what makes the estimate unbiased at every n (label
    ``kid-moments``); so it can be negative, and is about as often as not where the laws are equal.

    Args:
        a: features of one set, one row a sample.
        b: features of the other; as many columns.
        kernel: such as :class:`PolynomialKernel` or :class:`GaussianKernel`.

    Returns:
        The estimate, symmetric in its arguments up to rounding.

    Raises:
        ValueError: if a set is not two-dimensional, has fewer than two rows, no column, or a value that is not finite,
            or if the numbers of columns differ.
    """
    a, b = checks.pair(a=a, b=b)
    return _within(a, kernel) + _within(b, kernel) - 2 * _total(a, b, kernel) / (len(a) * len(b))


def kid(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"]) -> float:
    """Kernel Inception Distance (Bińkowski et al. 2018; label ``kid``): :func:`mmd_squared` with the cubic kernel.

    From all rows at once. Papers give the mean over random subsets, which has the same expectation and more spread, and
    often a hundred or a thousand times the number.

    Args:
        a: features of one set, one row a sample.
        b: features of the other; as many columns.

    Returns:
        The estimate; it depends on the scale of the features, and is negative now and then where the laws are near.

    Raises:
        ValueError: as :func:`mmd_squared`.
    """
    return mmd_squared(a, b, PolynomialKernel())


def _within(rows: Float[Tensor, "n features"], kernel: Kernel) -> float:
    """The mean kernel of two different rows."""
    total = 0.0
    for start in range(0, len(rows), checks.CHUNK):
        block = kernel(rows[start : start + checks.CHUNK], rows)
        total += float(block.sum() - block.diagonal(start).sum())
    return total / (len(rows) * (len(rows) - 1))


def _total(a: Float[Tensor, "n features"], b: Float[Tensor, "m features"], kernel: Kernel) -> float:
    return sum(float(kernel(some, b).sum()) for some in a.split(checks.CHUNK))

"""Distance of two laws along lines, where it is a matter of sorting."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.exact import GaussianMixture
from edmnotes.metrics import checks
from edmnotes.noise import PerSample

BISECTIONS = 60
"""Halvings of an interval: more than a float64 has digits."""


def directions(dim: int, count: int) -> Float[Tensor, "count dim"]:
    """Draw random unit vectors, evenly over the sphere, from the seeds 0, 1, ...: more begin with the same ones.

    Raises:
        ValueError: if ``dim`` or ``count`` is below 1.
    """
    if dim < 1 or count < 1:
        raise ValueError(f"dim is {dim} and count is {count}; both must be at least 1")
    return torch.nn.functional.normalize(PerSample(range(count)).normal((dim,)), dim=1)


def sliced_wasserstein(
    a: Float[Tensor, "n features"], b: Float[Tensor, "m features"], directions: Float[Tensor, "directions features"]
) -> float:
    r"""Sliced Wasserstein distance of order 2 (Rabin et al. 2012; label ``sliced-wasserstein``).

    Along a direction both sets are sorted; where the sizes differ, the steps of both quantile functions are paired
    exactly. The root of the mean square difference, over quantiles and directions. It is 0 for equal laws only, if
    the directions are all there are. Two finite samples of one law are at a distance that falls like the root of 1/n.

    Args:
        a: features of one set, one row a sample.
        b: features of the other; as many columns.
        directions: unit vectors, one a row, as of :func:`directions`; the coordinate axes are another choice.

    Returns:
        The distance, in units of the features.

    Raises:
        ValueError: if a set is not two-dimensional, has fewer than two rows, no column, or a value that is not finite,
            if the numbers of columns differ, or if the directions do not fit or are not of length 1.
    """
    a, b = checks.pair(a=a, b=b)
    along = _unit(directions, a.shape[1])
    n, m = len(a), len(b)
    # Both quantile functions are constant between these, which count in parts of 1 / (n m).
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    width = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    low, high = (along @ a.T).sort(1).values[:, (ends - 1) // m], (along @ b.T).sort(1).values[:, (ends - 1) // n]
    return float(((low - high) ** 2 @ width).mean().sqrt())


def sliced_wasserstein_to(
    mixture: GaussianMixture, x: Float[Tensor, "n features"], directions: Float[Tensor, "directions features"]
) -> float:
    """Sliced Wasserstein distance of samples to a mixture itself, whose quantiles along a line are known exactly.

    Along a direction the mixture is a mixture on the line. The k-th of n sorted samples is compared with its quantile
    at (k − 1/2) / n.

    Args:
        mixture: in as many dimensions as there are columns.
        x: samples, one a row.
        directions: unit vectors, one a row.

    Returns:
        The distance, in units of the samples.

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, or a direction is not of length 1.
    """
    x = checks.rows("x", x, least=1)
    if mixture.means.shape[1:] != x.shape[1:]:
        raise ValueError(f"x has {x.shape[1]} columns, the mixture samples of shape {tuple(mixture.means.shape[1:])}")
    along = _unit(directions, x.shape[1])
    turned = along[:, None] if mixture.bases is None else torch.einsum("ui,kij->ukj", along, mixture.bases)
    means, stds = along @ mixture.means.T, (turned**2 * mixture.variances).sum(-1).sqrt()
    stds = stds.clamp(min=torch.finfo(torch.float64).tiny)  # a point mass is a step, not 0 / 0

    def below(at: Float[Tensor, "directions n"]) -> Float[Tensor, "directions n"]:
        return (mixture.weights * torch.special.ndtr((at[..., None] - means[:, None]) / stds[:, None])).sum(-1)

    levels = ((torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)).expand(len(along), -1)
    ends = (means - 9 * stds).amin(1, keepdim=True), (means + 9 * stds).amax(1, keepdim=True)
    return float(((along @ x.T).sort(1).values - quantiles(below, levels, *ends)).square().mean().sqrt())


def quantiles(
    below: Callable[[Tensor], Tensor],
    levels: Float[Tensor, "*shape"],
    low: Float[Tensor, "*some"] | float,
    high: Float[Tensor, "*others"] | float,
) -> Float[Tensor, "*shape"]:
    """Points below which the given shares of a law lie, by bisection.

    Args:
        below: the share of the law below each point, elementwise and not decreasing.
        levels: shares.
        low: where each search begins, below every answer; broadcast against ``levels``.
        high: where it ends, above every answer.

    Returns:
        The points, in float64; an end of the interval where no point of it has that share.
    """
    low, high = (torch.as_tensor(end, dtype=torch.float64).expand_as(levels) for end in (low, high))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        less = below(middle) < levels
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (low + high) / 2


def _unit(directions: Tensor, dim: int) -> Float[Tensor, "directions features"]:
    directions = checks.rows("directions", directions, least=1)
    lengths = directions.norm(dim=1)
    if directions.shape[1] != dim or (lengths - 1).abs().max() > 1e-5:
        raise ValueError(
            f"directions has shape {tuple(directions.shape)} and lengths from {float(lengths.min()):.3g} to "
            f"{float(lengths.max()):.3g}; it must hold unit vectors of {dim} coordinates"
        )
    return directions

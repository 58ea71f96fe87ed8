"""Data sets: two-dimensional toys and scikit-learn's handwritten digits.

Everything is a :class:`Labelled` (values and, where there are any, class labels) or a :class:`Split` of two of them.
Taught in the chapter ``quickstart``.

All random numbers come from a CPU generator of the call's own seed, so a data set is the same on every machine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi, sqrt
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edmnotes.exact import GaussianMixture

HELD_OUT_EVERY = 4
"""One digit in this many, counted within its class, is held out."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples with their class labels.

    Attributes:
        x: the samples, float32, shape (N, ...).
        labels: class of each sample, int64 from 0, shape (N,); None if the data has no classes.

    Raises:
        ValueError: if ``x`` has no sample axis and no coordinate, is not float32, or ``labels`` does not fit it.
    """

    x: Float[Tensor, "n *shape"]
    labels: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.x.dtype != torch.float32 or len(self.x) == 0:
            raise ValueError(
                f"x must be float32 of shape (N, *shape) with N > 0, got {self.x.dtype} {tuple(self.x.shape)}"
            )
        if self.labels is None:
            return
        if self.labels.shape != self.x.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.x)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if self.labels.min() < 0:
            raise ValueError(f"labels must count from 0, got {int(self.labels.min())}")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def num_classes(self) -> int | None:
        """Number of classes, the largest label plus one; None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1


@dataclass(frozen=True, eq=False)
class Split:
    """Data to learn from and data to be judged against, disjoint.

    Attributes:
        train: what a model may see.
        held_out: what it may not.

    Raises:
        ValueError: if the two differ in the shape of a sample or in having labels.
    """

    train: Labelled
    held_out: Labelled

    def __post_init__(self) -> None:
        if self.train.shape != self.held_out.shape:
            raise ValueError(f"train holds samples of shape {self.train.shape}, held_out of {self.held_out.shape}")
        if (self.train.labels is None) != (self.held_out.labels is None):
            raise ValueError("train and held_out must both have labels, or neither")


def sigma_data(x: Float[Tensor, "n *shape"]) -> float:
    """Return the scale of the data: the root of the coordinates' mean variance.

    Each coordinate is taken about *its own* mean, so sigma_data^2 is the trace of the covariance over the dimension.
    For data that is not centred (the digits' mean is far from 0) this is less than the root mean square:
    :class:`edmnotes.preconditioning.EDM` then scales the network's input and target to a mean square above 1.

    Args:
        x: samples, shape (N, ...).

    Returns:
        sigma_data, in units of the data.

    Raises:
        ValueError: if ``x`` holds fewer than two samples or does not vary.
    """
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"x must hold at least two samples, shape (N, *shape), got {tuple(x.shape)}")
    value = float(x.double().var(dim=0, correction=0).mean().sqrt())
    if not value > 0:
        raise ValueError(f"x must vary and be finite, but its standard deviation is {value}")
    return value


def digits() -> Split:
    """Load scikit-learn's 1797 handwritten digits, 8 x 8, as ``x`` of shape (N, 1, 8, 8) in [-1, 1].

    The split is fixed and stratified: within each class, in the order of the file, every fourth digit is held out.
    The file goes writer by writer, so both parts see every writer in the same proportion.
    The digits are not centred: most of a picture is background, -1.

    Returns:
        1352 digits to train on, 445 held out.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(8).sub(1).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    held = rank % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Split(Labelled(x[~held], labels[~held]), Labelled(x[held], labels[held]))


def class_gaussians(digits: Labelled) -> GaussianMixture:
    r"""Fit a Gaussian with a full covariance to each class: a mixture like the data, with an exact denoiser.

    Args:
        digits: labelled samples of any shape; every class needs one.

    Returns:
        A mixture of flattened samples, (features,), with equal weights; covariances are those of the class itself,
        divided by its number, and singular where a class has no more samples than features.

    Raises:
        ValueError: if there are no labels, or a class below the highest has no sample.
    """
    if digits.labels is None or (digits.labels.bincount() == 0).any():
        raise ValueError("digits must have labels, and a sample of each class from 0 on")
    classes = [digits.x[digits.labels == label].double().flatten(1) for label in digits.labels.unique()]
    covs = torch.stack([x.T.cov(correction=0).reshape(x.shape[1], -1) for x in classes])
    return GaussianMixture(torch.stack([x.mean(0) for x in classes]), covs=covs)


def _generator(n: int, seed: int) -> torch.Generator:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return torch.Generator().manual_seed(seed)


def moons(n: int, seed: int = 0) -> Labelled:
    """Draw two interleaved half circles, with noise 0.05.

    Args:
        n: number of points.
        seed: of the points.

    Returns:
        ``x`` of shape (n, 2), standard deviation about 1 per coordinate; labels 0 (upper) and 1 (lower).

    Raises:
        ValueError: if ``n`` is less than 1.
    """
    g = _generator(n, seed)
    labels = torch.randint(2, (n,), generator=g)
    angle = pi * torch.rand(n, generator=g)
    sign = 1.0 - 2.0 * labels
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    x = 1.4 * sign[:, None] * upper + 0.05 * torch.randn(n, 2, generator=g)
    return Labelled(x, labels)


def spiral(n: int, seed: int = 0) -> Labelled:
    """Draw a spiral of two arms, three quarters of a turn each, with noise 0.05.

    Args:
        n: number of points.
        seed: of the points.

    Returns:
        ``x`` of shape (n, 2), standard deviation 1 per coordinate; the labels 0 and 1 say which arm.

    Raises:
        ValueError: if ``n`` is less than 1.
    """
    g = _generator(n, seed)
    labels = torch.randint(2, (n,), generator=g)
    radius = 2 * torch.rand(n, generator=g).sqrt()
    angle = 0.75 * pi * radius + pi * labels
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Labelled(x + 0.05 * torch.randn(n, 2, generator=g), labels)


def checkerboard(n: int, seed: int = 0) -> Labelled:
    """Draw uniformly from the eight dark squares of a 4 x 4 board.

    Args:
        n: number of points.
        seed: of the points.

    Returns:
        ``x`` of shape (n, 2), standard deviation 1 per coordinate; labels 0 to 7 are the squares, row by row.

    Raises:
        ValueError: if ``n`` is less than 1.
    """
    g = _generator(n, seed)
    labels = torch.randint(8, (n,), generator=g)
    row = labels // 2
    column = 2 * (labels % 2) + row % 2
    corner = torch.stack([column, row], dim=1)
    return Labelled(sqrt(3) * ((corner + torch.rand(n, 2, generator=g)) / 2 - 1), labels)


def eight_gaussians(n: int, seed: int = 0) -> Labelled:
    """Draw from eight Gaussians of standard deviation 0.1 on a circle of radius sqrt 2.

    Args:
        n: number of points.
        seed: of the points.

    Returns:
        ``x`` of shape (n, 2), standard deviation about 1 per coordinate; labels 0 to 7, counter-clockwise.

    Raises:
        ValueError: if ``n`` is less than 1.
    """
    g = _generator(n, seed)
    labels = torch.randint(8, (n,), generator=g)
    angle = labels * (pi / 4)
    centre = sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Labelled(centre + 0.1 * torch.randn(n, 2, generator=g), labels)


def _toy(draw: Callable[[int, int], Labelled]) -> Callable[[], Split]:
    return lambda: Split(train=draw(8192, 0), held_out=draw(2048, 1))


DATASETS: Mapping[str, Callable[[], Split]] = MappingProxyType(
    {
        "digits": digits,
        "moons": _toy(moons),
        "spiral": _toy(spiral),
        "checkerboard": _toy(checkerboard),
        "eight_gaussians": _toy(eight_gaussians),
    }
)
"""Every data set by name, as a function that returns its :class:`Split` (toys: 8192 points and 2048, seeds 0 and 1)."""


def load(name: str) -> Split:
    """Load a data set by its name in :data:`DATASETS`.

    Raises:
        ValueError: if there is no such data set; the message lists those there are.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]()

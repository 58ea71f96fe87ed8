"""What a set of features, or of samples, must be before it is measured."""

from jaxtyping import Float
from torch import Tensor, float64

CHUNK = 1024
"""Rows of a matrix of distances or kernels computed at once."""


def rows(name: str, value: Tensor, *, least: int = 2) -> Float[Tensor, "n features"]:
    """Return features in float64 on the CPU, without a graph.

    Raises:
        ValueError: if the value is not (n, features) with n of ``least`` or more, or not finite.
    """
    if value.ndim != 2 or len(value) < least or value.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be (n, features) with n of {least} or more")
    return finite(name, value)


def pair(*, least: int = 2, **sets: Tensor) -> tuple[Float[Tensor, "n features"], Float[Tensor, "m features"]]:
    """Return two sets of features, given by their names, as :func:`rows`.

    Raises:
        ValueError: as :func:`rows`, and if the numbers of columns differ.
    """
    (first, a), (second, b) = ((name, rows(name, value, least=least)) for name, value in sets.items())
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{first} has {a.shape[1]} features and {second} has {b.shape[1]}; they must be of one kind")
    return a, b


def samples(name: str, value: Tensor) -> Float[Tensor, "n *shape"]:
    """Return samples of any shape in float64 on the CPU, without a graph.

    Raises:
        ValueError: if there is none, or a value is not finite.
    """
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be (n, *shape) with n of 1 or more")
    return finite(name, value)


def finite(name: str, value: Tensor) -> Tensor:
    """Return the value in float64 on the CPU, without a graph.

    Raises:
        ValueError: if a number in it is not finite.
    """
    value = value.detach().to("cpu", float64)
    if not value.isfinite().all():
        raise ValueError(f"{name} holds {int((~value.isfinite()).sum())} values that are not finite")
    return value

"""The one call every room agrees on: ``denoiser(x, sigma, **cond)``.

Networks, exact mixtures, data sets and guided models all answer it.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Level = Float[Tensor, ""] | Float[Tensor, " batch"] | float


@runtime_checkable
class DenoiserLike(Protocol):
    """D(x; σ): the best guess of the clean x_0 behind x = x_0 + σ ε."""

    def __call__(self, x: Float[Tensor, "batch *shape"], sigma: Level, **cond: Any) -> Float[Tensor, "batch *shape"]:
        """Return D(x; σ) for unscaled x (that is x_t / s) and σ, one for all samples or one a sample."""


def per_sample(x: Tensor, sigma: Level) -> Tensor:
    """The noise level(s) in a shape that broadcasts against ``x``.

    Only shapes and dtypes are looked at: reading a value would make the host wait for the device. One level for all
    stays a 0-d tensor where it is; on the CPU it mixes with tensors of any device and costs no transfer.

    Raises:
        ValueError: if ``x`` has no batch dimension or is not floating, or ``sigma`` is neither one number nor one a
            sample.
    """
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}; it must be floating, (batch, *shape)")
    sigma = torch.as_tensor(sigma, dtype=None if isinstance(sigma, Tensor) else torch.float64)
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; it must be one number or one a sample, ({len(x)},)")
    return sigma.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))

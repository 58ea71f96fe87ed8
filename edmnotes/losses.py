r"""Noise distributions to train on, and losses.

The denoising loss is a regression to the clean sample, ``λ(σ) |D(x_0 + σ ε; σ) − x_0|²`` (Karras et al. 2022, eq. 2
and 8); its weight comes from the denoiser's own preconditioning, so the two can never disagree about σ_data.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.preconditioning import Denoiser


@dataclass(frozen=True)
class LogNormal:
    """Ln σ ~ N(mean, std²) (Karras et al. 2022, Table 1, "Ours").

    Attributes:
        mean: P_mean, of ln σ.
        std: P_std, of ln σ.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not abs(self.mean) < float("inf"):
            raise ValueError(f"mean = {self.mean}; it must be finite, e.g. -1.2")
        if not 0 < self.std < float("inf"):
            raise ValueError(f"std = {self.std}; it must be positive and finite, e.g. 1.2")

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw ``n`` noise levels, float64 on the CPU."""
        return torch.exp(self.mean + self.std * torch.randn(n, generator=generator, dtype=torch.float64))


def denoising(
    denoiser: Denoiser,
    x0: Float[Tensor, "batch *shape"],
    sigma: Float[Tensor, " batch"],
    noise: Float[Tensor, "batch *shape"],
    **cond: Any,
) -> Float[Tensor, " batch"]:
    """The weighted denoising loss of each sample (Karras et al. 2022, eq. 8).

    Args:
        denoiser: D, whose preconditioning gives the weight λ.
        x0: clean samples.
        sigma: one noise level a sample.
        noise: standard normal, like ``x0``.
        **cond: passed to the denoiser, for example ``labels``.

    Returns:
        λ(σ) times the mean squared error over coordinates; 1 at every σ for a zero network and centred data.

    Raises:
        ValueError: if the shapes of ``x0``, ``sigma`` and ``noise`` do not fit together.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, x0 {tuple(x0.shape)}; they must agree")
    if sigma.shape != x0.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; it must be one a sample, ({len(x0)},)")
    sigma = sigma.to(x0)
    noisy = x0 + sigma.reshape(-1, *[1] * (x0.ndim - 1)) * noise
    error = (denoiser(noisy, sigma, **cond) - x0) ** 2
    return denoiser.preconditioning.weight(sigma) * error.reshape(len(x0), -1).mean(1)

r"""Noise distributions to train on, and losses.

The denoising loss is a regression to the clean sample, ``λ(σ) |D(x_0 + σ ε; σ) − x_0|²`` (Karras et al. 2022, eq. 2
and 8); its weight comes from the denoiser's own preconditioning, so the two can never disagree about σ_data.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.preconditioning import Denoiser
from edmnotes.schedules import VP, Schedule


@runtime_checkable
class Sigmas(Protocol):
    """A distribution of noise levels to train on."""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw ``n`` noise levels, float64 on the CPU."""


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


@dataclass(frozen=True)
class LogUniform:
    """Ln σ uniform between two levels (Karras et al. 2022, Table 1, column VE).

    Attributes:
        sigma_min: the lowest level.
        sigma_max: the highest.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < float("inf"):
            raise ValueError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}; need 0 < sigma_min < sigma_max < inf"
            )

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw ``n`` noise levels, float64 on the CPU."""
        fraction = torch.rand(n, generator=generator, dtype=torch.float64)
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** fraction


@dataclass(frozen=True)
class UniformTime:
    """σ(t) at uniform times of a schedule (Karras et al. 2022, Table 1, column VP; flow matching).

    Attributes:
        schedule: gives σ(t).
        start: first time, above that at which σ is 0.
        end: last time.
    """

    schedule: Schedule = field(default_factory=VP)
    start: float = 1e-5
    end: float = 1.0

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise ValueError(f"start = {self.start}, end = {self.end}; need start < end")
        low, high = self.schedule.sigma(torch.tensor([self.start, self.end], dtype=torch.float64)).tolist()
        if not 0 < low < high:
            raise ValueError(
                f"start = {self.start} has level {low}, end = {self.end} has {high}; need 0 < start's < end's"
            )

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw ``n`` noise levels, float64 on the CPU."""
        fraction = torch.rand(n, generator=generator, dtype=torch.float64)
        return self.schedule.sigma(self.start + (self.end - self.start) * fraction)


@dataclass(frozen=True, eq=False)
class UniformLevels:
    """Each of a list of levels equally often (DDPM; Karras et al. 2022, Table 1, column iDDPM).

    Attributes:
        levels: positive noise levels.
    """

    levels: Float[Tensor, " levels"]

    def __post_init__(self) -> None:
        levels = torch.as_tensor(self.levels, dtype=torch.float64)
        if levels.ndim != 1 or not len(levels) or not bool(((levels > 0) & (levels < torch.inf)).all()):
            raise ValueError(f"levels has shape {tuple(levels.shape)}; it must be a list of positive, finite numbers")
        object.__setattr__(self, "levels", levels)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw ``n`` noise levels, float64 on the CPU."""
        return self.levels[torch.randint(len(self.levels), (n,), generator=generator)]


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

r"""Preconditioning: how a raw network F becomes a denoiser D.

``D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))`` (Karras et al. 2022, eq. 7). The four coefficients and
the loss weight λ(σ) are one value of the design space, a frozen dataclass.
Taught in the chapter ``preconditioning``.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edmnotes import schedules, steps
from edmnotes.contract import Level, per_sample
from edmnotes.schedules import Schedule


@runtime_checkable
class Preconditioning(Protocol):
    """Four coefficients and a loss weight, each an elementwise function of σ."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """The share of the noisy input in the output."""

    def c_out(self, sigma: Tensor) -> Tensor:
        """The factor on the network's output."""

    def c_in(self, sigma: Tensor) -> Tensor:
        """The factor on the network's input."""

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told of σ."""

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ), the loss weight on ``|D - x_0|²``."""


@dataclass(frozen=True)
class EDM:
    """Unit-variance input and target, least amplification of F's errors (Karras et al. 2022, Table 1, "Ours").

    Attributes:
        sigma_data: root mean square of the data about its mean, per coordinate; in units of the data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < float("inf"):
            raise ValueError(f"sigma_data = {self.sigma_data}; it must be positive and finite (see data.sigma_data)")

    def c_skip(self, sigma: Tensor) -> Tensor:
        """σ_data² / (σ² + σ_data²)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """σ σ_data / √(σ² + σ_data²)."""
        return sigma * self.sigma_data / torch.sqrt(sigma**2 + self.sigma_data**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / √(σ² + σ_data²)."""
        return 1 / torch.sqrt(sigma**2 + self.sigma_data**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The quarter of ln(σ)."""
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) = (σ² + σ_data²) / (σ σ_data)² = 1 / c_out²: every σ weighs the same for F."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class _PredictsNoise:
    """c_skip = 1, c_out = ±σ: the network predicts ε up to sign, and training weighs its error by 1."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """The whole input."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """−σ: D = x − σ F."""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / √(σ² + 1), unit variance for data of unit variance."""
        return 1 / torch.sqrt(sigma**2 + 1)

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) = 1 / σ²."""
        return sigma**-2


@dataclass(frozen=True)
class VP(_PredictsNoise):
    """The network predicts ε and is told the time (Ho et al. 2020; Karras et al. 2022, Table 1, column VP).

    Attributes:
        schedule: turns σ into the time; VP, or a DDPM chain as :class:`~edmnotes.schedules.Discrete`.
        time_factor: M − 1, factor on the time; 1 for a chain, whose time already counts steps.
    """

    schedule: Schedule = field(default_factory=schedules.VP)
    time_factor: float = 999.0

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(M − 1) t with σ(t) = σ."""
        return self.time_factor * self.schedule.sigma_inv(sigma)


@dataclass(frozen=True)
class VE(_PredictsNoise):
    """The network predicts −ε from an input of any size (Song et al. 2021; Karras et al. 2022, Table 1, column VE)."""

    def c_out(self, sigma: Tensor) -> Tensor:
        """D = x + σ F."""
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1: the input is not scaled."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Ln of σ/2."""
        return torch.log(sigma / 2)


@dataclass(frozen=True, eq=False)
class IDDPM(_PredictsNoise):
    """The network predicts ε and is told the nearest step of a chain (Karras et al. 2022, Table 1, column iDDPM).

    Attributes:
        levels: u_0 > … > u_{M−1} > 0 of the chain, without the last 0.
    """

    levels: Tensor = field(default_factory=lambda: steps.iddpm_levels()[:-1])

    def __post_init__(self) -> None:
        levels = torch.as_tensor(self.levels, dtype=torch.float64)
        if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()) or not levels[-1] > 0:
            raise ValueError(f"levels has shape {tuple(levels.shape)}; it must decrease strictly and end above 0")
        object.__setattr__(self, "levels", levels)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """M − 1 − argmin_j ``|u_j - σ|``: 0 for the lowest level."""
        levels = self.levels.to(sigma).flip(0)
        above = torch.searchsorted(levels, sigma.contiguous()).clamp(1, len(levels) - 1)
        nearer_below = sigma - levels[above - 1] < levels[above] - sigma
        return (above - nearer_below.long()).to(sigma)


@dataclass(frozen=True)
class Flow:
    """The network predicts the velocity ε − x_0 from x_t = (1 − t) x_0 + t ε, t = σ / (1 + σ) (Lipman et al. 2023)."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1 / (1 + σ) = 1 − t."""
        return 1 / (1 + sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """−σ / (1 + σ) = −t."""
        return -sigma / (1 + sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / (1 + σ): x_t from x_t / (1 − t)."""
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The time t = σ / (1 + σ)."""
        return sigma / (1 + sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) = ((1 + σ) / σ)²: the error of the velocity itself."""
        return ((1 + sigma) / sigma) ** 2


class Denoiser(nn.Module):
    """D(x; σ) made of a raw network and a preconditioning.

    The network sees its own dtype; the skip path and the result keep that of ``x``, so that a float64 sampler loses
    nothing to a float32 network where D is almost x.

    Attributes:
        network: F, called as ``network(c_in x, c_noise, **cond)`` with ``c_noise`` of shape (batch,).
        preconditioning: the four coefficients, and the loss weight that training reads.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning

    def forward(self, x: Float[Tensor, "batch *shape"], sigma: Level, **cond: Any) -> Float[Tensor, "batch *shape"]:
        """Return D(x; σ).

        Args:
            x: noisy samples, unscaled: x_0 + σ ε.
            sigma: one noise level, or one a sample; in units of the data.
            **cond: passed to the network, for example ``labels``.

        Raises:
            ValueError: if the shape of ``sigma`` does not fit, ``x`` is not floating, or the network returns another
                shape than that of ``x``.
        """
        sigma = per_sample(x, sigma)
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        c = self.preconditioning
        told = c.c_noise(sigma)
        # One level for all is written on the device, not copied there: a copy would wait for the device.
        told = (
            torch.full((len(x),), float(told), dtype=dtype, device=x.device)
            if sigma.is_cpu and sigma.ndim == 0
            else told.to(dtype).flatten().expand(len(x))
        )
        raw = self.network((c.c_in(sigma) * x).to(dtype), told, **cond)
        if raw.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(raw.shape)} for x of shape {tuple(x.shape)}")
        return c.c_skip(sigma) * x + c.c_out(sigma) * raw.to(x.dtype)

r"""What a network may be asked for: x_0, the noise, the score, v, or the velocity; all conversions in one place.

Everything is in unscaled coordinates, ``x = x_0 + σ ε``. Each target is a linear function of x and D(x; σ), so knowing
one is knowing all. Taught in the chapters ``preconditioning`` and ``ddpm``; each is a choice of c_skip and c_out.

``denoised(value, x, sigma)`` turns a prediction into D, ``value(denoised, x, sigma)`` turns D into a prediction, and
:func:`convert` goes from one target to another. ``sigma`` is one level or one a sample.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import Level, per_sample

Batch = Float[Tensor, "batch *shape"]


@runtime_checkable
class Target(Protocol):
    """A linear function of x and D."""

    def denoised(self, value: Batch, x: Batch, sigma: Level) -> Batch:
        """D from the prediction ``value``."""

    def value(self, denoised: Batch, x: Batch, sigma: Level) -> Batch:
        """The prediction from D."""


@dataclass(frozen=True)
class X0:
    """The clean sample itself."""

    def denoised(self, value: Batch, x: Batch, sigma: Level) -> Batch:
        """D = value."""
        return value

    def value(self, denoised: Batch, x: Batch, sigma: Level) -> Batch:
        """The value is D."""
        return denoised


@dataclass(frozen=True)
class Epsilon:
    """The noise ε = (x − D) / σ (Ho et al. 2020)."""

    def denoised(self, value: Batch, x: Batch, sigma: Level) -> Batch:
        """D = x − σ ε."""
        return x - per_sample(x, sigma) * value

    def value(self, denoised: Batch, x: Batch, sigma: Level) -> Batch:
        """ε = (x − D) / σ."""
        return (x - denoised) / per_sample(x, sigma)


@dataclass(frozen=True)
class Score:
    """∇ log p(x; σ) = (D − x) / σ² (Tweedie; Song et al. 2021)."""

    def denoised(self, value: Batch, x: Batch, sigma: Level) -> Batch:
        """D = x + σ² score."""
        return x + per_sample(x, sigma) ** 2 * value

    def value(self, denoised: Batch, x: Batch, sigma: Level) -> Batch:
        """Score = (D − x) / σ²."""
        return (denoised - x) / per_sample(x, sigma) ** 2


@dataclass(frozen=True)
class V:
    """v = (ε − σ x_0) / √(1 + σ²), orthogonal to the variance-preserving x_t (Salimans and Ho 2022)."""

    def denoised(self, value: Batch, x: Batch, sigma: Level) -> Batch:
        """D = x / (1 + σ²) − σ v / √(1 + σ²)."""
        level = per_sample(x, sigma)
        return x / (1 + level**2) - level / torch.sqrt(1 + level**2) * value

    def value(self, denoised: Batch, x: Batch, sigma: Level) -> Batch:
        """v = ((x − D) / σ − σ D) / √(1 + σ²)."""
        level = per_sample(x, sigma)
        return ((x - denoised) / level - level * denoised) / torch.sqrt(1 + level**2)


@dataclass(frozen=True)
class Velocity:
    """ε − x_0, the constant velocity along the line x_t = (1 − t) x_0 + t ε (Lipman et al. 2023)."""

    def denoised(self, value: Batch, x: Batch, sigma: Level) -> Batch:
        """D = (x − σ velocity) / (1 + σ)."""
        level = per_sample(x, sigma)
        return (x - level * value) / (1 + level)

    def value(self, denoised: Batch, x: Batch, sigma: Level) -> Batch:
        """Velocity = (x − D) / σ − D."""
        return (x - denoised) / per_sample(x, sigma) - denoised


def convert(value: Batch, source: Target, target: Target, x: Batch, sigma: Level) -> Batch:
    """Turn the prediction of one target into that of another.

    Args:
        value: what the network of ``source`` predicts.
        source: what that is.
        target: what is wanted.
        x: the noisy samples, unscaled.
        sigma: their noise level or levels, above 0.

    Raises:
        ValueError: if the shapes of ``value``, ``x`` and ``sigma`` do not fit together.
    """
    if value.shape != x.shape:
        raise ValueError(f"value has shape {tuple(value.shape)}, x {tuple(x.shape)}; they must agree")
    return target.value(source.denoised(value, x, sigma), x, sigma)

r"""Distributions whose denoiser is known in closed form: what every algorithm meets before it meets a network.

Each is smoothed by Gaussian noise, ``p(x; σ) = p_0 * N(0, σ² I)``, and answers for every σ ≥ 0: the denoiser
D(x; σ) = E[x_0 | x] by being called, ``score``, ``log_prob`` (nats), ``posterior_cov`` and ``sample``. Used by the
chapter ``forward``.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import Level, per_sample

Number = Tensor | float | list


class Gaussian:
    """One Gaussian with independent coordinates.

    Args:
        mean: mean of the data; broadcast against one sample.
        std: standard deviation of the data, in the same shape or a scalar; 0 is a point mass.

    Raises:
        ValueError: if ``std`` is negative or not finite.
    """

    def __init__(self, mean: Number, std: Number) -> None:
        self.mean, self.std = _float64(mean), _float64(std)
        if not bool(((self.std >= 0) & (self.std < torch.inf)).all()):
            raise ValueError(f"std = {std}; it must be finite and not negative")
        self.shape = torch.broadcast_shapes(self.mean.shape, self.std.shape)

    def _parts(self, x: Tensor, sigma: Level) -> tuple[Tensor, Tensor, Tensor]:
        """σ², the data variance and x − mean, ready to be combined."""
        level = per_sample(x, sigma)
        mean, std = self.mean.to(x), self.std.to(x)
        if not _fits(self.shape, x.shape[1:]):
            raise ValueError(f"x has samples of shape {tuple(x.shape[1:])}, the Gaussian {tuple(self.shape)}")
        return level**2, std**2, x - mean

    def __call__(self, x: Float[Tensor, "batch *shape"], sigma: Level, **cond: Any) -> Float[Tensor, "batch *shape"]:
        """D(x; σ) = mean + std² / (std² + σ²) (x − mean); conditions are ignored."""
        noise, data, offset = self._parts(x, sigma)
        return x - offset * noise / (data + noise)

    def score(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch *shape"]:
        """∇ log p(x; σ) = −(x − mean) / (std² + σ²)."""
        noise, data, offset = self._parts(x, sigma)
        return -offset / (data + noise)

    def log_prob(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, " batch"]:
        """Log p(x; σ) in nats, summed over coordinates."""
        noise, data, offset = self._parts(x, sigma)
        variance = data + noise
        return _sum(-(offset**2 / variance + torch.log(2 * math.pi * variance)) / 2)

    def posterior_cov(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch dim dim"]:
        """Cov[x_0 | x], with the coordinates of a sample flattened."""
        noise, data, offset = self._parts(x, sigma)
        return torch.diag_embed((data * noise / (data + noise)).expand_as(offset).reshape(len(x), -1))

    def sample(
        self, n: int, *, shape: tuple[int, ...] | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n *shape"]:
        """Draw ``n`` samples in float64; ``shape`` is that of one sample, where mean and std do not tell it."""
        normal = torch.randn(n, *(self.shape if shape is None else shape), generator=generator, dtype=torch.float64)
        return self.mean + self.std * normal


class GaussianMixture:
    r"""A mixture of isotropic Gaussians.

    Args:
        means: (K, \*shape), the centres; a sample has shape ``shape``, ``()`` for a mixture on the line.
        stds: (K,) standard deviations, or one for all; 0 is a point mass.
        weights: (K,) positive weights, scaled to sum to 1; equal by default.

    Raises:
        ValueError: if the shapes do not fit, a std is negative, or a weight is not positive.
    """

    def __init__(self, means: Number, stds: Number, weights: Number | None = None) -> None:
        self.means = _float64(means)
        if self.means.ndim < 1 or len(self.means) < 1:
            raise ValueError(f"means has shape {tuple(self.means.shape)}; it must be (components, *shape)")
        count = len(self.means)
        self.stds, self.weights = _float64(stds), _float64([1.0] * count if weights is None else weights)
        if self.stds.ndim == 0:
            self.stds = self.stds.repeat(count)
        for name, values in (("stds", self.stds), ("weights", self.weights)):
            if values.shape != (count,):
                raise ValueError(f"{name} has shape {tuple(values.shape)}; with {count} means it must be ({count},)")
        if not bool(((self.stds >= 0) & (self.stds < torch.inf)).all()):
            raise ValueError(f"stds = {stds}; they must be finite and not negative")
        if not bool(((self.weights > 0) & (self.weights < torch.inf)).all()):
            raise ValueError(f"weights = {weights}; they must be finite and positive")
        self.weights = self.weights / self.weights.sum()

    def _components(self, x: Tensor, sigma: Level) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What every answer needs, a component in the second dimension, coordinates flattened.

        Returns:
            log of weight times density (B, K), σ² (B or 1, 1, 1), data variances (1, K, 1), means (1, K, D), and x
            (B, 1, D).
        """
        level = per_sample(x, sigma)
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"x has samples of shape {tuple(x.shape[1:])}, the mixture {tuple(self.means.shape[1:])}")
        # One level for all stays 0-d: with a dimension it would turn float32 points into float64.
        noise = (level if level.ndim == 0 else level.reshape(-1, 1, 1)) ** 2
        data = self.stds.to(x).reshape(1, -1, 1) ** 2
        means = self.means.to(x).reshape(1, len(self.means), -1)
        points = x.reshape(len(x), 1, -1)
        variance = data + noise
        quadratic = ((points - means) ** 2 / variance).sum(-1)
        log_norm = means.shape[-1] / 2 * torch.log(2 * math.pi * variance).squeeze(-1)
        return self.weights.to(x).log() - quadratic / 2 - log_norm, noise, data, means, points

    def __call__(self, x: Float[Tensor, "batch *shape"], sigma: Level, **cond: Any) -> Float[Tensor, "batch *shape"]:
        """D(x; σ): the posterior means of the components, weighted by responsibility; conditions are ignored."""
        log_joint, noise, data, means, points = self._components(x, sigma)
        guesses = (noise * means + data * points) / (data + noise)
        return (log_joint.softmax(1).unsqueeze(-1) * guesses).sum(1).reshape(x.shape)

    def score(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch *shape"]:
        """∇ log p(x; σ), finite far from every centre (responsibilities are a softmax)."""
        log_joint, noise, data, means, points = self._components(x, sigma)
        return (log_joint.softmax(1).unsqueeze(-1) * (means - points) / (data + noise)).sum(1).reshape(x.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, " batch"]:
        """Log p(x; σ) in nats."""
        return self._components(x, sigma)[0].logsumexp(1)

    def posterior_cov(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch dim dim"]:
        """Cov[x_0 | x], with the coordinates of a sample flattened: within components plus between them."""
        log_joint, noise, data, means, points = self._components(x, sigma)
        share = log_joint.softmax(1).unsqueeze(-1)
        guesses = (noise * means + data * points) / (data + noise)
        centred = guesses - (share * guesses).sum(1, keepdim=True)
        between = torch.einsum("bki,bkj->bij", share * centred, centred)
        within = (share * data * noise / (data + noise)).sum((1, 2))
        return between + within[:, None, None] * torch.eye(centred.shape[-1]).to(x)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *shape"]:
        """Draw ``n`` samples in float64."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, *self.means.shape[1:], generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which].reshape(-1, *[1] * (self.means.ndim - 1)) * normal


def _float64(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _fits(shape: torch.Size, sample: torch.Size) -> bool:
    """Whether parameters of ``shape`` broadcast against one sample without growing it."""
    padded = (1,) * (len(sample) - len(shape)) + tuple(shape)
    return len(padded) == len(sample) and all(p in (1, s) for p, s in zip(padded, sample, strict=True))


def _sum(per_coordinate: Tensor) -> Tensor:
    """Sum over all but the batch."""
    return per_coordinate.reshape(len(per_coordinate), -1).sum(1)

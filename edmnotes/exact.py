r"""Distributions whose denoiser is known in closed form: what every algorithm meets before it meets a network.

Taught in the chapters ``tweedie`` and ``inverse_problems``.

Each is smoothed by Gaussian noise, ``p(x; σ) = p_0 * N(0, σ² I)``, and answers for every σ ≥ 0: the denoiser
D(x; σ) = E[x_0 | x] by being called, ``score``, ``log_prob`` (nats), ``posterior_cov`` and ``sample``.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edmnotes.contract import Level, per_sample

Number = Tensor | float | list

SLICE = 2**23
"""Numbers in one slice of an empirical data set, 64 MiB in float64."""


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
        return self.mean.to(x) + offset * data / (data + noise)

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
    r"""A mixture of Gaussians, isotropic or with full covariances.

    Args:
        means: (K, \*shape), the centres; a sample has shape ``shape``, ``()`` for a mixture on the line.
        stds: (K,) standard deviations, or one for all; 0 is a point mass.
        weights: (K,) positive weights, scaled to sum to 1; equal by default.
        covs: (K, dim, dim) covariances of the flattened samples, in place of ``stds``; they may be singular.

    Raises:
        ValueError: if the shapes do not fit, a std is negative, a covariance is not symmetric and positive
            semi-definite, a weight is not positive, or not exactly one of ``stds`` and ``covs`` is given.
    """

    def __init__(
        self, means: Number, stds: Number | None = None, weights: Number | None = None, *, covs: Number | None = None
    ) -> None:
        self.means = _float64(means)
        if self.means.ndim < 1 or len(self.means) < 1:
            raise ValueError(f"means has shape {tuple(self.means.shape)}; it must be (components, *shape)")
        count, dim = len(self.means), self.means[0].numel()
        # Every covariance is kept as variances along the columns of a basis; an isotropic one needs none.
        self.bases: Tensor | None = None
        if stds is not None and covs is None:
            self.variances = _stds(stds, count)[:, None] ** 2
        elif covs is not None and stds is None:
            self.variances, self.bases = _eigen(_float64(covs), (count, dim, dim))
        else:
            raise ValueError("give either stds or covs, not both")
        self.weights = _weights([1.0] * count if weights is None else weights, count)

    def _turn(self, vectors: Float[Tensor, "batch k dim"], *, back: bool = False) -> Float[Tensor, "batch k dim"]:
        """Vectors in the bases of the components, or from there back."""
        if self.bases is None:
            return vectors
        return torch.einsum("bki,kji->bkj" if back else "bki,kij->bkj", vectors, self.bases.to(vectors))

    def _components(self, x: Tensor, sigma: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What every answer needs, a component in the second dimension, coordinates flattened.

        Returns:
            log of weight times density (B, K), σ², data variances (1, K, 1 or D) and x − mean (B, K, D), these two in
            the bases of the components.
        """
        level = per_sample(x, sigma)
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"x has samples of shape {tuple(x.shape[1:])}, the mixture {tuple(self.means.shape[1:])}")
        # One level for all stays 0-d: with a dimension it would turn float32 points into float64.
        noise = (level if level.ndim == 0 else level.reshape(-1, 1, 1)) ** 2
        data = self.variances.to(x)[None]
        offset = self._turn(x.reshape(len(x), 1, -1) - self.means.to(x).reshape(1, len(self.means), -1))
        variance = (data + noise).expand_as(offset)
        log_density = -(offset**2 / variance + torch.log(2 * math.pi * variance)).sum(-1) / 2
        return self.weights.to(x).log() + log_density, noise, data, offset

    def _guesses(self, noise: Tensor, data: Tensor, offset: Tensor) -> Tensor:
        """The posterior mean of each component (B, K, D)."""
        means = self.means.to(offset).reshape(1, len(self.means), -1)
        return means + self._turn(offset * data / (data + noise), back=True)

    def __call__(self, x: Float[Tensor, "batch *shape"], sigma: Level, **cond: Any) -> Float[Tensor, "batch *shape"]:
        """D(x; σ): the posterior means of the components, weighted by responsibility; conditions are ignored."""
        log_joint, noise, data, offset = self._components(x, sigma)
        share = log_joint.softmax(1).unsqueeze(-1)
        return (share * self._guesses(noise, data, offset)).sum(1).reshape(x.shape)

    def score(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch *shape"]:
        """∇ log p(x; σ), finite far from every centre (responsibilities are a softmax)."""
        log_joint, noise, data, offset = self._components(x, sigma)
        share = log_joint.softmax(1).unsqueeze(-1)
        return -(share * self._turn(offset / (data + noise), back=True)).sum(1).reshape(x.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, " batch"]:
        """Log p(x; σ) in nats."""
        return self._components(x, sigma)[0].logsumexp(1)

    def posterior_cov(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch dim dim"]:
        """Cov[x_0 | x], with the coordinates of a sample flattened: within components plus between them."""
        log_joint, noise, data, offset = self._components(x, sigma)
        share = log_joint.softmax(1).unsqueeze(-1)
        guesses = self._guesses(noise, data, offset)
        centred = guesses - (share * guesses).sum(1, keepdim=True)
        between = torch.einsum("bki,bkj->bij", share * centred, centred)
        within = (data * noise / (data + noise)).expand_as(offset)
        if self.bases is None:
            return between + torch.diag_embed((share * within).sum(1))
        return between + torch.einsum("bki,kji,kli->bjl", share * within, self.bases.to(x), self.bases.to(x))

    def given(
        self, forward: Float[Tensor, "measured dim"], measurement: Float[Tensor, " measured"], std: float
    ) -> "GaussianMixture":
        """The mixture that remains when y = A x_0 + std · noise has been measured, equations of ``inverse_problems``.

        Each component is conditioned as a Gaussian is (``measured-mean``, ``measured-covariance``), and weighted by how
        well it had foreseen the measurement (``component-evidence``).

        Args:
            forward: A, from the flattened sample.
            measurement: y.
            std: standard deviation of the measurement's noise, above 0.

        Raises:
            ValueError: if the shapes do not fit, or ``std`` is not positive.
        """
        matrix, seen = _float64(forward), _float64(measurement)
        count, dim = len(self.means), self.means[0].numel()
        if matrix.ndim != 2 or matrix.shape[1] != dim or seen.shape != matrix.shape[:1]:
            raise ValueError(
                f"forward has shape {tuple(matrix.shape)}, measurement {tuple(seen.shape)}; "
                f"they must be (m, {dim}) and (m,)"
            )
        if not 0 < std < math.inf:
            raise ValueError(f"std = {std}; the measurement needs noise of a positive, finite std, e.g. 0.05")
        means = self.means.reshape(count, dim)
        covs = torch.diag_embed(self.variances.expand(count, dim))
        if self.bases is not None:
            covs = self.bases @ covs @ self.bases.mT
        foreseen = matrix @ covs @ matrix.T + std**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = torch.linalg.solve(foreseen, matrix @ covs).mT
        surprise = seen - means @ matrix.T
        kept = covs - gain @ matrix @ covs
        evidence = torch.distributions.MultivariateNormal(means @ matrix.T, foreseen).log_prob(seen)
        weights = (self.weights.log() + evidence).softmax(0).clamp(min=torch.finfo(torch.float64).tiny)
        after = means + torch.einsum("kim,km->ki", gain, surprise)
        return GaussianMixture(after.reshape(self.means.shape), weights=weights, covs=(kept + kept.mT) / 2)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *shape"]:
        """Draw ``n`` samples in float64."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, self.means[0].numel(), generator=generator, dtype=torch.float64)
        offset = self.variances[which].sqrt() * normal
        if self.bases is not None:
            offset = torch.einsum("nij,nj->ni", self.bases[which], offset)
        return self.means[which] + offset.reshape(n, *self.means.shape[1:])


class Empirical:
    r"""A finite data set as a distribution: one point mass a sample, each with the same weight.

    Its denoiser is a softmax over the data, weighted by −\|x − y\|² / (2 σ²). The data go by in slices of bounded size,
    with a running maximum, so no array of all pairs is ever made. Distances come from the product of the two in
    float64: in float32 that product loses \|x\|² · 6e-8, at small σ more than a whole unit of the exponent. Defined for
    σ > 0.

    Args:
        data: (N, \*shape), in float32 or float64; kept as it is.

    Raises:
        ValueError: if ``data`` is empty, not floating, or not finite.
    """

    def __init__(self, data: Float[Tensor, "n *shape"]) -> None:
        if data.ndim < 1 or not len(data) or not data.is_floating_point():
            raise ValueError(
                f"data has shape {tuple(data.shape)}, dtype {data.dtype}; it must be floating, (N, *shape)"
            )
        # The two ends tell it without an array of the size of the data; nan comes through both.
        if not all(bool(end.isfinite()) for end in data.aminmax()):
            raise ValueError("data holds values that are not finite; remove them")
        self.data = data

    def _slices(self, x: Tensor, sigma: Level) -> Iterator[tuple[Tensor, Tensor]]:
        """The data in slices (n, D) with the exponents (B, n), in float64."""
        level = per_sample(x, sigma)
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"x has samples of shape {tuple(x.shape[1:])}, the data {tuple(self.data.shape[1:])}")
        precision = 0.5 / level.to(torch.float64).reshape(-1, 1) ** 2
        points = x.reshape(len(x), -1).to(torch.float64)
        rows = max(1, SLICE // max(points.shape[1], len(points)))
        for part in self.data.reshape(len(self.data), -1).split(rows):
            part = part.to(points)
            # |x|² is the same for the whole row and falls out of the softmax; log_prob puts it back.
            yield part, (2 * points @ part.T - (part**2).sum(1)) * precision.to(points)

    def __call__(self, x: Float[Tensor, "batch *shape"], sigma: Level, **cond: Any) -> Float[Tensor, "batch *shape"]:
        """D(x; σ): the data, weighted by how near they are; conditions are ignored."""
        peak = torch.full((len(x), 1), -torch.inf, dtype=torch.float64, device=x.device)
        total, mean = torch.zeros_like(peak), torch.zeros_like(x.reshape(len(x), -1), dtype=torch.float64)
        for part, exponents in self._slices(x, sigma):
            highest = torch.maximum(peak, exponents.amax(1, keepdim=True))
            kept, share = torch.exp(peak - highest), torch.exp(exponents - highest)
            total, mean, peak = total * kept + share.sum(1, keepdim=True), mean * kept + share @ part, highest
        return (mean / total).to(x).reshape(x.shape)

    def score(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch *shape"]:
        """∇ log p(x; σ) = (D − x) / σ²."""
        return (self(x.to(torch.float64), sigma).to(x) - x) / per_sample(x, sigma) ** 2

    def log_prob(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, " batch"]:
        """Log p(x; σ) in nats."""
        total = torch.stack([exponents.logsumexp(1) for _, exponents in self._slices(x, sigma)]).logsumexp(0)
        variance = (per_sample(x, sigma).to(torch.float64) ** 2).flatten().to(total)
        points = x.reshape(len(x), -1).to(total)
        gaussian = -(points**2).sum(1) / (2 * variance) - points.shape[1] / 2 * torch.log(2 * math.pi * variance)
        return (total - math.log(len(self.data)) + gaussian).to(x)

    def posterior_cov(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch dim dim"]:
        """Cov[x_0 | x], with the coordinates of a sample flattened; holds B · D² numbers."""
        mean = self(x.to(torch.float64), sigma).reshape(len(x), -1)
        total = torch.stack([exponents.logsumexp(1) for _, exponents in self._slices(x, sigma)]).logsumexp(0)
        cov = mean.new_zeros(len(x), mean.shape[1], mean.shape[1])
        for part, exponents in self._slices(x, sigma):
            share = torch.exp(exponents - total[:, None])
            for i, centre in enumerate(mean):  # one sample at a time: all at once would be an N x B x D array
                centred = part - centre
                cov[i] += (share[i, :, None] * centred).T @ centred
        return cov.to(x)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *shape"]:
        """Draw ``n`` of the data, with replacement."""
        return self.data[torch.randint(len(self.data), (n,), generator=generator).to(self.data.device)]


class ByClass:
    r"""Data that come in classes: exact with a class told, and without.

    The classes are distributions of this module. Told the labels, it answers as the distribution of each sample's
    class; told none, or a negative label (the null token, :data:`edmnotes.networks.NULL`), as their mixture. So it
    stands for a conditional network.

    Args:
        parts: the distribution of each class.
        weights: (K,) positive weights of the classes, scaled to sum to 1; equal by default.

    Raises:
        ValueError: if there is no class, or the weights do not fit.
    """

    def __init__(self, parts: Sequence[Gaussian | GaussianMixture], weights: Number | None = None) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise ValueError("parts is empty; give the distribution of each class")
        self.weights = _weights([1.0] * len(self.parts) if weights is None else weights, len(self.parts))

    def _joint(self, x: Tensor, sigma: Level) -> Float[Tensor, "batch classes"]:
        """Log of weight times density, by class."""
        return torch.stack([part.log_prob(x, sigma) for part in self.parts], 1) + self.weights.to(x).log()

    def class_log_prob(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, "batch classes"]:
        """Log p(y | x; σ) of every class y, in nats."""
        return self._joint(x, sigma).log_softmax(1)

    def log_prob(
        self, x: Float[Tensor, "batch *shape"], sigma: Level, labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log p(x; σ), or log p(x | y; σ) of the classes told, in nats."""
        joint = self._joint(x, sigma)
        if labels is None:
            return joint.logsumexp(1)
        told = (joint - self.weights.to(x).log()).gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(labels < 0, joint.logsumexp(1), told)

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        sigma: Level,
        *,
        labels: Int[Tensor, " batch"] | None = None,
        **cond: Any,
    ) -> Float[Tensor, "batch *shape"]:
        """D(x; σ), of the classes told, or of the mixture; other conditions are ignored."""
        guesses = torch.stack([part(x, sigma) for part in self.parts], 1)
        share = self.class_log_prob(x, sigma).exp()
        if labels is not None:
            told = torch.nn.functional.one_hot(labels.clamp(min=0), len(self.parts)).to(x)
            share = torch.where(labels[:, None] < 0, share, told)
        return (share.reshape(*share.shape, *[1] * (x.ndim - 1)) * guesses).sum(1)

    def score(
        self, x: Float[Tensor, "batch *shape"], sigma: Level, labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """∇ log p(x; σ), or ∇ log p(x | y; σ), by Tweedie's formula; for σ above 0."""
        return (self(x, sigma, labels=labels) - x) / per_sample(x, sigma) ** 2


def _stds(stds: Number, count: int) -> Float[Tensor, " count"]:
    """One standard deviation a component."""
    values = _float64(stds)
    if values.ndim == 0:
        values = values.repeat(count)
    if values.shape != (count,):
        raise ValueError(f"stds has shape {tuple(values.shape)}; with {count} means it must be ({count},)")
    if not bool(((values >= 0) & (values < torch.inf)).all()):
        raise ValueError(f"stds = {stds}; they must be finite and not negative")
    return values


def _weights(weights: Number, count: int) -> Float[Tensor, " count"]:
    """One positive weight a component, summing to 1."""
    values = _float64(weights)
    if values.shape != (count,):
        raise ValueError(f"weights has shape {tuple(values.shape)}; with {count} components it must be ({count},)")
    if not bool(((values > 0) & (values < torch.inf)).all()):
        raise ValueError(f"weights = {weights}; they must be finite and positive")
    return values / values.sum()


def _eigen(covs: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Variances along the axes of each covariance, and the axes as columns."""
    if covs.shape != shape:
        raise ValueError(f"covs has shape {tuple(covs.shape)}; it must be (components, dim, dim) = {shape}")
    if not bool(covs.isfinite().all()) or not torch.allclose(covs, covs.mT, rtol=1e-10, atol=1e-12):
        raise ValueError("covs must be finite and symmetric")
    variances, bases = torch.linalg.eigh(covs)
    if bool((variances < -1e-10 * variances.abs().amax(1, keepdim=True)).any()):
        raise ValueError(f"covs has the negative eigenvalue {float(variances.min()):.3g}; none may be below 0")
    return variances.clamp(min=0), bases


def _float64(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _fits(shape: torch.Size, sample: torch.Size) -> bool:
    """Whether parameters of ``shape`` broadcast against one sample without growing it."""
    padded = (1,) * (len(sample) - len(shape)) + tuple(shape)
    return len(padded) == len(sample) and all(p in (1, s) for p, s in zip(padded, sample, strict=True))


def _sum(per_coordinate: Tensor) -> Tensor:
    """Sum over all but the batch."""
    return per_coordinate.reshape(len(per_coordinate), -1).sum(1)

r"""Noise distributions to train on, losses, and the loss at each noise level.

Taught in the chapters ``tweedie`` and ``preconditioning``.

The denoising loss is a regression to the clean sample, ``λ(σ) |D(x_0 + σ ε; σ) − x_0|²`` (Karras et al. 2022, eq. 2
and 8); its weight comes from the denoiser's own preconditioning, so the two can never disagree about σ_data.

Three score-matching losses measure a score s against the unknown ∇ log p without ever seeing it. In expectation over
p each is the Fisher divergence J = ½ E ``|s − ∇ log p|²`` plus a constant that does not depend on s:

- :func:`implicit_score_matching`: J − ½ E ``|∇ log p|²``, so −½ E ``|∇ log p|²`` at the true score;
- :func:`sliced_score_matching`: the same, for any random v with E v vᵀ = I;
- :func:`denoising_score_matching`, for the p of noisy samples at level σ, in d dimensions: that plus d / (2 σ²).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edmnotes import exact
from edmnotes.contract import DenoiserLike, Level, per_sample
from edmnotes.networks import NoiseEmbedding
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.schedules import VP, Schedule

Batch = Float[Tensor, "batch *shape"]


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

    @classmethod
    def fitted(cls, curve: "ByLevel") -> "LogNormal":
        """Train where there is something to learn: the mean and std of ln σ under the gain 1 − loss, as a density.

        A heuristic, Karras et al.'s own (2022, section 5) made a formula: at the lowest and the highest levels no
        network does better than the loss of 1 that preconditioning gives for nothing; training belongs between. Give
        it :func:`reachable` of the data before training, or :func:`by_level` of a trained denoiser after it, without
        labels (with them the gain does not end at high levels: a label alone tells the mean of its class). A gain of
        less than three standard errors counts as none. Data times k move the mean by ln k and leave the std.

        It is a place to start, no optimum. Levels far outside are never seen in training, and there a network may do
        worse than nothing: if :func:`by_level` of the trained denoiser shows a loss above 1, take a larger std.

        For Gaussian data with two scales a > b, in equally many directions, the gain is a density in closed form: its
        mean is ln √(a b), its variance (ln²(a/b) + π²) / 12. The std is never below π / √12 = 0.91.

        Args:
            curve: weighted losses, 1 where there is nothing to gain.

        Raises:
            ValueError: if the loss is nowhere below 1, or at one level only.
        """
        gain = (1 - curve.loss).where(1 - curve.loss > 3 * curve.error, 0.0)
        logs = curve.sigmas.log()
        total = torch.trapezoid(gain, logs)
        mean = torch.trapezoid(gain * logs, logs) / total
        std = (torch.trapezoid(gain * (logs - mean) ** 2, logs) / total).sqrt()
        if not std > 0:
            raise ValueError(
                f"curve has a loss of at least {float(curve.loss.min()):.3f}; nothing is to be learnt beyond the mean "
                "and sigma_data, so that any distribution does, or more samples are needed to see it"
            )
        return cls(float(mean), float(std))

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


def implicit_score_matching(score: Callable[[Tensor], Tensor], x: Batch) -> Float[Tensor, " batch"]:
    """½ ``|s|²`` + tr ∂s/∂x of each sample (Hyvärinen 2005; label ``implicit-score-matching``).

    The expectation over x ~ p is ½ E ``|s − ∇ log p|²`` − ½ E ``|∇ log p|²``, for p smooth and vanishing at infinity.
    The trace is exact and costs one backward pass a coordinate. Gradients flow on to the parameters of ``score``,
    through the second derivatives, unless the call is under ``torch.no_grad``.

    Args:
        score: s, from x to a tensor of its shape: a network at one level, or the gradient of log q for a density q
            that nobody normalised (made with ``create_graph=True``). What it returns for one sample must not depend
            on the others in the batch: no batch norm.
        x: samples of p; no gradient flows into them.

    Raises:
        ValueError: if ``score`` returns another shape than that of ``x``.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = _score_at(score, x)
        divergence = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for i in range(prod(x.shape[1:])):
            # The samples do not see each other, so the gradient of the sum holds each sample's own.
            gradient = _gradient(value.reshape(len(x), -1)[:, i].sum(), x, differentiable)
            divergence = divergence + gradient.reshape(len(x), -1)[:, i]
        loss = _total(value**2) / 2 + divergence
    return loss if differentiable else loss.detach()


def sliced_score_matching(score: Callable[[Tensor], Tensor], x: Batch, v: Batch) -> Float[Tensor, " batch"]:
    """½ ``|s|²`` + vᵀ (∂s/∂x) v of each sample (Song et al. 2019; label ``sliced-score-matching``).

    The expectation over v is :func:`implicit_score_matching`, if E v vᵀ = I, for one backward pass in place of one a
    coordinate. Of the paper's two forms this is the one with reduced variance, ``|s|²`` in place of (vᵀ s)². With S the
    symmetric part of ∂s/∂x, its variance over v is 2 Σ S_ij² for standard normal v, and for signs ±1 the same without
    the diagonal i = j: signs are better, and exact where S is diagonal.

    Args:
        score: as for :func:`implicit_score_matching`.
        x: samples of p; no gradient flows into them.
        v: one random direction a sample, like ``x``.

    Raises:
        ValueError: if ``v`` or what ``score`` returns has another shape than ``x``.
    """
    if v.shape != x.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}, x {tuple(x.shape)}; they must agree")
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = _score_at(score, x)
        loss = _total(value**2) / 2 + _total(_gradient((v * value).sum(), x, differentiable) * v)
    return loss if differentiable else loss.detach()


def denoising_score_matching(
    score: Callable[[Tensor], Tensor], x0: Batch, sigma: Level, noise: Batch
) -> Float[Tensor, " batch"]:
    """½ ``|s(x_0 + σ ε) + ε / σ|²`` of each sample (Vincent 2011; label ``denoising-score-matching``).

    The expectation is that of :func:`implicit_score_matching` on the noisy samples plus d / (2 σ²) in d dimensions:
    ½ E ``|s − ∇ log p(x; σ)|²`` + ½ (d / σ² − E ``|∇ log p(x; σ)|²``). It needs no derivative of s. :func:`denoising`
    is the same loss for s = (D − x) / σ², times 2 σ⁴ λ(σ) / d.

    Args:
        score: s at the level ``sigma``, from x to a tensor of its shape.
        x0: clean samples.
        sigma: the noise level, or one a sample, above 0.
        noise: ε, standard normal, like ``x0``.

    Raises:
        ValueError: if ``noise`` or what ``score`` returns has another shape than ``x0``, or ``sigma`` is neither one
            number nor one a sample, or not positive.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, x0 {tuple(x0.shape)}; they must agree")
    level = per_sample(x0, sigma)
    if not bool(((level > 0) & (level < torch.inf)).all()):
        raise ValueError(f"sigma = {sigma}; it must be positive and finite")
    return _total((_score_at(score, x0 + level * noise) + noise / level) ** 2) / 2


class LogVariance(nn.Module):
    """A learned u(σ), the logarithm of the loss to expect at each level (Karras et al. 2024, appendix B.2).

    Training on :meth:`objective` in place of the loss ends at u(σ) = ln E[loss | σ]: every level then weighs the same
    in the gradient, however much of its loss can be learnt away. u is 0 at the start. Pass one to
    :func:`edmnotes.training.fit`.

    Args:
        features: sines and cosines of ln(σ)/4 that u is a linear function of, even.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"features = {features}; it must be even and positive")
        self.features = features
        self.embed = NoiseEmbedding(features)
        self.last = nn.Linear(features, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, sigma: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """u(σ)."""
        told = (sigma.log() / 4).to(self.last.weight)
        return self.last(self.embed(told)).squeeze(1)

    def objective(self, loss: Float[Tensor, " batch"], sigma: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Loss / exp u(σ) + u(σ), of each sample (label ``learned-log-variance``)."""
        u = self(sigma)
        return loss * torch.exp(-u) + u


@dataclass(frozen=True, eq=False)
class ByLevel:
    """The weighted loss at each of a list of noise levels.

    Attributes:
        sigmas: the levels, rising; in units of the data.
        loss: mean weighted loss at each.
        error: standard error of each mean.
    """

    sigmas: Float[Tensor, " levels"]
    loss: Float[Tensor, " levels"]
    error: Float[Tensor, " levels"]


def by_level(
    denoiser: DenoiserLike,
    x0: Batch,
    sigmas: Float[Tensor, " levels"],
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batch: int = 1024,
    **cond: Any,
) -> ByLevel:
    """Measure the weighted denoising loss at each noise level: where a denoiser has learnt something, and how much.

    Every sample is noised once a level, with noise of its own. Compare denoisers of several preconditionings under one
    ``weight``. Nothing is recorded for gradients; put a network with dropout into evaluation mode first.

    Args:
        denoiser: D(x; sigma), a trained one or an exact one.
        x0: clean samples, best such as it was not trained on, on the device of ``denoiser``.
        sigmas: the levels, rising; in units of the data.
        weight: λ(σ); None for that of the denoiser's own preconditioning.
        seed: of the noise.
        batch: samples at once.
        **cond: passed to the denoiser, one value a sample, for example ``labels``.

    Returns:
        λ(σ) times the mean squared error over coordinates, in float64 on the CPU.

    Raises:
        ValueError: if ``sigmas`` do not rise from above 0, ``x0`` holds fewer than two samples, or there is no weight.
    """
    levels = _rising(sigmas)
    if len(x0) < 2:
        raise ValueError(f"x0 holds {len(x0)} samples; a standard error needs two")
    if weight is None:
        if not isinstance(denoiser, Denoiser):
            raise ValueError(
                f"weight is None, and a {type(denoiser).__name__} has none of its own; give e.g. EDM(0.5).weight"
            )
        weight = denoiser.preconditioning.weight
    g = _generator(seed)
    rows = []
    with torch.no_grad():
        for level in levels:
            noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)  # at once: the same whatever the batch
            errors = []
            for first in range(0, len(x0), batch):
                those = slice(first, first + batch)
                clean = x0[those]
                noisy = clean + float(level) * noise[those].to(clean)
                guess = denoiser(noisy, float(level), **{name: value[those] for name, value in cond.items()})
                errors.append(_mean((guess - clean).double() ** 2).cpu())
            rows.append(weight(level) * torch.cat(errors))
    losses = torch.stack(rows)
    return ByLevel(levels, losses.mean(1), losses.std(1) / len(x0) ** 0.5)


def reachable(
    x: Float[Tensor, "n *shape"], sigmas: Float[Tensor, " levels"] | None = None, *, seed: int = 0
) -> ByLevel:
    """Bound, from the data alone, how far the loss can fall at each level; :meth:`LogNormal.fitted` reads the result.

    Half of the data are known, the other half are noised and denoised, by three denoisers that need no training: the
    zero network under EDM's preconditioning, the best linear one (mean and covariance of the known half), and the
    exact denoiser of the known half as a finite set. The least of the three losses is an upper bound on what the best
    denoiser loses, near it for data in few dimensions, far above it where structure is neither linear nor shown by
    the neighbours. It is divided by the zero network's loss on the same noise, about the mean, so 1 means: nothing
    gained. At low levels all three tend to 1 for data that fill their space, at high levels for all data.

    Takes n² dim / 4 multiplications a level; a few thousand samples are enough.

    Args:
        x: data, at least four samples.
        sigmas: levels, rising; None for 41 from 0.004 to 160 times sigma_data, as EDM's 0.002 to 80 for 0.5. Start them
            higher where the lowest do not matter, at the data's own rounding, say: a step / √12.
        seed: of the halves and the noise.

    Raises:
        ValueError: if ``x`` holds fewer than four samples, does not vary or is not finite, or ``sigmas`` do not rise
            from above 0.
    """
    if x.ndim < 2 or len(x) < 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (n, *shape), n at least 4")
    g = _generator(seed)
    points = x.detach().cpu().double().flatten(1)[torch.randperm(len(x), generator=g)]
    known, clean = points[::2], points[1::2]
    mean, scale = known.mean(0), float(known.var(0, correction=0).mean().sqrt())
    if not 0 < scale < float("inf"):
        raise ValueError(f"x must vary and be finite, but its standard deviation is {scale}")
    spread = scale * torch.logspace(-2.398, 2.204, 41, dtype=torch.float64) if sigmas is None else sigmas
    levels = _rising(spread)
    finite = exact.Empirical(known)
    # Directions and variances from the data itself: in many dimensions a covariance matrix would be the larger one.
    _, singular, axes = torch.linalg.svd(known - mean, full_matrices=False)
    variances = singular**2 / len(known)
    losses, errors = [], []
    for level in levels:
        noisy = clean + level * torch.randn(clean.shape, generator=g, dtype=torch.float64)
        offset = noisy - mean
        zero = mean + EDM(scale).c_skip(level) * offset
        linear = mean + offset @ axes.T * (variances / (variances + level**2)) @ axes
        start = _mean((zero - clean) ** 2)
        others = [_mean((guess - clean) ** 2) for guess in (linear, finite(noisy, level))]
        best = min([start, *others], key=lambda error: float(error.mean()))
        ratio = best.mean() / start.mean()
        losses.append(ratio)
        # Of a ratio of means of pairs; the noise that both share drops out.
        errors.append((best - ratio * start).std() / start.mean() / len(clean) ** 0.5)
    return ByLevel(levels, torch.stack(losses), torch.stack(errors))


def _score_at(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    value = score(x)
    if value.shape != x.shape:
        raise ValueError(f"score returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}")
    return value


def _gradient(value: Tensor, x: Tensor, differentiable: bool) -> Tensor:
    """The gradient by x, 0 where there is no dependence."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        value, x, create_graph=differentiable, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def _total(values: Tensor) -> Tensor:
    """Sum over the coordinates of each sample."""
    return values.reshape(len(values), -1).sum(1)


def _mean(values: Tensor) -> Tensor:
    """Mean over the coordinates of each sample."""
    return values.reshape(len(values), -1).mean(1)


def _generator(seed: int) -> torch.Generator:
    """Not torch's own stream of this seed: data drawn from that one would come back as their noise."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))


def _rising(sigmas: Tensor) -> Tensor:
    levels = sigmas.detach().to("cpu", torch.float64)
    if (
        levels.ndim != 1
        or not len(levels)
        or not levels[0] > 0
        or not levels[-1] < torch.inf
        or not bool((levels.diff() > 0).all())
    ):
        raise ValueError(f"sigmas = {levels.tolist()}; it must be a list of levels that rises from above 0")
    return levels

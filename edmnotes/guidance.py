r"""Guidance: denoisers made of denoisers, which steer what any sampler draws.

Taught in the chapters ``guidance`` and ``inverse_problems``. Adding σ² ∇ log φ(x; σ) to a denoiser multiplies the
density that its score belongs to by φ, by Tweedie's formula. Every form of guidance is that sentence with a φ of its
own: a classifier's p(y | x; σ), a similarity, a ratio of two models, the likelihood of a measurement.

What each returns answers ``denoiser(x, sigma, **cond)`` again, so that forms of guidance can be put into one another
and into every sampler. One scale convention holds for all: 0 leaves the guiding out, 1 is Bayes' rule, more
exaggerates. An ``interval`` confines the guiding to noise levels low ≤ σ ≤ high, in units of the data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edmnotes.contract import DenoiserLike, Level, per_sample
from edmnotes.preconditioning import Preconditioning

Batch = Float[Tensor, "batch *shape"]

Potential = Callable[..., Float[Tensor, " batch"]]
"""A function ``potential(x, sigma, **cond)`` that returns log φ(x; σ) of each sample in nats, differentiable in x."""

Interval = tuple[float, float]
"""Lowest and highest noise level."""


@dataclass(frozen=True)
class Unconditional:
    """A denoiser that is told nothing: the null token, where conditions would be.

    Attributes:
        denoiser: D(x; σ), with or without conditions.
    """

    denoiser: DenoiserLike

    def __call__(self, x: Batch, sigma: Level, **cond: Any) -> Batch:
        """D(x; σ) without any condition."""
        return self.denoiser(x, sigma)


@dataclass(frozen=True)
class Tilted:
    """D + scale · σ² ∇ log φ: the score of p(x; σ) φ(x; σ)^scale, equation ``guided-denoiser``.

    Classifier guidance has φ = p(y | x; σ) (Dhariwal and Nichol 2021, section 4); similarity guidance
    log φ = a similarity of x with what is asked for. Scale and gradient work at zero stochasticity too, where the shift
    of a chain's mean by its variance times the gradient would vanish. With φ = p(y | x; σ) and scale 1 the result is
    the conditional denoiser. With any other scale it is *not* the denoiser of p(x_0) φ(x_0)^scale smoothed.

    The denoiser gets the same conditions as the potential; wrap it in :class:`Unconditional` where it should not.

    Attributes:
        denoiser: D(x; σ), to be steered.
        potential: log φ(x; σ), see :data:`Potential`.
        scale: factor on the gradient; 0 leaves D as it is.
        interval: noise levels at which the potential acts; all by default.

    Raises:
        ValueError: if ``scale`` is not finite or ``interval`` is not low ≤ high.
    """

    denoiser: DenoiserLike
    potential: Potential
    scale: float = 1.0
    interval: Interval = (0.0, math.inf)

    def __post_init__(self) -> None:
        _check(self.scale, self.interval)

    def __call__(self, x: Batch, sigma: Level, **cond: Any) -> Batch:
        """D(x; σ) moved along the gradient of the potential."""
        denoised = self.denoiser(x, sigma, **cond)
        scale = _within(self.interval, x, sigma, self.scale, 0.0)
        if _is(scale, 0.0):
            return denoised
        slope = gradient(lambda point: self.potential(point, sigma, **cond), x)
        return denoised + scale * per_sample(x, sigma) ** 2 * slope


@dataclass(frozen=True)
class Extrapolated:
    """D_weak + scale (D_strong − D_weak): away from the weaker of two models, equation ``extrapolated-denoiser``.

    Classifier-free guidance (Ho and Salimans 2022) takes one network with and without its condition
    (:func:`classifier_free`); autoguidance (Karras et al. 2024) a network and a smaller or less trained copy, both told
    the condition.

    Attributes:
        strong: the denoiser to exaggerate; scale 1 is this one alone, and the weak one is then not called.
        weak: the denoiser to leave; scale 0 is this one alone.
        scale: how far to go from weak to strong.
        interval: noise levels at which to exaggerate (Kynkäänniemi et al. 2024); outside them D_strong alone answers.

    Raises:
        ValueError: if ``scale`` is not finite or ``interval`` is not low ≤ high.
    """

    strong: DenoiserLike
    weak: DenoiserLike
    scale: float
    interval: Interval = (0.0, math.inf)

    def __post_init__(self) -> None:
        _check(self.scale, self.interval)

    def __call__(self, x: Batch, sigma: Level, **cond: Any) -> Batch:
        """The two answers, extrapolated; two calls of networks where the scale is neither 0 nor 1."""
        scale = _within(self.interval, x, sigma, self.scale, 1.0)
        if _is(scale, 1.0):
            return self.strong(x, sigma, **cond)
        weak = self.weak(x, sigma, **cond)
        if _is(scale, 0.0):
            return weak
        return weak + scale * (self.strong(x, sigma, **cond) - weak)


@dataclass(frozen=True)
class Measured:
    r"""D steered to agree with a measurement y = A(x_0) + noise: diffusion posterior sampling (Chung et al. 2023).

    The likelihood of the noised point is that of its denoised guess, equation ``dps-likelihood``,
    log p(y | x) ≈ −\|y − A(D)\|² / (2 (std² + spread²)), and its gradient goes through the denoiser. The guess stands
    for all x_0 behind x, which is exact only where they do not differ, at small σ. A spread of
    σ σ_data / √(σ² + σ_data²) gives x_0, known x, the covariance of a Gaussian (Song et al. 2023, ΠGDM).

    Attributes:
        denoiser: D(x; σ); differentiable.
        forward: A, from a batch of clean samples to a batch of measurements; differentiable.
        measurement: y, in the shape of ``forward``'s values, or one for the whole batch.
        std: standard deviation of the measurement's noise, above 0, in the measurement's units.
        spread: standard deviation that A(x_0) keeps when x is known, by noise level; none by default.
        scale: factor on the gradient, 1 for Bayes' rule.
        interval: noise levels at which the measurement acts; all by default.

    Raises:
        ValueError: if ``std`` is not positive, ``scale`` not finite or ``interval`` not low ≤ high.
    """

    denoiser: DenoiserLike
    forward: Callable[[Tensor], Tensor]
    measurement: Tensor
    std: float
    spread: Callable[[Tensor], Tensor] | None = None
    scale: float = 1.0
    interval: Interval = (0.0, math.inf)

    def __post_init__(self) -> None:
        _check(self.scale, self.interval)
        if not 0 < self.std < math.inf:
            raise ValueError(f"std = {self.std}; the measurement needs noise of a positive, finite std, e.g. 0.05")

    def __call__(self, x: Batch, sigma: Level, **cond: Any) -> Batch:
        """D(x; σ) moved towards points that explain the measurement; one call of the denoiser, one backward pass."""
        scale = _within(self.interval, x, sigma, self.scale, 0.0)
        if _is(scale, 0.0):
            return self.denoiser(x, sigma, **cond)
        level = per_sample(x, sigma)
        variance = self.std**2 + (0.0 if self.spread is None else self.spread(level.flatten()) ** 2)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            denoised = self.denoiser(point, sigma, **cond)
            misfit = (self.measurement.to(denoised) - self.forward(denoised)).reshape(len(x), -1).square().sum(1)
            (slope,) = torch.autograd.grad(-(misfit / (2 * variance)).sum(), point)
        return denoised.detach() + scale * level**2 * slope


class Classifier(nn.Module):
    """A network that tells the class of a noised sample: p(y | x; σ), to guide with.

    Train it by :func:`edmnotes.training.fit_classifier` on samples noised as the sampler will show them; a classifier
    of clean samples has no gradient to give at large σ.

    Attributes:
        network: called as ``network(c_in x, c_noise)``, returns logits (batch, classes), as
            :class:`edmnotes.networks.Guide` does.
        preconditioning: gives c_in and c_noise.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning

    def forward(self, x: Batch, sigma: Level) -> Float[Tensor, "batch classes"]:
        """Logits of the classes of the unscaled noised samples ``x``."""
        level = per_sample(x, sigma)
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        told = self.preconditioning.c_noise(level).to(x.device, dtype).flatten().expand(len(x))
        return self.network((self.preconditioning.c_in(level) * x).to(dtype), told)

    def log_prob(self, x: Batch, sigma: Level, *, labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Log p(labels | x; σ) in nats, the potential of :class:`Tilted`."""
        return self(x, sigma).log_softmax(1).gather(1, labels[:, None]).squeeze(1)


def classifier_free(denoiser: DenoiserLike, scale: float, *, interval: Interval = (0.0, math.inf)) -> Extrapolated:
    """Classifier-free guidance: D_u + scale (D_c − D_u), of one denoiser with and without its conditions.

    Scale 0 is the unconditional model, 1 the conditional one. The w of Ho and Salimans is scale − 1, see
    :func:`scale_from_paper`; many later papers write w for the scale itself.

    Args:
        denoiser: answers with conditions (``labels=...``) and without.
        scale: how far to go.
        interval: noise levels at which to exaggerate; outside them the conditional model answers.

    Raises:
        ValueError: if ``scale`` is not finite or ``interval`` is not low ≤ high.
    """
    return Extrapolated(denoiser, Unconditional(denoiser), scale, interval)


def scale_from_paper(w: float) -> float:
    """The scale for the weight w of Ho and Salimans 2022, where ε = (1 + w) ε_c − w ε_u: 1 + w."""
    return 1.0 + w


def gradient(potential: Callable[[Tensor], Float[Tensor, " batch"]], x: Batch) -> Batch:
    """∇ of a potential that is a function of each sample alone; works inside a sampler, where gradients are off.

    Args:
        potential: from a batch to one number a sample.
        x: where.

    Raises:
        ValueError: if the potential does not return one number a sample.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = potential(point)
        if value.shape != x.shape[:1]:
            raise ValueError(f"the potential returned shape {tuple(value.shape)}; it must be one a sample, ({len(x)},)")
        return torch.autograd.grad(value.sum(), point)[0]


def _within(interval: Interval, x: Tensor, sigma: Level, inside: float, outside: float) -> float | Tensor:
    """The scale at each level; a number, where the levels can be read without waiting for a device."""
    low, high = interval
    if (low, high) == (0.0, math.inf):
        return inside
    level = per_sample(x, sigma)
    if level.ndim == 0 and level.is_cpu:
        return inside if low <= float(level) <= high else outside
    return torch.where((level >= low) & (level <= high), inside, outside).to(x.dtype)


def _is(scale: float | Tensor, value: float) -> bool:
    return not isinstance(scale, Tensor) and scale == value


def _check(scale: float, interval: Interval) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale = {scale}; it must be finite, 1 for Bayes' rule")
    low, high = interval
    if not 0 <= low <= high:
        raise ValueError(f"interval = {interval}; it must be (low, high) noise levels with 0 <= low <= high")

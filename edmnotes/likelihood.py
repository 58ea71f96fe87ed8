r"""Likelihoods along the probability-flow ODE, and the codes that it gives.

Taught in the chapter ``likelihood``. The ODE carries p(y; σ_min) to p(y; σ_max) and back, so the density of a sample
is that of its latent times the volume by which the flow stretches space there.

Everything is in unscaled coordinates y = x/s, where the ODE is the same for every schedule,
dy/d ln σ = y − D(y; σ). What is solved is not y but z = y / √(σ² + σ_data²), on the clock ln σ:

    dz/d ln σ = (k y − D) / √(σ² + σ_data²),    k = σ_data² / (σ² + σ_data²).

For one centred Gaussian of std σ_data the right-hand side is 0: the solver, Runge and Kutta's of fourth order, has
only to find how the data differ from that Gaussian.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike, Level
from edmnotes.exact import Gaussian
from edmnotes.samplers.base import Noise, Solution, check_levels, working_dtype


@runtime_checkable
class Prior(Protocol):
    """A density of the state at a noise level; those of :mod:`edmnotes.exact` are."""

    def log_prob(self, x: Float[Tensor, "batch *shape"], sigma: Level) -> Float[Tensor, " batch"]:
        """Log p(x; σ) in nats."""


@dataclass(frozen=True)
class Likelihood:
    r"""What :func:`log_prob` returns.

    Attributes:
        nats: log p(x; σ_min) of each sample.
        error: standard error of ``nats`` from the random probes; None for the exact divergence.
        latent: where the flow takes the samples, at σ_max, unscaled, in the dtype of the samples.
        nfe: number of times the denoiser was called; each call was followed by one backward pass a probe.
    """

    nats: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"] | None
    latent: Float[Tensor, "batch *shape"]
    nfe: int


@dataclass(frozen=True)
class Bits:
    """What :func:`bits_per_dim` returns.

    Attributes:
        bits: an upper bound of −log₂ P(x) / d for each sample, in bits a dimension, up to its random errors.
        error: standard error of ``bits`` from the random probes alone; None for the exact divergence.
        nfe: number of times the denoiser was called.
    """

    bits: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"] | None
    nfe: int


# A point mass at 0: what noise makes of it is N(0, σ²).
_POINT = Gaussian(0.0, 0.0)


def gaussian_probes(x: Float[Tensor, "batch *shape"], count: int, noise: Noise) -> Float[Tensor, "count batch *shape"]:
    """Standard normal directions for Hutchinson's estimate; :class:`edmnotes.noise.PerSample` makes seeds rule.

    Their squares are skewed, so that the error bar from a few dozen of them is too narrow; signs are kinder.
    """
    return torch.stack([noise(x) for _ in range(count)])


def rademacher_probes(
    x: Float[Tensor, "batch *shape"], count: int, noise: Noise
) -> Float[Tensor, "count batch *shape"]:
    """Directions of random signs, those of ``noise``: the diagonal of the Jacobian then adds no variance."""
    return gaussian_probes(x, count, noise).sign()


def log_prob(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    prior: Prior = _POINT,
    probes: Float[Tensor, "count batch *shape"] | None = None,
    sigma_data: float = 0.5,
    **cond: Any,
) -> Likelihood:
    """The log density of samples under a denoiser, by change of variables along the probability-flow ODE.

    log p(x; σ_min) = log p(y; σ_max) + ∫ div(dy/dσ) dσ along the path from x to its latent y. The divergence is
    (d − tr J) / σ with the Jacobian J of D, and its trace the mean of vᵀ J v over directions v: over the unit vectors
    times √d it is exact, over random ``probes``, kept along the whole path, Hutchinson's estimate.

    Args:
        denoiser: D(x; σ) in unscaled coordinates, differentiable, each sample's answer a function of that sample.
        x: samples at the lowest level, unscaled.
        sigmas: as a sampler takes them, see :mod:`edmnotes.steps`. The solver goes from the last level above 0, σ_min,
            up to the first, σ_max; the 0 is left out. Geometric levels (``steps.ve``) suit it best.
        prior: stands for p(y; σ_max). The default is N(0, σ_max²); a distribution of :mod:`edmnotes.exact` gives the
            density of its own noisy samples.
        probes: independent random directions with mean 0 and covariance 1, at least two; None for the exact trace,
            which costs as many backward passes a call as a sample has coordinates.
        sigma_data: the std of the Gaussian that the solver sets out from; it moves numerical errors only.
        **cond: passed to the denoiser.

    Returns:
        ``Likelihood`` in nats, in float64 where the device has it; ``nfe`` = 4 (n − 1) for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``x`` is not floating, ``probes`` does not fit ``x``,
            ``sigma_data`` is not positive and finite, or no gradient comes through the denoiser.
    """
    if probes is not None and (probes.shape[1:] != x.shape or len(probes) < 2):
        raise ValueError(f"probes has shape {tuple(probes.shape)}; give at least two, each like x, {tuple(x.shape)}")
    flow, levels = _Flow(denoiser, sigma_data, cond), check_levels(sigmas)[:-1]
    state = x.to(working_dtype(x))
    directions = _unit_directions(state) if probes is None else probes.to(state)
    latent, stretched = flow.solve(state, levels.flip(0), directions)
    nats = prior.log_prob(latent, levels[0])[:, None] + stretched
    error = None if probes is None else nats.std(1) / math.sqrt(len(probes))
    return Likelihood(nats.mean(1), error, latent.to(x.dtype), flow.calls)


def encode(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    sigma_data: float = 0.5,
    **cond: Any,
) -> Solution:
    """The latents of samples: where the probability-flow ODE takes them from σ_min up to σ_max.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: samples at the lowest level, unscaled.
        sigmas: as in :func:`log_prob`.
        sigma_data: as in :func:`log_prob`.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the states at σ_max, unscaled, and ``nfe`` = 4 (n − 1) for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``x`` is not floating, or ``sigma_data`` is not
            positive and finite.
    """
    return _carry(denoiser, x, check_levels(sigmas)[:-1].flip(0), sigma_data, cond)


def decode(
    denoiser: DenoiserLike,
    latent: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    sigma_data: float = 0.5,
    **cond: Any,
) -> Solution:
    """The samples of latents: :func:`encode` backwards, from σ_max down to σ_min, and no step to level 0.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        latent: states at the highest level, unscaled.
        sigmas: as in :func:`log_prob`.
        sigma_data: as in :func:`log_prob`.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the states at σ_min, unscaled, and ``nfe`` = 4 (n − 1) for n levels above 0.

    Raises:
        ValueError: as :func:`encode`.
    """
    return _carry(denoiser, latent, check_levels(sigmas)[:-1], sigma_data, cond)


def dequantised(
    x: Float[Tensor, "batch *shape"], spacing: float, *, noise: Noise = torch.randn_like
) -> Float[Tensor, "batch *shape"]:
    """Values of a grid, each moved by uniform noise within the interval around it, x ± spacing/2.

    Args:
        x: values that differ by multiples of ``spacing``.
        spacing: distance of neighbouring values, in units of the data; 2/16 for the digits' 17 grey levels in [−1, 1].
        noise: standard normal noise like its argument, made uniform by its distribution function; the default draws
            from torch's global generator (see :class:`edmnotes.noise.PerSample`).

    Raises:
        ValueError: if ``spacing`` is not positive and finite, or the values do not lie on such a grid.
    """
    if not 0 < spacing < math.inf:
        raise ValueError(f"spacing = {spacing}; it must be positive and finite, e.g. 2 / 16")
    counts = (x - x.flatten()[0]).double() / spacing
    off = float((counts - counts.round()).abs().max())
    if not off < 1e-3:
        raise ValueError(f"x has values {off:.2g} spacings off a grid of spacing = {spacing}; give whole grey levels")
    return x + spacing * (torch.special.ndtr(noise(x)) - 0.5)


def bits_per_dim(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    spacing: float,
    noise: Noise = torch.randn_like,
    **options: Any,
) -> Bits:
    """Bits a dimension that a code made from the model needs for discrete data: a bound from uniform dequantisation.

    The density p makes a model of the grid values, P(x) = ∫ p(x + u) du over the cell u ∈ [−spacing/2, spacing/2]^d.
    With u uniform in the cell Jensen's inequality gives log P(x) ≥ E log p(x + u) + d ln spacing, so that

        −log₂ P(x) / d ≤ −E log p(x + u) / (d ln 2) − log₂ spacing.

    The last term is 3 bits for the digits: neighbouring grey levels are 2/16 apart, whatever their number (17 levels
    have 16 gaps). One u is drawn a sample: averages over samples are without bias for the bound.

    A model of the grid values themselves is a comb as σ → 0, with next to no density between its teeth. The bound holds
    for the density at any σ_min; it is best at one of about the noise's own std, spacing/√12.

    Args:
        denoiser: D(x; σ) in unscaled coordinates, as in :func:`log_prob`.
        x: values of a grid.
        sigmas: as in :func:`log_prob`.
        spacing: distance of neighbouring values, in units of the data.
        noise: as in :func:`dequantised`.
        **options: passed to :func:`log_prob`.

    Returns:
        ``Bits`` of each sample.

    Raises:
        ValueError: as :func:`dequantised` and :func:`log_prob`.
    """
    found = log_prob(denoiser, dequantised(x, spacing, noise=noise), sigmas, **options)
    per_bit = x[0].numel() * math.log(2)
    error = None if found.error is None else found.error / per_bit
    return Bits(-found.nats / per_bit - math.log2(spacing), error, found.nfe)


def _unit_directions(x: Tensor) -> Tensor:
    """The d unit vectors times √d, whose mean of vᵀ J v is the trace of J; one set for the whole batch."""
    size = x[0].numel()
    return math.sqrt(size) * torch.eye(size).to(x).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)


def _carry(denoiser: DenoiserLike, x: Tensor, levels: Tensor, sigma_data: float, cond: dict[str, Any]) -> Solution:
    """The state taken from the first of the levels to the last."""
    flow, state = _Flow(denoiser, sigma_data, cond), x.to(working_dtype(x))
    end, _ = flow.solve(state, levels, state.new_zeros(0, *state.shape))
    return Solution(end.to(x.dtype), flow.calls)


class _Flow:
    """The flow in z and ln σ, with the divergence that each of some directions sees; counts its calls."""

    def __init__(self, denoiser: DenoiserLike, sigma_data: float, cond: dict[str, Any]) -> None:
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data = {sigma_data}; it must be positive and finite, e.g. 0.5")
        self.denoiser, self.sigma_data, self.cond, self.calls = denoiser, sigma_data, cond, 0

    def width(self, sigma: Tensor) -> Tensor:
        """y / z."""
        return torch.sqrt(sigma**2 + self.sigma_data**2)

    def slope(self, z: Tensor, log_sigma: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives by ln σ of z (B, *shape) and of the log volume, as each direction sees it (B, K)."""
        sigma = log_sigma.exp()
        width = self.width(sigma)
        keep = (self.sigma_data / width) ** 2
        self.calls += 1
        with torch.set_grad_enabled(len(directions) > 0):
            y = (width * z).requires_grad_(len(directions) > 0)
            denoised = self.denoiser(y, sigma, **self.cond).to(z.dtype)
        if len(directions) and not denoised.requires_grad:
            raise ValueError("denoiser gives no gradient; a likelihood needs its Jacobian (does it use torch.no_grad?)")
        seen = [
            (v * (keep * v - torch.autograd.grad(denoised, y, v, retain_graph=True)[0])).reshape(len(z), -1).sum(1)
            for v in directions
        ]
        slope = (keep * y - denoised).detach() / width
        return slope, torch.stack(seen, 1) if seen else slope.new_zeros(len(z), 0)

    def solve(self, y: Tensor, levels: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Runge and Kutta's fourth-order method: the state at the last level, and the log volume it has gained."""
        z = y.detach() / self.width(levels[0])
        growth = z[0].numel() * torch.log(self.width(levels[-1]) / self.width(levels[0]))
        gained = growth * z.new_ones(len(z), len(directions))
        for start, end in pairwise(levels.log()):
            h, middle = end - start, (start + end) / 2
            k1, g1 = self.slope(z, start, directions)
            k2, g2 = self.slope(z + h / 2 * k1, middle, directions)
            k3, g3 = self.slope(z + h / 2 * k2, middle, directions)
            k4, g4 = self.slope(z + h * k3, end, directions)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            gained = gained + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
        return self.width(levels[-1]) * z, gained

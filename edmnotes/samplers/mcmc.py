"""Langevin dynamics at one noise level and down the levels, and as the corrector of a predictor."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.samplers.base import Callback, Noise, Run, Slope, Solution, Trace, working_dtype
from edmnotes.schedules import EDM, Schedule


@runtime_checkable
class StepSize(Protocol):
    """The length α of a Langevin step, x + (α/2) ∇ log p + √α ε: the variance of the noise that it puts in."""

    def __call__(self, sigma: Tensor, score: Tensor, drawn: Tensor) -> Tensor | float:
        """The step at the level ``sigma`` for a score and the noise ε drawn for it; broadcasts against both."""


@dataclass(frozen=True)
class Proportional:
    """A step in proportion to the noise: α = fraction · σ².

    The rule of annealed Langevin dynamics, α_i = ε σ_i² / σ_L² (Song and Ermon 2019, Algorithm 1), has
    fraction = ε / σ_L², in the paper 2e-5 / 0.01² = 0.2. Above 4 the steps overshoot for good.

    Attributes:
        fraction: α / σ², between 0 and 4.
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 4:
            raise ValueError(f"fraction = {self.fraction}; it must lie between 0 and 4, e.g. 0.2")

    def __call__(self, sigma: Tensor, score: Tensor, drawn: Tensor) -> Tensor:
        """α = fraction · σ²."""
        return self.fraction * sigma**2


@dataclass(frozen=True)
class SignalToNoise:
    r"""A step whose drift is ``ratio`` times as long as its noise: α = 4 (r \|ε\| / \|∇ log p\|)².

    The rule of the corrector of Song et al. 2021 (Algorithms 4 and 5, whose ε is α/2), a step of its own for each
    sample. It is meant for samples of many coordinates: in few the score can vanish, and the step then has no bound.

    Attributes:
        ratio: r, positive; 0.16 in the paper.
    """

    ratio: float = 0.16

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio = {self.ratio}; it must be positive and finite, e.g. 0.16")

    def __call__(self, sigma: Tensor, score: Tensor, drawn: Tensor) -> Tensor:
        """α = 4 r² times the squared norm of ε over that of the score, one a sample."""
        noise, signal = (v.reshape(len(v), -1).norm(dim=1) for v in (drawn, score))
        return (4 * (self.ratio * noise / signal) ** 2).reshape(-1, *[1] * (score.ndim - 1))


# Frozen values, safe as defaults.
_EDM, _SMLD, _CORRECTOR = EDM(), Proportional(), SignalToNoise()


def _langevin_step(y: Tensor, denoised: Tensor, sigma: Tensor, step: StepSize, drawn: Tensor) -> Tensor:
    """One step of Langevin dynamics on p(y; σ), in unscaled coordinates."""
    score = (denoised - y) / sigma**2
    alpha = torch.as_tensor(step(sigma, score, drawn), dtype=y.dtype)
    return y + alpha / 2 * score + alpha.sqrt() * drawn


def langevin(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigma: float,
    n: int,
    *,
    step: StepSize | float,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    r"""Move samples by unadjusted Langevin dynamics at one noise level, equation ``langevin-sde`` in steps.

    x ← x + (α/2) ∇ log p(x; σ) + √α ε (Song and Ermon 2019, eq. 4). It leaves p(x; σ) alone only in the limit α → 0:
    on a Gaussian of variance u it settles at u / (1 − α / (4u)), and for α ≥ 4u nowhere.

    Args:
        denoiser: D(x; σ).
        x: the start, in unscaled coordinates (x_0 + σ ε).
        sigma: the noise level, above 0; in units of the data.
        n: number of steps.
        step: α, the variance of the noise that a step puts in, in squared units of the data; or a rule that gives it,
            :class:`SignalToNoise` or :class:`Proportional`.
        noise: standard normal noise like its argument; the default draws from torch's global generator (see
            :class:`edmnotes.noise.PerSample`).
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states after all steps.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the state after ``n`` steps, still at level ``sigma``, and ``nfe`` = n.

    Raises:
        ValueError: if ``sigma`` or ``step`` is not positive and finite, ``n`` below 1, or ``x`` not floating.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma = {sigma}; it must be positive and finite, there is no score at level 0")
    if not callable(step) and not 0 < step < math.inf:
        raise ValueError(f"step = {step}; it must be positive and finite, below 4 (std² + sigma²) for data of that std")
    _require_count("n", n)
    rule = step if callable(step) else lambda *_: step
    state, level = x.to(working_dtype(x)), torch.tensor(sigma, dtype=torch.float64)
    slope, trace = Slope(denoiser, _EDM, cond), Trace(state, trajectory=trajectory, callback=callback)
    for i in range(n):
        denoised = slope.denoised(state, level)
        state = _langevin_step(state, denoised, level, rule, (noise or torch.randn_like)(state))
        trace.add(state, i=i, sigma=sigma, denoised=denoised)
    return Solution(state.to(x.dtype), slope.calls, trace.stacked())


def annealed_langevin(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    n: int,
    *,
    step: StepSize = _SMLD,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by Langevin dynamics at falling noise levels, SMLD (Song and Ermon 2019, Algorithm 1).

    ``n`` steps at each level above 0, each level from where the one before ended; then the denoiser's answer, which
    takes the last noise away.

    Args:
        denoiser: D(x; σ).
        x: state at ``sigmas[0]``, unscaled, x_0 + σ ε; σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0 (see :mod:`edmnotes.steps`); in units of the data. The
            paper's fall by the same factor.
        n: Langevin steps at each level; 100 in the paper.
        step: their length, :class:`Proportional` or :class:`SignalToNoise`, or a function like them.
        noise: standard normal noise like its argument; the default draws from torch's global generator.
        callback: called at the end of each level as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states with which the levels begin, and the last.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n times the number of levels above 0, plus 1.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``n`` is below 1, or ``x`` is not floating.
    """
    _require_count("n", n)
    run = Run(denoiser, x, sigmas, _EDM, cond, callback=callback, trajectory=trajectory)
    for sigma, _ in run:
        state = run.state
        for _ in range(n):
            denoised = run.slope.denoised(state, sigma)
            state = _langevin_step(state, denoised, sigma, step, (noise or torch.randn_like)(state))
        if run.sigma_next == 0:
            state = denoised = run.slope.denoised(state, sigma)
        run.move(state, denoised)
    return run.solution()


@runtime_checkable
class Predictor(Protocol):
    """A step from a time to an earlier one, for :func:`predictor_corrector`."""

    def __call__(
        self, schedule: Schedule, t: Tensor, t_next: Tensor, x: Tensor, score: Tensor, drawn: Tensor
    ) -> Tensor:
        """The state at ``t_next``, from x at t, ∇ log p_t(x) in the schedule's coordinates and standard noise."""


def reverse_diffusion(schedule: Schedule, t: Tensor, t_next: Tensor, x: Tensor, score: Tensor, drawn: Tensor) -> Tensor:
    """The reverse SDE cut up as its chain is (Song et al. 2021, appendix E): (2 − a) x + b² ∇ log p_t + b ε.

    a and b are those of the forward step from ``t_next`` to t, equations ``recursion-mean`` and ``recursion-noise``.
    """
    a, b = schedule.transition(t_next, t)
    return (2 - a) * x + b**2 * score + b * drawn


def ancestral(schedule: Schedule, t: Tensor, t_next: Tensor, x: Tensor, score: Tensor, drawn: Tensor) -> Tensor:
    """The posterior step of DDPM and SMLD (Song et al. 2021, appendix F): (x + b² ∇ log p_t) / a + c ε.

    a and b are those of the forward step from ``t_next`` to t; c = (b / a) σ(t_next) / σ(t) is the std of x at
    ``t_next`` given x at t and x_0.
    """
    a, b = schedule.transition(t_next, t)
    return (x + b**2 * score) / a + b / a * schedule.sigma(t_next) / schedule.sigma(t) * drawn


def predictor_corrector(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    schedule: Schedule = _EDM,
    predictor: Predictor = reverse_diffusion,
    corrections: int = 1,
    step: StepSize = _CORRECTOR,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by steps down the levels and Langevin steps at each (Song et al. 2021, Algorithm 1).

    The predictor goes to the next level, the corrector then stirs there, at unchanged noise. The last step, to level 0,
    is the denoiser's answer.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the schedule's coordinates, s (x_0 + σ ε); s σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0 (see :mod:`edmnotes.steps`); in units of the data.
        schedule: s(t) and σ(t); the default has s = 1 and σ = t.
        predictor: :func:`reverse_diffusion` or :func:`ancestral`, or a function like them.
        corrections: Langevin steps after each predictor's step; 0 for the predictor alone.
        step: their length, :class:`SignalToNoise` or :class:`Proportional`, or a function like them; they move x/s.
        noise: standard normal noise like its argument; the default draws from torch's global generator.
        callback: called after each level as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n + (n − 1) · corrections for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``corrections`` is negative, or ``x`` is not floating.
    """
    if corrections < 0:
        raise ValueError(f"corrections = {corrections}; it must not be negative, 0 is the predictor alone")
    run = Run(denoiser, x, sigmas, schedule, cond, callback=callback, trajectory=trajectory)
    draw = noise or torch.randn_like
    for t, t_next in run:
        denoised = run.slope.denoised(run.state, t)
        if t_next is None or run.sigma_next == 0:
            run.move(denoised, denoised)
            continue
        scale, next_scale = schedule.scale(t), schedule.scale(t_next)
        score = (denoised - run.state / scale) / (scale * schedule.sigma(t) ** 2)
        state = predictor(schedule, t, t_next, run.state, score, draw(run.state))
        for _ in range(corrections):
            denoised = run.slope.denoised(state, t_next)
            state = next_scale * _langevin_step(state / next_scale, denoised, schedule.sigma(t_next), step, draw(state))
        run.move(state, denoised)
    return run.solution()


def _require_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} = {value}; it must be at least 1")

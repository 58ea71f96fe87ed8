"""Solvers of the probability-flow ODE."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.samplers.base import (
    Callback,
    Churn,
    Noise,
    Slope,
    Solution,
    Trace,
    check_levels,
    churned,
    intervals,
    working_dtype,
)
from edmnotes.schedules import EDM, Schedule

# EDM() and Churn() are frozen values, safe as defaults.
_EDM = EDM()


def euler(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    schedule: Schedule = _EDM,
    churn: Churn | None = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by Euler's first-order method on the probability-flow ODE.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the schedule's coordinates, s (x_0 + σ ε); s σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0 (see :mod:`edmnotes.steps`); in units of the data.
        schedule: s(t) and σ(t); the default has s = 1 and σ = t.
        churn: noise put back before each step; None for none.
        noise: standard normal noise like its argument, for the churn; the default draws from torch's global generator
            (see :class:`edmnotes.noise.PerSample`).
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, or ``x`` is not floating.
    """
    levels, state = check_levels(sigmas), x.to(working_dtype(x))
    slope, trace = Slope(denoiser, schedule, cond), Trace(state, trajectory=trajectory, callback=callback)
    n = len(levels) - 1
    for i, (t, t_next) in enumerate(intervals(schedule, levels)):
        if churn and (gamma := churn.gamma(float(levels[i]), n)) > 0:
            state, t = churned(state, t, schedule, gamma, churn, noise or torch.randn_like)
        here, denoised = slope(state, t)
        state = denoised if t_next is None else state + (t_next - t) * here
        trace.add(state, i=i, sigma=float(levels[i]), denoised=denoised)
    return Solution(state.to(x.dtype), slope.calls, trace.stacked())


def heun(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    schedule: Schedule = _EDM,
    alpha: float = 1.0,
    churn: Churn | None = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by a second-order method on the probability-flow ODE (Karras et al. 2022, Algorithms 1 to 3).

    Each step goes the fraction ``alpha`` of its way by Euler, looks at the slope there, and takes the whole step along
    (1 − 1/(2α)) of the first slope plus 1/(2α) of the second: α = 1 is Heun's method, 2/3 Ralston's, 1/2 the midpoint
    method. The last step, to level 0, is Euler's: the slope is not defined there.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the schedule's coordinates, s (x_0 + σ ε); s σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0 (see :mod:`edmnotes.steps`); in units of the data.
        schedule: s(t) and σ(t); the default has s = 1 and σ = t.
        alpha: where the second slope is taken, in (0, 1].
        churn: noise put back before each step (Algorithm 2); None for none (Algorithm 1).
        noise: standard normal noise like its argument, for the churn; the default draws from torch's global generator
            (see :class:`edmnotes.noise.PerSample`).
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = 2 n − 1 for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``alpha`` is outside (0, 1], or ``x`` is not floating.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha = {alpha}; it must lie in (0, 1]: 1 is Heun's method, 0.5 the midpoint method")
    levels, state = check_levels(sigmas), x.to(working_dtype(x))
    slope, trace = Slope(denoiser, schedule, cond), Trace(state, trajectory=trajectory, callback=callback)
    n = len(levels) - 1
    for i, (t, t_next) in enumerate(intervals(schedule, levels)):
        if churn and (gamma := churn.gamma(float(levels[i]), n)) > 0:
            state, t = churned(state, t, schedule, gamma, churn, noise or torch.randn_like)
        here, denoised = slope(state, t)
        if t_next is not None and levels[i + 1] > 0:
            there, _ = slope(state + alpha * (t_next - t) * here, t + alpha * (t_next - t))
            here = (1 - 0.5 / alpha) * here + 0.5 / alpha * there
        state = denoised if t_next is None else state + (t_next - t) * here
        trace.add(state, i=i, sigma=float(levels[i]), denoised=denoised)
    return Solution(state.to(x.dtype), slope.calls, trace.stacked())

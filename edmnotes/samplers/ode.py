"""Solvers of the probability-flow ODE."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.samplers.base import Callback, Churn, Noise, Run, Solution
from edmnotes.schedules import EDM, Schedule

# EDM() is a frozen value, safe as a default.
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
    run = Run(denoiser, x, sigmas, schedule, cond, callback=callback, trajectory=trajectory)
    for t, t_next in run:
        state, t = run.churned(t, churn, noise)
        here, denoised = run.slope(state, t)
        run.move(denoised if t_next is None else state + (t_next - t) * here, denoised)
    return run.solution()


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
    run = Run(denoiser, x, sigmas, schedule, cond, callback=callback, trajectory=trajectory)
    for t, t_next in run:
        state, t = run.churned(t, churn, noise)
        here, denoised = run.slope(state, t)
        if t_next is not None and run.sigma_next > 0:
            there, _ = run.slope(state + alpha * (t_next - t) * here, t + alpha * (t_next - t))
            here = (1 - 0.5 / alpha) * here + 0.5 / alpha * there
        run.move(denoised if t_next is None else state + (t_next - t) * here, denoised)
    return run.solution()

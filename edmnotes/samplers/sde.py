"""The reverse-time SDE."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.noise import BrownianPath
from edmnotes.samplers.base import Callback, Noise, Run, Solution
from edmnotes.schedules import EDM, Schedule

# EDM() is a frozen value, safe as a default.
_EDM = EDM()


def reverse_sde(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    schedule: Schedule = _EDM,
    strength: float = 1.0,
    noise: Noise | None = None,
    path: BrownianPath | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    r"""Sample by Euler and Maruyama's method on the reverse-time SDE, equation ``sde-strength``.

    dx = [f x − ½ (1 + η²) g² ∇ log p_t] dt + η g dw̄ with the strength η: 1 is the reverse SDE (Anderson 1982; Song et
    al. 2021, eq. 6), 0 the probability-flow ODE, and every η has the same marginals in the limit of small steps. The
    last step, to level 0, is the denoiser's answer itself: noise put in there would stay in the sample.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the schedule's coordinates, s (x_0 + σ ε); s σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0 (see :mod:`edmnotes.steps`); in units of the data.
        schedule: s(t) and σ(t); the default has s = 1 and σ = t.
        strength: η ≥ 0, factor on the noise put in; at 0 no random number is drawn and every step but the last is
            :func:`euler`'s.
        noise: standard normal noise like its argument; the default draws from torch's global generator (see
            :class:`edmnotes.noise.PerSample`).
        path: in place of ``noise``, a Brownian path a sample in the schedule's time, from ``sigma_inv(sigmas[0])`` to
            the time of level 0 or of the last level above it: runs with other step counts then share their noise.
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``strength`` is negative or not finite, ``x`` is not
            floating, both ``noise`` and ``path`` are given, or the path does not hold the run.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength = {strength}; it must be finite and not negative: 1 is the reverse SDE, 0 the ODE")
    run = Run(denoiser, x, sigmas, schedule, cond, callback=callback, trajectory=trajectory)
    increment = _increments(run, noise, path)
    for t, t_next in run:
        here, denoised = run.slope(run.state, t)
        if t_next is None or run.sigma_next == 0:
            run.move(denoised, denoised)
            continue
        scale, g = schedule.scale(t), strength * schedule.diffusion(t)
        score = (denoised - run.state / scale) / (scale * schedule.sigma(t) ** 2)
        state = run.state + (t_next - t) * (here - g**2 / 2 * score)
        run.move(state + g * increment(t, t_next) if strength > 0 else state, denoised)
    return run.solution()


def _increments(run: Run, noise: Noise | None, path: BrownianPath | None) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives the increments of the Wiener process between two times of a run: a path's own, or fresh ones."""
    if path is None:
        return lambda start, end: (start - end).sqrt() * (noise or torch.randn_like)(run.state)
    if noise is not None:
        raise ValueError("noise and path are both given; give one of them")
    shape = (len(path.seeds), *path.shape)
    if shape != run.state.shape:
        raise ValueError(f"path has shape {shape}, x {tuple(run.state.shape)}; give one seed a sample, and its shape")
    first, last = run.schedule.sigma_inv(run.levels[[0, -2]]).tolist()
    if not path.contains(first) or not path.contains(last):
        raise ValueError(f"path runs from {path.start} to {path.end}; the run needs all from t = {first} to {last}")
    return lambda start, end: path.increment(float(start), float(end)).to(run.state)

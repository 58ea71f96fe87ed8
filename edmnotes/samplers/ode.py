"""Solvers of the probability-flow ODE."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.samplers.base import Callback, Churn, Noise, Run, Solution
from edmnotes.schedules import EDM, Schedule

# EDM() is a frozen value, safe as a default.
_EDM = EDM()
# Gauss's rule on [−1, 1]: exact to rounding for the exponential of a step of up to nine decades in σ.
_GAUSS = tuple(torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(32))


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


def multistep_weights(sigmas: Float[Tensor, " values"], sigma_next: float) -> Float[Tensor, " values"]:
    r"""The weights of past denoised values in one step of :func:`multistep`, the newest first.

    With λ = −ln σ and y = x/s the probability-flow ODE is dy/dλ = D − y, and from λ_0 to λ_1

        y_1 = (σ_1/σ_0) y_0 + ∫ exp(λ − λ_1) D dλ.

    Here D is the polynomial in λ through its values at ``sigmas``, D = Σ_j ℓ_j(λ) D_j, so that the weight of D_j is
    ∫ exp(λ − λ_1) ℓ_j(λ) dλ. Gauss's rule does the integral: nothing cancels, however short the step is.

    Args:
        sigmas: levels of the values, increasing: the first is where the step begins.
        sigma_next: where it ends, below all of them and above 0.

    Returns:
        One weight a value, float64; they sum to 1 − σ_1/σ_0.
    """
    levels = torch.cat([sigmas.double(), torch.tensor([sigma_next], dtype=torch.float64)])
    # λ − λ_0. Where two levels nearly agree their difference keeps its digits, that of their logarithms loses them.
    rise, ratio = (levels - levels[0]) / levels[0], levels / levels[0]
    *places, step = -torch.where(rise.abs() < 0.5, torch.log1p(rise), torch.log(ratio))
    nodes, gauss = _GAUSS
    u = (1 + nodes) / 2  # the step's own clock, from 0 to 1
    values = torch.stack(places) / step  # on that clock; 0, then negative
    others = ~torch.eye(len(values), dtype=torch.bool)
    lagrange = torch.stack(
        [torch.prod((u[:, None] - values[other]) / (values[j] - values[other]), 1) for j, other in enumerate(others)]
    )
    return lagrange @ (torch.exp(-step * (1 - u)) * gauss) * step / 2


def multistep(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    schedule: Schedule = _EDM,
    order: int = 3,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by an exponential multistep method in ln σ on the probability-flow ODE.

    The linear part of the ODE is solved exactly; the denoiser is extrapolated by the polynomial through its last
    ``order`` values (:func:`multistep_weights`), so a step costs one call whatever the order. Order 1 is DDIM: on the
    EDM schedule, Euler's method. The result does not depend on the schedule, whose scale is divided out.

    The first steps have fewer values and use them all, at a lower order, which leaves an error of second order in the
    length of the first step. From a σ_max of many times the data's std it is far below the rest, since D hardly moves
    there. From a lower start it rules the orders 3 and 4: split the first step with a few more levels close to
    ``sigmas[0]``. The last step, to level 0, is D itself, the limit of order 1: the polynomials of higher order in λ
    have none, λ being infinite there.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the schedule's coordinates, s (x_0 + σ ε); s σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0 (see :mod:`edmnotes.steps`); in units of the data.
        schedule: s(t) and σ(t); the default has s = 1 and σ = t.
        order: number of denoised values that a step uses, 1 to 4; with fewer levels it never gets there.
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``order`` is not 1, 2, 3 or 4, or ``x`` is not
            floating.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order = {order}; it must be 1, 2, 3 or 4")
    run = Run(denoiser, x, sigmas, schedule, cond, callback=callback, trajectory=trajectory)
    past: list[Tensor] = []  # denoised values, the newest first
    for t, t_next in run:
        past = [run.slope.denoised(run.state, t), *past[: order - 1]]
        if t_next is None or run.sigma_next == 0:
            run.move(past[0], past[0])
            continue
        weights = multistep_weights(run.levels[run.i + 1 - len(past) : run.i + 1].flip(0), run.sigma_next)
        unscaled = run.sigma_next / run.sigma * run.state / schedule.scale(t)
        unscaled = unscaled + sum(weight * value for weight, value in zip(weights, past, strict=True))
        run.move(schedule.scale(t_next) * unscaled, past[0])
    return run.solution()


def adaptive(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    schedule: Schedule = _EDM,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by Dormand and Prince's fifth-order method with steps of its own choice: a reference for the others.

    It solves the probability-flow ODE in the schedule's time down to the last level above 0; the last step is D
    itself. torchdiffeq chooses the steps by the root mean square error over the *whole batch*, so what one sample
    gets depends, within the tolerance, on the samples beside it.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the schedule's coordinates, s (x_0 + σ ε); s σ ε for a fresh start.
        sigmas: strictly decreasing noise levels, the last one 0. A step ends at each of them; for steps that are all
            free give σ_max, σ_min and 0.
        schedule: s(t) and σ(t); the default has s = 1 and σ = t.
        rtol: relative error allowed in a step.
        atol: absolute error allowed in a step, in units of the state.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe``, which counts the calls of rejected steps too.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, a tolerance is not positive, or ``x`` is not floating.
        ImportError: if torchdiffeq is not installed.
    """
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not 0 < tolerance < float("inf"):
            raise ValueError(f"{name} = {tolerance}; it must be positive and finite, e.g. 1e-6")
    try:
        from torchdiffeq import odeint
    except ImportError as missing:
        raise ImportError("samplers.adaptive needs torchdiffeq: pip install 'edmnotes[ode]'") from missing
    run = Run(denoiser, x, sigmas, schedule, cond, callback=None, trajectory=False)
    times = schedule.sigma_inv(run.levels[:-1])
    path = odeint(
        lambda t, state: run.slope(state, t.cpu())[0],
        run.state,
        times.to(run.state),
        rtol=rtol,
        atol=atol,
        method="dopri5",
        # Without step_t the solver would step over the end, to levels below 0, and interpolate back.
        options={"step_t": times[1:].to(run.state), "dtype": run.state.dtype},
    )
    clean = run.slope.denoised(path[-1], times[-1])
    return Solution(clean.to(x.dtype), run.slope.calls, torch.cat([path, clean[None]]) if trajectory else None)

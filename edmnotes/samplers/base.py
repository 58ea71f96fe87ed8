"""What all samplers share: the result, the check of the levels, the slope, the churn."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.schedules import Schedule

Noise = Callable[[Tensor], Tensor]
Callback = Callable[..., None]


@dataclass(frozen=True)
class Solution:
    r"""What a sampler returns.

    Attributes:
        x: the samples at level 0, in the dtype of the start.
        nfe: number of times the denoiser was called.
        trajectory: states at all levels, the start first, shape (levels, batch, \*shape); None unless asked for.
    """

    x: Float[Tensor, "batch *shape"]
    nfe: int
    trajectory: Float[Tensor, "levels batch *shape"] | None = None


@dataclass(frozen=True)
class Churn:
    """Noise put back before each step (Karras et al. 2022, Algorithm 2).

    Attributes:
        amount: S_churn; a step raises σ by the factor 1 + min(amount / n, √2 − 1). At 0 no random number is drawn.
        sigma_min: S_tmin, the lowest level at which noise is put back.
        sigma_max: S_tmax, the highest.
        noise_scale: S_noise, factor on the noise put back.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise ValueError(f"amount = {self.amount}; it must be finite and not negative, e.g. 40")
        if not 0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}; need 0 <= min <= max")
        if not 0 <= self.noise_scale < math.inf:
            raise ValueError(f"noise_scale = {self.noise_scale}; it must be finite and not negative, e.g. 1.003")

    def gamma(self, sigma: float, n: int) -> float:
        """The relative rise of the noise level in a step at ``sigma``, out of ``n`` steps."""
        return min(self.amount / n, math.sqrt(2) - 1) if self.sigma_min <= sigma <= self.sigma_max else 0.0


def check_levels(sigmas: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """The levels in float64 on the CPU, so that no later decision waits for a device.

    Raises:
        ValueError: unless there are at least two, finite, strictly decreasing, the last one 0.
    """
    levels = torch.as_tensor(sigmas).detach().to("cpu", torch.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"sigmas has shape {tuple(levels.shape)}; give at least one level above 0, then 0 (see steps)")
    if not bool(levels.isfinite().all()) or not bool((levels.diff() < 0).all()) or levels[-1] != 0:
        shown = ", ".join(f"{level:.4g}" for level in levels[:8].tolist()) + (", ..." if len(levels) > 8 else "")
        raise ValueError(f"sigmas = [{shown}]; levels must be finite and decrease strictly, the last one 0 (see steps)")
    return levels


def intervals(schedule: Schedule, levels: Float[Tensor, " levels"]) -> list[tuple[Tensor, Tensor | None]]:
    """The times at which each step begins and ends.

    Level 0 lies outside some schedules; the last step, which is D itself there, then ends at None.

    Raises:
        ValueError: if another level lies outside the schedule's domain.
    """
    reached = levels[: len(levels) - (schedule.levels.low > 0)]
    times = list(schedule.sigma_inv(reached))
    return list(zip(times, [*times[1:], None], strict=True))[: len(levels) - 1]


def working_dtype(x: Tensor) -> torch.dtype:
    """float64, where the device of ``x`` has it."""
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; the start must be floating, s * sigma * noise")
    return torch.float32 if x.device.type == "mps" else torch.float64


class Trace:
    """Keeps the states that were asked for, and tells the caller's callback of each step."""

    def __init__(self, x: Tensor, *, trajectory: bool, callback: Callback | None) -> None:
        self.states = [x] if trajectory else None
        self.callback = callback

    def add(self, x: Tensor, **step: Any) -> None:
        """One step was taken to the state ``x``; ``step`` is what the callback hears of it."""
        if self.states is not None:
            self.states.append(x)
        if self.callback is not None:
            self.callback(x=x, **step)

    def stacked(self) -> Tensor | None:
        """All states, the start first."""
        return None if self.states is None else torch.stack(self.states)


class Slope:
    """dx/dt of the probability-flow ODE for a denoiser, on any schedule; counts its calls."""

    def __init__(self, denoiser: DenoiserLike, schedule: Schedule, cond: dict[str, Any]) -> None:
        self.denoiser, self.schedule, self.cond, self.calls = denoiser, schedule, cond, 0

    @torch.no_grad()
    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """D(x/s; σ) at (x, t), in the dtype of x."""
        self.calls += 1
        return self.denoiser(x / self.schedule.scale(t), self.schedule.sigma(t), **self.cond).to(x.dtype)

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The slope at (x, t), and the denoised state it comes from.

        dx/dt = (ṡ/s + σ̇/σ) x − s σ̇/σ D(x/s; σ) (Karras et al. 2022, eq. 81), t on the CPU.
        """
        scale, denoised = self.schedule.scale(t), self.denoised(x, t)
        growth = self.schedule.sigma_deriv(t) / self.schedule.sigma(t)
        return (self.schedule.scale_deriv(t) / scale + growth) * x - growth * scale * denoised, denoised


class Run:
    """A sampler on its way down the levels: what all of them do around a step of their own.

    Iterating gives the times (t, t_next) of each step, from :func:`intervals`; the sampler ends each with
    :meth:`move`, and itself with :meth:`solution`.

    Attributes:
        levels: the levels, checked, float64 on the CPU.
        state: where the sampler is, in the working dtype.
        slope: the slope of the probability-flow ODE, and the denoiser, whose calls it counts.
        i: number of the present step, from 0.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        sigmas: Tensor,
        schedule: Schedule,
        cond: dict[str, Any],
        *,
        callback: Callback | None,
        trajectory: bool,
    ) -> None:
        self.levels, self.state = check_levels(sigmas), x.to(working_dtype(x))
        self.schedule, self.dtype, self.i = schedule, x.dtype, 0
        self.slope = Slope(denoiser, schedule, cond)
        self.trace = Trace(self.state, trajectory=trajectory, callback=callback)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for i, times in enumerate(intervals(self.schedule, self.levels)):
            self.i = i
            yield times

    @property
    def sigma(self) -> float:
        """The level at which the present step begins, before any churn."""
        return float(self.levels[self.i])

    @property
    def sigma_next(self) -> float:
        """The level at which it ends."""
        return float(self.levels[self.i + 1])

    def churned(self, t: Tensor, churn: Churn | None, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """The state with its noise level raised by the factor 1 + γ, and its new time (Algorithm 2, lines 4 to 6)."""
        gamma = churn.gamma(self.sigma, len(self.levels) - 1) if churn else 0.0
        if churn is None or gamma == 0:
            return self.state, t
        sigma = self.schedule.sigma(t)
        t_hat = self.schedule.sigma_inv(sigma * (1 + gamma))
        # √(σ̂² − σ²) from gamma itself: a rise lost in rounding σ̂ would make the difference negative, or random.
        added = sigma * math.sqrt(gamma * (2 + gamma))
        scale = self.schedule.scale(t_hat)
        drawn = (noise or torch.randn_like)(self.state)
        return scale / self.schedule.scale(t) * self.state + scale * added * churn.noise_scale * drawn, t_hat

    def move(self, x: Tensor, denoised: Tensor) -> None:
        """The present step ends at the state ``x``; ``denoised`` is what the callback hears of."""
        self.state = x
        self.trace.add(x, i=self.i, sigma=self.sigma, denoised=denoised)

    def solution(self) -> Solution:
        """Where the run ended, in the dtype of the start."""
        return Solution(self.state.to(self.dtype), self.slope.calls, self.trace.stacked())

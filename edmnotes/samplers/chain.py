"""Chains: the samplers of DDPM and DDIM down any list of levels, and the variances that their noise may have."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.samplers.base import Callback, Noise, Run, Solution, working_dtype
from edmnotes.schedules import EDM, Times


@dataclass(frozen=True)
class ChainStep:
    """A step of a chain from one noise level to a lower one, in DDPM's letters; primed ones belong to the lower level.

    A chain has s = 1/√(1 + σ²), so that ᾱ = s² and both levels fix all the rest. Given x_0, the chain goes from x to
    x' = √ᾱ' x_0 + √(β̄' − λ²) ε + λ z, where ε is the noise in x and z is new (Song et al. 2021, DDIM, eq. 7).

    Attributes:
        sigma: the level σ at which the step begins; in units of the data.
        sigma_next: the level σ' at which it ends, from 0 to below ``sigma``.
        eta: η = λ / √β̃; 1 is the posterior of DDPM's forward chain, 0 is DDIM.

    Raises:
        ValueError: if the levels do not fall, or η is negative or so large that λ² is above 1 − ᾱ', which at level 0
            is any η above 1.
    """

    sigma: float
    sigma_next: float
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_next < self.sigma < math.inf:
            raise ValueError(f"sigma = {self.sigma}, sigma_next = {self.sigma_next}; need 0 <= sigma_next < sigma")
        if not (self.eta >= 0 and self._old >= 0):
            largest = (1 - (self.sigma_next / self.sigma) ** 2) ** -0.5
            raise ValueError(
                f"eta = {self.eta}; from level {self.sigma:.4g} to {self.sigma_next:.4g} it must lie between 0 and "
                f"{largest:.4g}: the new noise is part of all noise there. 0 is DDIM, 1 is DDPM"
            )

    @property
    def alpha_bar(self) -> float:
        """ᾱ = 1/(1 + σ²), the squared factor of the signal."""
        return 1 / (1 + self.sigma**2)

    @property
    def alpha_bar_next(self) -> float:
        """ᾱ' = 1/(1 + σ'²)."""
        return 1 / (1 + self.sigma_next**2)

    @property
    def beta_bar(self) -> float:
        """β̄ = 1 − ᾱ, the variance of the noise; written as ᾱ σ², which loses no digits at low levels."""
        return self.alpha_bar * self.sigma**2

    @property
    def beta_bar_next(self) -> float:
        """β̄' = 1 − ᾱ'."""
        return self.alpha_bar_next * self.sigma_next**2

    @property
    def alpha(self) -> float:
        """α = ᾱ/ᾱ', the squared factor of the forward step from σ' to σ."""
        return self.alpha_bar / self.alpha_bar_next

    @property
    def beta(self) -> float:
        """β = 1 − α, the variance of the noise of the forward step."""
        return self.alpha_bar * (self.sigma - self.sigma_next) * (self.sigma + self.sigma_next)

    @property
    def posterior(self) -> float:
        """β̃ = β β̄'/β̄, the variance of x' given x and x_0 in the forward chain, ``chain-posterior-variance``."""
        return self.beta * self.beta_bar_next / self.beta_bar

    @property
    def kept(self) -> float:
        """λ² = η² β̃, the variance of x' given x and x_0 in the family with this η."""
        return self.eta**2 * self.posterior

    @property
    def old(self) -> float:
        """β̄' − λ², the variance of that part of the noise in x' which was in x already."""
        return self.beta_bar_next * self._old

    @property
    def _old(self) -> float:
        """(β̄' − λ²)/β̄', without the difference."""
        return (1 - self.eta**2) + (self.eta * self.sigma_next / self.sigma) ** 2

    @property
    def reach(self) -> float:
        """How far x' moves when the guess of the noise in x moves by 1, √(β̄/α) − √(β̄' − λ²)."""
        return math.sqrt(self.beta_bar / self.alpha) - math.sqrt(self.old)

    def analytic(self, unexplained: float | Tensor) -> Any:
        """The best variance of the step, λ² + (√(β̄/α) − √(β̄' − λ²))² u, equation ``analytic-variance``.

        It is the mean of the variances that x' has given x: Analytic-DPM (Bao et al. 2022, Theorem 1).

        Args:
            unexplained: u = E tr Cov[ε | x] / d, the mean variance of the noise in x given x; for the ideal denoiser
                1 − E‖ε̂‖²/d. At 0 the result is the lower bound of all chains, at 1 the upper one (Theorem 2).

        Returns:
            A number or tensor, like ``unexplained``.
        """
        return self.kept + self.reach**2 * unexplained


@runtime_checkable
class Variance(Protocol):
    """The variance of the noise of a step: a number, or a tensor that broadcasts against x.

    In chain coordinates. No random number is drawn in a step where it is the number 0.
    """

    def __call__(
        self, step: ChainStep, y: Float[Tensor, "batch *shape"], denoised: Float[Tensor, "batch *shape"]
    ) -> float | Tensor:
        """The variance in ``step``, from the unscaled state y = x/s and D(y; σ)."""


@dataclass(frozen=True)
class Posterior:
    """λ² = η² β̃, the variance of x' given x and x_0: right for a single point. DDPM's small variance when η = 1."""

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> float:
        """λ²."""
        return step.kept


@dataclass(frozen=True)
class Beta:
    """β, the variance of the forward step: right in DDPM for data of unit variance. DDPM's large variance."""

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> float:
        """β."""
        return step.beta


@dataclass(frozen=True)
class Interpolated:
    """β^v β̃^(1 − v), between DDPM's two variances (Nichol and Dhariwal 2021, eq. 15), ``learned-variance``.

    Attributes:
        fraction: v between 0 and 1, a number or a function of (y, σ), unscaled, such as a network that learned it.
    """

    fraction: float | Callable[[Tensor, float], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.fraction) and not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction = {self.fraction}; it must lie between 0, the posterior's, and 1, beta's")

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> float | Tensor:
        """exp(v log β + (1 − v) log β̃)."""
        v = self.fraction(y, step.sigma) if callable(self.fraction) else self.fraction
        return step.posterior * (step.beta / step.posterior) ** v


@dataclass(frozen=True, eq=False)
class Analytic:
    r"""The best variance that does not depend on x (Bao et al. 2022, Analytic-DPM), equation ``analytic-variance``.

    It takes λ from the sampler: the paper's form for DDPM in :func:`ddpm`, that for DDIM in :func:`ddim`. Levels
    between those measured are read off linearly in log σ.

    Attributes:
        sigmas: levels above 0 at which ``noise_square`` was measured, in strict order; in units of the data.
        noise_square: Γ = E‖ε̂‖²/d at these levels, ``analytic-noise-square`` (see :func:`noise_moments`), shape
            (levels,); or (levels, \*shape) for a variance of its own for each coordinate. With 1 − E‖ε − ε̂‖²/d in its
            place the variance is the best about the denoiser's own mean, however wrong that is; for the ideal denoiser
            the two agree.
        radius: half the width of the interval that holds the data, if there is one: 1 for data in [−1, 1]. It bounds
            the variance of x_0 given x, and with it the result (Theorem 2).

    Raises:
        ValueError: if levels and values do not fit each other, are not finite, or the radius is not positive.
    """

    sigmas: Tensor
    noise_square: Tensor
    radius: float = math.inf

    def __post_init__(self) -> None:
        sigmas, values = (
            torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in (self.sigmas, self.noise_square)
        )
        _require_levels(sigmas)
        order = sigmas.argsort()
        if not bool((sigmas[order].diff() > 0).all()):
            raise ValueError("sigmas holds a level twice; give each once")
        if values.shape[:1] != sigmas.shape or not bool(values.isfinite().all()):
            raise ValueError(
                f"noise_square has shape {tuple(values.shape)}; it must be finite, one value (or one a coordinate) for "
                f"each of the {len(sigmas)} levels"
            )
        if not self.radius > 0:
            raise ValueError(f"radius = {self.radius}; it must be positive, 1 for data in [-1, 1]")
        object.__setattr__(self, "sigmas", sigmas[order])
        object.__setattr__(self, "noise_square", values[order])

    def unexplained(self, sigma: float) -> Float[Tensor, "*shape"]:
        """U = 1 − Γ at a level, held between 0 and min(1, radius²/σ²).

        Raises:
            ValueError: if the level lies outside those measured.
        """
        low, high = float(self.sigmas[0]), float(self.sigmas[-1])
        if not low * (1 - _SLACK) <= sigma <= high * (1 + _SLACK):
            raise ValueError(f"sigma = {sigma:.6g}; the noise square was measured from {low:.6g} to {high:.6g} only")
        place = torch.tensor(sigma, dtype=torch.float64)
        right = int(torch.searchsorted(self.sigmas, place).clamp(max=len(self.sigmas) - 1))
        left = max(right - 1, 0)
        span = (self.sigmas[right] / self.sigmas[left]).log()
        share = (place / self.sigmas[left]).log() / span if span > 0 else span
        gamma = torch.lerp(self.noise_square[left], self.noise_square[right], share.clamp(0, 1))
        return (1 - gamma).clamp(0, min(1.0, (self.radius / sigma) ** 2))

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> Tensor:
        """λ² + (√(β̄/α) − √(β̄' − λ²))² (1 − Γ)."""
        u = self.unexplained(step.sigma)
        return step.analytic(u.to(y) if u.ndim else u)  # a number mixes with tensors of any device


@dataclass(frozen=True)
class NoiseSquare:
    """The best variance of each coordinate at each x, from the noise square (Bao et al. 2022, Extended-Analytic-DPM).

    The SN form. It is right for the ideal denoiser; of an error of ε̂ itself it knows nothing.

    Attributes:
        square: function of (y, σ), unscaled: E[ε² | x] for each coordinate, such as a network that learned it.
    """

    square: Callable[[Tensor, float], Tensor]

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> Tensor:
        """The variance with u = E[ε² | x] − ε̂², where that is not negative."""
        guess = (y - denoised) / step.sigma
        return step.analytic((self.square(y, step.sigma) - guess**2).clamp(min=0))


@dataclass(frozen=True)
class Residual:
    """The best variance of each coordinate at each x about the denoiser's own mean (Extended-Analytic-DPM, NPR form).

    Attributes:
        square: function of (y, σ), unscaled: E[(ε − ε̂)² | x] for each coordinate, such as a network that learned it.
    """

    square: Callable[[Tensor, float], Tensor]

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> Tensor:
        """The variance with u = E[(ε − ε̂)² | x]."""
        return step.analytic(self.square(y, step.sigma))


@dataclass(frozen=True)
class Capped:
    """Another variance, held down in the last steps: their noise stays in the result, where the eye sees it.

    Analytic-DPM's setting for its last noise is E|σ ε| ≤ 2/255 · y in pixels of range [−1, 1], so
    ``std`` = 2/255 · y √(π/2) with y = 1 or 2.

    Attributes:
        variance: the other variance.
        std: the largest standard deviation of the noise, in chain coordinates.
        below: the cap holds in steps that end at this level or below it.
    """

    variance: Variance
    std: float
    below: float

    def __post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std = {self.std}; it must be finite and not negative")
        if not self.below > 0:
            raise ValueError(f"below = {self.below}; it must be positive, a level at which a step ends")

    def __call__(self, step: ChainStep, y: Tensor, denoised: Tensor) -> float | Tensor:
        """The other variance, or std² if that is less."""
        free = self.variance(step, y, denoised)
        if step.sigma_next > self.below:
            return free
        return free.clamp(max=self.std**2) if isinstance(free, Tensor) else min(free, self.std**2)


# Levels that were computed twice, once in float32, differ in their last digits.
_SLACK = 1e-6
# A frozen value, safe as a default.
_POSTERIOR = Posterior()


class _ByLevel(EDM):
    """The schedule of every chain, with the level for its clock: s = 1/√(1 + σ²), σ = t."""

    def scale(self, t: Times) -> Tensor:
        """s(t) = 1/√(1 + t²)."""
        return torch.rsqrt(1 + self._time(t) ** 2)

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = −t s³."""
        return -self._time(t) * self.scale(t) ** 3


def ddpm(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    variance: Variance = _POSTERIOR,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by DDPM's reverse chain (Ho et al. 2020, Algorithm 2), equation ``chain-ancestral``.

    Each step goes to the mean of x' given x and x_0 = D, and adds noise; the last one, to level 0, is D. The levels are
    the chain: any sub-sequence of a longer chain is one too (Nichol and Dhariwal 2021).

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the chain's coordinates, s (x_0 + σ ε) with s = 1/√(1 + σ²); standard normal noise
            for a fresh start where σ is large, s σ ε in general.
        sigmas: strictly decreasing noise levels, the last one 0 (see :func:`edmnotes.steps.linear`); in units of the
            data.
        variance: of the noise of a step: :class:`Posterior`, :class:`Beta`, :class:`Interpolated`, :class:`Analytic`,
            :class:`NoiseSquare`, :class:`Residual`, :class:`Capped`, or a function like them.
        noise: standard normal noise like its argument; the default draws from torch's global generator (see
            :class:`edmnotes.noise.PerSample`).
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``x`` is not floating, or a variance does not fit x.
    """
    run = Run(denoiser, x, sigmas, _ByLevel(), cond, callback=callback, trajectory=trajectory)
    for step, sigma in _steps(run, eta=1.0):
        denoised = run.slope.denoised(run.state, sigma)
        clean = math.sqrt(step.alpha_bar_next) * step.beta / step.beta_bar
        noisy = math.sqrt(step.alpha) * step.beta_bar_next / step.beta_bar
        mean = clean * denoised + noisy * run.state
        run.move(_noised(mean, run.state, denoised, step, variance, noise), denoised)
    return run.solution()


def ddim(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    eta: float = 0.0,
    variance: Variance = _POSTERIOR,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    **cond: Any,
) -> Solution:
    """Sample by DDIM (Song et al. 2021, eq. 12), equation ``ddim-step``.

    Each step sets the signal to √ᾱ' D, keeps √(1 − ᾱ' − λ²) of the guessed noise and draws new noise for the rest. With
    η = 0 nothing is drawn and it is Euler's method in σ; with η = 1 it is :func:`ddpm`.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x: state at ``sigmas[0]`` in the chain's coordinates, s (x_0 + σ ε) with s = 1/√(1 + σ²); standard normal noise
            for a fresh start where σ is large, s σ ε in general.
        sigmas: strictly decreasing noise levels, the last one 0 (see :func:`edmnotes.steps.quadratic`); in units of the
            data.
        eta: η = λ/√β̃, from 0 to 1.
        variance: of the noise of a step; the default is λ² itself (see :func:`ddpm`).
        noise: standard normal noise like its argument; the default draws from torch's global generator (see
            :class:`edmnotes.noise.PerSample`).
        callback: called after each step as ``callback(i=, sigma=, x=, denoised=)``.
        trajectory: keep the states at all levels.
        **cond: passed to the denoiser.

    Returns:
        ``Solution`` with the samples at level 0 and ``nfe`` = n for n levels above 0.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, ``eta`` is impossible, ``x`` is not floating, or a
            variance does not fit x.
    """
    run = Run(denoiser, x, sigmas, _ByLevel(), cond, callback=callback, trajectory=trajectory)
    for step, sigma in _steps(run, eta):
        denoised = run.slope.denoised(run.state, sigma)
        guess = (run.state - math.sqrt(step.alpha_bar) * denoised) / math.sqrt(step.beta_bar)
        mean = math.sqrt(step.alpha_bar_next) * denoised + math.sqrt(step.old) * guess
        run.move(_noised(mean, run.state, denoised, step, variance, noise), denoised)
    return run.solution()


def _steps(run: Run, eta: float) -> Iterator[tuple[ChainStep, Tensor]]:
    """The steps of a run, all checked before the first is taken, each with its level as the denoiser gets it."""
    steps = [ChainStep(sigma, sigma_next, eta) for sigma, sigma_next in pairwise(run.levels.tolist())]
    for step, (sigma, _) in zip(steps, run, strict=True):
        yield step, sigma


def _noised(
    mean: Tensor, x: Tensor, denoised: Tensor, step: ChainStep, variance: Variance, noise: Noise | None
) -> Tensor:
    """The mean with the noise of the step added, which the last step, to level 0, has none of."""
    if step.sigma_next == 0:
        return mean
    spread = variance(step, x / math.sqrt(step.alpha_bar), denoised)
    if not isinstance(spread, Tensor):
        if not 0 <= spread < math.inf:
            raise ValueError(f"variance = {spread} in the step to level {step.sigma_next:.4g}; it must not be negative")
        return mean if spread == 0 else mean + math.sqrt(spread) * (noise or torch.randn_like)(x)
    if spread.ndim > x.ndim or any(a not in (1, b) for a, b in zip(spread.shape[::-1], x.shape[::-1], strict=False)):
        raise ValueError(f"variance has shape {tuple(spread.shape)}, which does not fit samples of {tuple(x.shape)}")
    return mean + spread.to(x.dtype).sqrt() * (noise or torch.randn_like)(x)


@dataclass(frozen=True, eq=False)
class NoiseMoments:
    r"""How well a denoiser guesses the noise, level by level; means over the data, for each coordinate.

    Attributes:
        sigmas: the levels, float64.
        square: E[ε̂²], shape (levels, \*shape); its mean over the coordinates is Γ, ``analytic-noise-square``. What the
            drawn ε² have by chance above or below 1 is taken out, as far as ε̂² went along with it.
        residual: E[(ε − ε̂)²], the same shape; its mean is 1 − Γ for the ideal denoiser, and larger for any other.
    """

    sigmas: Float[Tensor, " levels"]
    square: Float[Tensor, "levels *shape"]
    residual: Float[Tensor, "levels *shape"]


@torch.no_grad()
def noise_moments(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "n *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    noise: Noise | None = None,
    batch: int = 512,
    **cond: Any,
) -> NoiseMoments:
    """Measure how well a denoiser guesses the noise (Bao et al. 2022, eq. 8), one pass over the data a level.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x0: data, in unscaled coordinates.
        sigmas: levels above 0, in any order; in units of the data.
        noise: standard normal noise like its argument, drawn anew for each level; the default draws from torch's
            global generator (see :class:`edmnotes.noise.PerSample`).
        batch: most samples in one call of the denoiser.
        **cond: passed to the denoiser; of a tensor with an entry a sample, the entries of the batch.

    Returns:
        Means in float64, on the CPU.

    Raises:
        ValueError: if there are no data, they are not floating, a level is not positive and finite, or ``batch`` is
            below 1.
    """
    levels = torch.as_tensor(sigmas).detach().to("cpu", torch.float64)
    _require_levels(levels)
    if x0.ndim < 1 or len(x0) < 1:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; it must be (n, *shape) with n of 1 or more")
    if batch < 1:
        raise ValueError(f"batch = {batch}; it must be at least 1")
    clean, squares, residuals = x0.to(working_dtype(x0)), [], []
    for sigma in levels:
        drawn = (noise or torch.randn_like)(clean)
        noised, missed = clean + sigma * drawn, torch.empty_like(clean)
        for part in torch.arange(len(clean), device=clean.device).split(batch):
            own = {k: v[part] if isinstance(v, Tensor) and v.shape[:1] == x0.shape[:1] else v for k, v in cond.items()}
            missed[part] = (clean[part] - denoiser(noised[part], sigma, **own).to(clean)) / sigma  # ε̂ − ε, no 0/0
        squares.append(_mean_beside(drawn + missed, drawn))
        residuals.append(missed.square().mean(0))
    return NoiseMoments(levels, *(torch.stack(found).to("cpu", torch.float64) for found in (squares, residuals)))


def _mean_beside(guess: Tensor, drawn: Tensor) -> Tensor:
    """The mean of ε̂² with ε² as a control variate, whose mean is 1.

    At high levels ε̂ is almost ε, and what is wanted, 1 − Γ, is far below the chance deviation of a mean of squares.
    """
    square, known = guess.square(), drawn.square()
    deviation = known - known.mean(0)
    slope = (square * deviation).mean(0) / deviation.square().mean(0).clamp(min=1e-300)  # 0 for a single sample
    return square.mean(0) - slope * (known.mean(0) - 1)


def _require_levels(levels: Tensor) -> None:
    if levels.ndim != 1 or not len(levels) or not bool(((levels > 0) & (levels < torch.inf)).all()):
        raise ValueError(f"sigmas has shape {tuple(levels.shape)}; it must be a list of positive, finite levels")

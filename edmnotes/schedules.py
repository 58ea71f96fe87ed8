r"""Noise schedules: the two functions s(t), σ(t) of the noising formula, and the SDE they stand for.

Taught in the chapter ``forward``. A schedule fixes ``x_t = s(t) (x_0 + σ(t) ε)``, the equation ``noising`` of the book;
everything else here follows from these two functions.

All methods take a float or a tensor of times (any shape) and return a tensor of the same shape; a float becomes
float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, "*times"] | float


@dataclass(frozen=True)
class Domain:
    """An interval of times or noise levels.

    Attributes:
        low: the lowest, included.
        high: the highest.
        open: whether ``high`` is left out, as infinity always is.
    """

    low: float = 0.0
    high: float = math.inf
    open: bool = False

    def __str__(self) -> str:
        return f"[{self.low:.6g}, {self.high:.6g}{')' if self.open or self.high == math.inf else ']'}"

    def require(self, value: Times, name: str) -> Tensor:
        """The value as a floating tensor.

        Raises:
            ValueError: if a part of it lies outside, or it is not floating.
        """
        tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; pass floats, e.g. {name}.double()")
        slack = 4 * torch.finfo(tensor.dtype).eps  # an end that was computed may come back rounded
        below = tensor < self.high if self.open else tensor <= self.high * (1 + slack)
        # All of them inside, rather than none outside: nan, which compares false with everything, is refused too.
        inside = (tensor >= self.low * (1 - slack)) & below & (tensor < math.inf)
        if not bool(inside.all()):
            raise ValueError(f"{name} = {tensor[~inside][0]:.6g} lies outside the domain of this schedule, {self}")
        return tensor


@runtime_checkable
class Schedule(Protocol):
    """What samplers, losses and likelihoods need to know of a schedule.

    Attributes:
        times: the times at which it is defined.
        levels: the noise levels that it takes there.
    """

    @property
    def times(self) -> Domain:
        """The times at which the schedule is defined."""

    @property
    def levels(self) -> Domain:
        """The noise levels that it takes there."""

    def scale(self, t: Times) -> Tensor:
        """s(t), the factor on the signal; no unit."""

    def sigma(self, t: Times) -> Tensor:
        """σ(t), the noise level relative to the signal; in units of the data."""

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt."""

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt."""

    def sigma_inv(self, sigma: Times) -> Tensor:
        """The time at which the noise level is ``sigma``."""

    def drift(self, t: Times) -> Tensor:
        """f(t) of dx = f x dt + g dw."""

    def diffusion(self, t: Times) -> Tensor:
        """g(t) of dx = f x dt + g dw."""

    def snr(self, t: Times) -> Tensor:
        """Signal-to-noise power ratio for data of unit power, 1 / σ(t)²."""

    def transition(self, start: Times, end: Times) -> tuple[Tensor, Tensor]:
        """The pair (a, b) of the step x_end = a x_start + b ε."""


class _Derived:
    """What follows from s and σ alone, the same for every schedule."""

    @property
    def times(self) -> Domain:
        """All times from 0 on."""
        return Domain()

    @property
    def levels(self) -> Domain:
        """All noise levels from 0 on."""
        return Domain()

    def _time(self, t: Times) -> Tensor:
        return self.times.require(t, "t")

    def _level(self, sigma: Times) -> Tensor:
        return self.levels.require(sigma, "sigma")

    def drift(self: Schedule, t: Times) -> Tensor:
        """f(t) = (ds/dt) / s, equation ``drift-from-scale`` (Karras et al. 2022, eq. 23)."""
        return self.scale_deriv(t) / self.scale(t)

    def diffusion(self: Schedule, t: Times) -> Tensor:
        """g(t) = s √(2 σ dσ/dt), equation ``diffusion-from-sigma`` (Karras et al. 2022, eq. 25)."""
        return self.scale(t) * torch.sqrt(2 * self.sigma(t) * self.sigma_deriv(t))

    def snr(self: Schedule, t: Times) -> Tensor:
        """1 / σ(t)²: the signal-to-noise power ratio of data of unit power, equation ``snr``."""
        return self.sigma(t) ** -2

    def transition(self: Schedule, start: Times, end: Times) -> tuple[Tensor, Tensor]:
        """The step from time ``start`` to a later time ``end``: x_end = a x_start + b ε.

        Equations ``recursion-mean`` and ``recursion-noise``: a = s_end / s_start, b = s_end √(σ_end² − σ_start²).

        Returns:
            a and b, each of the broadcast shape of the two times.

        Raises:
            ValueError: if the noise level falls from ``start`` to ``end``: noise cannot be taken away.
        """
        before, after = self.sigma(start), self.sigma(end)
        if bool((after < before).any()):
            raise ValueError(f"end = {end} has less noise than start = {start}; a step can only add noise")
        # The product form keeps its digits where the two levels almost agree.
        added = torch.sqrt((after - before) * (after + before))
        return self.scale(end) / self.scale(start), self.scale(end) * added


class _Unscaled(_Derived):
    """s = 1: noise is added to the data as they are."""

    def scale(self, t: Times) -> Tensor:
        """s(t) = 1."""
        return torch.ones_like(self._time(t))

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = 0."""
        return torch.zeros_like(self._time(t))


@dataclass(frozen=True)
class EDM(_Unscaled):
    """s = 1, σ = t: time is the noise level (Karras et al. 2022, Table 1, column "Ours")."""

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = t, equation ``edm-schedule``."""
        return self._time(t).clone()

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = 1."""
        return torch.ones_like(self._time(t))

    def sigma_inv(self, sigma: Times) -> Tensor:
        """t = σ."""
        return self._level(sigma).clone()


@dataclass(frozen=True)
class VE(_Unscaled):
    """Variance exploding: s = 1, σ = √t (Song et al. 2021 in the form of Karras et al. 2022, Table 1)."""

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = √t, equation ``ve-schedule``."""
        return self._time(t).sqrt()

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = 1 / (2 √t); infinite at t = 0."""
        return 0.5 * self._time(t).rsqrt()

    def sigma_inv(self, sigma: Times) -> Tensor:
        """t = σ²."""
        return self._level(sigma) ** 2

    def diffusion(self, t: Times) -> Tensor:
        """g(t) = 1, equation ``ve-diffusion``: the general formula is 0 · ∞ at t = 0."""
        return torch.ones_like(self._time(t))


@dataclass(frozen=True)
class GeometricVE(_Unscaled):
    """Variance exploding on the clock of the VE papers: σ grows by the same factor in equal times (Song et al. 2021).

    Equations ``geometric-ve-schedule`` and ``geometric-ve-diffusion``. It starts at ``sigma_min``, not at 0, and is
    defined for times in [0, 1].

    Attributes:
        sigma_min: level at t = 0; in units of the data.
        sigma_max: level at t = 1.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}; need 0 < sigma_min < sigma_max < inf"
            )

    @property
    def times(self) -> Domain:
        """From 0 to 1."""
        return Domain(0.0, 1.0)

    @property
    def levels(self) -> Domain:
        """From ``sigma_min`` to ``sigma_max``."""
        return Domain(self.sigma_min, self.sigma_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = σ_min (σ_max / σ_min)^t, equation ``geometric-ve-schedule``."""
        return self.sigma_min * torch.exp(self._rate * self._time(t))

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = σ ln(σ_max / σ_min)."""
        return self.sigma(t) * self._rate

    def sigma_inv(self, sigma: Times) -> Tensor:
        """t = ln(σ / σ_min) / ln(σ_max / σ_min)."""
        return (torch.log(self._level(sigma) / self.sigma_min) / self._rate).clamp(0, 1)


@dataclass(frozen=True)
class FlowMatching(_Derived):
    """The straight line x_t = (1 − t) x_0 + t ε (Lipman et al. 2023): s = 1 − t, σ = t / (1 − t), t in [0, 1).

    At t = 1 the signal is gone and σ is infinite, so the domain ends before it.
    """

    @property
    def times(self) -> Domain:
        """From 0 to 1, without 1."""
        return Domain(0.0, 1.0, open=True)

    def scale(self, t: Times) -> Tensor:
        """s(t) = 1 − t, equation ``flow-scale``."""
        return 1 - self._time(t)

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = t / (1 − t), equation ``flow-sigma``."""
        t = self._time(t)
        return t / (1 - t)

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = −1."""
        return -torch.ones_like(self._time(t))

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = 1 / (1 − t)²."""
        return (1 - self._time(t)) ** -2

    def sigma_inv(self, sigma: Times) -> Tensor:
        """t = σ / (1 + σ), equation ``flow-time``."""
        sigma = self._level(sigma)
        return sigma / (1 + sigma)


class _VariancePreserving(_Derived):
    """s² (1 + σ²) = 1, equation ``vp-constraint``; all follows from β(t), u(t) = ∫β = −ln ᾱ(t) and u's inverse."""

    def beta(self, t: Times) -> Tensor:
        raise NotImplementedError

    def _beta_integral(self, t: Times) -> Tensor:
        raise NotImplementedError

    def _time_of(self, integral: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha_bar(self, t: Times) -> Tensor:
        """ᾱ(t) = exp(−∫β), the squared scale, equation ``vp-alpha-bar``."""
        return torch.exp(-self._beta_integral(t))

    def scale(self, t: Times) -> Tensor:
        """s(t) = √ᾱ(t), equation ``vp-scale``."""
        return torch.exp(-self._beta_integral(t) / 2)

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = √(1/ᾱ(t) − 1), equation ``vp-sigma``."""
        return torch.expm1(self._beta_integral(t)).sqrt()  # expm1: near t = 0 the difference would lose its digits

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = −β s / 2."""
        return -self.beta(t) * self.scale(t) / 2

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = β (1 + σ²) / (2 σ); infinite at t = 0."""
        sigma = self.sigma(t)
        return self.beta(t) * (sigma + 1 / sigma) / 2

    def sigma_inv(self, sigma: Times) -> Tensor:
        """The time at which ∫β = ln(1 + σ²)."""
        return self._time_of(torch.log1p(self._level(sigma) ** 2))

    def drift(self, t: Times) -> Tensor:
        """f(t) = −β(t) / 2, equation ``vp-drift``."""
        return -self.beta(t) / 2

    def diffusion(self, t: Times) -> Tensor:
        """g(t) = √β(t), equation ``vp-diffusion``: the general formula is 0 · ∞ at t = 0."""
        return self.beta(t).sqrt()


@dataclass(frozen=True)
class VP(_VariancePreserving):
    """Variance preserving, with β(t) = β_min + β_d t (Song et al. 2021; Karras et al. 2022, Table 1).

    Attributes:
        beta_min: β at t = 0. A fitted schedule may make it slightly negative: σ is then real from
            t = 2 abs(β_min) / β_d on, and at t = 0.
        beta_d: slope of β.
    """

    beta_min: float = 0.1
    beta_d: float = 19.9

    @classmethod
    def fitted(cls, sigma_min: float, sigma_max: float, *, t_min: float = 1e-3) -> "VP":
        """The VP schedule with σ(t_min) = ``sigma_min`` and σ(1) = ``sigma_max`` (Karras et al. 2022, appendix C.1).

        Raises:
            ValueError: unless 0 < sigma_min < sigma_max and 0 < t_min < 1, or if β would have to fall.
        """
        if not 0 < sigma_min < sigma_max < float("inf"):
            raise ValueError(f"sigma_min = {sigma_min}, sigma_max = {sigma_max}; need 0 < sigma_min < sigma_max < inf")
        if not 0 < t_min < 1:
            raise ValueError(f"t_min = {t_min}; it must lie between 0 and 1, e.g. 1e-3")
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        if low >= t_min * high:
            raise ValueError(
                f"sigma_min = {sigma_min} is too high for a beta that grows: with sigma_max = {sigma_max} and "
                f"t_min = {t_min} it must stay below {math.sqrt(math.expm1(t_min * high)):.4g}"
            )
        beta_d = 2 * (low / t_min - high) / (t_min - 1)
        return cls(beta_min=high - beta_d / 2, beta_d=beta_d)

    def __post_init__(self) -> None:
        if not 0 < self.beta_d < float("inf"):
            raise ValueError(f"beta_d = {self.beta_d}; it must be positive and finite, e.g. 19.9")
        if not abs(self.beta_min) < float("inf"):
            raise ValueError(f"beta_min = {self.beta_min}; it must be finite, e.g. 0.1")

    def beta(self, t: Times) -> Tensor:
        """β(t) = β_min + β_d t, equation ``vp-beta``."""
        return self.beta_min + self.beta_d * self._time(t)

    def _beta_integral(self, t: Times) -> Tensor:
        t = self._time(t)
        integral = t * (self.beta_min + self.beta_d * t / 2) + 0.0  # + 0.0: no negative zero at t = 0
        if bool((integral < 0).any()):
            first = -2 * self.beta_min / self.beta_d
            raise ValueError(f"t = {t} lies where {self} has no noise level; use t = 0 or t >= {first:.3g}")
        return integral

    def _time_of(self, integral: Tensor) -> Tensor:
        """The later root t of β_min t + β_d t²/2 = integral; 0 where the integral is 0."""
        root = torch.sqrt(self.beta_min**2 + 2 * self.beta_d * integral)
        # Two forms of one root: each adds numbers of one sign, so none of its digits cancel.
        t = (root - self.beta_min) / self.beta_d if self.beta_min < 0 else 2 * integral / (root + self.beta_min)
        return torch.where(integral > 0, t, torch.zeros_like(t))


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """ᾱ(t) = cos²(θ) / cos²(θ_0), θ = (π/2) (t + offset) / (1 + offset).

    Equations ``cosine-alpha-bar`` and ``cosine-angle`` (Nichol and Dhariwal 2021, eq. 17), for t in [0, 1).

    At t = 1 the signal is gone and σ is infinite, so the domain ends before it.

    Attributes:
        offset: the paper's s = 0.008, which keeps the first steps from being too small.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset = {self.offset}; it must be positive and finite, e.g. 0.008")

    @property
    def times(self) -> Domain:
        """From 0 to 1, without 1."""
        return Domain(0.0, 1.0, open=True)

    @property
    def _speed(self) -> float:
        """dθ/dt."""
        return math.pi / 2 / (1 + self.offset)

    def beta(self, t: Times) -> Tensor:
        """β(t) = 2 tan(θ) dθ/dt, equation ``cosine-beta``."""
        return 2 * self._speed * torch.tan(self._speed * (self._time(t) + self.offset))

    def _beta_integral(self, t: Times) -> Tensor:
        t = self._time(t)
        # σ² = cos²θ_0 / cos²θ − 1 as a product, which keeps its digits near t = 0.
        difference, total = self._speed * t, self._speed * (t + 2 * self.offset)
        return torch.log1p(difference.sin() * total.sin() / torch.cos(self._speed * (t + self.offset)) ** 2)

    def _time_of(self, integral: Tensor) -> Tensor:
        theta0 = self._speed * self.offset
        variance = torch.expm1(integral)
        tan, tan0 = torch.sqrt(variance + math.sin(theta0) ** 2) / math.cos(theta0), math.tan(theta0)
        # tan(θ − θ_0) with the difference of tangents rationalised.
        return torch.atan(variance / math.cos(theta0) ** 2 / ((tan + tan0) * (1 + tan * tan0))) / self._speed


@dataclass(frozen=True, eq=False)
class Discrete(_VariancePreserving):
    """A DDPM chain of N steps as a schedule: t counts steps from 0 to N, log ᾱ is linear in between.

    At whole t it is the chain exactly; in between β is the constant −ln(1 − β_i) of the step.

    Attributes:
        betas: β_1 … β_N of the chain, each between 0 and 1.

    Raises:
        ValueError: if ``betas`` is not a list of numbers in (0, 1).
    """

    betas: Tensor
    _integrals: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"betas has shape {tuple(betas.shape)}; it must be a list of numbers between 0 and 1")
        steps = -torch.log1p(-betas)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "_integrals", torch.cat([steps.new_zeros(1), steps.cumsum(0)]))

    def __str__(self) -> str:
        return f"Discrete({len(self.betas)} betas)"

    @property
    def times(self) -> Domain:
        """From 0 to the number of steps."""
        return Domain(0.0, float(len(self.betas)))

    @property
    def levels(self) -> Domain:
        """From 0 to that of the last step."""
        return Domain(0.0, float(torch.expm1(self._integrals[-1]).sqrt()))

    def _step(self, t: Tensor) -> Tensor:
        return t.floor().long().clamp(max=len(self.betas) - 1)

    def beta(self, t: Times) -> Tensor:
        """The rate −ln(1 − β_i) of the step that begins at or before t."""
        t = self._time(t)
        return self._integrals.diff().to(t)[self._step(t)]

    def _beta_integral(self, t: Times) -> Tensor:
        t = self._time(t)
        step, integrals = self._step(t), self._integrals.to(t)
        return torch.lerp(integrals[step], integrals[step + 1], t - step)

    def _time_of(self, integral: Tensor) -> Tensor:
        integrals = self._integrals.to(integral)
        step = (torch.searchsorted(integrals, integral.detach().contiguous(), right=True) - 1).clamp(
            0, len(self.betas) - 1
        )
        within = (integral - integrals[step]) / (integrals[step + 1] - integrals[step])
        return (step + within).clamp(max=float(len(self.betas)))


@dataclass(frozen=True, eq=False)
class FromSDE(_Derived):
    """The schedule of a linear SDE that was given as f and g; made by :func:`from_sde`.

    ln s and σ² are piecewise Chebyshev series, the integrals of those of f and g²/s².
    """

    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    sigma0: float
    end: float
    log_scale: Tensor = field(repr=False)
    variance: Tensor = field(repr=False)

    def __str__(self) -> str:
        return f"FromSDE on [0, {self.end:g}] from level {self.sigma0:g}"

    @property
    def times(self) -> Domain:
        """From 0 to the end that was asked for."""
        return Domain(0.0, self.end)

    @property
    def levels(self) -> Domain:
        """From ``sigma0`` to what the SDE has added by the end."""
        return Domain(self.sigma0, float(self.sigma(self.end)))

    def _series(self, coefficients: Tensor, t: Tensor) -> Tensor:
        """The piecewise series (panels, degree + 1) at ``t``, by Clenshaw's recurrence."""
        place = t * (len(coefficients) / self.end)
        panel = place.floor().long().clamp(0, len(coefficients) - 1)
        u = 2 * (place - panel) - 1
        own = coefficients.to(t)[panel]
        later, latest = torch.zeros_like(t), torch.zeros_like(t)
        for k in range(own.shape[-1] - 1, 0, -1):
            later, latest = own[..., k] + 2 * u * later - latest, later
        return own[..., 0] + u * later - latest

    def scale(self, t: Times) -> Tensor:
        """s(t) = exp ∫f, equation ``scale-from-drift``."""
        return self._series(self.log_scale, self._time(t)).exp()

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = √(σ_0² + ∫ g²/s²), equation ``sigma-from-diffusion``."""
        return self._series(self.variance, self._time(t)).clamp(min=0).sqrt()

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = f s."""
        return self.drift(t) * self.scale(t)

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = g² / (2 s² σ)."""
        return (self.diffusion(t) / self.scale(t)) ** 2 / (2 * self.sigma(t))

    def sigma_inv(self, sigma: Times) -> Tensor:
        """The time at which the level is ``sigma``, by bisection down to the last digit."""
        sigma = self._level(sigma)
        low, high = torch.zeros_like(sigma), torch.full_like(sigma, self.end)
        for _ in range(60):
            middle = (low + high) / 2
            below = self._series(self.variance, middle) < sigma**2
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(sigma > self.sigma0, (low + high) / 2, low)

    def drift(self, t: Times) -> Tensor:
        """f(t), as given."""
        t = self._time(t)
        return torch.as_tensor(self.f(t)).to(t).expand_as(t)

    def diffusion(self, t: Times) -> Tensor:
        """g(t), as given."""
        t = self._time(t)
        return torch.as_tensor(self.g(t)).to(t).expand_as(t)


def from_sde(
    f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], sigma0: float = 0.0, *, end: float = 1.0
) -> FromSDE:
    """The schedule of dx = f(t) x dt + g(t) dw, by quadrature.

    Equations ``scale-from-drift`` and ``sigma-from-start``.

    f and g² are interpolated at Chebyshev points on ever more panels, until twice as many change nothing any more.

    Args:
        f: drift coefficient, a function of a float64 tensor of times.
        g: diffusion coefficient, likewise; not negative, and not 0 over a stretch of time.
        sigma0: level at t = 0.
        end: last time; f and g must be finite and smooth on [0, end].

    Raises:
        ValueError: if ``end`` or ``sigma0`` is impossible, f or g is not finite or g negative somewhere, or they are
            too rough for the quadrature to settle.
    """
    if not 0 < end < math.inf:
        raise ValueError(f"end = {end}; it must be positive and finite, e.g. 1")
    if not 0 <= sigma0 < math.inf:
        raise ValueError(f"sigma0 = {sigma0}; it must be finite and not negative")
    previous = None
    for panels in (4, 8, 16, 32, 64, 128, 256, 512):
        schedule = FromSDE(f, g, sigma0, end, *_quadrature(f, g, sigma0, end, panels))
        probe = torch.linspace(0, end, 257, dtype=torch.float64)
        found = torch.stack([schedule._series(schedule.log_scale, probe), schedule._series(schedule.variance, probe)])
        if previous is not None and torch.allclose(found, previous, rtol=1e-12, atol=1e-14):
            return schedule
        previous = found
    raise ValueError(f"f and g are too rough on [0, {end}] for quadrature; leave out a singular end, or smooth a jump")


def _quadrature(
    f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], sigma0: float, end: float, panels: int
) -> tuple[Tensor, Tensor]:
    """Chebyshev coefficients of ln s and σ² on each of ``panels`` equal panels."""
    degree = 14
    points = np.polynomial.chebyshev.chebpts1(degree + 1)
    width = end / panels
    times = torch.from_numpy(width * (np.arange(panels)[:, None] + (points + 1) / 2))
    values = []
    for name, function in (("f", f), ("g", g)):
        value = torch.as_tensor(function(times)).to(times).expand_as(times)
        if not bool(value.isfinite().all()) or (name == "g" and bool((value < 0).any())):
            raise ValueError(f"{name} is not finite{' or is negative' if name == 'g' else ''} somewhere on [0, {end}]")
        values.append(value.numpy())

    def integral(samples: np.ndarray, start: float) -> np.ndarray:
        coefficients = np.polynomial.chebyshev.chebfit(points, samples.T, degree)
        series = np.polynomial.chebyshev.chebint(coefficients, lbnd=-1, scl=width / 2).T
        series[:, 0] += start + np.concatenate([[0.0], np.cumsum(series.sum(1))[:-1]])  # all T_k(1) = 1
        return series

    log_scale = integral(values[0], 0.0)
    scale = np.exp(np.stack([np.polynomial.chebyshev.chebval(points, series) for series in log_scale]))
    return torch.from_numpy(log_scale), torch.from_numpy(integral((values[1] / scale) ** 2, sigma0**2))

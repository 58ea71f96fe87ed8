r"""Noise schedules: the two functions s(t), σ(t) of the noising formula, and the SDE they stand for.

Taught in the chapter ``forward``. A schedule fixes ``x_t = s(t) (x_0 + σ(t) ε)``, the equation ``noising`` of the book;
everything else here follows from these two functions.

All methods take a float or a tensor of times (any shape) and return a tensor of the same shape; a float becomes
float64.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, "*times"] | float


@runtime_checkable
class Schedule(Protocol):
    """What samplers, losses and likelihoods need to know of a schedule."""

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


def _checked(value: Times, *, name: str, unit: str) -> Tensor:
    """The argument as a floating tensor, refused outside [0, inf)."""
    tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}; pass floats, e.g. {name}.double()")
    # Written so that nan, which compares false with everything, is refused too.
    if not bool(((tensor >= 0) & (tensor < torch.inf)).all()):
        raise ValueError(f"{name} = {value} lies outside the {unit} of this schedule, [0, inf)")
    return tensor


def _time(t: Times) -> Tensor:
    return _checked(t, name="t", unit="times")


def _level(sigma: Times) -> Tensor:
    return _checked(sigma, name="sigma", unit="noise levels")


class _Derived:
    """What follows from s and σ alone, the same for every schedule."""

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


@dataclass(frozen=True)
class EDM(_Derived):
    """s = 1, σ = t: time is the noise level (Karras et al. 2022, Table 1, column "Ours")."""

    def scale(self, t: Times) -> Tensor:
        """s(t) = 1."""
        return torch.ones_like(_time(t))

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = t, equation ``edm-schedule``."""
        return _time(t).clone()

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = 0."""
        return torch.zeros_like(_time(t))

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = 1."""
        return torch.ones_like(_time(t))

    def sigma_inv(self, sigma: Times) -> Tensor:
        """T = σ."""
        return _level(sigma).clone()


@dataclass(frozen=True)
class VE(_Derived):
    """Variance exploding: s = 1, σ = √t (Song et al. 2021 in the form of Karras et al. 2022, Table 1)."""

    def scale(self, t: Times) -> Tensor:
        """s(t) = 1."""
        return torch.ones_like(_time(t))

    def sigma(self, t: Times) -> Tensor:
        """σ(t) = √t, equation ``ve-schedule``."""
        return _time(t).sqrt()

    def scale_deriv(self, t: Times) -> Tensor:
        """ds/dt = 0."""
        return torch.zeros_like(_time(t))

    def sigma_deriv(self, t: Times) -> Tensor:
        """dσ/dt = 1 / (2 √t); infinite at t = 0."""
        return 0.5 * _time(t).rsqrt()

    def sigma_inv(self, sigma: Times) -> Tensor:
        """T = σ²."""
        return _level(sigma) ** 2

    def diffusion(self, t: Times) -> Tensor:
        """g(t) = 1, equation ``ve-diffusion``: the general formula is 0 · ∞ at t = 0."""
        return torch.ones_like(_time(t))


@dataclass(frozen=True)
class VP(_Derived):
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
        return self.beta_min + self.beta_d * _time(t)

    def _beta_integral(self, t: Times) -> Tensor:
        t = _time(t)
        integral = t * (self.beta_min + self.beta_d * t / 2) + 0.0  # + 0.0: no negative zero at t = 0
        if bool((integral < 0).any()):
            first = -2 * self.beta_min / self.beta_d
            raise ValueError(f"t = {t} lies where {self} has no noise level; use t = 0 or t >= {first:.3g}")
        return integral

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
        """The later root t of β_min t + β_d t²/2 = ln(1 + σ²); 0 for σ = 0."""
        sigma = _level(sigma)
        integral = torch.log1p(sigma**2)
        root = torch.sqrt(self.beta_min**2 + 2 * self.beta_d * integral)
        # Two forms of one root: each adds numbers of one sign, so none of its digits cancel.
        t = (root - self.beta_min) / self.beta_d if self.beta_min < 0 else 2 * integral / (root + self.beta_min)
        return torch.where(sigma > 0, t, torch.zeros_like(t))

    def drift(self, t: Times) -> Tensor:
        """f(t) = −β(t) / 2, equation ``vp-drift``."""
        return -self.beta(t) / 2

    def diffusion(self, t: Times) -> Tensor:
        """g(t) = √β(t), equation ``vp-diffusion``: the general formula is 0 · ∞ at t = 0."""
        return self.beta(t).sqrt()

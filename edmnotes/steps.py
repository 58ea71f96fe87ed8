"""Noise levels to sample at: rules that place n levels between σ_max and σ_min, then 0.

Used by the chapter ``forward`` and taught with the samplers. Levels are float64 on the CPU, strictly decreasing, in
units of the data. With n = 1 the only level above 0 is ``sigma_max``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.schedules import VP

Levels = Float[Tensor, " levels"]


def edm(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Levels:
    """Levels evenly spaced in σ^(1/ρ) (Karras et al. 2022, eq. 5).

    Args:
        n: number of levels above 0.
        sigma_min: lowest level above 0.
        sigma_max: highest level.
        rho: ρ; 1 is even spacing, larger values crowd the levels towards ``sigma_min``.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1, rho <= 0, or not 0 < sigma_min < sigma_max < inf.
    """
    if not 0 < rho < float("inf"):
        raise ValueError(f"rho = {rho}; it must be positive and finite, e.g. 7")
    _check(n, sigma_min, sigma_max)
    return _finish(
        (sigma_max ** (1 / rho) + _ramp(n) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho,
        sigma_min,
        sigma_max,
    )


def vp(n: int, sigma_min: float | None = None, sigma_max: float | None = None) -> Levels:
    """Levels at evenly spaced times from 1 to 1e-3 of a VP schedule (Karras et al. 2022, Table 1, column VP).

    Args:
        n: number of levels above 0.
        sigma_min: lowest level above 0; the default is that of ``VP()`` at t = 1e-3.
        sigma_max: highest level; the default is that of ``VP()`` at t = 1. Other ends than the default ones belong to
            the VP schedule fitted to them, :meth:`edmnotes.schedules.VP.fitted`.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1 or not 0 < sigma_min < sigma_max < inf.
    """
    default = VP()
    sigma_min = float(default.sigma(1e-3)) if sigma_min is None else sigma_min
    sigma_max = float(default.sigma(1.0)) if sigma_max is None else sigma_max
    _check(n, sigma_min, sigma_max)
    times = 1 + _ramp(n) * (1e-3 - 1)
    return _finish(VP.fitted(sigma_min, sigma_max).sigma(times), sigma_min, sigma_max)


def ve(n: int, sigma_min: float = 0.02, sigma_max: float = 100.0) -> Levels:
    """Levels in geometric progression (Song et al. 2021; Karras et al. 2022, Table 1, column VE).

    Args:
        n: number of levels above 0.
        sigma_min: lowest level above 0.
        sigma_max: highest level.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1 or not 0 < sigma_min < sigma_max < inf.
    """
    _check(n, sigma_min, sigma_max)
    return _finish(sigma_max * (sigma_min / sigma_max) ** _ramp(n), sigma_min, sigma_max)


def _check(n: int, sigma_min: float, sigma_max: float) -> None:
    if n < 1:
        raise ValueError(f"n = {n}; at least one level above 0 is needed")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(f"sigma_min = {sigma_min}, sigma_max = {sigma_max}; need 0 < sigma_min < sigma_max < inf")


def _ramp(n: int) -> Levels:
    """The fractions i / (n − 1), i = 0 … n − 1; [0] for n = 1, where the quotient is 0 / 0."""
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def _finish(levels: Tensor, sigma_min: float, sigma_max: float) -> Levels:
    """Put the ends exactly where they were asked for (powers round), and append 0."""
    levels[-1], levels[0] = sigma_min, sigma_max
    return torch.cat([levels, levels.new_zeros(1)])

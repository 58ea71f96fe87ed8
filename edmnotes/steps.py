"""Noise levels to sample at: rules that place n levels between σ_max and σ_min, then 0.

Taught in the chapters ``deterministic`` and ``ddim``. Levels are float64 on the CPU, strictly decreasing, in units of
the data. With n = 1 the only level above 0 is ``sigma_max``.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.schedules import VP, Discrete, FlowMatching

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


def flow(n: int, sigma_max: float = 80.0) -> Levels:
    """Levels at evenly spaced times of flow matching, from ``sigma_max`` down to 0 (Lipman et al. 2023).

    Args:
        n: number of levels above 0.
        sigma_max: highest level; time 1, where σ is infinite, cannot be one.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1, or ``sigma_max`` is not positive and finite.
    """
    _check_count(n)
    if not 0 < sigma_max < float("inf"):
        raise ValueError(f"sigma_max = {sigma_max}; it must be positive and finite, e.g. 80")
    line = FlowMatching()
    times = line.sigma_inv(sigma_max) * (1 - torch.arange(n, dtype=torch.float64) / n)
    levels = line.sigma(times)
    levels[0] = sigma_max
    return torch.cat([levels, levels.new_zeros(1)])


def iddpm_levels(count: int = 1000, *, c1: float = 0.001, c2: float = 0.008) -> Levels:
    """The levels u_0 > u_1 > … > u_M = 0 of iDDPM's cosine chain (Karras et al. 2022, Table 1, column iDDPM).

    From the end: u_{j−1} = √((u_j² + 1) / max(ᾱ_{j−1} / ᾱ_j, C_1) − 1), ᾱ_j = sin²(π j / (2 M (C_2 + 1))), in float64.

    Args:
        count: M, the number of levels above 0.
        c1: C_1, the least ratio of neighbouring ᾱ.
        c2: C_2, the offset of the cosine.

    Returns:
        count + 1 levels, the last one 0.

    Raises:
        ValueError: if count < 1, or ``c1`` or ``c2`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count = {count}; at least one level above 0 is needed")
    if not (0 < c1 < 1 and 0 < c2 < float("inf")):
        raise ValueError(f"c1 = {c1}, c2 = {c2}; need 0 < c1 < 1 and c2 > 0, e.g. 0.001 and 0.008")
    alpha_bar = torch.sin(math.pi / 2 * torch.arange(count + 1, dtype=torch.float64) / count / (c2 + 1)) ** 2
    levels = alpha_bar.new_zeros(count + 1)
    for j in range(count, 0, -1):
        levels[j - 1] = torch.sqrt((levels[j] ** 2 + 1) / (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=c1) - 1)
    return levels


def iddpm(n: int, sigma_min: float = 0.002, sigma_max: float = 81.0) -> Levels:
    """Levels of iDDPM's chain of 1000, evenly spaced by index between the two ends (Karras et al. 2022, Table 1).

    Args:
        n: number of levels above 0.
        sigma_min: no level of the chain below this is used.
        sigma_max: none above this; the default leaves out the chain's first eight.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1 or not 0 < sigma_min < sigma_max < inf, or n is more than the chain has between them.
    """
    _check(n, sigma_min, sigma_max)
    chain = iddpm_levels()
    return _subsequence(chain[(chain >= sigma_min) & (chain <= sigma_max)], _ramp(n))


def linear(n: int, schedule: Discrete) -> Levels:
    """Levels of a chain at evenly spaced steps, the first and the last among them (Song et al. 2021, DDIM).

    Args:
        n: number of levels above 0.
        schedule: the chain.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1, or n is more than the chain has.
    """
    return _subsequence(_chain(n, schedule), _ramp(n))


def quadratic(n: int, schedule: Discrete) -> Levels:
    """Levels of a chain at steps whose square roots are evenly spaced, dense at the low end (DDIM, appendix D.2).

    Args:
        n: number of levels above 0.
        schedule: the chain.

    Returns:
        n + 1 levels, the last one 0.

    Raises:
        ValueError: if n < 1, or so many that two would fall on one step of the chain.
    """
    chain = _chain(n, schedule)
    first, last = 1.0, float(len(chain)) ** 0.5
    steps = (last + _ramp(n) * (first - last)) ** 2
    return _subsequence(chain, (len(chain) - steps) / max(len(chain) - 1, 1))


def _chain(n: int, schedule: Discrete) -> Levels:
    """All levels of a chain above 0, decreasing."""
    _check_count(n)
    return schedule.sigma(torch.arange(len(schedule.betas), 0, -1, dtype=torch.float64))


def _subsequence(chain: Tensor, places: Tensor) -> Levels:
    """The levels of a decreasing chain nearest to fractional places between 0 and 1, then 0."""
    indices = (places * (len(chain) - 1) + 0.5).floor().long()
    if bool((indices.diff() <= 0).any()):
        raise ValueError(f"n = {len(places)}; two levels would fall on one of the {len(chain)} that the chain has here")
    return torch.cat([chain[indices], chain.new_zeros(1)])


def _check_count(n: int) -> None:
    if n < 1:
        raise ValueError(f"n = {n}; at least one level above 0 is needed")


def _check(n: int, sigma_min: float, sigma_max: float) -> None:
    _check_count(n)
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise ValueError(f"sigma_min = {sigma_min}, sigma_max = {sigma_max}; need 0 < sigma_min < sigma_max < inf")


def _ramp(n: int) -> Levels:
    """The fractions i / (n − 1), i = 0 … n − 1; [0] for n = 1, where the quotient is 0 / 0."""
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def _finish(levels: Tensor, sigma_min: float, sigma_max: float) -> Levels:
    """Put the ends exactly where they were asked for (powers round), and append 0."""
    levels[-1], levels[0] = sigma_min, sigma_max
    return torch.cat([levels, levels.new_zeros(1)])

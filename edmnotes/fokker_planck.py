r"""The Fokker–Planck equation, two ways: particles of the SDE, and the density on a grid.

Taught in the chapter ``fokker_planck``. Both take the same two functions, a drift μ(x, t) and a diffusion γ(t), of
``dx = μ(x, t) dt + γ(t) dw``; :func:`family_drift` and :func:`reverse_drift` make the drifts that keep the densities of
a schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.schedules import Schedule

Drift = Callable[[Tensor, Tensor], Tensor]
"""A drift μ(x, t), of states (batch, ...) and one time, a 0-d float64 tensor; returns a tensor like x."""

Diffusion = Callable[[Tensor], Tensor | float]
"""A diffusion γ(t), not negative, of one time, a 0-d float64 tensor; returns one number."""

Score = Callable[[Tensor, Tensor], Tensor]
"""∇ log p(x; σ) at unscaled x and one noise level, as ``exact.GaussianMixture.score``."""


def family_drift(score: Score, schedule: Schedule, diffusion: Diffusion) -> Drift:
    """Drift of the member with diffusion γ of the SDE family whose densities are the schedule's, forwards in time.

    Equation ``sde-family`` for any schedule: with the schedule's own f and g,
    μ(x, t) = f x + ½ (γ² − g²) ∇ log p_t(x), where ∇ log p_t(x) = score(x/s; σ) / s. γ = g is the forward SDE
    ``sde``, γ = 0 the probability-flow ODE, every other γ ≥ 0 a process with the same densities and other paths.

    Args:
        score: ∇ log p(x; σ) in unscaled coordinates.
        schedule: s(t) and σ(t).
        diffusion: γ(t), the one that is then simulated or solved with; ``schedule.diffusion`` is g itself.

    Returns:
        μ(x, t), for :func:`simulate` and :func:`solve` with increasing times.
    """
    return _drift(score, schedule, diffusion, sign=1)


def reverse_drift(score: Score, schedule: Schedule, diffusion: Diffusion) -> Drift:
    """Drift of the same family backwards in time, for times that decrease.

    Equation ``sde-strength`` with γ for η g: μ(x, t) = f x − ½ (γ² + g²) ∇ log p_t(x). γ = g is the reverse SDE,
    γ = 0 the probability-flow ODE.

    Args:
        score: ∇ log p(x; σ) in unscaled coordinates.
        schedule: s(t) and σ(t).
        diffusion: γ(t), the one that is then simulated with.

    Returns:
        μ(x, t), for :func:`simulate` with decreasing times.
    """
    return _drift(score, schedule, diffusion, sign=-1)


def _drift(score: Score, schedule: Schedule, diffusion: Diffusion, *, sign: int) -> Drift:
    def drift(x: Tensor, t: Tensor) -> Tensor:
        scale = schedule.scale(t)
        weight = (sign * diffusion(t) ** 2 - schedule.diffusion(t) ** 2) / 2
        return schedule.drift(t) * x + weight * score(x / scale, schedule.sigma(t)) / scale

    return drift


def simulate(
    drift: Drift,
    diffusion: Diffusion,
    x: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " times"],
    *,
    substeps: int = 1,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "times batch *shape"]:
    r"""Particles of dx = μ(x, t) dt + γ(t) dw by Euler and Maruyama's steps, equation ``euler-maruyama``.

    Args:
        drift: μ(x, t).
        diffusion: γ(t); where it is 0 no random number is drawn.
        x: the particles at ``times[0]``.
        times: where the particles are kept; increasing, or decreasing for a process that runs backwards.
        substeps: steps from one of them to the next, of equal length.
        noise: standard normal noise like its argument; the default draws from torch's global generator (see
            :class:`edmnotes.noise.PerSample`).

    Returns:
        The particles at all ``times``, the start first, shape (times, batch, \*shape).

    Raises:
        ValueError: if the times are not strictly monotone or ``substeps`` is below 1.
    """
    kept = [x]
    for stops in _stops(times, substeps):
        x = kept[-1]
        for t, t_next in pairwise(stops):
            rate = torch.as_tensor(diffusion(t), dtype=torch.float64)
            x, before = x + (t_next - t) * drift(x, t), x
            if rate > 0:
                x = x + rate * (t_next - t).abs().sqrt() * (noise or torch.randn_like)(before)
        kept.append(x)
    return torch.stack(kept)


@dataclass(frozen=True)
class GridSolution:
    """Densities on a grid of equal cells, what :func:`solve` returns.

    Attributes:
        centres: the middles of the cells.
        times: the times at which the density was kept.
        densities: mean density in each cell at each of these times, per unit of x; no cell is below 0.
    """

    centres: Float[Tensor, " cells"]
    times: Float[Tensor, " times"]
    densities: Float[Tensor, "times cells"]

    @property
    def mass(self) -> Float[Tensor, " times"]:
        """The integral of the density at each time; it stays what it was at the start."""
        return self.densities.sum(1) * (self.centres[1] - self.centres[0])


def solve(
    drift: Drift,
    diffusion: Diffusion,
    density: Callable[[Tensor], Tensor],
    edges: Float[Tensor, " edges"],
    times: Float[Tensor, " times"],
    *,
    substeps: int = 1,
) -> GridSolution:
    """The Fokker–Planck equation on the line, equation ``fokker-planck``: ∂p/∂t = −∂(μ p)/∂x + ½ γ² ∂²p/∂x².

    Each cell exchanges mass with its two neighbours at the rates of Scharfetter and Gummel (1969), which are never
    negative; none leaves through the ends. A step is the exponential of the rates at its middle, summed as a series of
    positive terms. So no mass is lost, no density falls below 0 however long the step, and the error falls as the
    square of the cell and the square of the step. Where γ = 0 there is only transport, upwind: first order in the cell.

    The work of a step of length h is about max(γ²) h / cell² sweeps over the grid.

    Args:
        drift: μ(x, t), called with the inner edges of the cells.
        diffusion: γ(t).
        density: p(x) at ``times[0]``, called with the centres of the cells.
        edges: increasing and equally spaced, at least four; far enough out that the density has died away.
        times: increasing; where the density is kept.
        substeps: steps from one of them to the next, of equal length.

    Returns:
        ``GridSolution`` with the densities at all ``times``.

    Raises:
        ValueError: if the edges are not increasing and equally spaced, the times not increasing, ``substeps`` below 1,
            or the density negative or not finite.
    """
    edges = torch.as_tensor(edges, dtype=torch.float64)
    if edges.ndim != 1 or len(edges) < 4 or not bool(edges[-1] > edges[0]):
        raise ValueError(f"edges has shape {tuple(edges.shape)}; give at least four, increasing, equally spaced")
    width = float((edges[-1] - edges[0]) / (len(edges) - 1))
    if not torch.allclose(edges.diff(), edges.new_tensor(width), rtol=1e-6, atol=0):
        raise ValueError(f"edges are not equally spaced; use torch.linspace({edges[0]:g}, {edges[-1]:g}, {len(edges)})")
    centres, all_stops = (edges[1:] + edges[:-1]) / 2, _stops(times, substeps)
    if not bool(all_stops[0][-1] > all_stops[0][0]):
        raise ValueError("times decrease; the equation is solved forwards, backwards it has no stable solution")
    kept = [density(centres)]
    if not bool(((kept[0] >= 0) & (kept[0] < torch.inf)).all()):
        raise ValueError("density is negative or not finite in some cell; it must be a probability density")
    for stops in all_stops:
        p = kept[-1]
        for t, t_next in pairwise(stops):
            right, left = _rates(drift(edges[1:-1], (t + t_next) / 2), diffusion((t + t_next) / 2), width)
            p = _exchange(p, float(t_next - t) * right, float(t_next - t) * left)
        kept.append(p)
    return GridSolution(centres, torch.as_tensor(times), torch.stack(kept))


def _rates(
    mu: Float[Tensor, " inner"], gamma: Tensor | float, width: float
) -> tuple[Float[Tensor, " inner"], Float[Tensor, " inner"]]:
    """Rates at which mass crosses each inner edge to the right and to the left, per unit of time.

    Scharfetter and Gummel: with the diffusivity D = γ²/2 and Pe = μ width / D they are (D / width²) Pe / (1 − e^−Pe)
    and (D / width²) Pe / (e^Pe − 1), the flux of the exact steady solution between two centres.
    """
    diffusivity = torch.as_tensor(gamma, dtype=torch.float64) ** 2 / 2
    peclet = (mu.abs() * width / diffusivity).clamp(max=700)  # e^700 is still a number; 0/0 is taken care of below
    against = torch.where(peclet > 0, peclet / torch.expm1(peclet), 1.0) * diffusivity / width**2
    return against + mu.clamp(min=0) / width, against + (-mu).clamp(min=0) / width


def _exchange(p: Float[Tensor, " cells"], right: Tensor, left: Tensor) -> Float[Tensor, " cells"]:
    """The density after one step in which mass crosses the inner edges at these rates (per step).

    By uniformisation: with a rate r no smaller than any cell's loss, exp(A) = Σ_k e^−r r^k / k! (I + A / r)^k, a sum
    of positive terms, each of which keeps the mass.
    """
    out = torch.nn.functional.pad(right, (0, 1)) + torch.nn.functional.pad(left, (1, 0))
    r = out.max().clamp(min=torch.finfo(p.dtype).tiny)
    k = torch.arange(int(r + 8 * r.sqrt() + 30), dtype=p.dtype)
    weights = torch.softmax(k * r.log() - torch.lgamma(k + 1), 0)
    stay, right, left = 1 - out / r, right / r, left / r
    total = weights[0] * p
    for weight in weights[1:]:
        moved = stay * p
        moved[1:] += right * p[:-1]
        moved[:-1] += left * p[1:]
        p = moved
        total = total + weight * p
    return total


def _stops(times: Tensor, substeps: int) -> list[Tensor]:
    """For each interval between two of ``times`` the ends of its steps."""
    times = torch.as_tensor(times).detach().to("cpu", torch.float64)
    lengths = times.diff()
    monotone = times.ndim == 1 and len(times) > 1 and bool((lengths > 0).all() or (lengths < 0).all())
    if not monotone or not bool(times.isfinite().all()):
        raise ValueError(f"times = {times.tolist()}; give at least two, strictly increasing or strictly decreasing")
    if substeps < 1:
        raise ValueError(f"substeps = {substeps}; it must be at least 1")
    fractions = torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    return [torch.lerp(start, end, fractions) for start, end in pairwise(times)]

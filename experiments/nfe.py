"""Digits drawn by each sampler at equal cost: how far they are from held-out digits, by calls of the network.

The denoiser is the shared model, the same for all rows; a row is a sampler with its schedule and its levels. Every
sample has its own seed, the same in all rows, and the class of a held-out digit. ``recognised`` and ``frechet`` are
lists, one number for each count in ``settings["nfe"]``, which is the cost exactly, for every row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor

from edmnotes import data, judging, noise, samplers, schedules, steps, training
from edmnotes.samplers import Solution
from edmnotes.scale import Scale
from edmnotes.schedules import Schedule


@dataclass(frozen=True)
class Row:
    """A sampler, how many levels it takes for a number of calls, and where it walks."""

    sample: Callable[..., Solution]
    calls: int = 1  # of the network in each step but the last
    levels: Callable[[int], Tensor] = steps.edm
    schedule: Schedule = field(default_factory=schedules.EDM)

    def count(self, nfe: int) -> int:
        """The number of levels above 0 for ``nfe`` calls."""
        return (nfe - 1) // self.calls + 1


TABLE = {
    "VP": Row(samplers.euler, levels=steps.vp, schedule=schedules.VP()),
    "VE": Row(samplers.euler, levels=steps.ve, schedule=schedules.VE()),
    "VP, Heun, EDM levels": Row(samplers.heun, 2, schedule=schedules.VP()),
    "VE, Heun, EDM levels": Row(samplers.heun, 2, schedule=schedules.VE()),
    "EDM, Euler": Row(samplers.euler),
    "EDM": Row(samplers.heun, 2),
    "EDM, order 2": Row(partial(samplers.multistep, order=2)),
    "EDM, order 3": Row(partial(samplers.multistep, order=3)),
}
ROWS = tuple(TABLE)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Costs and sizes."""
    return {
        "nfe": at.pick(smoke=[5, 9], laptop=[5, 9, 17, 35], gpu=[5, 9, 17, 35, 69, 137]),
        "every": at.pick(smoke=6, laptop=1, gpu=1),  # one in so many held-out digits is used
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw digits at each cost and judge them."""
    reports = [judged(TABLE[row], seed, nfe, settings) for nfe in settings["nfe"]]
    return {
        "recognised": [report.accuracy for report in reports],
        "frechet": [report.frechet for report in reports],
        "real_to_real_median": reports[-1].real_to_real_median,
        "real_to_real_90": reports[-1].real_to_real_90,
    }


def judged(row: Row, seed: int, nfe: int, settings: Mapping[str, Any]) -> judging.Report:
    """Draw a digit of the class of each held-out one with ``nfe`` calls, and judge them."""
    denoiser, held_out = training.digits_model(), data.digits().held_out
    labels = cast(Tensor, held_out.labels)[:: settings["every"]]
    device = next(denoiser.parameters()).device
    levels = row.levels(row.count(nfe))
    normal = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels))).normal((1, 8, 8), device=device)
    scale = row.schedule.scale(row.schedule.sigma_inv(levels[0]))
    drawn = row.sample(denoiser, scale * levels[0] * normal, levels, schedule=row.schedule, labels=labels.to(device))
    assert drawn.nfe == nfe
    # Real-to-real is the same for all costs; it is measured once, with the last.
    return judging.judge_digits(drawn.x, labels, splits=settings["splits"] if nfe == settings["nfe"][-1] else 1)

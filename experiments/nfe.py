"""Digits drawn by each sampler at equal cost: how far they are from held-out digits, by calls of the network.

The denoiser is the shared model, the same for all rows; a row is a sampler with its schedule and its levels. Every
sample has its own seed, the same in all rows, and the class of a held-out digit. ``recognised`` and ``frechet`` are
lists, one number for each count in ``settings["nfe"]``, which is the cost exactly, for every row.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from edmnotes import data, judging, noise, presets, samplers, steps, training
from edmnotes.presets import Preset
from edmnotes.scale import Scale

VP, VE, EDM = presets.load("vp"), presets.load("ve"), presets.load("edm")
TABLE = {
    "VP": VP,
    "VE": VE,
    "VP, Heun, EDM levels": replace(VP, steps=steps.edm, sampler=samplers.heun),
    "VE, Heun, EDM levels": replace(VE, steps=steps.edm, sampler=samplers.heun),
    "EDM, Euler": replace(EDM, sampler=samplers.euler),
    "EDM": EDM,
    "EDM, order 2": replace(EDM, sampler=partial(samplers.multistep, order=2)),
    "EDM, order 3": replace(EDM, sampler=partial(samplers.multistep, order=3)),
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


def judged(preset: Preset, seed: int, nfe: int, settings: Mapping[str, Any]) -> judging.Report:
    """Draw a digit of the class of each held-out one with ``nfe`` calls, and judge them."""
    denoiser, held_out = training.digits_model(), data.digits().held_out
    labels = cast(Tensor, held_out.labels)[:: settings["every"]]
    device = next(denoiser.parameters()).device
    # Heun's method calls twice in each step but the last.
    n = (nfe + 1) // 2 if preset.sampler is samplers.heun else nfe
    normal = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels))).normal((1, 8, 8), device=device)
    drawn = preset.sample(denoiser, normal, n, labels=labels.to(device))
    assert drawn.nfe == nfe
    # Real-to-real is the same for all costs; it is measured once, with the last.
    return judging.judge_digits(drawn.x, labels, splits=settings["splits"] if nfe == settings["nfe"][-1] else 1)

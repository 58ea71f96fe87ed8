"""From each paper's own sampler to EDM's, one change at a time, on one network: distance to held-out digits by calls.

Karras et al. 2022, section 3 and Figure 2. The denoiser is the shared model, the same for all rows. "original" is the
sampler that came with a row of Table 1: Euler's method down the row's own levels and schedule, which for iDDPM is DDIM.
"Heun, EDM levels" changes method and levels and keeps the schedule; "EDM" changes that too; "churn" puts noise back.
iDDPM's schedule is EDM's already, so its second row is its last.

``recognised``, ``frechet`` and ``nn_ratio`` are lists, one number for each count in ``settings["nfe"]``, which is the
cost exactly. Every sample has its own seed, the same in all rows, and the class of a held-out digit.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from edmnotes import data, judging, noise, presets, samplers, steps, training
from edmnotes.presets import Preset
from edmnotes.samplers import Churn
from edmnotes.scale import Scale


def with_heun(preset: Preset) -> Preset:
    """The same schedule with EDM's method and EDM's levels."""
    return replace(preset, steps=steps.edm, sampler=samplers.heun)


VP, VE, EDM = presets.load("vp"), presets.load("ve"), presets.load("edm")
TABLE = {
    "VP, original": VP,
    "VP, Heun, EDM levels": with_heun(VP),
    "VE, original": VE,
    "VE, Heun, EDM levels": with_heun(VE),
    "iDDPM, original": presets.load("iddpm"),
    "EDM": EDM,
    # The paper's settings for ImageNet-64 (its Table 5), where the network was trained as the shared model was.
    "EDM, churn": replace(EDM, sampler=partial(samplers.heun, churn=Churn(40.0, 0.05, 50.0, 1.003))),
}
ROWS = tuple(TABLE)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Costs and sizes."""
    return {
        "nfe": at.pick(smoke=[5, 9], laptop=[9, 17, 35, 79, 159], gpu=[9, 17, 35, 79, 159, 319, 639]),
        "every": at.pick(smoke=6, laptop=2, gpu=1),  # one in so many held-out digits is used
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw digits at each cost and judge them."""
    reports = [judged(TABLE[row], seed, nfe, settings) for nfe in settings["nfe"]]
    return {
        "recognised": [report.accuracy for report in reports],
        "frechet": [report.frechet for report in reports],
        "nn_ratio": [report.nn_ratio for report in reports],
        "real_to_real_median": reports[-1].real_to_real_median,
        "real_to_real_90": reports[-1].real_to_real_90,
    }


def judged(preset: Preset, seed: int, nfe: int, settings: Mapping[str, Any]) -> judging.Report:
    """Draw a digit of the class of each held-out one with ``nfe`` calls, and judge them."""
    denoiser, held_out = training.digits_model(), data.digits().held_out
    labels = cast(Tensor, held_out.labels)[:: settings["every"]]
    device = next(denoiser.parameters()).device
    # Heun's method calls twice in each step but the last.
    n = nfe if preset.sampler is samplers.euler else (nfe + 1) // 2
    draws = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels)))
    normal = draws.normal((1, 8, 8), device=device)
    drawn = preset.sample(denoiser, normal, n, noise=draws, labels=labels.to(device))
    assert drawn.nfe == nfe
    # Real-to-real is the same for all costs; it is measured once, with the last.
    return judging.judge_digits(drawn.x, labels, splits=settings["splits"] if nfe == settings["nfe"][-1] else 1)

"""Digits trained with each row of the design space at equal budget: quality of the samples, and error at each level.

Same network, first weights, optimiser, order of the data and number of images; a row changes preconditioning, loss
weight and training levels only. The last two rows are EDM's with one column changed: levels fitted to the digits
(:meth:`edmnotes.losses.LogNormal.fitted`), and weights that are learned (:class:`edmnotes.losses.LogVariance`). The
row ``ddpm`` is left out: its chain has the levels of ``vp``.

``recognised``, ``frechet`` and ``nn_ratio`` judge samples drawn from every row in one and the same way, by 18 steps of
Heun's method on EDM's schedule, at EDM's levels from 80 down to 0.02, a range that every row was trained on: what
differs is the training alone. Those named ``own_...`` judge samples drawn with the row's own schedule and levels.

``error`` is λ(σ) mean (D − x_0)² on the held-out digits at each of the levels in ``settings``, with EDM's λ for every
row, so that the rows are in one unit; ``error_se`` is its standard error over the digits, ``untrained`` the error
before training. The noise is the same for all rows and seeds.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, judging, losses, noise, preconditioning, presets, samplers, schedules, steps, training
from edmnotes.data import Labelled
from edmnotes.preconditioning import Denoiser
from edmnotes.presets import Preset
from edmnotes.scale import Scale

FITTED, LEARNED = "edm, fitted levels", "edm, learned weight"
ROWS = ("edm", "flow", "iddpm", "vp", "ve", FITTED, LEARNED)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Lengths and levels."""
    return {
        "images": at.pick(smoke=256, laptop=48_000, gpu=2_000_000),
        "warmup": at.pick(smoke=128, laptop=10_000, gpu=10_000),
        "steps": at.pick(smoke=6, laptop=18, gpu=18),
        "levels": [float(f"{level:.3g}") for level in torch.logspace(-2.7, 1.9, 15, dtype=torch.float64)],
        "every": at.pick(smoke=20, laptop=1, gpu=1),  # one in so many held-out digits is used
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a row, judge its samples and measure its error."""
    digits = data.digits()
    train, every = digits.train, settings["every"]
    held_out = Labelled(digits.held_out.x[::every], cast(Tensor, digits.held_out.labels)[::every])
    preset = presets.load("edm" if row in (FITTED, LEARNED) else row)
    if row == FITTED:
        preset = replace(preset, sigmas=losses.LogNormal.fitted(losses.reachable(train.x[::every])))
    unit = preconditioning.EDM(data.sigma_data(train.x))
    start = Denoiser(training.untrained(train, seed=seed).network, preset.preconditioning(unit.sigma_data)).eval()
    config = training.Config(images=settings["images"], warmup=settings["warmup"], sigmas=preset.sigmas, seed=seed)
    log_variance = losses.LogVariance() if row == LEARNED else None
    fitted = training.fit(start, train, config=config, log_variance=log_variance, progress=sys.stderr.isatty())
    denoiser = fitted.denoiser
    device = next(denoiser.parameters()).device
    error = partial(
        losses.by_level,
        x0=held_out.x.to(device),
        sigmas=torch.tensor(settings["levels"], dtype=torch.float64),
        weight=unit.weight,
        labels=cast(Tensor, held_out.labels).to(device),
    )
    trained = error(denoiser)
    same = replace(preset, steps=partial(steps.edm, sigma_min=0.02), schedule=schedules.EDM())
    report, own = (judged(denoiser, p, held_out, seed, settings) for p in (same, preset))
    return {
        "recognised": report.accuracy,
        "frechet": report.frechet,
        "nn_ratio": report.nn_ratio,
        "own_recognised": own.accuracy,
        "own_frechet": own.frechet,
        "own_nn_ratio": own.nn_ratio,
        "real_to_real_median": report.real_to_real_median,
        "real_to_real_90": report.real_to_real_90,
        "copying_frechet": report.copying_frechet,
        "error": trained.loss.tolist(),
        "error_se": trained.error.tolist(),
        "untrained": error(start.to(device)).loss.tolist(),
    }


def judged(
    denoiser: Denoiser, preset: Preset, like: Labelled, seed: int, settings: Mapping[str, Any]
) -> judging.Report:
    """Draw a digit of the class of each held-out one, from noise that all rows of a seed share, and judge them."""
    labels, levels = cast(Tensor, like.labels), preset.steps(settings["steps"])
    device = next(denoiser.parameters()).device
    normal = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels))).normal(like.shape, device=device)
    scale = preset.schedule.scale(preset.schedule.sigma_inv(levels[0]))
    start = float(scale * levels[0]) * normal
    x = samplers.heun(denoiser, start, levels, schedule=preset.schedule, labels=labels.to(device)).x
    return judging.judge_digits(x, labels, splits=settings["splits"])

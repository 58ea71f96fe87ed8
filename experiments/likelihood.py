"""Bits a dimension of digits, and of pictures that are none, under the book's shared digits model.

Every row has the same number of pictures of 17 grey levels, the same for all seeds; a seed draws the noise of the
dequantisation and the probes of the trace. All rows but the first are judged by the unconditional model.

``bits`` are the values of the pictures, an upper bound each; ``mean`` and ``std`` are over the pictures, and
``probe_error`` is the root mean square of the standard errors that come from the probes alone.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, likelihood, noise, samplers, steps, training
from edmnotes.scale import Scale

SPACING = 2 / 16
TOLD = "held out, told the class"
ROWS = (
    TOLD,
    "held out",
    "training",
    "samples",
    "samples, half the noise",
    "upside down",
    "on their side",
    "mirrored",
    "faded",
    "blank",
    "shuffled pixels",
    "random grey levels",
    "inverted",
)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Lengths and levels; the lowest level is about the std of the dequantisation's noise."""
    return {
        "pictures": at.pick(smoke=4, laptop=64, gpu=74),
        "steps": at.pick(smoke=2, laptop=12, gpu=96),
        "probes": at.pick(smoke=2, laptop=2, gpu=16),
        "sigma_min": 0.036,
        "sigma_max": 80.0,
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bits a dimension of the pictures of a row."""
    count = settings["pictures"]
    digits = data.digits()
    labels = cast(Tensor, digits.held_out.labels)[: 6 * count : 6]
    model, x = training.digits_model(), pictures(row, count)
    draws = noise.PerSample(range(1000 * seed, 1000 * seed + count))
    found = likelihood.bits_per_dim(
        model,
        x,
        steps.ve(settings["steps"] + 1, settings["sigma_min"], settings["sigma_max"]),
        spacing=SPACING,
        noise=draws,
        probes=likelihood.rademacher_probes(x, settings["probes"], draws),
        sigma_data=data.sigma_data(digits.train.x),
        labels=labels if row == TOLD else None,
    )
    return {
        "mean": float(found.bits.mean()),
        "std": float(found.bits.std()),
        "probe_error": float(cast(Tensor, found.error).square().mean().sqrt()),
        "bits": found.bits.tolist(),
    }


def pictures(row: str, count: int) -> Tensor:
    """The pictures of a row, on the grid of the digits' grey levels."""
    digits = data.digits()
    x, generator = digits.held_out.x[: 6 * count : 6], torch.Generator().manual_seed(0)
    match row:
        case "training":
            return digits.train.x[: 6 * count : 6]
        case "samples":
            return drawn(80.0, x)
        case "samples, half the noise":
            return drawn(40.0, x)
        case "upside down":
            return x.rot90(2, (2, 3))
        case "on their side":
            return x.rot90(1, (2, 3))
        case "mirrored":
            return x.flip(3)
        case "faded":
            return on_grid((x - 1) / 2)
        case "blank":
            return -torch.ones_like(x)
        case "shuffled pixels":
            return x.flatten(2)[..., torch.randperm(64, generator=generator)].reshape(x.shape)
        case "random grey levels":
            return torch.randint(0, 17, x.shape, generator=generator) * SPACING - 1
        case "inverted":
            return -x
    return x


def drawn(start: float, like: Tensor) -> Tensor:
    """Samples of the unconditional model, from noise of the given std in place of 80, rounded to the grid."""
    normal = noise.PerSample(range(len(like)))(like)
    return on_grid(samplers.heun(training.digits_model(), start * normal, steps.edm(18)).x)


def on_grid(x: Tensor) -> Tensor:
    """The nearest grey levels."""
    return ((x.clamp(-1, 1) + 1) / SPACING).round() * SPACING - 1

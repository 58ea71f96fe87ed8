"""From the VP and the VE baseline to EDM's training, one change at a time, on digits (Karras et al. 2022, Table 2).

Every row keeps the changes of the rows above it, as configurations A to F of the paper do:

- A, the baseline: preconditioning, levels and weight of the VP or the VE row; a fifth of the house's learning rate (the
  papers' 2e-4 to EDM's 1e-3); a network that spends its channels at the lowest resolution;
- B, hyper-parameters: the house's learning rate;
- C, capacity: the lowest resolution is dropped, the highest has twice the channels;
- D, preconditioning: EDM's coefficients, with the baseline's levels and weight;
- E, loss: EDM's levels and weight. Nothing of the baseline is left, so VP and VE are one row from here on: the paper's
  two differ in their networks, which are one and the same here;
- F, augmentation that does not leak: one digit in eight is shifted by a pixel and told so by a label of its own, which
  is never asked for when sampling.

Same optimiser, order of the data and number of images. All samples are drawn alike, by 18 steps of Heun's method on
EDM's schedule from level 80 to 0.02, with noise and labels that all rows of a seed share.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, judging, networks, noise, preconditioning, presets, samplers, steps, training
from edmnotes.data import Labelled
from edmnotes.preconditioning import Denoiser, Preconditioning
from edmnotes.presets import Preset
from edmnotes.scale import Scale

LR = training.Config.lr
LOW, HIGH = (16, 56, 56), (32, 64)
"""Channels of the network by resolution, 8 x 8 first: most of them low, as in A and B; and from C on."""

CHANGES = ("A", "B", "C", "D")
ROWS = (*(f"{base} {change}" for base in ("vp", "ve") for change in CHANGES), "E", "F")
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3

SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows and columns by which a digit is moved; ink that leaves on one side is lost."""


@dataclass(frozen=True)
class Reweighted(preconditioning.EDM):
    """EDM's coefficients with the loss weight of another row, configuration D."""

    other: Preconditioning = field(default_factory=preconditioning.VE)

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) of the other row."""
        return self.other.weight(sigma)


def settings(at: Scale) -> dict[str, Any]:
    """Lengths."""
    return {
        "images": at.pick(smoke=256, laptop=32_000, gpu=2_000_000),
        "warmup": at.pick(smoke=128, laptop=8_000, gpu=10_000),
        "steps": at.pick(smoke=6, laptop=18, gpu=18),
        "every": at.pick(smoke=20, laptop=1, gpu=1),  # one in so many held-out digits is used
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def configuration(row: str, sigma_data: float) -> tuple[Preset, float, tuple[int, ...]]:
    """What a row trains with: preset, learning rate and channels of the network."""
    base, _, change = row.rpartition(" ")
    if not base:
        return presets.load("edm"), LR, HIGH
    preset = presets.load(base)
    if change == "D":
        weighted = Reweighted(sigma_data, preset.preconditioning(sigma_data))
        preset = replace(preset, preconditioning=lambda _: weighted)
    return preset, LR / 5 if change == "A" else LR, LOW if change in "AB" else HIGH


def augmented(digits: Labelled, seed: int) -> Labelled:
    """Seven copies of the digits and one that is shifted, with ten labels of its own for each shift."""
    labels, count = cast(Tensor, digits.labels), cast(int, digits.num_classes)
    which = torch.randint(len(SHIFTS), labels.shape, generator=torch.Generator().manual_seed(seed))
    moved = torch.stack([shifted(x, *SHIFTS[int(i)]) for x, i in zip(digits.x, which, strict=True)])
    return Labelled(torch.cat([digits.x] * 7 + [moved]), torch.cat([labels] * 7 + [labels + count * (1 + which)]))


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """A digit moved by whole pixels onto empty paper."""
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    return padded.roll((down, right), (-2, -1))[..., 1:-1, 1:-1]


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a row's configuration and judge its samples."""
    digits = data.digits()
    sigma_data, every = data.sigma_data(digits.train.x), settings["every"]
    preset, lr, widths = configuration(row, sigma_data)
    train = augmented(digits.train, seed) if row == "F" else digits.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.UNet(1, widths, num_classes=train.num_classes)
    config = training.Config(
        images=settings["images"], warmup=settings["warmup"], lr=lr, sigmas=preset.sigmas, seed=seed
    )
    start = Denoiser(network, preset.preconditioning(sigma_data)).eval()
    denoiser = training.fit(start, train, config=config, progress=sys.stderr.isatty()).denoiser

    labels = cast(Tensor, digits.held_out.labels)[::every]
    device, levels = next(denoiser.parameters()).device, steps.edm(settings["steps"], sigma_min=0.02)
    draws = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels)))
    normal = draws.normal(digits.train.shape, device=device)
    draw = partial(samplers.heun, denoiser, levels[0] * normal, levels)
    report = judging.judge_digits(draw(labels=labels.to(device)).x, labels, splits=settings["splits"])
    return {
        "recognised": report.accuracy,
        "frechet": report.frechet,
        "nn_ratio": report.nn_ratio,
        "parameters": sum(p.numel() for p in network.parameters()),
        "real_to_real_median": report.real_to_real_median,
        "real_to_real_90": report.real_to_real_90,
        "copying_frechet": report.copying_frechet,
    }

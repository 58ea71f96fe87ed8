"""Digits trained on other noise levels and with other weights of the loss: EDM's row, one number changed at a time.

A row is a distribution of ln σ in training, N(P_mean, P_std²), and a weight λ(σ). Network, first weights, optimiser,
order of the data and number of images are the same; so is the sampler, 18 steps of Heun's method on EDM's levels from
80 to 0.02. ``error`` is EDM's λ(σ) times the mean squared error of D at the levels in ``settings``, on held-out digits,
whatever a row was trained on; ``error_se`` is its standard error over the digits.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, judging, losses, noise, preconditioning, samplers, steps, training
from edmnotes.data import Labelled
from edmnotes.losses import LogNormal
from edmnotes.preconditioning import Denoiser
from edmnotes.scale import Scale


@dataclass(frozen=True)
class Weighted(preconditioning.EDM):
    """EDM's coefficients with a weight of its own."""

    rule: Callable[[Tensor], Tensor] = torch.ones_like

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) by the rule."""
        return self.rule(sigma)


def noise_weight(sigma: Tensor) -> Tensor:
    """λ = 1/σ²: the error of the noise, DDPM's simple loss."""
    return sigma**-2


def truncated_weight(sigma: Tensor) -> Tensor:
    """λ = max(1, 1/σ²): at least the error of the sample (Salimans and Ho 2022)."""
    return torch.clamp(sigma**-2, min=1.0)


PAPER = LogNormal()
TABLE: dict[str, tuple[LogNormal, Callable[[Tensor], Tensor] | None]] = {
    "EDM": (PAPER, None),
    "P_mean -2.4": (replace(PAPER, mean=-2.4), None),
    "P_mean 0": (replace(PAPER, mean=0.0), None),
    "P_mean 1.2": (replace(PAPER, mean=1.2), None),
    "P_std 0.6": (replace(PAPER, std=0.6), None),
    "P_std 1.8": (replace(PAPER, std=1.8), None),
    "EDM2's": (LogNormal(-0.4, 1.0), None),
    "weight 1": (PAPER, torch.ones_like),
    "weight 1/sigma^2": (PAPER, noise_weight),
    "weight max(1, 1/sigma^2)": (PAPER, truncated_weight),
}
ROWS = tuple(TABLE)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Lengths and levels."""
    return {
        "images": at.pick(smoke=256, laptop=16_000, gpu=2_000_000),
        "warmup": at.pick(smoke=128, laptop=4_000, gpu=10_000),
        "steps": at.pick(smoke=6, laptop=18, gpu=18),
        "levels": [float(f"{level:.3g}") for level in torch.logspace(-2.7, 1.9, 15, dtype=torch.float64)],
        "every": at.pick(smoke=20, laptop=1, gpu=1),  # one in so many held-out digits is used
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train a row, judge its samples and measure its error."""
    sigmas, rule = TABLE[row]
    digits, every = data.digits(), settings["every"]
    held_out = Labelled(digits.held_out.x[::every], cast(Tensor, digits.held_out.labels)[::every])
    edm = preconditioning.EDM(data.sigma_data(digits.train.x))
    column = edm if rule is None else Weighted(edm.sigma_data, rule)
    start = Denoiser(training.untrained(digits.train, seed=seed).network, column).eval()
    config = training.Config(images=settings["images"], warmup=settings["warmup"], sigmas=sigmas, seed=seed)
    denoiser = training.fit(start, digits.train, config=config, progress=sys.stderr.isatty()).denoiser

    labels, levels = cast(Tensor, held_out.labels), steps.edm(settings["steps"], sigma_min=0.02)
    device = next(denoiser.parameters()).device
    draws = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels)))
    normal = draws.normal(held_out.shape, device=device)
    x = samplers.heun(denoiser, levels[0] * normal, levels, labels=labels.to(device)).x
    report = judging.judge_digits(x, labels, splits=settings["splits"])
    error = losses.by_level(
        denoiser,
        held_out.x.to(device),
        torch.tensor(settings["levels"], dtype=torch.float64),
        weight=edm.weight,
        labels=labels.to(device),
    )
    return {
        "recognised": report.accuracy,
        "frechet": report.frechet,
        "nn_ratio": report.nn_ratio,
        "real_to_real_median": report.real_to_real_median,
        "error": error.loss.tolist(),
        "error_se": error.error.tolist(),
    }

"""Digits drawn by chains of few steps: every variance of DDPM, every η of DDIM, two ways to leave out steps.

The denoiser is the shared model, the same for all rows; a row is a sampler. Levels are sub-sequences of DDPM's chain of
1000 steps, from standard normal noise. Each measure is a list, an entry for each number of steps in the cell's
``steps``. Every sample has its own seed, the same in all rows, and the class of a held-out digit; one in
``settings["every"]`` held-out digits is used. DDIM with η = 1 on linear levels is the row "posterior".

What the analytic variances need is measured on the training digits at ``settings["levels"]`` noise levels: Γ = E‖ε̂‖²/d
for "analytic", the mean square E‖ε − ε̂‖²/d about the network's own mean for "residual", the same for each pixel apart
for "per pixel".

``recognised``, ``frechet`` and ``nn_ratio`` are the judge's; ``detail`` is the mean square difference of neighbouring
pixels, as a ratio to that of the held-out digits: noise that is left raises it.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, judging, noise, samplers, schedules, steps, training
from edmnotes.samplers import Analytic, Beta, NoiseMoments, Posterior, Variance
from edmnotes.scale import Scale

CHAIN = schedules.Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
"""The linear chain of Ho et al. 2020."""


@cache
def moments(count: int, every: int) -> NoiseMoments:
    """How well the shared model guesses the noise in training digits, at ``count`` levels of the chain's range."""
    digits = data.digits().train
    x, labels = digits.x[::every], cast(Tensor, digits.labels)[::every]
    denoiser = training.digits_model()
    device = next(denoiser.parameters()).device
    low, high = CHAIN.sigma(torch.tensor([1.0, 1000.0], dtype=torch.float64)).log().tolist()
    levels = torch.linspace(low, high, count, dtype=torch.float64).exp()
    draws = noise.PerSample(range(1_000_000, 1_000_000 + len(x)))
    return samplers.noise_moments(denoiser, x.to(device), levels, noise=draws, labels=labels.to(device))


def analytic(found: NoiseMoments) -> Variance:
    """From the noise square, held by the bound for data in [-1, 1]."""
    return Analytic(found.sigmas, found.square.flatten(1).mean(1), radius=1.0)


def residual(found: NoiseMoments) -> Variance:
    """About the network's own mean."""
    return Analytic(found.sigmas, 1 - found.residual.flatten(1).mean(1))


def pixels(found: NoiseMoments) -> Variance:
    """About the network's own mean, each pixel its own."""
    return Analytic(found.sigmas, 1 - found.residual)


Rule = Callable[[int, schedules.Discrete], Tensor]
Sampler = Callable[..., samplers.Solution]
Spread = Callable[[NoiseMoments], Variance]

_FAMILY, _BETA = cast(Spread, lambda _: Posterior()), cast(Spread, lambda _: Beta())

TABLE: dict[str, tuple[Rule, Sampler, Spread]] = {
    "posterior": (steps.linear, samplers.ddpm, _FAMILY),
    "beta": (steps.linear, samplers.ddpm, _BETA),
    "analytic": (steps.linear, samplers.ddpm, analytic),
    "residual": (steps.linear, samplers.ddpm, residual),
    "per pixel": (steps.linear, samplers.ddpm, pixels),
    "ddim": (steps.linear, samplers.ddim, _FAMILY),
    "ddim, eta 0.2": (steps.linear, partial(samplers.ddim, eta=0.2), _FAMILY),
    "ddim, eta 0.5": (steps.linear, partial(samplers.ddim, eta=0.5), _FAMILY),
    "ddim, analytic": (steps.linear, samplers.ddim, analytic),
    "quadratic, ddim": (steps.quadratic, samplers.ddim, _FAMILY),
    "quadratic, eta 0.2": (steps.quadratic, partial(samplers.ddim, eta=0.2), _FAMILY),
    "quadratic, eta 0.5": (steps.quadratic, partial(samplers.ddim, eta=0.5), _FAMILY),
    "quadratic, eta 1": (steps.quadratic, samplers.ddpm, _FAMILY),
    "quadratic, beta": (steps.quadratic, samplers.ddpm, _BETA),
    "quadratic, analytic": (steps.quadratic, samplers.ddpm, analytic),
}
"""A row's levels, sampler, and variance, made from how well the noise is guessed."""
WHOLE = ("posterior", "beta", "ddim")
"""Rows that are also run on the whole chain."""
ROWS = tuple(TABLE)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Numbers of steps and sizes."""
    return {
        "steps": at.pick(smoke=[5, 10], laptop=[5, 10, 25, 50, 100], gpu=[5, 10, 25, 50, 100]),
        "whole": at.pick(smoke=25, laptop=1000, gpu=1000),
        "levels": at.pick(smoke=8, laptop=60, gpu=60),
        "every": at.pick(smoke=6, laptop=2, gpu=1),
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw digits by a row's sampler with each number of steps, and judge them."""
    rule, sampler, spread = TABLE[row]
    variance = spread(moments(settings["levels"], settings["every"]))
    counts = [*settings["steps"], settings["whole"]] if row in WHOLE else settings["steps"]
    denoiser, held_out = training.digits_model(), data.digits().held_out
    real, labels = held_out.x[:: settings["every"]], cast(Tensor, held_out.labels)[:: settings["every"]]
    device = next(denoiser.parameters()).device
    found = []
    for count in counts:
        draws = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels)))
        start = draws.normal((1, 8, 8), device=device)
        levels = rule(count, CHAIN)
        x = sampler(denoiser, start, levels, variance=variance, noise=draws, labels=labels.to(device)).x.cpu()
        report = judging.judge_digits(x, labels, splits=settings["splits"] if count == counts[0] else 1)
        if count == counts[0]:
            real_to_real = {"median": report.real_to_real_median, "90": report.real_to_real_90}
        found.append(
            {
                "recognised": report.accuracy,
                "frechet": report.frechet,
                "nn_ratio": report.nn_ratio,
                "detail": float(roughness(x) / roughness(real)),
            }
        )
    lists = {name: [each[name] for each in found] for name in found[0]}
    return {"steps": counts} | lists | {f"real_to_real_{key}": value for key, value in real_to_real.items()}


def roughness(x: Tensor) -> Tensor:
    """Mean square difference of neighbouring pixels."""
    return (x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()) / 2

"""Digits drawn by samplers with and without noise at equal cost: what churn adds, repairs and wears away.

The denoiser is the shared model, the same for all rows; a row is a sampler. All rows but two make
``settings["nfe"]`` calls of the network. Every sample has its own seed, the same in all rows, and the class of a
held-out digit; one in ``settings["every"]`` held-out digits is used.

``detail`` is the mean square difference of neighbouring pixels, ``contrast`` the mean square of the pixels about the
mean picture, each as a ratio to that of the held-out digits; ``outside`` is the mean square by which pixels leave
[-1, 1], where no digit is. ``calls`` is the cost, exactly.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from edmnotes import data, judging, noise, samplers, steps, training
from edmnotes.contract import DenoiserLike
from edmnotes.samplers import Churn, Proportional, Solution
from edmnotes.scale import Scale

MOST = 1e6
"""More churn than any step takes: each doubles the variance of its noise, Algorithm 2's bound."""

Sampler = Callable[..., Solution]


def heun(calls: int, denoiser: DenoiserLike, normal: Tensor, *, churn: Churn | None = None, **options: Any) -> Solution:
    """Algorithm 2 on the EDM row; without churn, Algorithm 1."""
    levels = steps.edm(calls // 2 + 1)
    return samplers.heun(denoiser, levels[0] * normal, levels, churn=churn, **options)


def part(share: float, calls: int, *given: Any, **options: Any) -> Solution:
    """Algorithm 2 with a share of the most churn: γ is that share of √2 − 1 in every step."""
    return heun(calls, *given, churn=Churn(share * (2**0.5 - 1) * (calls // 2 + 1)), **options)


def short(_: int, *given: Any, **options: Any) -> Solution:
    """Algorithm 1 with 18 levels, whatever the cost of the others."""
    return heun(35, *given, **options)


def longer(calls: int, *given: Any, **options: Any) -> Solution:
    """The most churn, and four times the calls for it: every step stirs, so more steps stir more."""
    return heun(4 * calls + 3, *given, churn=Churn(MOST), **options)


def reverse(calls: int, denoiser: DenoiserLike, normal: Tensor, **options: Any) -> Solution:
    """Euler and Maruyama on the reverse SDE."""
    levels = steps.edm(calls)
    return samplers.reverse_sde(denoiser, levels[0] * normal, levels, **options)


def chain(calls: int, denoiser: DenoiserLike, normal: Tensor, **options: Any) -> Solution:
    """The ancestral sampler on the EDM levels."""
    levels = steps.edm(calls)
    ancestral = partial(samplers.predictor_corrector, corrections=0, predictor=samplers.ancestral)
    return ancestral(denoiser, levels[0] * normal, levels, **options)


def corrected(calls: int, denoiser: DenoiserLike, normal: Tensor, **options: Any) -> Solution:
    """A predictor's step and a corrector's at each level."""
    levels = steps.edm(calls // 2 + 1)
    return samplers.predictor_corrector(denoiser, levels[0] * normal, levels, **options)


def annealed(calls: int, denoiser: DenoiserLike, normal: Tensor, **options: Any) -> Solution:
    """Six Langevin steps at each level of a geometric ladder."""
    levels = steps.ve(calls // 6, 0.02, 80.0)
    return samplers.annealed_langevin(denoiser, levels[0] * normal, levels, 6, step=Proportional(0.5), **options)


def one_level(calls: int, denoiser: DenoiserLike, normal: Tensor, **options: Any) -> Solution:
    """As many Langevin steps at one low level, from noise of about the size of the data; then the denoiser."""
    stirred = samplers.langevin(denoiser, normal, 0.05, calls - 1, step=Proportional(0.5), **options)
    clean = samplers.euler(denoiser, stirred.x, torch.tensor([0.05, 0.0]), **options)
    return Solution(clean.x, stirred.nfe + clean.nfe)


TABLE: dict[str, Sampler] = {
    "ODE, 35 calls": short,
    "ODE": heun,
    "churn, a tenth": partial(part, 0.1),
    "churn, all": partial(heun, churn=Churn(MOST)),
    "churn, all, calls x 4": longer,
    "churn, all, window": partial(heun, churn=Churn(MOST, 0.05, 50.0)),
    "churn, all, 1.007": partial(heun, churn=Churn(MOST, noise_scale=1.007)),
    "reverse SDE": reverse,
    "ancestral": chain,
    "predictor, corrector": corrected,
    "annealed Langevin": annealed,
    "Langevin, one level": one_level,
}
ROWS = tuple(TABLE)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Costs and sizes."""
    return {
        "nfe": at.pick(smoke=13, laptop=127, gpu=1023),
        "every": at.pick(smoke=6, laptop=2, gpu=1),
        "splits": at.pick(smoke=1, laptop=100, gpu=100),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw digits by a row's sampler and judge them."""
    denoiser, held_out = training.digits_model(), data.digits().held_out
    real, labels = held_out.x[:: settings["every"]], cast(Tensor, held_out.labels)[:: settings["every"]]
    device = next(denoiser.parameters()).device
    draws = noise.PerSample(range(10_000 * seed, 10_000 * seed + len(labels)))
    normal = draws.normal((1, 8, 8), device=device)
    drawn = TABLE[row](settings["nfe"], denoiser, normal, noise=draws, labels=labels.to(device))
    x = drawn.x.cpu()
    report = judging.judge_digits(x, labels, splits=settings["splits"])
    return {
        "calls": drawn.nfe,
        "recognised": report.accuracy,
        "frechet": report.frechet,
        "nn_ratio": report.nn_ratio,
        "detail": float(roughness(x) / roughness(real)),
        "contrast": float((x - x.mean(0)).square().mean() / (real - real.mean(0)).square().mean()),
        "outside": float((x.abs() - 1).clamp(min=0).square().mean()),
        "real_to_real_median": report.real_to_real_median,
        "real_to_real_90": report.real_to_real_90,
    }


def roughness(x: Tensor) -> Tensor:
    """Mean square difference of neighbouring pixels."""
    return (x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()) / 2

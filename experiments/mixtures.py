"""Distance of every sampler's draws to two exact mixtures, in 2 and in 64 dimensions, by the calls of the denoiser.

The denoiser is the mixture's own, so that whatever distance there is comes from the sampler. ``plane`` is three
clusters in the plane, ``digits`` a Gaussian for each class of the training digits, in 64 dimensions. The distance is
the sliced Wasserstein distance of order 2: along each of ``settings["directions"]`` random directions the sorted draws
are compared with the quantiles of the mixture's own projection, which is a mixture on the line and known exactly. The
row ``exact draws`` is what chance leaves of it. Levels are EDM's, but for annealed Langevin dynamics, whose levels fall
by one factor.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edmnotes import data, metrics, noise, samplers, steps
from edmnotes.exact import GaussianMixture
from edmnotes.samplers import Churn, Proportional
from edmnotes.scale import Scale

Sampler = Callable[[int, GaussianMixture, Tensor, noise.PerSample], samplers.Solution]


def one_call(method: Callable[..., samplers.Solution], **options: Any) -> Sampler:
    """A sampler that calls the denoiser once a level."""
    return lambda calls, d, normal, draws: method(d, 80 * normal, steps.edm(calls), **options)


def two_calls(method: Callable[..., samplers.Solution], **options: Any) -> Sampler:
    """A sampler that calls it twice a level, but for the last."""
    return lambda calls, d, normal, draws: method(d, 80 * normal, steps.edm((calls + 1) // 2), **options)


def noisy(sampler: Callable[..., Sampler], method: Callable[..., samplers.Solution], **options: Any) -> Sampler:
    """The same for a sampler that draws noise."""
    return lambda calls, d, normal, draws: sampler(method, noise=draws, **options)(calls, d, normal, draws)


def annealed(calls: int, d: GaussianMixture, normal: Tensor, draws: noise.PerSample) -> samplers.Solution:
    """Two Langevin steps at each level of a geometric ladder, and the denoiser's answer."""
    levels = steps.ve((calls - 1) // 2, 0.02, 80.0)
    return samplers.annealed_langevin(d, 80 * normal, levels, 2, step=Proportional(0.5), noise=draws)


EXACT = "exact draws"
TABLE: dict[str, Sampler] = {
    "Euler": one_call(samplers.euler),
    "Heun": two_calls(samplers.heun),
    "order 2": one_call(samplers.multistep, order=2),
    "order 3": one_call(samplers.multistep, order=3),
    "churn": noisy(two_calls, samplers.heun, churn=Churn(4.0)),
    "reverse SDE": noisy(one_call, samplers.reverse_sde),
    "ancestral": noisy(one_call, samplers.predictor_corrector, corrections=0, predictor=samplers.ancestral),
    "predictor, corrector": noisy(two_calls, samplers.predictor_corrector, step=Proportional(0.1)),
    "annealed Langevin": annealed,
}
ROWS = (*TABLE, EXACT)
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3


def settings(at: Scale) -> dict[str, Any]:
    """Costs and sizes."""
    return {
        "nfe": at.pick(smoke=[5, 9], laptop=[9, 17, 33, 65, 129], gpu=[9, 17, 33, 65, 129, 257, 513]),
        "samples": at.pick(smoke=100, laptop=1000, gpu=20_000),
        "directions": at.pick(smoke=8, laptop=64, gpu=64),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw from both mixtures at each cost, and measure how far the draws are from the mixture."""
    found = {}
    for name, mixture in (("plane", plane()), ("digits", data.class_gaussians(data.digits().train))):
        along = metrics.directions(mixture.means.shape[1], settings["directions"])
        drawn = [draw(row, seed, mixture, calls, settings["samples"]) for calls in settings["nfe"]]
        found[name] = [metrics.sliced_wasserstein_to(mixture, x, along) for x in drawn]
    return found


def draw(row: str, seed: int, mixture: GaussianMixture, calls: int, count: int) -> Tensor:
    """Draw ``count`` points by a row's sampler at the given cost."""
    first = 10_000 * (seed + 1)
    if row == EXACT:
        return mixture.sample(count, generator=torch.Generator().manual_seed(first + calls))
    draws = noise.PerSample(range(first, first + count))
    solution = TABLE[row](calls, mixture, draws.normal(tuple(mixture.means.shape[1:])), draws)
    if solution.nfe != calls:
        raise ValueError(f"row {row} made {solution.nfe} calls in place of {calls}")
    return solution.x


def plane() -> GaussianMixture:
    """Three clusters of different width and weight."""
    return GaussianMixture([[-1.0, -0.5], [1.0, -0.5], [0.0, 1.2]], [0.15, 0.3, 0.1], [0.3, 0.5, 0.2])

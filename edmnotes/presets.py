"""Rows of the design space by name: which preconditioning, noise distribution, levels and sampler belong together.

A preset is a value: ``dataclasses.replace`` swaps one of its columns for that of another row. Taught in the chapter
``design_space``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes import losses, preconditioning, samplers, schedules, steps
from edmnotes.contract import DenoiserLike
from edmnotes.preconditioning import Preconditioning
from edmnotes.samplers import Solution
from edmnotes.schedules import Schedule
from edmnotes.steps import Levels


@dataclass(frozen=True)
class Preset:
    """A row of the table (Karras et al. 2022, Table 1).

    Attributes:
        preconditioning: makes the coefficients from sigma_data, in units of the data.
        sigmas: distribution of the noise levels in training.
        steps: makes the levels to sample at from their number.
        schedule: s(t) and σ(t) to sample with.
        sampler: one of :mod:`edmnotes.samplers` that takes a ``schedule``, as its authors used it.
    """

    preconditioning: Callable[[float], Preconditioning]
    sigmas: losses.Sigmas
    steps: Callable[[int], Levels]
    schedule: Schedule
    sampler: Callable[..., Solution] = samplers.euler

    def sample(self, denoiser: DenoiserLike, normal: Float[Tensor, "batch *shape"], n: int, **options: Any) -> Solution:
        r"""Draw samples as the row says.

        Args:
            denoiser: D(x; σ).
            normal: standard normal noise in the shape of the samples; the start is s σ times it, at the first level.
            n: number of levels above 0.
            **options: of the sampler, and conditions of the denoiser: ``noise``, ``callback``, ``labels``, …

        Raises:
            ValueError: if the row has no n levels.
        """
        levels = self.steps(n)
        start = self.schedule.scale(self.schedule.sigma_inv(levels[0])) * levels[0]
        return self.sampler(denoiser, float(start) * normal, levels, schedule=self.schedule, **options)


def _unscheduled(sampler: Callable[..., Solution]) -> Callable[..., Solution]:
    """A sampler that has coordinates of its own, as a column of the table: the schedule is told and not needed."""

    def sample(*state: Any, schedule: Schedule, **options: Any) -> Solution:
        return sampler(*state, **options)

    return sample


# Rows that were made for data of unit variance do not ask for sigma_data.
_IDDPM = steps.iddpm_levels()[:-1]
_DDPM = schedules.Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
# NCSN's ladder for CIFAR-10 (Song and Ermon 2020, table 2), doubled for pixels between -1 and 1.
_SMLD = steps.ve(232, 0.02, 100.0)[:-1]
# The ends of VDM's learned schedule on CIFAR-10 (Kingma et al. 2021, appendix), log SNR 13.3 and -5.
_VDM_ENDS = (math.exp(-13.3 / 2), math.exp(5.0 / 2))

_chain = Preset(
    preconditioning=lambda sigma_data: preconditioning.VP(_DDPM, time_factor=1.0),
    sigmas=losses.UniformLevels(_DDPM.sigma(torch.arange(1, 1001, dtype=torch.float64))),
    steps=partial(steps.linear, schedule=_DDPM),
    schedule=_DDPM,
)
"""The linear chain of Ho et al. 2020."""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "vp": Preset(
            preconditioning=lambda sigma_data: preconditioning.VP(),
            sigmas=losses.UniformTime(schedules.VP(), 1e-5, 1.0),
            steps=steps.vp,
            schedule=schedules.VP(),
        ),
        "ve": Preset(
            preconditioning=lambda sigma_data: preconditioning.VE(),
            sigmas=losses.LogUniform(0.02, 100.0),
            steps=steps.ve,
            schedule=schedules.VE(),
        ),
        "iddpm": Preset(
            preconditioning=lambda sigma_data: preconditioning.IDDPM(_IDDPM),
            sigmas=losses.UniformLevels(_IDDPM),
            steps=steps.iddpm,
            schedule=schedules.EDM(),
        ),
        "edm": Preset(
            preconditioning=preconditioning.EDM,
            sigmas=losses.LogNormal(),
            steps=steps.edm,
            schedule=schedules.EDM(),
            sampler=samplers.heun,
        ),
        "ddpm": replace(_chain, sampler=_unscheduled(samplers.ddpm)),
        "ddim": replace(_chain, sampler=_unscheduled(samplers.ddim)),
        "smld": Preset(
            preconditioning=lambda sigma_data: preconditioning.VE(),
            sigmas=losses.UniformLevels(_SMLD),
            steps=steps.ve,
            schedule=schedules.EDM(),
            # 5 steps a level, as in the paper; its ε of 6.2e-6 at a lowest level of 0.01 is this fraction of σ².
            sampler=_unscheduled(partial(samplers.annealed_langevin, n=5, step=samplers.Proportional(0.124))),
        ),
        "vdm": Preset(
            preconditioning=lambda sigma_data: preconditioning.VP(schedules.GeometricVE(*_VDM_ENDS), time_factor=1.0),
            sigmas=losses.LogUniform(*_VDM_ENDS),
            steps=lambda n: steps.ve(n, *_VDM_ENDS),
            schedule=schedules.VP(),
            sampler=_unscheduled(samplers.ddpm),
        ),
        "flow": Preset(
            preconditioning=lambda sigma_data: preconditioning.Flow(),
            sigmas=losses.UniformTime(schedules.FlowMatching(), 1e-3, 0.999),
            steps=steps.flow,
            schedule=schedules.FlowMatching(),
        ),
    }
)
"""Every preset by name."""


def load(name: str) -> Preset:
    """Look a preset up by its name in :data:`PRESETS`.

    Raises:
        ValueError: if there is no such preset; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]

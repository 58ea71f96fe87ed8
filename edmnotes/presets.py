"""Rows of the design space by name: which preconditioning, noise distribution, levels and schedule belong together.

A preset is a value: ``dataclasses.replace`` swaps one of its columns for that of another row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from edmnotes import losses, preconditioning, schedules, steps
from edmnotes.preconditioning import Preconditioning
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
    """

    preconditioning: Callable[[float], Preconditioning]
    sigmas: losses.Sigmas
    steps: Callable[[int], Levels]
    schedule: Schedule


# Rows that were made for data of unit variance do not ask for sigma_data.
_IDDPM = steps.iddpm_levels()[:-1]
_DDPM = schedules.Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))

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
        ),
        "ddpm": Preset(  # the linear chain of Ho et al. 2020, read by the deterministic sampler
            preconditioning=lambda sigma_data: preconditioning.VP(_DDPM, time_factor=1.0),
            sigmas=losses.UniformLevels(_DDPM.sigma(torch.arange(1, 1001, dtype=torch.float64))),
            steps=partial(steps.linear, schedule=_DDPM),
            schedule=_DDPM,
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

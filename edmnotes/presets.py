"""Rows of the design space by name: which preconditioning, noise distribution, levels and schedule belong together.

A preset is a value: ``dataclasses.replace`` swaps one of its columns for that of another row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

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
    sigmas: losses.LogNormal
    steps: Callable[[int], Levels]
    schedule: Schedule


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "edm": Preset(preconditioning.EDM, losses.LogNormal(), steps.edm, schedules.EDM()),
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

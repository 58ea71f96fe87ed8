"""edmnotes: diffusion models in EDM's coordinates, the package that carries the book.

Each module is a room and can be reached as an attribute: ``edmnotes.samplers``, ``edmnotes.exact``, ... A room is
imported when it is first used, so that ``import edmnotes`` costs little and needs torch only.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

ROOMS = (
    "cli",
    "contract",
    "data",
    "derivations",
    "exact",
    "fokker_planck",
    "judging",
    "likelihood",
    "losses",
    "metrics",
    "networks",
    "noise",
    "plotting",
    "preconditioning",
    "presets",
    "results",
    "samplers",
    "scale",
    "schedules",
    "steps",
    "targets",
    "training",
    "variational",
)


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return importlib.import_module(f"edmnotes.{name}")
    raise AttributeError(f"module 'edmnotes' has no attribute {name!r}; its rooms are {', '.join(ROOMS)}")


def __dir__() -> list[str]:
    return sorted([*ROOMS, "__version__"])

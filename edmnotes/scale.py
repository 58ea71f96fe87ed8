"""The one switch for how large a run is, and the device that follows from it.

``EDMNOTES_SCALE=smoke|laptop|gpu`` (default ``laptop``) is read here and nowhere else. A chapter or a command asks
``scale.current().pick(smoke=..., laptop=..., gpu=...)`` for its sizes and ``scale.current().device`` for its device.
"""

import os
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")
NAMES = ("smoke", "laptop", "gpu")


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        name: ``smoke`` (seconds, only to see that it runs), ``laptop`` (the book's own outputs) or ``gpu``.
        device: where networks and batches live: CUDA when there is one, else the CPU.
    """

    name: str
    device: torch.device

    def pick(self, *, smoke: T, laptop: T, gpu: T) -> T:
        """Return the value that belongs to this scale."""
        return {"smoke": smoke, "laptop": laptop, "gpu": gpu}[self.name]

    @property
    def mixed_precision(self) -> bool:
        """Whether networks run under bfloat16 autocast, at scale gpu on a CUDA device only."""
        return self.name == "gpu" and self.device.type == "cuda"


def current() -> Scale:
    """Read the scale from ``EDMNOTES_SCALE``.

    Raises:
        ValueError: if the variable holds another word than smoke, laptop or gpu.
    """
    name = os.environ.get("EDMNOTES_SCALE", "laptop")
    if name not in NAMES:
        raise ValueError(f"EDMNOTES_SCALE is {name!r}; it must be one of {', '.join(NAMES)}")
    return Scale(name, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

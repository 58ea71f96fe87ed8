"""Checkpoints: one safetensors file of tensors and one JSON that vouches for it.

``checkpoint.json`` names the file of tensors and its SHA-256, and says of what it is a checkpoint. Both are written
aside, forced to disk and renamed, the JSON last: the rename of the JSON is the moment at which the new checkpoint
exists, and only then does the file of the one before go. A process killed at any moment leaves a whole checkpoint, or
none if it was the first.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from edmnotes import losses, networks, preconditioning, scale, schedules
from edmnotes.preconditioning import Denoiser

INDEX = "checkpoint.json"
DESIGN = {"preconditioning": preconditioning, "schedules": schedules, "losses": losses}
"""The rooms whose values may stand in a checkpoint."""
EMA = "ema."
"""Prefix of the averaged weights among the tensors: those a sampler uses."""


def describe(denoiser: Denoiser) -> dict[str, Any]:
    """Say, in a plain dict, how to build ``denoiser`` anew."""
    network = getattr(denoiser.network, "config", {"name": type(denoiser.network).__qualname__})
    return {"network": network, "preconditioning": named(denoiser.preconditioning)}


def named(value: Any) -> Any:
    """Write a value of the design space as plain data: a dataclass as its fields under its class's name.

    Tensors become lists of numbers. What is plain already stays as it is; :func:`made` reads it back.
    """
    if isinstance(value, Tensor):
        return value.tolist()
    if not is_dataclass(value):
        return value
    room = type(value).__module__.removeprefix("edmnotes.")
    values = {f.name: named(getattr(value, f.name)) for f in fields(value) if f.init}
    return {"name": f"{room}.{type(value).__qualname__}", **values}


def made(content: Any) -> Any:
    """Build the value that :func:`named` wrote.

    Raises:
        ValueError: if it names a class that is not a value of the design space.
    """
    if isinstance(content, list):
        return torch.tensor(content, dtype=torch.float64)
    if not isinstance(content, Mapping):
        return content
    room, _, name = str(content.get("name")).partition(".")
    if room not in DESIGN or not is_dataclass(getattr(DESIGN[room], name, None)):
        raise ValueError(f"{content.get('name')!r} is not a value of the design space, e.g. preconditioning.EDM")
    arguments = {key: made(value) for key, value in content.items() if key != "name"}
    try:
        return getattr(DESIGN[room], name)(**arguments)
    except TypeError as error:
        raise ValueError(f"{content['name']} cannot be made of {', '.join(arguments) or 'nothing'}: {error}") from error


def write(directory: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make ``tensors`` the checkpoint of ``directory``, in place of the one before.

    Args:
        directory: where; made if it is not there.
        content: what it is a checkpoint of, fit for JSON, with its ``step``.
        tensors: by name, on any device.
    """
    directory.mkdir(parents=True, exist_ok=True)
    packed = bytes_of({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
    name = f"step-{content['step']:08d}.safetensors"
    write_whole(directory / name, packed)
    index = {**content, "tensors": name, "sha256": hashlib.sha256(packed).hexdigest()}
    write_whole(directory / INDEX, json.dumps(index, indent=2).encode())
    for old in [*directory.glob("step-*.safetensors"), *directory.glob("*.part")]:
        if old.name != name:
            old.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, force it to disk and rename it: under its name there is never half of it."""
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    if os.name == "posix":  # elsewhere a directory cannot be opened to force the rename to disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def exists(directory: Path) -> bool:
    """Whether ``directory`` holds a checkpoint."""
    return (directory / INDEX).is_file()


def about(run_dir: str | Path) -> dict[str, Any]:
    """Read what the checkpoint in ``run_dir`` is of: network, preconditioning, configuration, step.

    Raises:
        FileNotFoundError: if ``run_dir`` holds no checkpoint.
        ValueError: if its ``checkpoint.json`` cannot be read.
    """
    directory = Path(run_dir)
    if not exists(directory):
        why = "is not a directory" if not directory.is_dir() else f"holds no {INDEX}"
        raise FileNotFoundError(
            f"no checkpoint: {str(directory)!r} {why}; give the directory that training.fit(run_dir=) "
            "or 'python -m edmnotes train --out' wrote to"
        )
    try:
        index = json.loads((directory / INDEX).read_text())
        index["step"], index["tensors"], index["sha256"], index["network"], index["preconditioning"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"damaged checkpoint: {directory / INDEX} cannot be read ({error}); {_CURE}") from error
    return index


_CURE = "restore it from a copy, or delete the directory and train again"


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the checkpoint in ``directory``, refusing any that is not whole.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its tensors are missing, cut short or changed.
    """
    index = about(directory)
    path = directory / str(index["tensors"])
    if not path.is_file():
        raise ValueError(f"damaged checkpoint: {path}, which {INDEX} names, is missing; {_CURE}")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != index["sha256"]:
        raise ValueError(
            f"damaged checkpoint: {path} ({len(packed)} bytes) is not what was written, its SHA-256 differs; {_CURE}"
        )
    return index, tensors_of(packed)


def load(run_dir: str | Path, *, network: nn.Module | None = None) -> Denoiser:
    """Load the trained denoiser of a run: its averaged weights, in evaluation mode, on the scale's device.

    Args:
        run_dir: where :func:`fit` kept its checkpoint; the run need not be finished.
        network: a network to fill, for one that is not from :mod:`edmnotes.networks`.

    Raises:
        FileNotFoundError: if ``run_dir`` holds no checkpoint.
        ValueError: if the checkpoint is damaged or its weights do not fit the network.
    """
    index, tensors = read(Path(run_dir))
    denoiser = Denoiser(network or networks.build(index["network"]), made(index["preconditioning"]))
    weights = {name.removeprefix(EMA): tensor for name, tensor in tensors.items() if name.startswith(EMA)}
    try:
        denoiser.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {str(run_dir)!r} do not fit the network: {error}") from error
    return denoiser.to(scale.current().device).eval()


def export(run_dir: str | Path, out: str | Path) -> None:
    """Copy the averaged weights of a run, and nothing needed only to go on training, into ``out``.

    :func:`load` reads the copy; :func:`fit` refuses to go on from it.

    Raises:
        FileNotFoundError: if ``run_dir`` holds no checkpoint.
        ValueError: if the checkpoint is damaged.
    """
    index, tensors = read(Path(run_dir))
    write(Path(out), index, {name: tensor for name, tensor in tensors.items() if name.startswith(EMA)})


def digits_model() -> Denoiser:
    """Load the book's shared digits model, committed with the package: class-conditional, 8 x 8, digits in [-1, 1].

    Its ``provenance.json`` says how it was made and how well it does.
    """
    return load(DIGITS)


DIGITS = Path(__file__).parents[1] / "models" / "digits"
"""Where the shared digits model lies."""

"""The command line: ``python -m edmnotes train | sample | evaluate``.

Each command is a function; its docstring is its help. ``EDMNOTES_SCALE=smoke|laptop|gpu`` sets how large a run is, and
CUDA is used when it is there. Bad input ends with one line and exit code 2.
"""

import io
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

import edmnotes
from edmnotes import data as datasets
from edmnotes import judging, networks, noise, presets, scale, training
from edmnotes.preconditioning import Denoiser
from edmnotes.samplers import Solution
from edmnotes.training import checkpoint

SHARED = "shared"
"""The word for the digits model that comes with the package, where a run's directory is asked for."""

RECORD = "run.json"
"""What a run's directory says of how it was made, beside the checkpoint."""

BATCH = 256
"""Samples made at once; which of them are made together changes them by rounding only."""


@dataclass(frozen=True)
class _Made:
    """A trained model and what it was made from."""

    directory: Path
    denoiser: Denoiser
    preset: presets.Preset
    data: str
    num_classes: int | None


def train(
    *,
    data: str = "digits",
    preset: str = "edm",
    out: Path | None = None,
    images: int | None = None,
    batch: int = training.Config.batch,
    lr: float = training.Config.lr,
    seed: int = 0,
) -> None:
    """Train a model. If its directory holds a checkpoint of the same run, go on from there.

    Ctrl-C saves; the same command then goes on. What was learnt is saved every half minute in any case.

    Args:
        data: What to learn: digits, or points of moons, spiral, checkerboard, eight_gaussians.
        preset: Row of the design space: vp, ve, iddpm, edm, ddpm, ddim, smld, vdm, flow.
        out: Directory of the run; if not given, runs/DATA-PRESET.
        images: How many images to train on in all, each many times; if not given, the scale decides.
        batch: Images a step.
        lr: Highest learning rate.
        seed: Of the first weights and of everything random in training.
    """
    row, split = presets.load(preset), datasets.load(data)
    lengths = {} if images is None else {"images": images}
    config = training.Config(batch=batch, lr=lr, seed=seed, sigmas=row.sigmas, **lengths)
    network = training.untrained(split.train, seed=seed).network
    denoiser = Denoiser(network, row.preconditioning(datasets.sigma_data(split.train.x)))
    directory = out or Path("runs") / f"{data}-{preset}"
    _record(directory, {"data": data, "preset": preset})
    if checkpoint.exists(directory):
        print(f"going on with {directory}, from step {training.about(directory)['step']} of {config.steps}")
    fitted = training.fit(denoiser, split.train, config=config, run_dir=directory)
    print(f"trained on {config.steps * batch} images; mean loss of the last 50 steps {fitted.losses[-50:].mean():.4f}")
    print(f"look:  python -m edmnotes sample {shlex.quote(str(directory))} --labels all --out samples.png")


def sample(
    run: str,
    /,
    *,
    n: int = 100,
    steps: int = 18,
    seed: int = 0,
    labels: str | None = None,
    out: Path = Path("samples.png"),
) -> None:
    """Draw samples from a trained model by its row's own sampler and write them to a file.

    Sample i has the seed SEED + i, so it is the same whatever N.

    Args:
        run: Directory of the run, or the word shared: the digits model that comes with the package.
        n: How many samples.
        steps: Noise levels above 0; how often the network is called depends on the sampler, 2 STEPS - 1 times for edm.
        seed: Of the first sample; the next ones count on from it.
        labels: Classes to draw, over and over: 3, or 0,1,2, or all; if not given, no class is asked for.
        out: File to write: .png (a grid of images) or .npz (arrays x, labels, seeds); replaced if it is there.
    """
    _check(seed, n=n, steps=steps)
    _target(out, (".png", ".npz"))
    made = _made(run)
    shape = datasets.load(made.data).train.shape
    if out.suffix == ".png" and len(shape) != 3:
        raise ValueError(f"out = {str(out)!r}: samples of {made.data} are points, not images; write them to .npz")
    wanted = _labels(labels, n, made.num_classes)
    drawn = generate(made.denoiser, made.preset, shape, range(seed, seed + n), wanted, steps=steps)
    stored = torch.full((n,), networks.NULL) if wanted is None else wanted
    content = (
        _png(drawn.x) if out.suffix == ".png" else _npz(x=drawn.x, labels=stored, seeds=torch.arange(seed, seed + n))
    )
    checkpoint.write_whole(out, content)
    print(f"{n} samples, {drawn.nfe} calls of the network each: {out}")


def evaluate(run: str, /, *, steps: int = 18, seed: int = 0, out: Path | None = None) -> None:
    """Judge a digits model: as many samples as held-out digits, with their labels, beside real digits and copies.

    At scale smoke a ninth of them, which only shows that it runs.

    Args:
        run: Directory of the run, or the word shared: the digits model that comes with the package.
        steps: Noise levels above 0.
        seed: Of the first sample; the next ones count on from it.
        out: Where to keep the numbers; if not given, report.json in the directory of the run (nowhere for shared).
    """
    _check(seed, steps=steps)
    made = _made(run)
    if made.data != "digits" or made.num_classes is None:
        raise ValueError(f"run = {run!r} was trained on {made.data}; only class-conditional digits can be judged")
    if out is None and run != SHARED:
        out = made.directory / "report.json"
    if out is not None:
        _target(out, (".json",))
    at = scale.current()
    held_out = datasets.digits().held_out
    labels = cast(Tensor, held_out.labels)[:: at.pick(smoke=9, laptop=1, gpu=1)]
    drawn = generate(made.denoiser, made.preset, held_out.shape, range(seed, seed + len(labels)), labels, steps=steps)
    report = judging.judge_digits(drawn.x, labels)
    print(report)
    if out is not None:
        about = training.about(made.directory)
        provenance = {
            "command": f"python -m edmnotes evaluate {shlex.quote(run)} --steps {steps} --seed {seed}",
            "seed": seed,
            "scale": at.name,
            "machine": f"{platform.machine()}, {at.device.type}",
            "versions": {
                "edmnotes": edmnotes.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "model": {"step": about["step"], "sha256": about["sha256"]},
        }
        content = json.dumps({"report": report.to_json(), "provenance": provenance}, indent=2)
        checkpoint.write_whole(out, content.encode() + b"\n")
        print(f"kept in {out}")


def generate(
    denoiser: nn.Module,
    preset: presets.Preset,
    shape: Sequence[int],
    seeds: Sequence[int],
    labels: Int[Tensor, " batch"] | None = None,
    *,
    steps: int = 18,
) -> Solution:
    r"""Draw one sample a seed by the row's own sampler, with progress shown; sample i depends on ``seeds[i]`` only.

    Args:
        denoiser: D, with its parameters on any one device.
        preset: gives the levels, the schedule and the sampler.
        shape: shape of one sample.
        seeds: one a sample, none negative.
        labels: one class a sample; None for none.
        steps: levels above 0.

    Returns:
        ``Solution`` with samples of shape (number of seeds, \*shape), float32 on the CPU, and the number of calls of
        the network for each of them.

    Raises:
        ValueError: if ``seeds`` is empty or holds a negative one, or ``steps`` is below 1.
    """
    device, parts = next(denoiser.parameters()).device, []
    batches = [seeds[first : first + BATCH] for first in range(0, max(len(seeds), 1), BATCH)]
    with tqdm(total=len(batches) * steps, unit="step") as bar:
        for i, those in enumerate(batches):
            draws = noise.PerSample(those)
            cond: dict[str, Any] = {} if labels is None else {"labels": labels[i * BATCH :][: len(those)].to(device)}
            drawn = preset.sample(
                denoiser,
                draws.normal(shape, device=device),
                steps,
                noise=draws,
                callback=lambda **_: bar.update(),
                **cond,
            )
            parts.append(drawn.x.float().cpu())
    return Solution(torch.cat(parts), drawn.nfe)


def _made(run: str) -> _Made:
    """Find the model that a user named: the shared one, or that of a run's directory.

    Raises:
        FileNotFoundError: if there is no checkpoint, or no record of how it was made.
        ValueError: if either is damaged.
    """
    if run == SHARED:
        directory, record = checkpoint.DIGITS, {"data": "digits", "preset": "edm"}
    else:
        directory = Path(run)
        training.about(directory)  # a directory without a checkpoint is refused for that first
        record = _recorded(directory)
    about = training.about(directory)
    preset = presets.load(record["preset"])
    return _Made(directory, training.load(directory), preset, record["data"], about["network"].get("num_classes"))


def _recorded(directory: Path) -> dict[str, str]:
    path = directory / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(directory)!r} holds a checkpoint but no {RECORD}, which says of what data and preset it is; "
            "only runs of 'python -m edmnotes train' have one, others are loaded by training.load in Python"
        )
    try:
        record = json.loads(path.read_text())
        return {"data": str(record["data"]), "preset": str(record["preset"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be read ({error}); write it as {{"data": ..., "preset": ...}}') from error


def _record(directory: Path, made: dict[str, str]) -> None:
    """Write down how a run is made, unless the directory already holds a run that was made otherwise."""
    if checkpoint.exists(directory) and (directory / RECORD).is_file() and _recorded(directory) != made:
        raise ValueError(
            f"{str(directory)!r} holds a run of {_recorded(directory)}, not of {made}; give another directory as --out"
        )
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.write_whole(directory / RECORD, json.dumps(made).encode())


def _check(seed: int, **counts: int) -> None:
    if seed < 0:
        raise ValueError(f"seed = {seed}; it must not be negative")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} = {value}; it must be 1 or more")


def _target(out: Path, suffixes: Sequence[str]) -> None:
    """See that a file can be written, before the work that fills it."""
    if out.suffix not in suffixes:
        raise ValueError(f"out = {str(out)!r}; its name must end in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out = {str(out)!r}: there is no directory {str(out.parent)!r}; make it first")
    if out.is_dir():
        raise ValueError(f"out = {str(out)!r} is a directory; give a file in it")


def _labels(words: str | None, n: int, num_classes: int | None) -> Int[Tensor, " n"] | None:
    """Read ``--labels``: the classes named, repeated until there are n."""
    if words is None:
        return None
    if num_classes is None:
        raise ValueError(f"labels = {words!r}, but the model was trained without classes; leave --labels out")
    try:
        classes = list(range(num_classes)) if words == "all" else [int(word) for word in words.split(",")]
    except ValueError:
        classes = []
    if not classes or min(classes) < 0 or max(classes) >= num_classes:
        raise ValueError(f"labels = {words!r}; give classes from 0 to {num_classes - 1}, as 3 or 0,1,2, or all")
    return torch.tensor(classes).repeat(-(-n // len(classes)))[:n]


def _npz(**arrays: Tensor) -> bytes:
    file = io.BytesIO()
    plain: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    np.savez_compressed(file, **plain)
    return file.getvalue()


def _png(images: Float[Tensor, "batch channel height width"]) -> bytes:
    """Draw a grid, ten images a row, ink on paper, small images enlarged."""
    from PIL import Image

    from edmnotes import plotting

    grid = plotting.tile(images, 10)
    grid = 127.5 * (1 - grid if grid.ndim == 2 else 1 + grid)
    factor = max(1, 48 // max(images.shape[2:]))
    picture = Image.fromarray(grid.round().byte().numpy())
    file = io.BytesIO()
    picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code, 0; 2 for bad input, said in one line; 130 after Ctrl-C.
    """
    import tyro

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"train": train, "sample": sample, "evaluate": evaluate},
            prog="python -m edmnotes",
            description="Train a small diffusion model, draw samples from it, judge them. For example: "
            "train --out RUN, then sample RUN --labels all --out x.png, then evaluate RUN. "
            "'train --help' and so on tell more. EDMNOTES_SCALE=smoke|laptop|gpu (laptop) sets how long to train.",
            args=words,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = f"; go on with: python -m edmnotes {shlex.join(words)}" if words[0] == "train" else ""
        print(f"\nstopped{again}", file=sys.stderr)
        return 130
    return 0

#!/usr/bin/env python
"""Make the book's shared digits model anew: train, judge, and, if it is good enough, write edmnotes/models/digits.

    python tools/shared_model.py [--run RUN]

Always at the sizes below, whatever the scale. Stopped, it goes on from the checkpoint in RUN when it is called again.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import cast

import torch
from notebooks import Library
from torch import Tensor

import edmnotes
from edmnotes import cli, data, judging, presets, scale, training
from edmnotes.training import checkpoint

IMAGES = 400_000
SEED = 0
MADE_BY = ("data", "networks", "preconditioning", "losses", "training.fit")  # a change in these may change the weights
BOUNDS = {"accuracy": (0.97, 1.0), "frechet_over_real_90th": (0.0, 1.0), "nn_ratio": (0.75, 1.2)}
"""Within these every remake must come out, on any machine and with any version of torch."""


def measures(report: judging.Report) -> dict[str, float]:
    """Return the numbers that :data:`BOUNDS` is about."""
    return {
        "accuracy": report.accuracy,
        "frechet_over_real_90th": report.frechet / report.real_to_real_90,
        "nn_ratio": report.nn_ratio,
    }


def judged(run: Path) -> judging.Report:
    """Draw as many samples as held-out digits, with their labels, from the model in ``run``, and judge them."""
    held_out = data.digits().held_out
    labels = cast(Tensor, held_out.labels)
    samples = cli.generate(training.load(run), presets.load("edm"), held_out.shape, range(len(labels)), labels).x
    return judging.judge_digits(samples, labels)


def make(run: Path, out: Path, *, images: int = IMAGES) -> judging.Report:
    """Train in ``run``, judge, write the averaged weights and their provenance into ``out``.

    Raises:
        RuntimeError: if a measure lies outside :data:`BOUNDS`; ``out`` is then left as it was.
    """
    digits = data.digits().train
    training.fit(
        training.untrained(digits, seed=SEED), digits, config=training.Config(images=images, seed=SEED), run_dir=run
    )
    report = judged(run)
    for name, value in measures(report).items():
        low, high = BOUNDS[name]
        if not low <= value <= high:
            raise RuntimeError(f"{name} is {value:.3f}, outside [{low}, {high}]; the model is not written")
    training.export(run, out)
    provenance = {
        "command": "python tools/shared_model.py",
        "seed": SEED,
        "images": images,
        "scale": "its own, the same at every scale",
        "device": scale.current().device.type,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} in use",
        "versions": {
            "edmnotes": edmnotes.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "code": fingerprints(),
        "bounds": BOUNDS,
        "measured": measures(report),
        "report": report.to_json(),
    }
    checkpoint.write_whole(out / "provenance.json", json.dumps(provenance, indent=2).encode() + b"\n")
    return report


def fingerprints() -> dict[str, str]:
    """Return hashes of the modules that made the weights, comments and docstrings apart."""
    library = Library(Path(edmnotes.__file__).parent)
    return {name: library.fingerprint(f"edmnotes.{name}") for name in MADE_BY}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/shared-digits"), help="where to train")
    print(make(parser.parse_args().run, checkpoint.DIGITS))

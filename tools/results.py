#!/usr/bin/env python
"""Make and keep stored results: long measurements, cell by cell, that chapters show.

    tools/results.py run [--scale smoke|laptop|gpu] [--force] NAME    measure; stopped or killed, it goes on next time
    tools/results.py check [NAME ...]      exit 1 if a result is stale, or one row of it comes out otherwise
    tools/results.py confirm [NAME ...]    see whether code that changed still gives the numbers

``experiments/NAME.py`` defines an experiment. Its docstring's first line says what it measures; it has

    ROWS, SEEDS                     the table: one cell a row and seed
    TOLERANCE                       largest relative difference that another machine may make at scale smoke
    settings(at) -> dict            everything that depends on the scale ``at``, fit for JSON
    measure(row, seed, settings)    a pure function: a dict of finite numbers and lists of them

and it imports from ``edmnotes`` and from other packages, not from its neighbours.

Only scale laptop on the CPU writes ``book/results/NAME.json``, and only when every cell is there; until then, and at
any other scale or device, cells lie in ``_build/results/SCALE/NAME.json``. Each file names the code that made it, by a
fingerprint of the experiment and of each module of ``edmnotes`` that it reaches. When that code changes the result is
stale. A file also holds a twin of its first seed at scale smoke, seconds in all: ``confirm`` measures the twin anew
and, if it comes out as stored, vouches for the new code in ``NAME.confirmed.json``. So a change that leaves the numbers
alone costs seconds, and one that moves them is found.
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from notebooks import PACKAGE, ROOT, Library, plain, uses

Cells = list[dict[str, Any]]


class Refused(Exception):
    """A result that cannot be used or made; the message says what would do."""


# --- an experiment and its files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """The definition of a measurement, in a file of its own."""

    path: Path
    library: Library

    @property
    def name(self) -> str:
        """What the commands and the stored files call it."""
        return self.path.stem

    @cached_property
    def code(self) -> dict[str, str]:
        """Fingerprints of the definition and of the modules that it reaches, as they were when first asked for."""
        tree = ast.parse(self.path.read_text(encoding="utf8"), filename=str(self.path))
        own = hashlib.sha256(repr(plain(tree)).encode()).hexdigest()[:12]
        reached = sorted(self.library.closure(set(uses(tree, PACKAGE))))
        return {self.path.name: own} | {m: self.library.fingerprint(m) for m in reached}

    @cached_property
    def module(self) -> ModuleType:
        """The definition, imported, after its fingerprint was taken: an edit made meanwhile must leave it stale."""
        assert self.code
        spec = importlib.util.spec_from_file_location(f"experiment_{self.name}", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def cell(self, row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Measure one cell.

        Raises:
            Refused: if a measure is not finite, or not fit for JSON.
        """
        start, busy = time.perf_counter(), time.process_time()
        values = self.module.measure(row, seed, settings)
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
        try:
            values = json.loads(json.dumps(values, allow_nan=False))
        except (ValueError, TypeError) as error:
            raise Refused(f"{self.name}, row {row}, seed {seed}: {error}, in {values}") from None
        return {"row": row, "seed": seed, **{k: round(v, 2) for k, v in took.items()}, "values": values}

    def twin(self, row: str) -> dict[str, Any]:
        """Measure the first seed of a row at scale smoke."""
        return self.cell(row, self.module.SEEDS[0], self.settings("smoke"))

    def settings(self, scale_name: str) -> dict[str, Any]:
        """The settings at a scale, as JSON would give them back."""
        import torch

        from edmnotes.scale import Scale

        return json.loads(json.dumps(self.module.settings(Scale(scale_name, torch.device("cpu")))))


@dataclass(frozen=True)
class Stored:
    """A file of cells, and beside it the newest code that was seen to give the same."""

    path: Path

    @property
    def confirmed(self) -> Path:
        """Where newer code is vouched for."""
        return self.path.with_suffix(".confirmed.json")

    def content(self) -> dict[str, Any]:
        """What the file holds.

        Raises:
            Refused: if it is damaged.
        """
        return _load(self.path, ("code", "settings", "rows", "seeds", "smoke", "cells"))

    def stale(self, experiment: Experiment) -> list[str]:
        """The modules that changed since the cells were made, or since their numbers were last confirmed."""
        known = [self.content()["code"]]
        if self.confirmed.exists():
            known.append(_load(self.confirmed, ("code",))["code"])
        changes = [
            sorted(m for m in c.keys() | experiment.code.keys() if c.get(m) != experiment.code.get(m)) for c in known
        ]
        return min(changes, key=len)

    def missing(self) -> list[tuple[str, int]]:
        """The cells that are still to be measured, seed by seed."""
        content = self.content()
        there = {(cell["row"], cell["seed"]) for cell in content["cells"]}
        return [(row, seed) for seed in content["seeds"] for row in content["rows"] if (row, seed) not in there]


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {', '.join(missing)}")
    except (ValueError, TypeError) as error:
        raise Refused(f"{path.name} is damaged ({error}); restore it, or remove it and run again") from None
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write aside, force to disk, rename: under its name there is never half a file. A cell a line."""
    lines = []
    for key, value in content.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if key in ("smoke", "cells") and value:
            text = "[\n" + ",\n".join("  " + json.dumps(c, ensure_ascii=False, allow_nan=False) for c in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf8") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def machine() -> dict[str, Any]:
    """The class of this machine, nothing that tells which one it is."""
    import torch

    from edmnotes import scale

    device = scale.current().device
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


# --- comparing ------------------------------------------------------------------------------------------------------


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and words of nested JSON, each with its place."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float, str]:
    """The largest relative difference of two cells' values, and where it is; infinite where they do not correspond."""
    before, after = dict(leaves(then)), dict(leaves(now))
    worst, place = 0.0, ""
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a == b:
            apart = 0.0
        elif isinstance(a, int | float) and isinstance(b, int | float):
            apart = abs(a - b) / max(abs(a), abs(b))
        else:
            apart = math.inf
        if apart > worst:
            worst, place = apart, f"{name} was {a}, is {b}"
    return worst, place


def drift(experiment: Experiment, content: Mapping[str, Any], rows: list[str]) -> float:
    """Measure the twins of some rows anew; the largest relative difference to those stored.

    Raises:
        Refused: if it is above the tolerance.
    """
    stored = {cell["row"]: cell["values"] for cell in content["smoke"]}
    worst = 0.0
    for row in rows:
        apart, place = difference(stored.get(row, {}), experiment.twin(row)["values"])
        if apart > experiment.module.TOLERANCE:
            raise Refused(
                f"{experiment.name}, row {row} at scale smoke: {place}, a relative difference of {apart:.1e}, "
                f"tolerance {experiment.module.TOLERANCE:.0e}; the numbers are not this code's: "
                f"python tools/results.py run --force {experiment.name}"
            )
        worst = max(worst, apart)
    return worst


# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The folders of one call."""

    finished: Path
    build: Path

    def unfinished(self, name: str, scale_name: str, device: str) -> Stored:
        """Where cells gather."""
        suffix = "" if device == "cpu" else f"-{device}"
        return Stored(self.build / (scale_name + suffix) / f"{name}.json")

    def of_book(self, name: str) -> Stored:
        """What chapters read."""
        return Stored(self.finished / f"{name}.json")


def run(experiment: Experiment, place: Place, *, force: bool) -> None:
    """Measure the cells that are missing, storing each at once.

    Raises:
        Refused: if cells of other code are there, or a cell cannot be measured.
        KeyboardInterrupt: as it comes; what was measured is kept.
    """
    from edmnotes import scale

    at = scale.current()
    name, for_book = experiment.name, at.name == "laptop" and at.device.type == "cpu"
    gathering = place.unfinished(name, at.name, at.device.type)
    target = place.of_book(name) if for_book else gathering
    if force:
        gathering.path.unlink(missing_ok=True)
        gathering.confirmed.unlink(missing_ok=True)
    elif target.path.exists() and not target.missing():
        if changed := target.stale(experiment):
            raise Refused(
                f"{name} is complete, but code changed since: {', '.join(changed)}; "
                f"'confirm {name}' sees in seconds whether the numbers did, 'run --force {name}' measures all anew"
            )
        print(f"{name}: complete and fresh; --force measures it anew")
        return
    if not gathering.path.exists():
        _begin(experiment, gathering, at.name, twins=for_book)
    elif changed := gathering.stale(experiment):
        raise Refused(
            f"{name}: the cells so far were made by other code, {', '.join(changed)} changed; "
            f"'confirm {name}' sees in seconds whether the numbers did, 'run --force {name}' begins anew"
        )
    _go_on(experiment, gathering)
    if for_book:
        write(target.path, gathering.content())
        if gathering.confirmed.exists():
            os.replace(gathering.confirmed, target.confirmed)
        else:
            target.confirmed.unlink(missing_ok=True)
        gathering.path.unlink()
    print(f"{name}: complete, in {target.path.relative_to(ROOT) if target.path.is_relative_to(ROOT) else target.path}")


def _begin(experiment: Experiment, stored: Stored, scale_name: str, *, twins: bool) -> None:
    """Write the head of a file, with the twins that the book's results have, and no cell yet."""
    module, code = experiment.module, experiment.code
    content = {
        "name": experiment.name,
        "about": (module.__doc__ or "").strip().splitlines()[0],
        "command": f"python tools/results.py run {experiment.name}" + _option(scale_name),
        "scale": scale_name,
        "machine": machine(),
        "code": code,
        "tolerance": module.TOLERANCE,
        "settings": experiment.settings(scale_name),
        "rows": list(module.ROWS),
        "seeds": list(module.SEEDS),
        "smoke": [experiment.twin(row) for row in module.ROWS] if twins else [],
        "cells": [],
    }
    write(stored.path, content)


def _option(scale_name: str) -> str:
    return "" if scale_name == "laptop" else f" --scale {scale_name}"


def _go_on(experiment: Experiment, stored: Stored) -> None:
    """Measure what is missing, a whole seed of all rows before the next, and say how long the rest will take."""
    content, missing = stored.content(), stored.missing()
    done = len(content["cells"])
    for i, (row, seed) in enumerate(missing, 1):
        cell = experiment.cell(row, seed, content["settings"])
        content["cells"].append(cell)
        write(stored.path, content)
        mean = sum(c["seconds"] for c in content["cells"]) / len(content["cells"])
        print(
            f"{experiment.name}: {row}, seed {seed} in {cell['seconds']:.1f} s; "
            f"{done + i} of {done + len(missing)} cells"
            + (f", about {mean * (len(missing) - i) / 60:.0f} minutes left" if i < len(missing) else ""),
            flush=True,
        )


def check(experiment: Experiment, place: Place) -> None:
    """See that the book's result is complete and fresh, and that one row of it comes out as stored.

    Raises:
        Refused: if not.
    """
    stored = place.of_book(experiment.name)
    if not stored.path.exists():
        raise Refused(f"{experiment.name} has no stored result; python tools/results.py run {experiment.name}")
    if missing := stored.missing():
        raise Refused(f"{experiment.name}: {len(missing)} cells are missing, the first {missing[0]}; restore the file")
    if changed := stored.stale(experiment):
        raise Refused(
            f"{experiment.name} is stale, code changed: {', '.join(changed)}; "
            f"python tools/results.py confirm {experiment.name}"
        )
    drift(experiment, stored.content(), [experiment.module.ROWS[0]])


def confirm(experiment: Experiment, place: Place) -> None:
    """Vouch for changed code whose numbers are the stored ones, for the book's result and for one in the making.

    Raises:
        Refused: if the numbers changed, or the table or its settings did.
    """
    files = [place.of_book(experiment.name), place.unfinished(experiment.name, "laptop", "cpu")]
    for stored in (s for s in files if s.path.exists()):
        changed = stored.stale(experiment)
        if not changed:
            print(f"{experiment.name}: fresh")
            continue
        content, module = stored.content(), experiment.module
        then = {key: content[key] for key in ("rows", "seeds", "settings")}
        now = {"rows": [*module.ROWS], "seeds": [*module.SEEDS], "settings": experiment.settings(content["scale"])}
        if then != now:
            raise Refused(
                f"{experiment.name}: {difference(then, now)[1]}; it is another experiment now: "
                f"python tools/results.py run --force {experiment.name}"
            )
        worst = drift(experiment, content, content["rows"])
        write(stored.confirmed, {"code": experiment.code, "machine": machine(), "largest_difference": worst})
        print(f"{experiment.name}: confirmed, largest difference {worst:.0e}, after changes of {', '.join(changed)}")


def experiments(folder: Path, library: Library, names: list[str]) -> list[Experiment]:
    """The experiments of a folder, or those named."""
    found = {p.stem: Experiment(p, library) for p in sorted(folder.glob("*.py"))}
    if unknown := set(names) - set(found):
        raise ValueError(f"no experiment {', '.join(sorted(unknown))} in {folder.name}; there are {', '.join(found)}")
    return [found[n] for n in sorted(names or found)]


def orphans(folder: Path, known: set[str]) -> list[str]:
    """Stored results that no experiment makes."""
    return [p.name for p in sorted(folder.glob("*.json")) if p.name.split(".")[0] not in known]


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "check", "confirm"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; check and confirm: all if none is named")
    parser.add_argument("--scale", choices=["smoke", "laptop", "gpu"], help="run: in place of EDMNOTES_SCALE")
    parser.add_argument("--force", action="store_true", help="run: measure anew what is there")
    parser.add_argument("--experiments", type=Path, default=ROOT / "experiments", help="the folder of the definitions")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "book" / "results", help="the folder of what is complete"
    )
    parser.add_argument("--build", type=Path, default=ROOT / "_build" / "results", help="the folder of the rest")
    parser.add_argument("--package", type=Path, default=ROOT / PACKAGE, help="the folder of the package")
    args = parser.parse_intermixed_args(argv)
    if args.command == "run" and not args.names:
        parser.error("run: name the experiment")
    if args.command == "run" and args.scale:
        os.environ["EDMNOTES_SCALE"] = args.scale
    elif args.command != "run":
        os.environ |= {
            "EDMNOTES_SCALE": "laptop",
            "CUDA_VISIBLE_DEVICES": "",
        }  # what the book shows was made on the CPU
    try:
        chosen = experiments(args.experiments.resolve(), Library(args.package.resolve()), args.names)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    place, failed = Place(args.results.resolve(), args.build.resolve()), False
    for experiment in chosen:
        try:
            if args.command == "run":
                run(experiment, place, force=args.force)
            else:
                {"check": check, "confirm": confirm}[args.command](experiment, place)
        except Refused as error:
            print(error, file=sys.stderr)
            failed = True
        except KeyboardInterrupt:
            print(f"\n{experiment.name}: stopped; the same command goes on", file=sys.stderr)
            return 130
    if args.command == "check" and not args.names:
        for name in orphans(place.finished, {e.name for e in chosen}):
            print(f"{name}: no experiment makes it; remove it", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Stored measurements: numbers that take longer than a chapter may, read back with how they were made.

An experiment is a table of cells, one a row and seed, measured by ``python tools/results.py run NAME`` and kept as
JSON; ``experiments/NAME.py`` says what a cell measures. A chapter reads the file and shows it. Taught in the chapter
``preconditioning``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    r"""A measure over seeds.

    Attributes:
        n: number of seeds.
        mean: over the seeds, float64, shape of the measure: () for a number, (m,) for a list of m.
        std: standard deviation of one seed about that mean (n − 1 in the denominator); nan for a single seed.
        low: the smallest of the seeds.
        high: the largest.
    """

    n: int
    mean: Float[Tensor, "*shape"]
    std: Float[Tensor, "*shape"]
    low: Float[Tensor, "*shape"]
    high: Float[Tensor, "*shape"]


@dataclass(frozen=True)
class Results:
    """A stored table of cells.

    Attributes:
        name: of the experiment.
        about: what it measures, in one line.
        rows: names of the rows, in their order.
        seeds: the seeds of each row.
        settings: what is the same for every cell: lengths, levels and other sizes that follow from the scale.
        cells: for each (row, seed), the measures by name: numbers, or lists of numbers.
        seconds: for each (row, seed), how long the cell took on the machine named in ``provenance``, by the clock.
        cpu_seconds: the processor's time in them, of all threads; less than ``seconds`` where others were at work too.
        provenance: command, scale, machine and the fingerprints of the code that measured.
    """

    name: str
    about: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    cells: Mapping[tuple[str, int], Mapping[str, Any]]
    seconds: Mapping[tuple[str, int], float]
    cpu_seconds: Mapping[tuple[str, int], float]
    provenance: Mapping[str, Any]

    def values(self, row: str, measure: str) -> Float[Tensor, "seeds *shape"]:
        """Return a measure of a row, seed by seed.

        Args:
            row: one of ``rows``.
            measure: name of the measure.

        Returns:
            float64 on the CPU, a seed a row.

        Raises:
            ValueError: if there is no such row or measure; the message lists those there are.
        """
        if row not in self.rows:
            raise ValueError(f"row = {row!r} is not in {self.name}; there are {', '.join(self.rows)}")
        cells = [self.cells[row, seed] for seed in self.seeds]
        if measure not in cells[0]:
            raise ValueError(f"measure = {measure!r} is not in {self.name}; there are {', '.join(cells[0])}")
        return torch.tensor([cell[measure] for cell in cells], dtype=torch.float64)

    def spread(self, row: str, measure: str) -> Spread:
        """Return mean, standard deviation and range of a measure over the seeds of a row.

        Raises:
            ValueError: as :meth:`values`.
        """
        values = self.values(row, measure)
        std = values.std(0) if len(values) > 1 else torch.full_like(values[0], torch.nan)
        return Spread(len(values), values.mean(0), std, values.amin(0), values.amax(0))

    def table(self, measures: Mapping[str, str]) -> str:
        """Write measures that are single numbers as a text table, mean ± standard deviation over the seeds.

        Args:
            measures: the columns, each with the format of its numbers, as ``{"frechet": ".2f"}``.

        Returns:
            A line a row, under a line of names.

        Raises:
            ValueError: if there is no such measure.
        """
        lines = [["", *measures]]
        for row in self.rows:
            found = [(self.spread(row, measure), form) for measure, form in measures.items()]
            lines.append([row, *(f"{float(s.mean):{form}} ± {float(s.std):{form}}" for s, form in found)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        first, *others = widths
        return "\n".join(
            "  ".join([line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], others, strict=True))]).rstrip()
            for line in lines
        )

    @property
    def made(self) -> str:
        """One line on how the numbers were made, to stand under a table or a figure."""
        p = self.provenance
        machine = p["machine"]
        return (
            f"{p['command']}: {_count(len(self.rows), 'row')}, seeds {', '.join(map(str, self.seeds))}, "
            f"scale {p['scale']}; {_count(round(sum(self.seconds.values()) / 60), 'minute')}, "
            f"{sum(self.cpu_seconds.values()) / 60:.0f} of them the processor's, on {machine['device']}, "
            f"{_count(machine['threads'], 'thread')} of {_count(machine['cores'], 'core')}, torch {machine['torch']}"
        )


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'' if n == 1 else 's'}"


def read(path: str | Path) -> Results:
    """Read a stored result.

    Args:
        path: the file, for a chapter ``results/NAME.json``: chapters run in the folder of the book.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, or cells are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is no stored result; make it by: python tools/results.py run {path.stem}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        cells = {(cell["row"], cell["seed"]): cell for cell in content["cells"]}
        rows, seeds = tuple(content["rows"]), tuple(content["seeds"])
        missing = [(row, seed) for row in rows for seed in seeds if (row, seed) not in cells]
        if missing:
            raise ValueError(f"{len(missing)} of {len(rows) * len(seeds)} cells are missing, the first {missing[0]}")
        return Results(
            content["name"],
            content["about"],
            rows,
            seeds,
            content["settings"],
            {key: cell["values"] for key, cell in cells.items()},
            {key: cell["seconds"] for key, cell in cells.items()},
            {key: cell["cpu_seconds"] for key, cell in cells.items()},
            {key: content[key] for key in ("command", "scale", "machine", "code")},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole stored result ({type(error).__name__}: {error}); "
            f"make it anew by: python tools/results.py run {path.stem}"
        ) from error

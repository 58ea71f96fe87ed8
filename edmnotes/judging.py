r"""Judging digits: is a set of generated digits right, is it as varied as real ones, and is it more than a copy?

Three questions, three numbers, each beside what real digits score and what a generator scores that only copies its
training set:

* *recognised*: the share of samples that a classifier, the judge, takes for their class;
* *Fréchet distance* to the held-out digits, in the judge's 64 features, with as many samples as held-out digits of
  each class; the pass mark is the 90th percentile of real-to-real;
* *nearest-neighbour ratio*, in pixels (:func:`edmnotes.metrics.nearest_neighbour_ratio`), which alone tells a copy.

The judge is a :class:`edmnotes.networks.Judge` with a seed of its own, trained on the training split only, and it never
guides a sampler. Its weights are committed; ``python -m edmnotes.judging`` remakes them.

**Which real-to-real.** A generator that is perfect draws digits that neither it nor the judge has seen, of the classes
it is asked for. So real-to-real should compare two sets of digits that the judge has not seen, disjoint, with the class
counts of the samples. Equal class counts matter most: without them the distance is mainly that of the frequencies of
the classes, several times larger, and nearly everything passes. Two unseen sets of n digits cannot be had: the digits
the judge has not seen *are* the held-out set. Re-splitting *all* digits is what remains, and it lets the judge's
training digits in, which lie closer to their class in its features: the bar could come out too strict. Comparing
training digits with held-out ones would err the other way. Two things keep the bar fair. The judge is trained on digits
that are turned, scaled, shifted and noised, never twice the same, so that it hardly tells its training digits from
others. And what bias is left is measured, by :func:`calibration`: judges trained without two sets of n digits compare
those two, and re-splits of everything, in the same features. The ratios are in the judge's ``provenance.json``.

Taught in the chapter ``quickstart``.
"""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from safetensors.torch import save as bytes_of
from torch import Tensor
from torch.nn import functional

from edmnotes import data, metrics
from edmnotes.data import Labelled, Split
from edmnotes.networks import Judge
from edmnotes.training.checkpoint import write_whole

MODEL = Path(__file__).parent / "models" / "judge"
"""Where the committed judge and its provenance lie."""

SEED = 20
"""Of the judge; no other model of the book uses it."""


@dataclass(frozen=True)
class Report:
    """What judging found; ``print`` shows it as a table.

    Attributes:
        n: number of samples, and of real digits they are compared with.
        accuracy: share of samples that the judge takes for their class.
        frechet: Fréchet distance to the held-out digits, in the judge's features.
        nn_ratio: nearest-neighbour ratio of the samples; 1 is unseen real data, 0 a copy.
        judge_accuracy: share of the held-out digits that the judge recognises.
        real_to_real: Fréchet distances of two disjoint sets of n real digits each, of the same classes.
        copying_accuracy: as ``accuracy``, of a generator that draws from the training digits, with replacement.
        copying_frechet: as ``frechet``, of that generator; the median of as many draws as there are real-to-real.
        copying_nn_ratio: as ``nn_ratio``, of that generator.
    """

    n: int
    accuracy: float
    frechet: float
    nn_ratio: float
    judge_accuracy: float
    real_to_real: tuple[float, ...]
    copying_accuracy: float
    copying_frechet: float
    copying_nn_ratio: float

    @property
    def real_to_real_median(self) -> float:
        """Median of real-to-real, what a perfect generator gets."""
        return median(self.real_to_real)

    @property
    def real_to_real_90(self) -> float:
        """90th percentile of real-to-real, the pass mark of ``frechet``."""
        return float(torch.tensor(self.real_to_real, dtype=torch.float64).quantile(0.9))

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, with the median and the 90th percentile of real-to-real, fit for JSON."""
        return {
            **asdict(self),
            "real_to_real_median": self.real_to_real_median,
            "real_to_real_90": self.real_to_real_90,
        }

    def __str__(self) -> str:
        real = f"{self.real_to_real_median:.2f} (90 % below {self.real_to_real_90:.2f})"
        rows = [
            ("", "generated", "copies of training", "real digits"),
            (
                "recognised as its class",
                f"{self.accuracy:.1%}",
                f"{self.copying_accuracy:.1%}",
                f"{self.judge_accuracy:.1%}",
            ),
            ("Fréchet distance to held-out", f"{self.frechet:.2f}", f"{self.copying_frechet:.2f}", real),
            ("nearest-neighbour ratio", f"{self.nn_ratio:.2f}", f"{self.copying_nn_ratio:.2f}", "1.00"),
        ]
        table = "\n".join(f"{a:<28} {b:>10} {c:>19}  {d}" for a, b, c, d in rows)
        return f"{self.n} digits, beside as many held-out ones of the same classes\n{table}"


def load() -> Judge:
    """Load the committed judge, on the CPU, in evaluation mode."""
    found = Judge()
    found.load_state_dict(load_file(MODEL / "judge.safetensors"))
    return found.eval()


def train_judge(digits: Labelled, *, seed: int = SEED, steps: int = 600) -> Judge:
    """Train a judge, on the CPU: AdamW and a one-cycle learning rate, digits turned, scaled, shifted and noised.

    Args:
        digits: what to learn; for the judge itself, the training split.
        seed: of weights, order, distortions and dropout; torch's global random state is left alone.
        steps: batches of 64.

    Returns:
        The judge, in evaluation mode.

    Raises:
        ValueError: if the digits have no labels.
    """
    labels = _labels(digits)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
        optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in range(steps):
            index = torch.randint(len(digits), (64,), generator=generator)
            loss = functional.cross_entropy(judge(_distorted(digits.x[index], generator)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def _distorted(x: Float[Tensor, "batch 1 8 8"], generator: torch.Generator) -> Float[Tensor, "batch 1 8 8"]:
    """Turn by up to 10 degrees, scale by up to an eighth, shift by up to 0.6 pixels, add noise of a tenth."""
    turn, scale, right, down = torch.rand(4, len(x), generator=generator) * 2 - 1
    turn, scale = 0.175 * turn, 1 + 0.125 * scale
    rows = [scale * turn.cos(), -scale * turn.sin(), 0.15 * right, scale * turn.sin(), scale * turn.cos(), 0.15 * down]
    grid = functional.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
    moved = functional.grid_sample(x + 1, grid, align_corners=False) - 1  # what comes in from outside is background
    return moved + 0.1 * torch.randn(x.shape, generator=generator)


@torch.no_grad()
def recognised(judge: Judge, x: Float[Tensor, "batch 1 8 8"], labels: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Say of each image whether the judge takes it for its class."""
    return judge(x).argmax(dim=1) == labels


@torch.no_grad()
def judge_digits(
    samples: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    *,
    judge: Judge | None = None,
    splits: int = 100,
    seed: int = 0,
) -> Report:
    """Judge generated digits against the held-out ones of :func:`edmnotes.data.digits`.

    Args:
        samples: generated digits in [-1, 1], shape (n, 1, 8, 8), on any device. As many as held-out digits, with their
            labels, is best; fewer are compared with as many held-out digits of their classes.
        labels: the class that each was asked to be.
        judge: the judge; None for the committed one.
        splits: number of real-to-real distances, and of draws of the copying generator.
        seed: of the splits and draws.

    Returns:
        The report. Up to 64 samples leave the covariances singular; the distances, real-to-real too, are then large and
        say little.

    Raises:
        ValueError: if ``samples`` has another shape, fewer than two samples or a value that is not finite, ``labels``
            does not fit it, there are more samples of a class than held-out digits, or ``splits`` is below 1.
    """
    if splits < 1:
        raise ValueError(f"splits is {splits}; give at least 1, and 20 or more for a percentile that means something")
    both = data.digits()
    train, held_out, known = both.train, both.held_out, _labels(both.train)
    samples, labels = samples.detach().float().cpu(), labels.cpu()
    counts = _check(samples, labels, held_out)
    judge = judge or load()
    generator = torch.Generator().manual_seed(seed)
    (beside,) = _disjoint(_labels(held_out), counts, 1, generator)
    copies = torch.stack([_with_replacement(known, counts, generator) for _ in range(splits)])
    seen, unseen = judge.features(train.x), judge.features(held_out.x)[beside]
    return Report(
        n=len(samples),
        accuracy=_share(recognised(judge, samples, labels)),
        frechet=metrics.frechet_distance(judge.features(samples), unseen),
        nn_ratio=metrics.nearest_neighbour_ratio(samples, train.x, held_out.x),
        judge_accuracy=_share(recognised(judge, held_out.x, _labels(held_out))),
        real_to_real=_real_to_real(judge, both, counts, splits, generator),
        copying_accuracy=_share(recognised(judge, train.x, known)[copies]),
        copying_frechet=median(metrics.frechet_distance(seen[copy], unseen) for copy in copies),
        copying_nn_ratio=metrics.nearest_neighbour_ratio(train.x[copies[0]], train.x, held_out.x),
    )


@torch.no_grad()
def calibration(repeats: int = 10, *, splits: int = 100, steps: int = 600) -> list[float]:
    """Measure what bias real-to-real has because it holds digits that the judge was trained on.

    Each time two disjoint sets with the class counts of the held-out digits are put aside and a judge is trained on the
    rest. The distance of the two sets, which is what a perfect generator would get, is divided by the median of
    real-to-real in the same features.

    Args:
        repeats: number of judges; their seeds, and those of the sets, are 0, 1, ...
        splits: number of real-to-real distances each.
        steps: of training, as in :func:`train_judge`.

    Returns:
        One ratio a judge; a mean of 1 is no bias, above 1 a bar too strict.
    """
    both = data.digits()
    everyone = Labelled(
        torch.cat([both.train.x, both.held_out.x]), torch.cat([_labels(both.train), _labels(both.held_out)])
    )
    counts = _labels(both.held_out).bincount()
    ratios = []
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        a, b = _disjoint(_labels(everyone), counts, 2, generator)
        rest = torch.ones(len(everyone), dtype=torch.bool).index_fill(0, torch.cat([a, b]), False)
        with torch.enable_grad():
            judge = train_judge(Labelled(everyone.x[rest], _labels(everyone)[rest]), seed=seed, steps=steps)
        unseen = metrics.frechet_distance(judge.features(everyone.x[a]), judge.features(everyone.x[b]))
        ratios.append(unseen / median(_real_to_real(judge, both, counts, splits, generator)))
    return ratios


def _real_to_real(
    judge: Judge, both: Split, counts: Int[Tensor, " classes"], splits: int, generator: torch.Generator
) -> tuple[float, ...]:
    """Fréchet distances of pairs of disjoint sets out of all digits, each with the given class counts."""
    features = judge.features(torch.cat([both.train.x, both.held_out.x]))
    labels = torch.cat([_labels(both.train), _labels(both.held_out)])
    pairs = [_disjoint(labels, counts, 2, generator) for _ in range(splits)]
    return tuple(metrics.frechet_distance(features[a], features[b]) for a, b in pairs)


def _disjoint(
    labels: Int[Tensor, " n"], counts: Int[Tensor, " classes"], sets: int, generator: torch.Generator
) -> list[Int[Tensor, " chosen"]]:
    """Draw the indices of disjoint sets, each with the given number of every class."""
    parts = []
    for label, count in enumerate(counts.tolist()):
        members = (labels == label).nonzero()[:, 0]
        drawn = members[torch.randperm(len(members), generator=generator)[: sets * count]]
        parts.append(drawn.reshape(sets, count))
    return list(torch.cat(parts, dim=1))


def _with_replacement(
    labels: Int[Tensor, " n"], counts: Int[Tensor, " classes"], generator: torch.Generator
) -> Int[Tensor, " chosen"]:
    """Draw indices with the given number of every class, each draw anew from all of its class."""
    parts = []
    for label, count in enumerate(counts.tolist()):
        members = (labels == label).nonzero()[:, 0]
        parts.append(members[torch.randint(len(members), (count,), generator=generator)])
    return torch.cat(parts)


def _check(samples: Tensor, labels: Tensor, held_out: Labelled) -> Int[Tensor, " classes"]:
    """Return how many samples there are of each class, after seeing that they can be judged."""
    if samples.shape[1:] != held_out.x.shape[1:] or len(samples) < 2:
        raise ValueError(f"samples has shape {tuple(samples.shape)}; it must be (n, 1, 8, 8) with n of 2 or more")
    if not samples.isfinite().all():
        raise ValueError(f"samples holds {int((~samples.isfinite()).sum())} values that are not finite")
    if labels.shape != samples.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64, one a sample, ({len(samples)},), got {labels.dtype} {tuple(labels.shape)}"
        )
    there = _labels(held_out).bincount()
    if labels.min() < 0 or labels.max() >= len(there):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; digits are 0 to {len(there) - 1}"
        )
    counts = labels.bincount(minlength=len(there))
    if (counts > there).any():
        label = int((counts - there).argmax())
        raise ValueError(
            f"samples holds {int(counts[label])} of class {label}, but only {int(there[label])} digits of it are held "
            "out; judge at most as many, so that both sides are of one size"
        )
    return counts


def _labels(digits: Labelled) -> Int[Tensor, " n"]:
    if digits.labels is None:
        raise ValueError("digits have no labels; judging needs labelled digits")
    return digits.labels


def _share(right: Bool[Tensor, "*shape"]) -> float:
    return float(right.double().mean())


def remake(out: Path = MODEL) -> None:
    """Train the committed judge anew and write it, with its provenance, into ``out``: about two minutes.

    Raises:
        RuntimeError: if it recognises less than 97 % of the held-out digits.
    """
    both = data.digits()
    judge = train_judge(both.train)
    right = _share(recognised(judge, both.held_out.x, _labels(both.held_out)))
    if right < 0.97:
        raise RuntimeError(f"the judge recognises only {right:.1%} of the held-out digits; it must be 97 %")
    ratios = calibration()
    provenance = {
        "command": "python -m edmnotes.judging",
        "network": judge.config,
        "seed": SEED,
        "trained_on": f"{len(both.train)} digits, the training split of edmnotes.data.digits()",
        "held_out_accuracy": right,
        "train_accuracy": _share(recognised(judge, both.train.x, _labels(both.train))),
        "calibration": {"mean": mean(ratios), "standard_error": stdev(ratios) / len(ratios) ** 0.5, "ratios": ratios},
        "machine": f"{platform.machine()} CPU, torch {torch.__version__}",
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "judge.safetensors", bytes_of(judge.state_dict()))
    write_whole(out / "provenance.json", json.dumps(provenance, indent=2).encode() + b"\n")


if __name__ == "__main__":
    remake()

"""The empirical denoiser's error, speed and peak memory beside the naive float32 formula's, in one run.

    python benchmarks/empirical.py [--rows 50000] [--dim 3072] [--batch 256]

Each formula runs in a process of its own, so that its peak memory is its own. Data: clusters of 25 near-duplicates at
distances from 0.001 to 10 from their centre (seed 0). The error is that of D relative to a float64 softmax over the
differences themselves, for the first 4 samples of the batch. Times depend on the machine; look at the ratio.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from edmnotes.exact import Empirical

SIGMAS = (0.002, 0.02, 0.2, 2.0, 80.0)


def clustered(rows: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    data = torch.empty(rows, dim)
    radii = torch.tensor([1e-3, 1e-2, 0.1, 1.0, 10.0]).repeat(5)[:, None]
    for first in range(0, rows, 25):
        directions = torch.randn(25, dim, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        data[first : first + 25] = 0.5 * torch.randn(1, dim, generator=generator) + radii * directions
    return data


def naive(data: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
    squared = (x**2).sum(1, keepdim=True) + (data**2).sum(1) - 2 * x @ data.T
    return torch.softmax(-squared / (2 * sigma**2), dim=1) @ data


FORMULAS = {"edmnotes": lambda data, x, sigma: Empirical(data)(x, sigma), "naive float32": naive}


def reference(data: torch.Tensor, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, float]:
    """D in float64 from the differences, and the median effective number of neighbours."""
    squared = torch.stack(
        [torch.cat([((point - part.double()) ** 2).sum(1) for part in data.split(2000)]) for point in x.double()]
    )
    share = torch.softmax(-squared / (2 * sigma**2), dim=1)
    mean = sum(s @ part.double() for s, part in zip(share.split(2000, 1), data.split(2000), strict=True))
    return mean, float((1 / (share**2).sum(1)).median())


def measure(name: str, rows: int, dim: int, batch: int) -> dict:
    data = clustered(rows, dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, dim, generator=generator)
    outputs, started = {}, time.perf_counter()
    for sigma in SIGMAS:
        x = data[:: rows // batch][:batch] + sigma * noise
        outputs[sigma] = FORMULAS[name](data, x, sigma)
    seconds = (time.perf_counter() - started) / len(SIGMAS)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    errors, neighbours = {}, {}
    for sigma in SIGMAS:
        x = (data[:: rows // batch][:batch] + sigma * noise)[:4]
        right, neighbours[sigma] = reference(data, x, sigma)
        errors[sigma] = float(((outputs[sigma][:4] - right).norm(dim=1) / right.norm(dim=1)).max())
    return {"seconds": seconds, "MiB": memory, "errors": errors, "neighbours": neighbours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 50_000), ("dim", 3072), ("batch", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=FORMULAS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.only:
        print(json.dumps(measure(a.only, a.rows, a.dim, a.batch)))
        return
    sizes = [f"--rows={a.rows}", f"--dim={a.dim}", f"--batch={a.batch}"]
    results = {
        name: json.loads(subprocess.check_output([sys.executable, __file__, "--only", name, *sizes]).splitlines()[-1])
        for name in FORMULAS
    }
    ours, theirs = results["edmnotes"], results["naive float32"]
    print(f"{a.rows} x {a.dim} data, batch {a.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| sigma | neighbours | error, edmnotes | error, naive float32 |\n|---|---|---|---|")
    for sigma in map(str, SIGMAS):
        errors = f"{ours['errors'][sigma]:.1e} | {theirs['errors'][sigma]:.1e}"
        print(f"| {sigma} | {ours['neighbours'][sigma]:.2f} | {errors} |")
    print("\n| | edmnotes | naive float32 | ratio |\n|---|---|---|---|")
    for what, key in (("seconds a call", "seconds"), ("peak MiB beside the data", "MiB")):
        print(f"| {what} | {ours[key]:.2f} | {theirs[key]:.2f} | {ours[key] / theirs[key]:.2f} |")


if __name__ == "__main__":
    main()

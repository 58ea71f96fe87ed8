"""What each row of the design space shows its network: variance of input and target, and the loss of saying nothing.

    python benchmarks/rows.py [--draws 200000]

For the training digits (seed 0), over the row's own training levels. EDM's row is made so that input and target have
variance 1 for centred data of std sigma_data. The digits are not centred, each pixel has a mean of its own, and that
shows. The last column is the weighted loss of a network that says 0.
"""

import argparse

import torch

from edmnotes import data, presets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200_000)
    draws = parser.parse_args().draws
    digits = data.digits().train.x.double().flatten(1)
    centred = digits - digits.mean(0)
    print(f"{draws} draws, one pixel each, seed 0\n")
    print("| row | data | input | target | loss of 0 |\n|---|---|---|---|---|")
    for name in presets.PRESETS:
        for kind, x in (("digits", digits), ("centred digits", centred)):
            generator = torch.Generator().manual_seed(0)
            row = presets.load(name)
            c, sigma = row.preconditioning(data.sigma_data(x)), row.sigmas.sample(draws, generator=generator)
            x0 = x.flatten()[torch.randint(x.numel(), (draws,), generator=generator)]
            noisy = x0 + sigma * torch.randn(draws, generator=generator, dtype=torch.float64)
            target = (x0 - c.c_skip(sigma) * noisy) / c.c_out(sigma)
            loss = (c.weight(sigma) * (c.c_skip(sigma) * noisy - x0) ** 2).mean()
            print(f"| {name} | {kind} | {(c.c_in(sigma) * noisy).var():.3f} | {target.var():.3f} | {loss:.3f} |")


if __name__ == "__main__":
    main()

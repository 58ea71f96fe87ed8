"""Random numbers that depend on a seed alone: per-sample generators and Brownian paths.

Taught in the chapter ``forward``. Numbers are drawn on the CPU, one generator a sample, then moved: a seed gives the
same noise whatever the batch it is in, the number of steps, or the device.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class PerSample:
    """One random stream a sample: sample i depends on ``seeds[i]`` only.

    Called with a tensor it returns standard normal noise of that tensor's shape, dtype and device, so that it can be
    passed as ``noise=`` to a sampler; each call goes on in the streams.

    Args:
        seeds: one non-negative integer a sample.

    Raises:
        ValueError: if there is no seed, or one is negative.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in _checked(seeds)]

    def normal(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "batch *shape"]:
        r"""Standard normal noise.

        Args:
            shape: shape of one sample.
            dtype: dtype of the result; numbers are drawn in float64, so another dtype rounds the same numbers.
            device: where the result goes.

        Returns:
            Noise of shape (number of seeds, \*shape).
        """
        drawn = [torch.randn(tuple(shape), generator=g, dtype=torch.float64) for g in self.generators]
        return torch.stack(drawn).to(device=device, dtype=dtype)

    def __call__(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Standard normal noise like ``x``.

        Raises:
            ValueError: if ``x`` holds another number of samples than there are seeds.
        """
        if len(x) != len(self.generators):
            raise ValueError(f"x holds {len(x)} samples but there are {len(self.generators)} seeds; give one a sample")
        return self.normal(x.shape[1:], dtype=x.dtype, device=x.device)


class BrownianPath:
    """A fixed Brownian path a sample on [start, end]: w(start) = 0, and the same path however finely it is read.

    The path is a tree of midpoints (Lévy's construction), each drawn from the bridge between its neighbours by a
    random stream of its own (seed, node). A solver with 10 steps and one with 1000 see the same path, which is what
    makes a strong order of convergence visible. Below a 2⁻²⁴th of the interval the path is read as a straight line.

    Args:
        seeds: one non-negative integer a sample.
        shape: shape of one sample.
        start: time of the left end.
        end: time of the right end; may be below ``start``, for a process that runs backwards.

    Raises:
        ValueError: if the seeds are not valid or the two ends agree.
    """

    DEPTH = 24

    def __init__(self, seeds: Iterable[int], shape: Sequence[int], start: float, end: float) -> None:
        if not abs(end - start) > 0:
            raise ValueError(f"start = {start} and end = {end} agree; a path needs an interval")
        self.seeds, self.shape, self.start, self.end = _checked(seeds), tuple(shape), start, end
        # A sequential reader descends the same nodes again and again: keep those near the last path down the tree.
        self._midpoint = lru_cache(maxsize=4 * self.DEPTH)(self._draw_midpoint)

    def _normal(self, node: int) -> Float[Tensor, "batch *shape"]:
        # Philox is keyed and counted: (seed, node) is its own stream, which hashing both into one seed would not give.
        streams = [np.random.Generator(np.random.Philox(key=seed, counter=[0, node, 0, 0])) for seed in self.seeds]
        return torch.from_numpy(np.stack([stream.standard_normal(self.shape) for stream in streams]))

    def _draw_midpoint(self, node: int) -> Float[Tensor, "batch *shape"]:
        """W at the middle of a node less the mean of its ends; node 1 is the whole interval, its halves are 2, 3."""
        width = abs(self.end - self.start) / 2 ** (node.bit_length() - 1)
        return self._normal(node) * math.sqrt(width) / 2

    def __call__(self, t: float) -> Float[Tensor, "batch *shape"]:
        r"""The path at time ``t``.

        Returns:
            w(t) in float64 on the CPU, shape (number of seeds, \*shape).

        Raises:
            ValueError: if ``t`` lies outside the interval.
        """
        place = (float(t) - self.start) / (self.end - self.start)
        if not 0 <= place <= 1:
            raise ValueError(f"t = {t} lies outside the path's interval [{self.start}, {self.end}]")
        left, right = torch.zeros(len(self.seeds), *self.shape, dtype=torch.float64), self._end
        node = 1
        for _ in range(self.DEPTH):
            middle = (left + right) / 2 + self._midpoint(node)
            place *= 2
            if place < 1:
                right, node = middle, 2 * node
            else:
                left, node, place = middle, 2 * node + 1, place - 1
            if place == 0:
                return left
        return left + place * (right - left)

    @property
    def _end(self) -> Float[Tensor, "batch *shape"]:
        """W at the right end."""
        return self._normal(0) * math.sqrt(abs(self.end - self.start))

    def increment(self, start: float, end: float) -> Float[Tensor, "batch *shape"]:
        """w(end) − w(start): normal with mean 0 and variance ``abs(end - start)``."""
        return self(end) - self(start)


def _checked(seeds: Iterable[int]) -> tuple[int, ...]:
    seeds = tuple(int(seed) for seed in seeds)
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds = {seeds}; give at least one, none below 0")
    return seeds

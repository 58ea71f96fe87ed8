"""Random numbers that depend on a seed alone: per-sample generators and Brownian paths.

Taught in the chapter ``forward``. Numbers are drawn on the CPU, one generator a sample, then moved: a seed gives the
same noise whatever the batch it is in, the number of steps, or the device.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

# Numbers that a path draws in one pass: what a core's cache holds with all that stands between bits and normals.
CACHED = 2**15


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
    random number of its own, a function of (seed, node) alone. A solver with 10 steps and one with 1000 see the same
    path, which is what makes a strong order of convergence visible. Below a 2⁻⁴⁰th of the interval the path is read as
    a straight line.

    Args:
        seeds: one non-negative integer a sample.
        shape: shape of one sample.
        start: time of the left end.
        end: time of the right end; may be below ``start``, for a process that runs backwards.

    Raises:
        ValueError: if the seeds are not valid or the two ends agree.
    """

    DEPTH = 40

    def __init__(self, seeds: Iterable[int], shape: Sequence[int], start: float, end: float) -> None:
        if not abs(end - start) > 0:
            raise ValueError(f"start = {start} and end = {end} agree; a path needs an interval")
        self.seeds, self.shape, self.start, self.end = _checked(seeds), tuple(shape), start, end
        # A sequential reader descends the same nodes again and again: those of the last descent are kept.
        self._kept: dict[int, Tensor] = {}

    def contains(self, t: float) -> bool:
        """Whether the path is defined at time ``t``; an end that was computed may come back rounded."""
        slack = 4 * math.ulp(max(abs(self.start), abs(self.end)))
        return min(self.start, self.end) - slack <= t <= max(self.start, self.end) + slack

    def __call__(self, t: float) -> Float[Tensor, "batch *shape"]:
        r"""The path at time ``t``.

        Returns:
            w(t) in float64 on the CPU, shape (number of seeds, \*shape).

        Raises:
            ValueError: if ``t`` lies outside the interval.
        """
        if not self.contains(t):
            raise ValueError(f"t = {t} lies outside the path's interval [{self.start}, {self.end}]")
        place = min(max((float(t) - self.start) / (self.end - self.start), 0.0), 1.0)
        descent = [1]
        while 0 < place < 1 and len(descent) <= self.DEPTH:
            half = int(place >= 0.5)
            descent.append(2 * descent[-1] + half)
            place = 2 * place - half
        right, *bridges = self._draws([0, *descent[:-1]])
        left = torch.zeros_like(right)
        for bridge, child in zip(bridges, descent[1:], strict=True):
            middle = (left + right) / 2 + bridge
            left, right = (middle, right) if child % 2 else (left, middle)
        return left + place * (right - left)

    def increment(self, start: float, end: float) -> Float[Tensor, "batch *shape"]:
        """w(end) − w(start): normal with mean 0 and variance ``abs(end - start)``."""
        before = self(start)  # first: its nodes were kept when it was the end of the last increment
        return self(end) - before

    def _draws(self, nodes: list[int]) -> list[Float[Tensor, "batch *shape"]]:
        """W at the end for node 0; at any other, w at its middle less the mean of its ends.

        Node 1 is the whole interval, the halves of the node k are 2 k and 2 k + 1.
        """
        missing = [node for node in nodes if node not in self._kept]
        rows = max(1, CACHED // (len(self.seeds) * math.prod(self.shape)))
        for part in (missing[i : i + rows] for i in range(0, len(missing), rows)):
            drawn = _normal(part, self.seeds, math.prod(self.shape)).reshape(len(part), -1, *self.shape)
            halvings = [node.bit_length() + 1 if node else 0 for node in part]
            std = drawn.new_tensor([math.sqrt(abs(self.end - self.start) / 2**n) for n in halvings])
            self._kept |= dict(zip(part, std.reshape(-1, *[1] * (drawn.ndim - 1)) * drawn, strict=True))
        self._kept = {node: self._kept[node] for node in nodes}
        return list(self._kept.values())


def _normal(nodes: Sequence[int], seeds: Sequence[int], count: int) -> Float[Tensor, "nodes seeds count"]:
    """Standard normal numbers, ``count`` for each pair of a node and a seed, a function of that pair alone."""
    node, seed, pair = np.ix_(*(np.array(n, dtype=np.uint64) for n in (nodes, seeds, range((count + 1) // 2))))
    first, second = threefry((node, pair), (seed, np.zeros_like(seed)))
    # Box and Muller; 53 bits each, the radius from (0, 1], so that its logarithm is finite.
    radius = np.sqrt(-2 * np.log(((first >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
    angle = 2 * np.pi * ((second >> np.uint64(11)) * 2.0**-53)
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return torch.from_numpy(both[..., :count])


def threefry(counter: tuple[Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words]:
    """The random bits that belong to a counter under a key: Threefry-2x64 with 20 rounds (Salmon et al. 2011).

    A bijection of the counters for each key, made of sums, rotations and exclusive ors alone, so that any number of
    streams are drawn in one pass.

    Args:
        counter: two arrays of uint64.
        key: two more; all four are broadcast.

    Returns:
        Two arrays of 64 random bits.
    """
    keys = (*key, key[0] ^ key[1] ^ np.uint64(0x1BD11BDAA9FC1A22))
    first, second = (a + b for a, b in zip(np.broadcast_arrays(*counter), key, strict=True))
    for i in range(20):
        first += second
        turn = np.uint64((16, 42, 12, 31, 16, 32, 24, 21)[i % 8])
        second = (second << turn | second >> np.uint64(64) - turn) ^ first
        if i % 4 == 3:
            block = i // 4 + 1
            first += keys[block % 3]
            second += keys[(block + 1) % 3] + np.uint64(block)
    return first, second


def _checked(seeds: Iterable[int]) -> tuple[int, ...]:
    seeds = tuple(int(seed) for seed in seeds)
    if not seeds or not 0 <= min(seeds) <= max(seeds) < 2**64:
        raise ValueError(f"seeds = {seeds}; give at least one, none below 0 or above 2^64 - 1")
    return seeds

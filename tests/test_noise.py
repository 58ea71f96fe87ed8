"""Noise depends on the seed alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import noise
from edmnotes.noise import BrownianPath, PerSample, threefry


def test_a_sample_depends_on_its_own_seed_only():
    many, one = PerSample(range(5)).normal((2, 3)), PerSample([3]).normal((2, 3))
    assert torch.equal(many[3:4], one)
    assert not torch.equal(many[0], many[1])


def test_a_stream_goes_on():
    stream = PerSample([0, 1])
    first, second = stream.normal((4,)), stream.normal((4,))
    assert not torch.equal(first, second)


def test_float32_rounds_the_same_numbers():
    single, double = PerSample([7]).normal((9,), dtype=torch.float32), PerSample([7]).normal((9,))
    assert single.dtype == torch.float32
    assert torch.equal(single, double.float())


def test_called_with_a_tensor_it_returns_noise_like_it():
    x = torch.zeros(2, 3, dtype=torch.float32)
    drawn = PerSample([0, 1])(x)
    assert (drawn.shape, drawn.dtype) == (x.shape, x.dtype)


def test_noise_is_standard_normal():
    drawn = PerSample(range(200)).normal((500,))
    # 1e5 numbers: the mean has standard error 0.0032, the variance 0.0045.
    assert abs(float(drawn.mean())) < 0.013
    assert abs(float(drawn.var()) - 1) < 0.018


def test_a_path_is_the_same_however_finely_it_is_read():
    coarse, fine = BrownianPath([0, 1], (3,), 0.0, 2.0), BrownianPath([0, 1], (3,), 0.0, 2.0)
    at_fine = {k: fine(2 * k / 12) for k in range(13)}
    for k in (0, 4, 12, 8):
        assert torch.equal(coarse(2 * k / 12), at_fine[k])
    torch.testing.assert_close(
        sum(fine.increment(2 * k / 12, 2 * (k + 1) / 12) for k in range(12)), coarse(2.0), rtol=0, atol=1e-12
    )


def test_a_path_depends_on_its_own_seed_only():
    together, alone = BrownianPath([4, 9], (2,), 0.0, 1.0), BrownianPath([9], (2,), 0.0, 1.0)
    assert torch.equal(together(0.3)[1:], alone(0.3))


@pytest.mark.parametrize(("start", "end"), [(0.0, 3.0), (3.0, 0.0)])
def test_increments_have_the_variance_of_their_length_and_are_uncorrelated(start, end):
    path = BrownianPath(range(4000), (2,), start, end)
    times = [0.0, 0.7, 1.5, 2.9] if start < end else [3.0, 2.3, 1.5, 0.1]
    increments = torch.stack([path.increment(a, b).flatten() for a, b in itertools.pairwise(times)])
    lengths = torch.tensor([abs(b - a) for a, b in itertools.pairwise(times)]).double()
    scaled = increments / lengths.sqrt()[:, None]
    # 8000 numbers each: entries of the covariance have standard error at most √(2/8000) = 0.016.
    torch.testing.assert_close(torch.cov(scaled), torch.eye(3).double(), rtol=0, atol=0.065)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (1, 8, 8)])
@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_a_path_is_the_same_to_the_bit_in_any_batch_and_in_any_order_of_reading(shape, count):
    batch = BrownianPath(range(count), shape, 6400.0, 0.0)
    together = torch.stack([batch(t) for t in (3.3, 6399.0, 800.0, 0.0)])
    for seed in {0, count // 2, count - 1}:
        alone = BrownianPath([seed], shape, 6400.0, 0.0)
        found = torch.stack([alone(t) for t in (0.0, 800.0, 6399.0, 3.3)]).flip(0)
        assert torch.equal(together[:, seed : seed + 1], found)


def test_a_path_is_the_same_however_many_numbers_are_drawn_in_one_pass(monkeypatch):
    whole = BrownianPath(range(5), (7,), 0.0, 1.0)(0.3)
    monkeypatch.setattr(noise, "CACHED", 40)
    assert torch.equal(BrownianPath(range(5), (7,), 0.0, 1.0)(0.3), whole)


def test_a_path_stays_rough_in_its_smallest_steps():
    """Where σ = √t runs from 80 to 0.002, the last steps are a billionth of the interval and below."""
    path = BrownianPath(range(2000), (), 6400.0, 0.0)
    for start, end in ((2e-5, 1e-5), (4e-6, 3e-6)):
        scaled = path.increment(start, end) / math.sqrt(start - end)
        assert float(scaled.var()) == pytest.approx(1, abs=0.13)  # 4 standard errors √(2/2000)


def test_the_numbers_of_all_nodes_and_seeds_are_independent_and_normal():
    drawn = noise._normal(range(8), range(5000), 5)
    flat = drawn.permute(0, 2, 1).reshape(40, 5000)
    # 5000 pairs each: a covariance has standard error 0.014, the largest of 820 stays below 5 of them.
    torch.testing.assert_close(torch.cov(flat), torch.eye(40).double(), rtol=0, atol=0.075)
    # 2e5 numbers: standard errors of the moments √(1, 2, 15, 96 / 2e5).
    for power, moment, error in ((1, 0, 0.0023), (2, 1, 0.0032), (3, 0, 0.0087), (4, 3, 0.022)):
        assert abs(float((drawn**power).mean()) - moment) < 4 * error
    assert float(drawn.abs().max()) < 8.6


# The known answers that the authors of Threefry publish with it (Random123, Threefry-2x64, 20 rounds).
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0), (0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
        ((2**64 - 1, 2**64 - 1), (2**64 - 1, 2**64 - 1), (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344),
            (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_threefry_gives_the_known_answers(counter, key, answer):
    words = [tuple(np.array([word], dtype=np.uint64) for word in pair) for pair in (counter, key)]
    assert tuple(int(word[0]) for word in threefry(*words)) == answer


@pytest.mark.parametrize("n", [64, 100])
def test_a_sequential_reader_draws_each_node_once(monkeypatch, n):
    """On a dyadic grid one node a step; elsewhere the common part of neighbouring descents is kept."""
    drawn, original = [], noise._normal
    monkeypatch.setattr(noise, "_normal", lambda nodes, *rest: drawn.extend(nodes) or original(nodes, *rest))
    path = BrownianPath([0], (), 0.0, 1.0)
    for k in range(n):
        path.increment(k / n, (k + 1) / n)
    assert len(set(drawn)) == len(drawn)
    assert n != 64 or len(drawn) == 64


def test_an_end_that_was_computed_may_come_back_rounded():
    path = BrownianPath([0], (), 80.0, 0.002)
    assert torch.equal(path(math.nextafter(80.0, 100)), path(80.0))
    assert not path.contains(80.000001)
    assert not path.contains(math.nan)


def test_a_path_starts_at_zero():
    assert torch.equal(BrownianPath([0], (2,), 1.0, 4.0)(1.0), torch.zeros(1, 2).double())


@pytest.mark.parametrize("seeds", [[], [-1], [0, -5], [2**64]])
def test_impossible_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="seeds"):
        PerSample(seeds)
    with pytest.raises(ValueError, match="seeds"):
        BrownianPath(seeds, (1,), 0.0, 1.0)


def test_another_number_of_samples_than_seeds_is_refused():
    with pytest.raises(ValueError, match="3 samples but there are 2 seeds"):
        PerSample([0, 1])(torch.zeros(3))


def test_times_outside_the_path_are_refused():
    with pytest.raises(ValueError, match=r"t = 1\.5 lies outside"):
        BrownianPath([0], (1,), 0.0, 1.0)(1.5)
    with pytest.raises(ValueError, match="agree"):
        BrownianPath([0], (1,), 1.0, 1.0)


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
    shape=st.sampled_from([(), (2,), (1, 2, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    start=st.floats(-10, 10),
    length=st.floats(0.01, 10),
    fraction=st.floats(0, 1),
)
def test_legal_seeds_and_times_give_finite_noise_of_the_right_shape(seeds, shape, dtype, start, length, fraction):
    drawn = PerSample(seeds).normal(shape, dtype=dtype)
    assert (drawn.shape, drawn.dtype) == ((len(seeds), *shape), dtype)
    path = BrownianPath(seeds, shape, start, start + length)
    value = path(min(start + fraction * length, path.end))
    assert (value.shape, value.dtype) == ((len(seeds), *shape), torch.float64)
    assert bool(drawn.isfinite().all())
    assert bool(value.isfinite().all())

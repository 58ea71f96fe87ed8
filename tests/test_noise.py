"""Noise depends on the seed alone."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes.noise import BrownianPath, PerSample


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


def test_a_path_starts_at_zero():
    assert torch.equal(BrownianPath([0], (2,), 1.0, 4.0)(1.0), torch.zeros(1, 2).double())


@pytest.mark.parametrize("seeds", [[], [-1], [0, -5]])
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
    seeds=st.lists(st.integers(0, 2**62), min_size=1, max_size=3),
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

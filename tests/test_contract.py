"""The one call: what a level may be, and that nothing but shapes and dtypes is looked at."""

import pytest
import torch

from edmnotes.contract import DenoiserLike, per_sample
from edmnotes.exact import Gaussian


def test_one_level_stays_one_number_in_float64():
    level = per_sample(torch.zeros(3, 2), 0.7)
    assert (level.shape, level.dtype) == ((), torch.float64)
    assert (0.5 * torch.zeros(3, 2) * level).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
def test_one_level_a_sample_broadcasts_over_the_sample(shape):
    sigma = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    level = per_sample(torch.zeros(shape), sigma)
    assert level.dtype == torch.float32
    torch.testing.assert_close((torch.ones(shape) * level).reshape(3, -1)[:, 0], sigma.float())


def test_a_level_is_not_read():
    """A level on a device must not make the host wait: a tensor without values has all that is looked at."""
    x, sigma = torch.zeros(3, 2, device="meta"), torch.ones(3, device="meta")
    assert per_sample(x, sigma).shape == (3, 1)


def test_exact_distributions_are_denoisers():
    assert isinstance(Gaussian(0.0, 1.0), DenoiserLike)


@pytest.mark.parametrize("sigma", [torch.ones(2), torch.ones(3, 1), torch.ones(1)])
def test_levels_of_another_shape_are_refused(sigma):
    with pytest.raises(ValueError, match="sigma has shape"):
        per_sample(torch.zeros(3, 2), sigma)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.zeros(3, dtype=torch.int64)])
def test_what_is_not_a_floating_batch_is_refused(x):
    with pytest.raises(ValueError, match="x has shape"):
        per_sample(x, 1.0)

"""What all distances of features share: what they refuse, and what a change of dtype, order or sides does."""

import math

import pytest
import torch

from edmnotes import metrics

PAIRS = {
    "frechet": metrics.frechet_distance,
    "kid": metrics.kid,
    "mmd": lambda a, b: metrics.mmd_squared(a, b, metrics.GaussianKernel(1.0)),
    "sliced": lambda a, b: metrics.sliced_wasserstein(a, b, metrics.directions(a.shape[-1] or 1, 8)),
}


@pytest.fixture(params=PAIRS, ids=list(PAIRS))
def distance(request):
    return PAIRS[request.param]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"a has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2, 1), r"b has shape \(3, 2, 1\)"),
        (torch.zeros(1, 2), torch.zeros(3, 2), r"a has shape \(1, 2\)"),
        (torch.zeros(3, 2), torch.zeros(0, 2), r"b has shape \(0, 2\)"),
        (torch.zeros(3, 0), torch.zeros(3, 0), r"a has shape \(3, 0\)"),
        (torch.zeros(3, 2), torch.zeros(3, 4), "a has 2 features and b has 4"),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), "a holds 6 values that are not finite"),
        (torch.zeros(3, 2), torch.full((3, 2), math.inf), "b holds 6 values that are not finite"),
    ],
)
def test_wrong_features_are_refused(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)


def test_dtype_and_graph_change_nothing(distance):
    g = torch.Generator().manual_seed(8)
    a, b = torch.randn(30, 4, generator=g).requires_grad_(), torch.randn(20, 4, generator=g)
    assert distance(a, b) == distance(a.double(), b.double())


def test_neither_the_order_of_the_rows_nor_that_of_the_sides_matters(distance):
    g = torch.Generator().manual_seed(9)
    a, b = torch.randn(30, 4, generator=g).double() + 0.5, torch.randn(20, 4, generator=g).double()
    assert distance(a.flip(0), b.roll(3, 0)) == pytest.approx(distance(a, b), rel=1e-11)
    assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-11)


def test_farther_is_more(distance):
    g = torch.Generator().manual_seed(10)
    a, b = torch.randn(2, 60, 4, generator=g).double()
    found = [distance(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[-1] > 4 * found[0]

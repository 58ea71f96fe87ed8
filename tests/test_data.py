"""Data: the fixed split of the digits, the toys' geometry, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from edmnotes import data

TOYS = {"moons": data.moons, "spiral": data.spiral, "checkerboard": data.checkerboard, "eight": data.eight_gaussians}


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_digits_are_the_whole_set_in_two_disjoint_parts(digits):
    bunch = load_digits()
    whole = sorted((label, *row) for label, row in zip(bunch.target, (bunch.data / 8 - 1).tolist(), strict=True))
    ours = [
        (label, *row)
        for part in (digits.train, digits.held_out)
        for label, row in zip(part.labels.tolist(), part.x.flatten(1).tolist(), strict=True)
    ]
    assert sorted(ours) == whole  # every digit once; the file has no two alike, so the parts share none
    assert len(set(ours)) == len(ours)


def test_every_fourth_digit_of_each_class_is_held_out(digits):
    bunch = load_digits()
    for label in range(10):
        members = torch.from_numpy(bunch.images[bunch.target == label]).float() / 8 - 1
        assert torch.equal(digits.held_out.x[digits.held_out.labels == label].squeeze(1), members[3::4])


def test_digits_shape_and_range(digits):
    assert digits.train.shape == (1, 8, 8)
    assert digits.train.num_classes == digits.held_out.num_classes == 10
    assert (float(digits.train.x.min()), float(digits.train.x.max())) == (-1, 1)
    assert digits.train.x.dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64


def test_digits_are_not_centred_and_sigma_data_is_taken_about_the_mean(digits):
    x = digits.train.x.double()
    assert data.sigma_data(digits.train.x) < 0.75 * float(x.square().mean().sqrt())


@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-10, 10), dim=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_sigma_data_is_the_root_of_the_trace_of_the_covariance_over_the_dimension(scale, shift, dim):
    x = scale * torch.randn(50, dim, generator=torch.Generator().manual_seed(0))
    x = x + shift * torch.arange(dim)  # each coordinate has a mean of its own, which must not count
    covariance = torch.cov(x.double().T, correction=0).reshape(dim, dim)
    assert data.sigma_data(x) == pytest.approx(math.sqrt(float(covariance.trace()) / dim), rel=1e-9)


@pytest.mark.parametrize(
    "x", [torch.ones(4, 2), torch.tensor([[0.3, -1.0]]), torch.tensor([[0.0], [math.nan]])], ids=str
)
def test_sigma_data_refuses_data_that_does_not_vary(x):
    with pytest.raises(ValueError, match="x must"):
        data.sigma_data(x)


@pytest.mark.parametrize("draw", TOYS.values(), ids=TOYS)
def test_toys_depend_on_the_seed_only_and_have_unit_scale(draw):
    torch.manual_seed(1)
    a = draw(4000, seed=3)
    torch.manual_seed(2)
    b = draw(4000, seed=3)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.labels, b.labels)
    assert not torch.equal(a.x, draw(4000, seed=4).x)
    assert data.sigma_data(a.x) == pytest.approx(1, abs=0.03)
    assert a.x.mean(0).abs().max() < 0.06
    assert draw(1).x.shape == (1, 2)


@pytest.mark.parametrize("draw", TOYS.values(), ids=TOYS)
def test_toys_refuse_an_empty_draw(draw):
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        draw(0)


def test_moons_lie_on_two_half_circles():
    moons = data.moons(2000)
    sign = 1 - 2 * moons.labels
    unit = sign[:, None] * moons.x / 1.4 + torch.tensor([0.5, 0.25])
    assert float((unit.norm(dim=1) - 1).abs().max()) < 5 * 0.05
    assert float(unit[:, 1].min()) > -5 * 0.05


def test_spiral_turns_three_quarters_of_a_turn_to_radius_two():
    spiral = data.spiral(2000)
    radius = spiral.x.norm(dim=1)
    angle = 0.75 * math.pi * radius + math.pi * spiral.labels
    expected = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert float((spiral.x - expected).norm(dim=1).max()) < 1.2  # an error in the radius turns the point along
    assert float((spiral.x - expected).norm(dim=1).median()) < 0.15


def test_checkerboard_fills_eight_squares_that_share_no_side():
    board = data.checkerboard(4000)
    cell = ((board.x / math.sqrt(3) + 1) * 2).floor().long()
    assert set(map(tuple, cell.tolist())) == {(c, r) for c in range(4) for r in range(4) if (c + r) % 2 == 0}
    assert torch.equal(board.labels, 2 * cell[:, 1] + cell[:, 0] // 2)


def test_eight_gaussians_are_labelled_counter_clockwise():
    points = data.eight_gaussians(4000)
    angle = torch.atan2(points.x[:, 1], points.x[:, 0])
    assert torch.equal((angle / (math.pi / 4)).round().long() % 8, points.labels)
    spread = torch.cat([points.x[points.labels == k] - points.x[points.labels == k].mean(0) for k in range(8)])
    assert float(spread.std()) == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_named_set_loads(name):
    split = data.load(name)
    assert split.train.shape == split.held_out.shape
    assert len(split.train) > len(split.held_out)


@pytest.mark.parametrize("name", ["moons", "spiral", "checkerboard", "eight_gaussians"])
def test_a_named_toy_is_drawn_with_seeds_of_its_own(name):
    split, draw = data.load(name), getattr(data, name)
    assert torch.equal(split.train.x, draw(8192, seed=0).x)
    assert torch.equal(split.held_out.x, draw(2048, seed=1).x)


def test_an_unknown_set_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(ValueError, match=r"unknown data set 'digit'; there are digits, moons, .*eight_gaussians"):
        data.load("digit")


@pytest.mark.parametrize(
    ("x", "labels", "named"),
    [
        (torch.randn(3), None, "x must"),
        (torch.randn(3, 2).double(), None, "x must"),
        (torch.randn(0, 2), None, "x must"),
        (torch.randn(3, 2), torch.zeros(2, dtype=torch.int64), "labels must"),
        (torch.randn(3, 2), torch.zeros(3), "labels must"),
        (torch.randn(3, 2), torch.tensor([0, -1, 2]), "labels must"),
    ],
)
def test_labelled_that_does_not_fit_is_refused(x, labels, named):
    with pytest.raises(ValueError, match=named):
        data.Labelled(x, labels)


def test_a_split_refuses_parts_that_do_not_match():
    points, labelled = data.Labelled(torch.randn(3, 2)), data.moons(3)
    with pytest.raises(ValueError, match="labels"):
        data.Split(points, labelled)
    with pytest.raises(ValueError, match="shape"):
        data.Split(points, data.Labelled(torch.randn(3, 4)))


def test_a_gaussian_for_each_class_has_the_moments_of_the_class():
    digits = data.digits().train
    mixture = data.class_gaussians(digits)
    sevens = digits.x[digits.labels == 7].double().flatten(1)
    assert mixture.means.shape == (10, 64)
    torch.testing.assert_close(mixture.means[7], sevens.mean(0))
    axes, variances = mixture.bases[7], mixture.variances[7]
    torch.testing.assert_close(axes @ torch.diag(variances) @ axes.T, sevens.T.cov(correction=0))
    torch.testing.assert_close(mixture.weights, torch.full((10,), 0.1, dtype=torch.float64))


def test_one_sample_of_one_coordinate_is_a_class_too():
    mixture = data.class_gaussians(data.Labelled(torch.tensor([[3.0], [1.0]]), torch.tensor([1, 0])))
    assert mixture.means.tolist() == [[1.0], [3.0]]
    assert mixture.variances.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 2])], ids=["none", "gap"])
def test_classes_that_are_not_there_are_refused(labels):
    with pytest.raises(ValueError, match="must have labels, and a sample of each class"):
        data.class_gaussians(data.Labelled(torch.zeros(2, 1), labels))

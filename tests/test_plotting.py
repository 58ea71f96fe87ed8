"""Figures: one look, colours that both pages can show, images laid out in order."""

from dataclasses import asdict
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from edmnotes import plotting

mpl.use("agg")
SCHEDULES = ("vp", "ve", "edm", "flow")


@pytest.fixture(autouse=True)
def own_settings():
    with mpl.rc_context():
        yield
    plt.close("all")


def rgb(color):
    return np.array(mpl.colors.to_rgb(color))


def linear(color):
    """From sRGB to linear light."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def gamma(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def luminance(color):
    return linear(color) @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    """WCAG's contrast ratio."""
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def in_the_dark(color):
    """What the style sheet makes of a colour: invert(0.93), then hue-rotate(180deg), by the matrix of CSS."""
    inverted = 0.93 * (1 - color) + 0.07 * color
    gray = np.array([0.213, 0.715, 0.072])
    return np.clip(2 * (gray @ inverted) - inverted, 0, 1)


@pytest.mark.parametrize(("role", "color"), asdict(plotting.COLORS).items())
def test_a_line_stands_out_on_a_light_and_on_a_dark_page(role, color):
    assert contrast(rgb(color), np.ones(3)) > 3, role
    assert contrast(in_the_dark(rgb(color)), in_the_dark(np.ones(3))) > 3, role


def test_text_and_paper_on_both_pages():
    assert contrast(np.zeros(3), np.ones(3)) == pytest.approx(21)
    assert contrast(in_the_dark(np.zeros(3)), in_the_dark(np.ones(3))) > 10
    assert np.round(in_the_dark(np.ones(3)) * 255).tolist() == [18, 18, 18]  # the theme's dark page, #121212


def test_colour_blind_readers_tell_all_roles_apart():
    """Full colour vision, deuteranopia and protanopia (Viénot et al. 1999, on linear light)."""
    deuteranopia = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    protanopia = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    colors = {role: linear(rgb(color)) for role, color in asdict(plotting.COLORS).items() if role not in SCHEDULES}
    for eyes in (np.eye(3), deuteranopia, protanopia):
        seen = {role: gamma(eyes @ color) for role, color in colors.items()}
        for a, b in combinations(seen, 2):
            assert np.abs(seen[a] - seen[b]).max() > 0.15, (a, b)
    assert len({getattr(plotting.COLORS, role) for role in SCHEDULES}) == len(SCHEDULES)


def test_use_sets_the_style():
    plotting.use()
    assert mpl.rcParams["figure.facecolor"] == "white"
    assert mpl.rcParams["figure.figsize"] == list(plotting.STYLE["figure.figsize"])
    figure, axes = plt.subplots()
    (line,) = axes.plot([0, 1])
    assert line.get_color() == plotting.COLORS.heun
    # 12 pt type in a figure shown 350 px wide, as on a phone
    width = figure.get_figwidth()
    assert mpl.rcParams["xtick.labelsize"] / 72 * 350 / width > 9


@given(
    count=st.integers(1, 12),
    columns=st.integers(1, 14),
    channels=st.sampled_from([None, 1, 3]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_every_image_is_where_it_belongs(count, columns, channels, height, width):
    shape = (count, *([channels] if channels else []), height, width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grid = plotting.tile(images, columns)
    for i, image in enumerate(images):
        row, column = divmod(i, min(columns, count))
        y, x = row * (height + 1), column * (width + 1)
        wanted = image.permute(1, 2, 0) if channels == 3 else image.reshape(height, width)
        assert torch.equal(grid[y : y + height, x : x + width], wanted)


def test_what_is_no_image_is_paper():
    grid = plotting.tile(torch.ones(3, 1, 2, 2), 2)
    assert grid.shape == (5, 5)
    assert (grid == -1).sum() == 25 - 3 * 4
    assert (plotting.tile(-torch.ones(3, 3, 2, 2), 2) == 1).sum() == 3 * (25 - 3 * 4)


def test_values_beyond_the_range_are_clipped_and_gradients_dropped():
    grid = plotting.tile(torch.tensor([[[3.0, -3.0]]], requires_grad=True), 1)
    assert grid.tolist() == [[1.0, -1.0]]
    assert not grid.requires_grad


def test_image_grid_draws_ink_on_paper():
    axes = plotting.image_grid(torch.tensor([[[1.0, -1.0]]]), columns=1)
    (image,) = axes.get_images()
    shown = image.to_rgba(image.get_array())[..., :3]
    assert shown.tolist() == [[[0, 0, 0], [1, 1, 1]]]
    assert not axes.axison


def test_image_grid_keeps_colours_and_the_given_axes():
    _, axes = plt.subplots()
    assert plotting.image_grid(torch.ones(2, 3, 2, 2), ax=axes) is axes
    (image,) = axes.get_images()
    assert np.asarray(image.get_array()).max() == 1


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 8), (2, 2, 8, 8), (1, 1, 1, 8, 8)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"images has shape \("):
        plotting.image_grid(torch.zeros(shape))


def test_a_wrong_number_of_columns_is_named():
    with pytest.raises(ValueError, match="columns is 0"):
        plotting.image_grid(torch.zeros(1, 8, 8), columns=0)

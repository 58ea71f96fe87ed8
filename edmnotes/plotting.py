"""Figures in the book's one style: the same thing has the same colour everywhere, legible on a phone and in the dark.

A chapter calls :func:`use` once and takes its colours from ``COLORS``. Figures are drawn dark on white; on a dark
page the book's style sheet inverts lightness and keeps the hue, so no colour here is very light or very dark, black
and white apart. This is the only room that imports matplotlib.
"""

import math
import sys
from dataclasses import dataclass
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor


@dataclass(frozen=True)
class Colors:
    """One colour a role.

    All of them differ for colour-blind readers too, in lightness or in blue against yellow; the tests measure it.
    Schedules share the colours of samplers, which they do not meet in a figure.
    """

    data: str = "#8d8d8d"
    exact: str = "#000000"
    model: str = "#a828c0"
    wrong: str = "#742015"

    euler: str = "#bd7111"
    heun: str = "#0f588a"
    churn: str = "#156447"

    vp: str = "#0f588a"
    ve: str = "#bd7111"
    edm: str = "#156447"
    flow: str = "#a828c0"


COLORS = Colors()

STYLE = MappingProxyType(
    {
        "figure.figsize": (5.6, 3.4),  # with 12 pt type: 16 px on a desktop, 10 px on a phone 390 px wide
        "figure.dpi": 100,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.labelsize": 12,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "legend.fontsize": 11,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#d4d4d4",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "lines.linewidth": 1.8,
        "axes.prop_cycle": cycler(
            color=[COLORS.heun, COLORS.euler, COLORS.churn, COLORS.model, COLORS.wrong, COLORS.data]
        ),
        "image.cmap": "Blues",
        "image.interpolation": "nearest",
    }
)


def use() -> None:
    """Take the book's style for all figures that follow; in a notebook also at twice the resolution, for sharp type."""
    plt.style.use(dict(STYLE))
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


def image_grid(
    images: Float[Tensor, "batch *channel height width"], *, columns: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw a batch of images as one grid, row by row, as ink on paper: -1 is white and 1 is black for one channel.

    Colour images keep their colours, and should carry the class ``photo`` in a chapter so that a dark page does not
    invert them.

    Args:
        images: values in [-1, 1], clipped there; (B, H, W), (B, 1, H, W) or (B, 3, H, W), on any device.
        columns: images a row.
        ax: where to draw; a new figure of fitting height if None.

    Returns:
        The axes, without ticks.

    Raises:
        ValueError: if ``images`` has another shape or is empty, or ``columns`` is below 1.
    """
    grid = tile(images, columns)
    if ax is None:
        width, _ = mpl.rcParams["figure.figsize"]
        _, ax = plt.subplots(figsize=(width, width * grid.shape[0] / grid.shape[1]))
    ax.imshow(grid.numpy(), cmap="gray_r", vmin=-1, vmax=1) if grid.ndim == 2 else ax.imshow(grid.numpy() / 2 + 0.5)
    ax.set_axis_off()
    return ax


def tile(images: Tensor, columns: int) -> Float[Tensor, "height width *channel"]:
    """One array of all images, row by row, on the CPU, one pixel of paper between them; the last row is filled up.

    Raises:
        ValueError: as :func:`image_grid`.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images has shape {tuple(images.shape)}; it must be (B, H, W), (B, 1, H, W) or (B, 3, H, W), B > 0"
        )
    count, channels, height, width = images.shape
    paper = -1.0 if channels == 1 else 1.0
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    cells = torch.full((rows * columns, channels, height + 1, width + 1), paper)
    cells[:count, :, :height, :width] = images.detach().to("cpu", torch.float32).clamp(-1, 1)
    whole = cells.reshape(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    whole = whole.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return whole[..., 0] if channels == 1 else whole

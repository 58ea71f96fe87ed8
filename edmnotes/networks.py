"""Small raw networks F_theta: an MLP for points, a U-Net for images, and two classifiers.

A raw network is called as ``network(x, c_noise, labels=None)``, with ``c_noise`` of shape (B,), the noise level as
:mod:`edmnotes.preconditioning` encodes it. ``labels=None`` gives every sample the null token, a learned embedding of
its own; in a batch of labels the value :data:`NULL` does so for one sample, which is how training drops labels.
Any other ``nn.Module`` of this form serves as well.

Each network keeps its constructor's arguments in ``config``, a plain dict: ``build(network.config)`` is its twin.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

NULL = -1
"""The label of a sample without one."""


class NoiseEmbedding(nn.Module):
    """Sines and cosines of c_noise at fixed frequencies.

    They run from 1/1000 to 16 radians a unit, so that both EDM's ln(sigma)/4, a few units wide, and the thousand
    steps of VP and iDDPM are resolved.

    Args:
        features: number of outputs, even.
    """

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-3, 1.2, features // 2), persistent=False)

    def forward(self, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """Embed ``c_noise``."""
        phase = c_noise[:, None] * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Embedding(nn.Module):
    """Joint embedding of the noise level and the label, after SiLU.

    Args:
        features: number of outputs, even.
        num_classes: number of classes; None for a network without labels.
    """

    def __init__(self, features: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.noise = nn.Sequential(NoiseEmbedding(features), nn.Linear(features, features), nn.SiLU())
        self.mix = nn.Linear(features, features)
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, features)  # row 0: the null token

    def forward(
        self, c_noise: Float[Tensor, " batch"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch features"]:
        """Embed noise level and label; ``labels=None`` and the value :data:`NULL` are the null token."""
        h = self.mix(self.noise(c_noise))
        if self.label is not None:
            h = h + self.label(torch.zeros_like(c_noise, dtype=torch.int64) if labels is None else labels - NULL)
        elif labels is not None:
            raise ValueError("labels were given to a network without classes; build it with num_classes=")
        return functional.silu(h)


def _check(x: Tensor, c_noise: Tensor, shape: str, fits: bool) -> None:
    if not fits or c_noise.shape != x.shape[:1]:
        raise ValueError(f"x must be {shape} and c_noise (B,), got {tuple(x.shape)} and {tuple(c_noise.shape)}")


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Start a layer at 0, so that what it ends begins as the identity (or as F = 0)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Residual perceptron for points, class-conditional on request.

    Args:
        dim: number of coordinates of a point.
        width: hidden features.
        depth: residual layers.
        num_classes: number of classes; None for none.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 4, num_classes: int | None = None) -> None:
        super().__init__()
        self.config = {"name": "MLP", "dim": dim, "width": width, "depth": depth, "num_classes": num_classes}
        self.embed = Embedding(width, num_classes)
        self.first = nn.Linear(dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.last = _zero(nn.Linear(width, dim))

    def forward(
        self,
        x: Float[Tensor, "batch dim"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return F(x; c_noise), of the shape of ``x``; 0 before training."""
        _check(x, c_noise, f"(B, {self.first.in_features})", x.ndim == 2 and x.shape[1] == self.first.in_features)
        embedding = self.embed(c_noise, labels)
        h = self.first(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + functional.silu(layer(torch.cat([norm(h), embedding], dim=1)))
        return self.last(functional.silu(h))


class Block(nn.Module):
    """Residual block: two 3 x 3 convolutions, the embedding as scale and shift between them."""

    def __init__(self, channels: int, out: int, features: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.affine = nn.Linear(features, 2 * out)
        self.norm2 = nn.GroupNorm(8, out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], embedding: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch out height width"]:
        """Add the block's change to ``x``."""
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention over the pixels, one head, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Let every pixel look at every other."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """Compact class-conditional U-Net for images of 8 x 8 and more.

    At each resolution, one residual block on the way down and one on the way up, which also sees what the way down
    left; two blocks around one attention at the bottom. The height and width must be multiples of 2^(levels - 1).

    Args:
        channels: of the image.
        widths: channels at each resolution, finest first, multiples of 8; each is half the size of the one before.
        num_classes: number of classes; None for none.
        dropout: probability, in every block.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        num_classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"widths must be multiples of 8, one for each resolution, got {widths}")
        self.config = {
            "name": "UNet",
            "channels": channels,
            "widths": list(widths),
            "num_classes": num_classes,
            "dropout": dropout,
        }
        features = 2 * widths[-1]
        fine = (widths[0], *widths[:-1])
        self.embed = Embedding(features, num_classes)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(c, w, features, dropout) for c, w in zip(fine, widths, strict=True))
        self.middle = nn.ModuleList(
            [
                Block(widths[-1], widths[-1], features, dropout),
                Attention(widths[-1]),
                Block(widths[-1], widths[-1], features, dropout),
            ]
        )
        self.up = nn.ModuleList(
            Block(2 * w, c, features, dropout) for c, w in reversed([*zip(fine, widths, strict=True)])
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.last = _zero(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        c_noise: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return F(x; c_noise), of the shape of ``x``; 0 before training."""
        channels, multiple = self.first.in_channels, 2 ** (len(self.down) - 1)
        fits = x.ndim == 4 and x.shape[1] == channels and not (x.shape[2] % multiple or x.shape[3] % multiple)
        _check(x, c_noise, f"(B, {channels}, multiple of {multiple}, multiple of {multiple})", fits)
        embedding = self.embed(c_noise, labels)
        h, skips = self.first(x), []
        for level, block in enumerate(self.down):
            h = block(h if level == 0 else functional.avg_pool2d(h, 2), embedding)
            skips.append(h)
        before, attention, after = self.middle
        h = after(attention(before(h, embedding)), embedding)
        for level, block in enumerate(self.up):
            h = h if level == 0 else functional.interpolate(h, scale_factor=2.0)
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(functional.silu(self.norm(h)))


class Judge(nn.Module):
    """Convolutional classifier of clean images, to judge samples with; it never guides.

    Args:
        channels: of the image.
        num_classes: number of classes.
        dropout: probability, on the features.
    """

    def __init__(self, channels: int = 1, num_classes: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        self.config = {"name": "Judge", "channels": channels, "num_classes": num_classes, "dropout": dropout}
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(64, num_classes)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 64"]:
        """Return the 64 features under the last layer, averaged over the image."""
        return self.body(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the classes."""
        return self.head(self.dropout(self.features(x)))


class Guide(nn.Module):
    """Classifier of noisy images, to guide a sampler with; it knows the noise level.

    Args:
        channels: of the image.
        width: hidden channels, a multiple of 8.
        num_classes: number of classes.
    """

    def __init__(self, channels: int = 1, width: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.config = {"name": "Guide", "channels": channels, "width": width, "num_classes": num_classes}
        self.embed = Embedding(2 * width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.fine = Block(width, width, 2 * width, 0.0)
        self.coarse = Block(width, 2 * width, 2 * width, 0.0)
        self.last = nn.Linear(2 * width, num_classes)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], c_noise: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of the classes for ``x``, scaled as a raw network's input is."""
        fits = x.ndim == 4 and x.shape[1] == self.first.in_channels and min(x.shape[2:]) > 1
        _check(x, c_noise, f"(B, {self.first.in_channels}, height > 1, width > 1)", fits)
        embedding = self.embed(c_noise)
        h = self.fine(self.first(x), embedding)
        h = self.coarse(functional.avg_pool2d(h, 2), embedding)
        return self.last(functional.silu(h).mean(dim=(2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet, "Judge": Judge, "Guide": Guide}
"""Every network of this room by name."""


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build a network from its ``config``: its name and its constructor's arguments.

    Raises:
        ValueError: if there is no network of that name (the message lists them), or not with these arguments.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built from {arguments}: {error}") from error

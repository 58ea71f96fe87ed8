r"""The variational autoencoder, with one latent variable or a Markov chain of them.

x = z_0 → z_1 → … → z_L, each law q(z_{l+1} | z_l) a Gaussian whose mean and std a network gives; back from
z_L ~ N(0, I) by the laws p(z_l | z_{l+1}), of the same form. L = 1 is the variational autoencoder (Kingma and Welling
2014), L > 1 the Markovian hierarchy of which a diffusion model is the case with a fixed encoder.

All values are costs, minus a logarithm, in nats a picture: the bound is an upper bound of −log p(x).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from edmnotes.samplers.base import Noise
from edmnotes.variational.bound import DIGITS, Decoder, Density, gaussian_kl

NORMAL = Density()


class Conditional(nn.Module):
    """N(mean, std²) with independent coordinates, mean and std given by one perceptron of two hidden layers.

    The network gives log std, not the variance: any number is then legal, and the std is what noise is multiplied by.

    Args:
        inputs: coordinates of what is given.
        outputs: coordinates of what has the law.
        width: hidden features.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 256) -> None:
        super().__init__()
        self.body = _body(inputs, width)
        self.mean, self.log_std = nn.Linear(width, outputs), nn.Linear(width, outputs)

    def forward(self, z: Float[Tensor, "batch inputs"]) -> tuple[Tensor, Tensor]:
        """Mean and std, each of shape (batch, outputs)."""
        h = self.body(z)
        return self.mean(h), self.log_std(h).exp()


class Output(nn.Module):
    """The law of a picture given z_1: a mean from a perceptron and one std for all pixels.

    Args:
        inputs: coordinates of z_1.
        outputs: pixels.
        width: hidden features.
        std: fixed, in units of the data; None to learn it.

    Raises:
        ValueError: if ``std`` is not positive and finite.
    """

    log_std: Tensor

    def __init__(self, inputs: int, outputs: int, width: int = 256, std: float | None = None) -> None:
        super().__init__()
        if std is not None and not 0 < std < math.inf:
            raise ValueError(f"std = {std}; it must be positive and finite, or None to be learned")
        self.body, self.mean = _body(inputs, width), nn.Linear(width, outputs)
        if std is None:
            self.log_std = nn.Parameter(torch.tensor(math.log(0.5)))
        else:
            self.register_buffer("log_std", torch.tensor(math.log(std)))

    def forward(self, z: Float[Tensor, "batch inputs"]) -> tuple[Tensor, Tensor]:
        """Mean of shape (batch, outputs), and std, one number."""
        return self.mean(self.body(z)), self.log_std.exp()


class VAE(nn.Module):
    r"""A chain of latent variables between a picture and N(0, I).

    Args:
        shape: of a picture.
        encoders: L modules; the l-th, called with z_l, gives mean and std of z_{l+1}; z_0 is the picture, flattened.
        decoders: L modules; the l-th, called with z_{l+1}, gives mean and std of z_l.
        decoder: the law of the picture about the mean and std of the first of ``decoders``.

    Raises:
        ValueError: if there is no encoder, or not one decoder for each.
    """

    def __init__(
        self,
        shape: Sequence[int],
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        *,
        decoder: Decoder = DIGITS,
    ) -> None:
        super().__init__()
        if not encoders or len(encoders) != len(decoders):
            raise ValueError(f"there are {len(encoders)} encoders, {len(decoders)} decoders; give as many, at least 1")
        self.shape, self.decoder = tuple(shape), decoder
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)

    def encode(self, x: Float[Tensor, "batch *shape"]) -> tuple[Tensor, Tensor]:
        """Mean and std of q(z_1 | x).

        Raises:
            ValueError: if ``x`` has another shape than the pictures this was made for.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has samples of shape {tuple(x.shape[1:])}, the model {self.shape}")
        return self.encoders[0](x.flatten(1))

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch *shape"]:
        """The expected picture given z_1."""
        return self.decoder.expected(*self.decoders[0](z)).reshape(len(z), *self.shape)

    def reconstruct(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The expected picture given the mean of z_1 given x."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *shape"]:
        """Draw ``n`` latents from the prior down to z_1, and give their expected pictures.

        Raises:
            ValueError: if ``n`` is less than 1.
        """
        if n < 1:
            raise ValueError(f"n = {n}; it must be at least 1")
        z = torch.zeros(1, math.prod(self.shape)).to(next(self.parameters()))
        for encoder in self.encoders:
            z = encoder(z)[0]
        z = torch.randn(n, z.shape[1], generator=generator).to(z)
        for law in reversed(self.decoders[1:]):
            mean, std = law(z)
            z = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        return self.decode(z)


def vae(
    shape: Sequence[int],
    latents: Sequence[int] = (16,),
    *,
    width: int = 256,
    std: float | None = None,
    decoder: Decoder = DIGITS,
) -> VAE:
    """Make an autoencoder of perceptrons.

    Args:
        shape: of a picture.
        latents: coordinates of z_1, z_2, … z_L.
        width: hidden features of every perceptron.
        std: of the pictures about their mean, in units of the data; None to learn it.
        decoder: the law of a picture about its mean.

    Raises:
        ValueError: if there are no latents, or one without coordinates.
    """
    if not latents or min(latents) < 1:
        raise ValueError(f"latents = {tuple(latents)}; give the number of coordinates of each, at least 1")
    pixels = math.prod(shape)
    encoders = [Conditional(a, b, width) for a, b in pairwise([pixels, *latents])]
    inner = [Conditional(b, a, width) for a, b in pairwise(latents)]
    return VAE(shape, encoders, [Output(latents[0], pixels, width, std), *inner], decoder=decoder)


@dataclass(frozen=True)
class Elbo:
    """Minus the evidence lower bound of each picture, term by term; in the same unit all.

    Attributes:
        reconstruction: minus log probability of the picture given z_1.
        kl: one row a latent, z_1 first: what it costs to tell z_l, log q(z_l | z_{l−1}) − log p(z_l | z_{l+1}) in the
            mean. The last row is a KL divergence in closed form; the others are estimates and may be negative.
        dim: number of coordinates of a picture.
    """

    reconstruction: Float[Tensor, " batch"]
    kl: Float[Tensor, "latents batch"]
    dim: int

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The bound, in expectation at least −log p(x)."""
        return self.reconstruction + self.kl.sum(0)

    @property
    def bits(self) -> "Elbo":
        """The same in bits a dimension, if this is in nats (label ``bits-per-dim``)."""
        unit = self.dim * math.log(2)
        return Elbo(self.reconstruction / unit, self.kl / unit, self.dim)


def elbo(model: VAE, x: Float[Tensor, "batch *shape"], *, noise: Noise = torch.randn_like) -> Elbo:
    """The evidence bound from one draw of the latents (labels ``elbo-terms``, ``hvae-terms``).

    z = mean + std ε is differentiable in mean and std (label ``reparameterisation``). With one latent the KL divergence
    is closed (label ``gaussian-kl``). In a hierarchy that of z_l, l < L, is not: z_{l+1} was drawn from z_l, so that
    given both neighbours z_l does not have the law q(z_l | z_{l−1}). There the log ratio at the drawn z_l stands in.

    Args:
        model: the autoencoder.
        x: pictures.
        noise: standard normal noise like its argument (see :class:`edmnotes.noise.PerSample`).

    Returns:
        ``Elbo`` in nats a picture.

    Raises:
        ValueError: if ``x`` has another shape than the model's pictures, or values that its decoder cannot make.
    """
    model.decoder.check(x)
    return _elbo(model, x, noise)


def _elbo(model: VAE, x: Tensor, noise: Noise) -> Elbo:
    """:func:`elbo` without the check of the values."""
    states, told = _climb(model, x, noise)
    mean, std = told[-1]
    between = [
        NORMAL.log_prob(z, *own) - NORMAL.log_prob(z, *law(above))
        for z, above, own, law in zip(states[1:-1], states[2:], told[:-1], model.decoders[1:], strict=True)
    ]
    top = gaussian_kl(mean, std, 0.0, 1.0).sum(1)
    reconstruction = -model.decoder.log_prob(states[0], *model.decoders[0](states[1]))
    return Elbo(reconstruction, torch.stack([*between, top]), states[0].shape[1])


def _climb(model: VAE, x: Tensor, noise: Noise) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """One draw of z_0, z_1, … z_L, z_0 the picture, and mean and std of the law that each but the first came from."""
    states: list[Tensor] = [x.flatten(1)]
    told: list[tuple[Tensor, Tensor]] = []
    for encoder in model.encoders:
        mean, std = encoder(states[-1]) if told else model.encode(x)
        told.append((mean, std))
        states.append(mean + std * noise(mean))
    return states, told


@torch.no_grad()
def iwae(
    model: VAE, x: Float[Tensor, "batch *shape"], k: int, *, noise: Noise = torch.randn_like
) -> Float[Tensor, " batch"]:
    """The importance-weighted bound −log (1/k) Σ p(x, z) / q(z | x) over k draws of the latents (label ``iwae``).

    In expectation it falls as k grows, from the evidence bound at k = 1 to −log p(x) (Burda et al. 2016, theorem 1).

    Args:
        model: the autoencoder.
        x: pictures.
        k: number of draws a picture.
        noise: standard normal noise like its argument.

    Returns:
        The bound of each picture in nats.

    Raises:
        ValueError: if ``k`` is less than 1, or as :func:`elbo`.
    """
    if k < 1:
        raise ValueError(f"k = {k}; at least one draw is needed")
    model.decoder.check(x)
    weights = [_log_weight(model, x, noise) for _ in range(k)]
    return math.log(k) - torch.stack(weights).logsumexp(0)


def _log_weight(model: VAE, x: Tensor, noise: Noise) -> Tensor:
    """Log p(x, z) / q(z | x) at one draw of the latents."""
    states, told = _climb(model, x, noise)
    total = NORMAL.log_prob(states[-1], torch.zeros_like(states[-1]), 1.0)
    for z, own in zip(states[1:], told, strict=True):
        total = total - NORMAL.log_prob(z, *own)
    for z, above, law in zip(states[1:-1], states[2:], model.decoders[1:], strict=True):
        total = total + NORMAL.log_prob(z, *law(above))
    return total + model.decoder.log_prob(states[0], *model.decoders[0](states[1]))


def fit_vae(
    model: VAE,
    x: Float[Tensor, "n *shape"],
    *,
    steps: int = 2000,
    batch: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
    show: bool = False,
) -> Float[Tensor, " steps"]:
    """Train in place on the evidence bound, by Adam with a rate that falls to 0 as a half cosine.

    Args:
        model: the autoencoder.
        x: pictures to learn, on the model's device.
        steps: number of steps.
        batch: pictures a step, drawn with replacement.
        rate: highest learning rate.
        seed: of the pictures drawn and of the noise; what the weights start from is the caller's.
        show: show a bar with the bound.

    Returns:
        The mean bound of each step's pictures in nats a picture.

    Raises:
        ValueError: if ``steps`` or ``batch`` is less than 1, or as :func:`elbo`.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps = {steps}, batch = {batch}; both must be at least 1")
    model.decoder.check(x)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    noise = partial(_noise_like, generator=generator)
    losses = []
    for _ in tqdm(range(steps), disable=not show):
        those = torch.randint(len(x), (batch,), generator=generator)
        loss = _elbo(model, x[those], noise).total.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def _noise_like(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Standard normal noise like x, drawn on the CPU."""
    return torch.randn(x.shape, generator=generator).to(x)


def _body(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

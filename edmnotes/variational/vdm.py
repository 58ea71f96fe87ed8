r"""Variational diffusion models: the bound in continuous time, and a noise schedule learned to make it quiet.

Taught in the chapter ``vdm``. A schedule here is ℓ(t) = log σ(t)², the negative log signal-to-noise ratio, rising on
0 ≤ t ≤ 1 (label ``log-snr``; γ_η in Kingma et al. 2021). As the chain's steps become many, their sum tends to

    −½ ∫ SNR'(t) E ``|x_0 − D|²`` dt = ½ ∫ ℓ'(t) E ``|ε − ε̂|²`` dt,    ε̂ = (x − D)/σ

(label ``vlb-continuous``), an integral over ℓ in which t is a name only: the value depends on the ends of the schedule
and on nothing between. The variance of an estimate at random t does depend on it, and that is what is learned.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edmnotes.contract import DenoiserLike
from edmnotes.exact import Gaussian
from edmnotes.samplers.base import Noise, working_dtype
from edmnotes.variational.bound import DIGITS, STANDARD, Decoder, Number, Terms, prior_kl

Times = Float[Tensor, "*times"]


@runtime_checkable
class LogVarianceSchedule(Protocol):
    """ℓ(t) = log σ(t)², rising on [0, 1]."""

    def __call__(self, t: Times) -> Times:
        """ℓ(t)."""

    def deriv(self, t: Times) -> Times:
        """ℓ'(t)."""

    def sigma(self, t: Times) -> Times:
        """σ(t) = exp(ℓ(t)/2)."""


class _Levels:
    """What follows from ℓ alone."""

    def sigma(self: LogVarianceSchedule, t: Times) -> Times:
        """σ(t) = exp(ℓ(t)/2), in units of the data."""
        return torch.exp(self(t) / 2)

    @torch.no_grad()
    def levels(self: LogVarianceSchedule, n: int) -> Float[Tensor, " levels"]:
        """Levels of a chain, σ at n even times from 1 to 0, then the level 0; as samplers take them.

        Raises:
            ValueError: if ``n`` is less than 1.
        """
        if n < 1:
            raise ValueError(f"n = {n}; at least one level above 0 is needed")
        found = self.sigma(torch.linspace(1, 0, n, dtype=torch.float64)).cpu().double()
        return torch.cat([found, found.new_zeros(1)])


@dataclass(frozen=True)
class LinearSchedule(_Levels):
    """ℓ(t) linear in t: σ in geometric progression, as :class:`edmnotes.losses.LogUniform` draws it.

    Attributes:
        sigma_min: σ(0), in units of the data.
        sigma_max: σ(1).
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        _check_ends(self.sigma_min, self.sigma_max)

    def __call__(self, t: Times) -> Times:
        """ℓ(t)."""
        low, high = 2 * math.log(self.sigma_min), 2 * math.log(self.sigma_max)
        return low + (high - low) * t

    def deriv(self, t: Times) -> Times:
        """ℓ'(t), the same at all times."""
        return torch.full_like(t, 2 * math.log(self.sigma_max / self.sigma_min))


class LearnedSchedule(_Levels, nn.Module):
    """ℓ(t) by a network that rises whatever its parameters are: a line plus sigmoids, all with positive weights.

    ℓ(t) = ℓ(0) + (ℓ(1) − ℓ(0)) (h(t) − h(0)) / (h(1) − h(0)), h(t) = a t + Σ b_i sigmoid(c_i t + d_i) with a, b_i and
    c_i positive (Kingma et al. 2021, appendix H). Parameters are float64. At the start ℓ is close to a line.

    Args:
        sigma_min: σ(0), in units of the data.
        sigma_max: σ(1).
        width: number of sigmoids.
        learn_ends: whether the two ends are parameters too; they stay apart and in order.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max < inf and ``width`` is at least 1.
    """

    low: Tensor
    log_gap: Tensor

    def __init__(self, sigma_min: float, sigma_max: float, *, width: int = 32, learn_ends: bool = False) -> None:
        super().__init__()
        _check_ends(sigma_min, sigma_max)
        if width < 1:
            raise ValueError(f"width = {width}; at least one sigmoid is needed")
        double = torch.float64
        # Made positive by softplus: a = 1; all b_i together are 0.1; each sigmoid is a few of their distances wide.
        steepness = 2.0 * width**0.5
        self.line = nn.Parameter(_inverse_softplus(torch.ones((), dtype=double)))
        self.heights = nn.Parameter(_inverse_softplus(torch.full((width,), 0.1 / width, dtype=double)))
        self.slopes = nn.Parameter(_inverse_softplus(torch.full((width,), steepness, dtype=double)))
        self.shifts = nn.Parameter(-steepness * (torch.arange(width, dtype=double) + 0.5) / width)
        low = torch.tensor(2 * math.log(sigma_min), dtype=double)
        log_gap = torch.tensor(math.log(2 * math.log(sigma_max / sigma_min)), dtype=double)
        if learn_ends:
            self.low, self.log_gap = nn.Parameter(low), nn.Parameter(log_gap)
        else:
            self.register_buffer("low", low)
            self.register_buffer("log_gap", log_gap)

    def forward(self, t: Times) -> Times:
        """ℓ(t), float64."""
        ends = self._height(torch.tensor([0.0, 1.0]).to(self.line))
        return self.low + self.log_gap.exp() * (self._height(t.to(self.line)) - ends[0]) / (ends[1] - ends[0])

    def deriv(self, t: Times) -> Times:
        """ℓ'(t) in closed form, positive, float64."""
        ends = self._height(torch.tensor([0.0, 1.0]).to(self.line))
        slopes = functional.softplus(self.slopes)
        inner = torch.sigmoid(slopes * t.to(self.line)[..., None] + self.shifts)
        rise = functional.softplus(self.line) + (functional.softplus(self.heights) * slopes * inner * (1 - inner)).sum(
            -1
        )
        return self.log_gap.exp() * rise / (ends[1] - ends[0])

    def _height(self, t: Tensor) -> Tensor:
        """h(t)."""
        inner = torch.sigmoid(functional.softplus(self.slopes) * t[..., None] + self.shifts)
        return functional.softplus(self.line) * t + (functional.softplus(self.heights) * inner).sum(-1)

    def ends(self) -> list[nn.Parameter]:
        """The parameters that the value of the bound depends on: none, or the two ends."""
        return [p for p in (self.low, self.log_gap) if isinstance(p, nn.Parameter)]

    def shape(self) -> list[nn.Parameter]:
        """The parameters between the ends, which only its variance depends on."""
        return [self.line, self.heights, self.slopes, self.shifts]


def low_discrepancy(n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
    """Times t_i = (u + i/n) mod 1 with one uniform u: each is uniform, and together they are even.

    Kingma et al. 2021, appendix I.1. Float64 on the CPU.

    Raises:
        ValueError: if ``n`` is less than 1.
    """
    if n < 1:
        raise ValueError(f"n = {n}; it must be at least 1")
    u = torch.rand(1, generator=generator, dtype=torch.float64)
    return (u + torch.arange(n, dtype=torch.float64) / n) % 1


@dataclass(frozen=True, eq=False)
class ScheduleSigmas:
    """σ(t) at even random times of a schedule: a distribution of levels to train on (:class:`edmnotes.losses.Sigmas`).

    Attributes:
        schedule: ℓ(t).
    """

    schedule: LogVarianceSchedule

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " n"]:
        """Draw ``n`` noise levels, float64 on the CPU."""
        return self.schedule.sigma(low_discrepancy(n, generator=generator)).cpu().double()


def diffusion_loss(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "batch *shape"],
    schedule: LogVarianceSchedule,
    t: Float[Tensor, " batch"],
    noise: Float[Tensor, "batch *shape"],
    **cond: Any,
) -> Float[Tensor, " batch"]:
    """½ ℓ'(t) ``|ε − ε̂|²`` of each sample in nats, label ``vlb-continuous``; the mean over t and ε is the bound's.

    Without the factor ℓ'(t) it is another loss: the same for a schedule linear in t, and no bound for a learned one.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x0: clean samples.
        schedule: ℓ(t).
        t: one time a sample, uniform on [0, 1].
        noise: ε, standard normal, like ``x0``.
        **cond: passed to the denoiser.

    Raises:
        ValueError: if the shapes of ``x0``, ``t`` and ``noise`` do not fit together.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, x0 {tuple(x0.shape)}; they must agree")
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; it must be one a sample, ({len(x0)},)")
    return _loss(denoiser, x0, schedule(t), schedule.deriv(t), noise, **cond)


def _loss(denoiser: DenoiserLike, x0: Tensor, level: Tensor, speed: Tensor, noise: Tensor, **cond: Any) -> Tensor:
    """:func:`diffusion_loss` from ℓ and ℓ' of each sample."""
    level, speed = level.to(x0), speed.to(x0)
    sigma = torch.exp(level / 2)
    x = x0 + sigma.reshape(-1, *[1] * (x0.ndim - 1)) * noise
    error = (denoiser(x, sigma, **cond) - x0).reshape(len(x0), -1).square().sum(1)
    return speed * error * torch.exp(-level) / 2


@torch.no_grad()
def continuous_vlb(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "batch *shape"],
    schedule: LogVarianceSchedule,
    *,
    draws: int = 1,
    prior: Gaussian = STANDARD,
    decoder: Decoder = DIGITS,
    std: Number | None = None,
    noise: Noise = torch.randn_like,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Terms:
    """The variational bound of infinitely many steps between σ(1) and σ(0): prior, diffusion, reconstruction.

    Each sample meets ``draws`` times, evenly spaced from a random start of its own; over the batch they are even too.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x0: clean samples.
        schedule: ℓ(t); only its ends matter to the expectation.
        draws: of the diffusion term a sample.
        prior: as for :func:`edmnotes.variational.vlb`.
        decoder: as there.
        std: of the decoder; None for σ(0).
        noise: standard normal noise like its argument.
        generator: of the times.
        **cond: passed to the denoiser.

    Returns:
        ``Terms`` in nats; ``steps`` has a row a draw, and the rows sum to the diffusion term.

    Raises:
        ValueError: if ``draws`` is less than 1, or ``x0`` has values that the decoder cannot make.
    """
    if draws < 1:
        raise ValueError(f"draws = {draws}; it must be at least 1")
    decoder.check(x0)
    x0, n = x0.to(working_dtype(x0)), len(x0)
    starts = low_discrepancy(n, generator=generator)[torch.randperm(n, generator=generator)] / draws
    low, high = schedule.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    steps = [
        diffusion_loss(denoiser, x0, schedule, (starts + i / draws).to(x0), noise(x0), **cond) / draws
        for i in range(draws)
    ]
    reconstruction = -decoder.log_prob(
        x0, denoiser(x0 + low * noise(x0), low, **cond).to(x0), low if std is None else std
    )
    return Terms(prior_kl(prior, x0, high, high), torch.stack(steps), reconstruction, x0[0].numel())


def fit_schedule(
    schedule: LearnedSchedule,
    denoiser: DenoiserLike,
    x: Float[Tensor, "n *shape"],
    *,
    steps: int = 300,
    batch: int = 128,
    rate: float = 0.1,
    seed: int = 0,
) -> None:
    """Train a schedule in place, for a denoiser that stays as it is, to make one draw of the loss vary least.

    The mean of the loss does not depend on the shape of ℓ between fixed ends; so descent on the mean square is descent
    on the variance (Kingma et al. 2021, appendix I.2). The best shape has ℓ' ∝ 1/√E[``|ε − ε̂|⁴`` | ℓ]. The ends stay.

    Args:
        schedule: ℓ(t).
        denoiser: D(x; σ), differentiable in x and σ.
        x: clean samples.
        steps: of Adam, with a rate that falls to 0 as a half cosine.
        batch: samples a step, drawn with replacement.
        rate: highest learning rate.
        seed: of samples, times and noise.

    Raises:
        ValueError: if ``steps`` or ``batch`` is less than 1.
    """
    _check_lengths(steps, batch)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(schedule.shape(), rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x0, t, noise = _drawn(x, batch, generator)
        level, speed = schedule(t), schedule.deriv(t)
        at = level.detach().requires_grad_(), speed.detach().requires_grad_()
        loss = _loss(denoiser, x0, *at, noise)
        slopes = torch.autograd.grad(loss.mean(), at)
        _descend(schedule, [level, speed], list(slopes), loss.detach())
        optimiser.step()
        falling.step()


def fit_vdm(
    denoiser: nn.Module,
    schedule: LogVarianceSchedule,
    x: Float[Tensor, "n *shape"],
    *,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 2e-3,
    schedule_rate: float = 0.05,
    prior: Gaussian = STANDARD,
    decoder: Decoder = DIGITS,
    seed: int = 0,
    show: bool = False,
) -> Float[Tensor, " steps"]:
    """Train a denoiser in place on the diffusion term of the bound, and its schedule with it if that can be learned.

    One backward pass serves both: a sample's loss depends on the schedule through its own ℓ and ℓ' alone, so that the
    gradient of the squared loss is twice the loss times that of the loss. The shape of ℓ descends on the mean square,
    which lowers the variance; ends that are learned descend on the whole bound.

    Args:
        denoiser: D(x; σ), a module.
        schedule: ℓ(t); a :class:`LearnedSchedule` is trained, another stays as it is.
        x: clean samples, on the denoiser's device.
        steps: of Adam, with rates that fall to 0 as a half cosine.
        batch: samples a step, drawn with replacement.
        rate: highest learning rate of the denoiser.
        schedule_rate: highest of the schedule.
        prior: as for :func:`edmnotes.variational.vlb`; matters to learned ends only.
        decoder: likewise; its std is the lowest level.
        seed: of samples, times and noise; what the weights start from is the caller's.
        show: show a bar with the loss.

    Returns:
        The mean diffusion loss of each step in nats a sample.

    Raises:
        ValueError: if ``steps`` or ``batch`` is less than 1, or ``x`` has values that the decoder cannot make.
    """
    _check_lengths(steps, batch)
    decoder.check(x)
    generator = torch.Generator().manual_seed(seed)
    learned = schedule if isinstance(schedule, LearnedSchedule) else None
    groups = [{"params": list(denoiser.parameters()), "lr": rate}]
    if learned is not None:
        groups.append({"params": [*learned.shape(), *learned.ends()], "lr": schedule_rate})
    optimiser = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses = []
    for _ in tqdm(range(steps), disable=not show):
        x0, t, noise = _drawn(x, batch, generator)
        level, speed = schedule(t), schedule.deriv(t)
        at = level.detach().requires_grad_(), speed.detach().requires_grad_()
        loss = _loss(denoiser, x0, *at, noise)
        cost = loss.mean()
        if learned is not None and learned.ends():
            cost = cost + _cost_of_ends(denoiser, x0, learned, _normal(x0, generator), prior, decoder)
        optimiser.zero_grad()
        cost.backward()
        # The bound is a sum over the coordinates: a norm of one a coordinate.
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), float(x0[0].numel()))
        if learned is not None:
            _descend(learned, [level, speed], [cast(Tensor, value.grad) for value in at], loss.detach())
        optimiser.step()
        falling.step()
        losses.append(loss.detach().mean())
    return torch.stack(losses).cpu()


def _descend(schedule: LearnedSchedule, values: list[Tensor], slopes: list[Tensor], loss: Tensor) -> None:
    """Set the gradients of a schedule from those of the mean loss by ℓ and ℓ' of each sample."""
    squared = [2 * loss.to(slope) * slope for slope in slopes]
    of_shape = torch.autograd.grad(values, schedule.shape(), squared, retain_graph=True)
    for parameter, gradient in zip(schedule.shape(), of_shape, strict=True):
        parameter.grad = gradient
    if schedule.ends():
        of_ends = torch.autograd.grad(values, schedule.ends(), slopes)
        for parameter, gradient in zip(schedule.ends(), of_ends, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _cost_of_ends(
    denoiser: DenoiserLike, x0: Tensor, schedule: LearnedSchedule, noise: Tensor, prior: Gaussian, decoder: Decoder
) -> Tensor:
    """The mean of the two terms that depend on the ends alone, prior and reconstruction."""
    low, high = schedule.sigma(torch.tensor([0.0, 1.0])).to(x0)
    denoised = denoiser(x0 + low * noise, low.expand(len(x0)))
    return (prior_kl(prior, x0, high, high) - decoder.log_prob(x0, denoised, low)).mean()


def _drawn(x: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of the data, even random times, and noise."""
    x0 = x[torch.randint(len(x), (batch,), generator=generator)]
    return x0, low_discrepancy(batch, generator=generator), _normal(x0, generator)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise like x, drawn on the CPU."""
    return torch.randn(x.shape, generator=generator).to(x)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def _check_ends(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_min = {sigma_min}, sigma_max = {sigma_max}; need 0 < sigma_min < sigma_max < inf, e.g. 0.04 and 80"
        )


def _check_lengths(steps: int, batch: int) -> None:
    if steps < 1 or batch < 1:
        raise ValueError(f"steps = {steps}, batch = {batch}; both must be at least 1")

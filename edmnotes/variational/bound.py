r"""The variational bound of any denoiser on a chain of noise levels, by terms.

Everything is in unscaled coordinates, x_σ = x_0 + σ ε, where a chain is a list of levels σ_1 < … < σ_T and nothing
else: q(x_σ | x_σ') = N(x_σ', σ² − σ'²) going up, whatever the scale s. All terms are costs, minus a logarithm, in nats
a sample; their sum is an upper bound of −log p(x_0) in expectation over the noise.

Of one bound there are two forms. In the denoising form a step is compared with q(x_σ' | x_σ, x_0), which is known; in
the consistency form with q(x_σ | x_σ'), one level up. Their values agree, their Monte-Carlo errors do not.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.contract import DenoiserLike
from edmnotes.exact import Gaussian
from edmnotes.samplers.base import Noise, check_levels, working_dtype
from edmnotes.samplers.chain import ChainStep, Posterior, Variance

Number = Tensor | float

STANDARD = Gaussian(0.0, 1.0)
"""The prior of a chain that ends at N(0, I) in coordinates where signal and noise have variance ᾱ and 1 − ᾱ."""

POSTERIOR = Posterior()
"""The variance of the bridge between the denoised sample and the state."""


@runtime_checkable
class Decoder(Protocol):
    """The law of a clean sample about a mean: what ends every chain, and every variational autoencoder."""

    def check(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Refuse values that have no probability."""

    def log_prob(self, x: Float[Tensor, "batch *shape"], mean: Tensor, std: Number) -> Float[Tensor, " batch"]:
        """Log probability, or density, of each sample in nats."""

    def expected(self, mean: Tensor, std: Number) -> Tensor:
        """The expectation of a sample, the best single guess of it."""

    def sample(self, mean: Tensor, std: Number, *, noise: Noise = torch.randn_like) -> Tensor:
        """Draw samples."""


@dataclass(frozen=True)
class Density:
    """N(mean, std²) for continuous data: a density, so that bounds made with it may be negative."""

    def check(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Refuse what is not finite.

        Raises:
            ValueError: if ``x`` is not floating or not finite.
        """
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(f"x has dtype {x.dtype}; it must be floating and finite")

    def log_prob(self, x: Float[Tensor, "batch *shape"], mean: Tensor, std: Number) -> Float[Tensor, " batch"]:
        """Log density of each sample in nats."""
        std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
        return _total(-(((x - mean) / std) ** 2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2)

    def expected(self, mean: Tensor, std: Number) -> Tensor:
        """The mean."""
        return mean

    def sample(self, mean: Tensor, std: Number, *, noise: Noise = torch.randn_like) -> Tensor:
        """Mean + std times noise."""
        return mean + std * noise(mean)


@dataclass(frozen=True)
class GreyLevels:
    """A discretised Gaussian, label ``discretised-gaussian``: a grey level has the mass of N(mean, std²) in its bin.

    Bins meet half way between neighbouring levels; the first and the last reach to infinity, so that the masses of the
    levels sum to 1 for any mean and any std (as in Ho et al. 2020, eq. 13).

    Attributes:
        count: number of levels.
        low: the darkest, in units of the data.
        high: the brightest.
    """

    count: int = 17
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"count = {self.count}; at least two grey levels are needed")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low = {self.low}, high = {self.high}; need low < high, both finite")

    @property
    def spacing(self) -> float:
        """Distance of neighbouring levels."""
        return (self.high - self.low) / (self.count - 1)

    @property
    def values(self) -> Float[Tensor, " count"]:
        """The levels, rising, float64."""
        return torch.linspace(self.low, self.high, self.count, dtype=torch.float64)

    def check(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Refuse what is no grey level.

        Raises:
            ValueError: if a value of ``x`` lies off the levels.
        """
        place = (x.double() - self.low) / self.spacing
        off = float((place - place.round().clamp(0, self.count - 1)).abs().max()) if x.numel() else 0.0
        if not off < 1e-3:
            raise ValueError(
                f"x has values {off:.2g} spacings off the {self.count} grey levels from {self.low} to {self.high}; "
                "round it to them, or give decoder=Density() for continuous data"
            )

    def log_mass(self, x: Tensor, mean: Tensor, std: Number) -> Tensor:
        """The logarithm of the mass of the bin of each value, elementwise, exact far out in the tails.

        Args:
            x: grey levels.
            mean: of the Gaussian; broadcast against ``x``.
            std: of the Gaussian; broadcast too.
        """
        std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
        lower, upper = (x - self.spacing / 2 - mean) / std, (x + self.spacing / 2 - mean) / std
        # Both ends are turned to the side where log Φ keeps its digits: above the mean 1 − Φ has none left.
        above = x > mean
        near, far = torch.where(above, -lower, upper), torch.where(above, -upper, lower)
        log_near = torch.special.log_ndtr(near)
        between = log_near + torch.log(-torch.expm1(torch.special.log_ndtr(far) - log_near))
        first, last = x < self.low + self.spacing / 2, x > self.high - self.spacing / 2
        open_end = torch.special.log_ndtr(torch.where(last, -lower, upper))
        return torch.where(first | last, open_end, between)

    def log_prob(self, x: Float[Tensor, "batch *shape"], mean: Tensor, std: Number) -> Float[Tensor, " batch"]:
        """The log probability of each sample in nats, its coordinates independent given ``mean``."""
        return _total(self.log_mass(x, mean, std))

    def expected(self, mean: Tensor, std: Number) -> Tensor:
        """The expected grey level: not ``mean``, which may lie far outside the levels."""
        std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
        edges = self.values[1:].to(mean) - self.spacing / 2
        return self.low + self.spacing * torch.special.ndtr((mean[..., None] - edges) / std[..., None]).sum(-1)

    def sample(self, mean: Tensor, std: Number, *, noise: Noise = torch.randn_like) -> Tensor:
        """Draw grey levels: N(mean, std²), rounded to the nearest."""
        place = (mean + std * noise(mean) - self.low) / self.spacing
        return place.round().clamp(0, self.count - 1) * self.spacing + self.low


DIGITS = GreyLevels()
"""The 17 grey levels of the digits."""


@dataclass(frozen=True)
class Terms:
    """The variational bound of each sample, term by term; costs, in the same unit all (nats, or bits a dimension).

    Attributes:
        prior: KL divergence of the noisiest state from the prior.
        steps: one row a step of the chain, in the order of the levels, noisiest first.
        reconstruction: minus log probability of the sample given the least noisy state.
        dim: number of coordinates of a sample.
    """

    prior: Float[Tensor, " batch"]
    steps: Float[Tensor, "steps batch"]
    reconstruction: Float[Tensor, " batch"]
    dim: int

    @property
    def diffusion(self) -> Float[Tensor, " batch"]:
        """The sum over the steps."""
        return self.steps.sum(0)

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The bound, in expectation at least −log p(x_0)."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits(self) -> "Terms":
        """The same in bits a dimension, if this is in nats (label ``bits-per-dim``)."""
        unit = self.dim * math.log(2)
        return Terms(self.prior / unit, self.steps / unit, self.reconstruction / unit, self.dim)


def gaussian_kl(mean: Tensor, std: Number, other_mean: Number, other_std: Number) -> Tensor:
    """KL(N(mean, std²) ‖ N(other_mean, other_std²)) of each coordinate in nats (label ``gaussian-kl``)."""
    std, other_std = (torch.as_tensor(s, dtype=mean.dtype, device=mean.device) for s in (std, other_std))
    ratio = (std / other_std) ** 2
    return (((mean - other_mean) / other_std) ** 2 + ratio - 1 - torch.log(ratio)) / 2


def bridge(sigma: float, sigma_next: float) -> tuple[float, float]:
    """How the state at a lower level hangs between x_0 and the state at a higher one.

    x_σ' | x_σ, x_0 ~ N(x_0 + keep (x_σ − x_0), std²), equations ``bridge-mean`` and ``bridge-variance``.

    Args:
        sigma: the higher level σ.
        sigma_next: the lower one σ'.

    Returns:
        keep = σ'²/σ² and std = σ' √(1 − σ'²/σ²).

    Raises:
        ValueError: unless 0 <= sigma_next < sigma.
    """
    if not 0 <= sigma_next < sigma < math.inf:
        raise ValueError(f"sigma = {sigma}, sigma_next = {sigma_next}; need 0 <= sigma_next < sigma")
    ratio = sigma_next / sigma
    # The product form keeps its digits where the two levels almost agree.
    return ratio**2, ratio * math.sqrt((sigma - sigma_next) * (sigma + sigma_next))


def step_kl(
    x0: Float[Tensor, "batch *shape"],
    x: Float[Tensor, "batch *shape"],
    denoised: Float[Tensor, "batch *shape"],
    sigma: float,
    sigma_next: float,
    *,
    variance: Variance = POSTERIOR,
) -> Float[Tensor, " batch"]:
    """KL of q(x_σ' | x_σ, x_0) from the model's step, N(D + keep (x_σ − D), variance), in nats a sample.

    With the posterior's own variance this is ½ (σ'⁻² − σ⁻²) ``|x_0 − D|²``, half the gain of signal-to-noise ratio
    times the squared error (label ``vlb-snr``). Differentiable in everything.

    Args:
        x0: clean samples.
        x: the states at ``sigma``, unscaled.
        denoised: D(x; sigma).
        sigma: the level where the step begins.
        sigma_next: where it ends, lower and above 0.
        variance: of the step, as :func:`edmnotes.samplers.ddpm` takes it.

    Raises:
        ValueError: unless 0 < sigma_next < sigma.
    """
    if not sigma_next > 0:
        raise ValueError(f"sigma_next = {sigma_next}; the step to level 0 is the decoder's, not a Gaussian's")
    keep, std = bridge(sigma, sigma_next)
    model = _step_std(variance, x, denoised, sigma, sigma_next)
    return _total(gaussian_kl((1 - keep) * x0, std, (1 - keep) * denoised, model).expand_as(x0))


@torch.no_grad()
def vlb(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    prior: Gaussian = STANDARD,
    variance: Variance = POSTERIOR,
    decoder: Decoder = DIGITS,
    std: Number | None = None,
    noise: Noise = torch.randn_like,
    shared: bool = False,
    **cond: Any,
) -> Terms:
    """The variational bound of a denoiser's chain, in the denoising form (labels ``vlb-terms``, ``denoising-elbo``).

    The prior term is KL(q(x_T | x_0) ‖ p(x_T)), label ``vlb-prior``; a step is :func:`step_kl` at one noisy state; the
    reconstruction is −log p(x_0 | x_1) under ``decoder`` about D(x_1; σ_1). The first is exact, each of the others is a
    Monte-Carlo estimate from one draw of the noise.

    Args:
        denoiser: D(x; σ) in unscaled coordinates.
        x0: clean samples.
        sigmas: as a sampler takes them, noisiest first, the last one 0; T levels above it have T − 1 steps. One level
            is enough: the bound is then that of an autoencoder that encodes by adding noise.
        prior: p(x_T) is its density smoothed to the highest level, N(mean, std² + σ_T²). The default, Gaussian(0, 1),
            is the chain's N(0, I) in its own coordinates; Gaussian(0, 0) is N(0, σ_T²).
        variance: of the steps, as :func:`edmnotes.samplers.ddpm` takes it.
        decoder: the law of x_0 about D at the lowest level.
        std: of the decoder; None for the lowest level itself.
        noise: standard normal noise like its argument (see :class:`edmnotes.noise.PerSample`).
        shared: one path of the chain for all terms, x_1, then x_2 from it by more noise, and so on; False draws
            anew for each term, from the same marginals.
        **cond: passed to the denoiser.

    Returns:
        ``Terms`` in nats; float64 where the device has it. ``steps[i]`` goes from ``sigmas[i]`` to ``sigmas[i + 1]``.

    Raises:
        ValueError: if the levels do not decrease strictly to 0, or ``x0`` has values that the decoder cannot make.
    """
    decoder.check(x0)
    x0 = x0.to(working_dtype(x0))
    chain = _Chain(x0, sigmas, noise, shared=shared)
    reconstruction, kls = x0.new_zeros(len(x0)), []
    for i in range(1, chain.last + 1):
        sigma, below, x = chain.levels[i], chain.levels[i - 1], chain.at(i)
        denoised = denoiser(x, sigma, **cond).to(x.dtype)
        if i == 1:
            reconstruction = -decoder.log_prob(x0, denoised, sigma if std is None else std)
        else:
            kls.append(step_kl(x0, x, denoised, sigma, below, variance=variance))
    return Terms(prior_kl(prior, x0, sigma, sigma), _stacked(kls, x0), reconstruction, x0[0].numel())


@torch.no_grad()
def consistency_vlb(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    prior: Gaussian = STANDARD,
    variance: Variance = POSTERIOR,
    decoder: Decoder = DIGITS,
    std: Number | None = None,
    noise: Noise = torch.randn_like,
    shared: bool = False,
    **cond: Any,
) -> Terms:
    """The same bound in the consistency form (label ``consistency-elbo``): equal in expectation.

    A term is E log q(x_t | x_{t−1}) / p(x_t | x_{t+1}), with both neighbours drawn and x_t, which is Gaussian given the
    two, integrated out in closed form. The prior term is E KL(q(x_T | x_{T−1}) ‖ p(x_T)). Single terms are not those of
    :func:`vlb`: the last two levels may differ by little noise, and then the prior term is large however large σ_T is.

    Luo (2022, eq. 45) writes a term as KL(q(x_t | x_{t−1}) ‖ p(x_t | x_{t+1})). That is another, larger number: given
    x_{t+1} too, x_t no longer has the law q(x_t | x_{t−1}).

    Args:
        denoiser: as for :func:`vlb`.
        x0: as for :func:`vlb`.
        sigmas: as for :func:`vlb`.
        prior: as for :func:`vlb`.
        variance: as for :func:`vlb`.
        decoder: as for :func:`vlb`.
        std: as for :func:`vlb`.
        noise: as for :func:`vlb`.
        shared: one path of the chain for all terms; False draws the two states of each term anew.
        **cond: passed to the denoiser.

    Returns:
        ``Terms`` in nats; ``steps[i]`` is the term of the state at ``sigmas[i + 1]``, between its two neighbours.

    Raises:
        ValueError: as :func:`vlb`.
    """
    decoder.check(x0)
    x0 = x0.to(working_dtype(x0))
    chain = _Chain(x0, sigmas, noise, shared=shared)
    lowest, top = chain.levels[1], chain.last
    denoised = denoiser(chain.at(1), lowest, **cond).to(x0.dtype)
    reconstruction, kls = -decoder.log_prob(x0, denoised, lowest if std is None else std), []
    for i in range(1, top):
        low, here, high = chain.levels[i - 1 : i + 2]
        before, after = chain.pair(i - 1, i + 1)
        denoised = denoiser(after, high, **cond).to(x0.dtype)
        keep, _ = bridge(high, here)
        mean = denoised + keep * (after - denoised)
        model = _step_std(variance, after, denoised, high, here)
        # x_t given both neighbours, a bridge between them; what it knows of x_{t+1} is paid back: ½ log of its variance
        # over that of q(x_t | x_{t−1}).
        down, up, all_ = _added(low, here), _added(here, high), _added(low, high)
        between = before + (down / all_) ** 2 * (after - before)
        kl = gaussian_kl(between, down * up / all_, mean, model)
        kls.append(_total(kl + math.log(up / all_)))
    end = prior_kl(prior, chain.at(top - 1), chain.levels[top], _added(chain.levels[top - 1], chain.levels[top]))
    return Terms(end, _stacked(kls, x0), reconstruction, x0[0].numel())


class _Chain:
    """Noisy states at the levels 0 = σ_0 < σ_1 < … < σ_T of a chain, drawn anew or along one path."""

    def __init__(self, x0: Tensor, sigmas: Tensor, noise: Noise, *, shared: bool) -> None:
        self.levels: list[float] = check_levels(sigmas).flip(0).tolist()
        self.x0, self.noise, self.shared = x0, noise, shared
        self.path = {0: x0}

    @property
    def last(self) -> int:
        """T."""
        return len(self.levels) - 1

    def at(self, i: int) -> Tensor:
        """The state at level i; along the path at most one level below the highest asked for so far."""
        if not self.shared:
            return self.x0 + self.levels[i] * self.noise(self.x0) if i else self.x0
        while max(self.path) < i:
            here = max(self.path)
            self.path[here + 1] = self._risen(self.path[here], here, here + 1)
            self.path.pop(here - 2, None)
        return self.path[i]

    def pair(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """The states at two levels i < j of one path."""
        low = self.at(i)
        return low, self.at(j) if self.shared else self._risen(low, i, j)

    def _risen(self, x: Tensor, i: int, j: int) -> Tensor:
        return x + _added(self.levels[i], self.levels[j]) * self.noise(x)


def _added(low: float, high: float) -> float:
    """Std of the noise between two levels; the product form keeps its digits where they almost agree."""
    return math.sqrt((high - low) * (high + low))


def prior_kl(
    prior: Gaussian, mean: Float[Tensor, "batch *shape"], sigma: Number, std: Number
) -> Float[Tensor, " batch"]:
    """KL of N(mean, std²) from the prior smoothed to the level ``sigma``, of each sample in nats (``vlb-prior``)."""
    smoothed = torch.sqrt(prior.std.to(mean) ** 2 + sigma**2)
    return _total(gaussian_kl(mean, std, prior.mean.to(mean), smoothed).expand_as(mean))


def _step_std(variance: Variance, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The std of the model's step, unscaled: a chain's variances are those of its own coordinates, s'² times these."""
    given = torch.as_tensor(variance(ChainStep(sigma, sigma_next), x, denoised), dtype=x.dtype, device=x.device)
    return torch.sqrt((1 + sigma_next**2) * given)


def _stacked(kls: list[Tensor], x0: Tensor) -> Tensor:
    """One row a step, noisiest first."""
    return torch.stack(kls[::-1]) if kls else x0.new_zeros(0, len(x0))


def _total(values: Tensor) -> Tensor:
    """Sum over the coordinates of each sample."""
    return values.reshape(len(values), -1).sum(1)

"""Bits a dimension of held-out digits under five kinds of likelihood model, all as upper bounds of one kind.

Every row judges the same held-out digits, all as pictures of 17 grey levels under one decoder, the discretised Gaussian
with one std for all pixels. A VAE learns that std; for a denoiser it is the best one on the training digits. The prior
of a chain is N(0, I) in its own coordinates, from level ``settings["ends"][1]`` down to ``settings["ends"][0]``.

The autoencoders, and the variational diffusion model with its schedule, are trained in the cell: the latter for as many
steps as take about a minute of a core, the former for as many as suit the one with a single latent, judged on a quarter
of the training digits that was set aside for that choice alone; three times as many made it much worse. "diffusion" is
the shared model, trained on 400 000 images by another weight; its levels are in geometric progression, and a seed draws
its noise alone. Its steps have the posterior's variance, or the one that suits it best on the training digits, the same
for all pixels. A seed draws the noise alone in the last two rows too: there the shared model stays, and a schedule
between the same ends is fixed (log σ linear in time) or learned.

All measures but ``loss_mean``, ``loss_std`` and ``batch_std`` are in bits a dimension, means over the pictures:
``bits`` = ``prior`` + ``between`` + ``reconstruction``. ``between`` sums the terms ``steps``, the noisiest first: of
each step of a chain, from level ``levels[i]`` to ``levels[i + 1]``; of equal parts of the time where it is continuous,
between the same; in an autoencoder of each latent but the last, z_1 first, the last's being ``prior``. ``error`` is the
standard error over the pictures, ``draw_error`` that from the noise alone, where it was drawn ``settings["repeats"]``
times. ``importance`` is the importance-weighted bound of an autoencoder with ``settings["k"]`` draws, ``training`` is
``bits`` of as many training digits, ``std`` that of the decoder, ``images`` how many training saw.

Of the last two rows: ``loss_mean`` and ``loss_std`` of one draw of the continuous-time loss, in nats a picture, and
``batch_std``, the standard deviation of its mean over batches of 128 pictures at evenly spaced times.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edmnotes import data, networks, training
from edmnotes.preconditioning import EDM, Denoiser
from edmnotes.samplers import Analytic, Posterior, Variance, noise_moments
from edmnotes.scale import Scale
from edmnotes.variational import (
    GreyLevels,
    LearnedSchedule,
    LinearSchedule,
    LogVarianceSchedule,
    Terms,
    continuous_vlb,
    diffusion_loss,
    elbo,
    fit_schedule,
    fit_vae,
    fit_vdm,
    iwae,
    low_discrepancy,
    vae,
    vlb,
)

LATENTS = {"VAE": (16,), "HVAE, 2 latents": (16, 8), "HVAE, 3 latents": (16, 8, 4)}
CHAINS = {
    "diffusion, 10 levels": 10,
    "diffusion, 10 levels, best variance": 10,
    "diffusion, 100 levels": 100,
    "diffusion, 1000 levels": 1000,
}
ROWS = (*LATENTS, "VDM", *CHAINS, "diffusion, continuous", "fixed schedule", "learned schedule")
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3
BATCH = 128
RATE = 2e-3
SHARED_IMAGES = 400_000


def settings(at: Scale) -> dict[str, Any]:
    """Lengths and sizes."""
    return {
        "ends": [0.04, 80.0],
        "every": at.pick(smoke=40, laptop=2, gpu=1),
        "k": at.pick(smoke=2, laptop=500, gpu=5000),
        "vae_steps": at.pick(smoke=3, laptop=2500, gpu=2500),
        "vae_batch": 64,
        "vdm_steps": at.pick(smoke=2, laptop=800, gpu=3000),
        "vdm_batch": 64,
        "schedule_steps": at.pick(smoke=2, laptop=200, gpu=1000),
        "thin": at.pick(smoke=10, laptop=1, gpu=1),
        "draws": at.pick(smoke=2, laptop=16, gpu=64),
        "repeats": at.pick(smoke=2, laptop=8, gpu=8),
        "batches": at.pick(smoke=2, laptop=64, gpu=256),
    }


def measure(row: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bits a dimension of the held-out digits under a row's model."""
    digits = data.digits()
    held_out, known = (part.x[:: settings["every"]] for part in (digits.held_out, digits.train))
    known = known[: len(held_out)]
    learn = digits.train.x[:: settings["thin"]]
    if row in LATENTS:
        return autoencoder(LATENTS[row], learn, held_out, known, seed, settings)
    ends = settings["ends"]
    if row == "VDM":
        torch.manual_seed(seed)
        denoiser = Denoiser(networks.UNet(1), EDM(data.sigma_data(digits.train.x)))
        schedule = LearnedSchedule(*ends)
        fit_vdm(
            denoiser, schedule, learn, steps=settings["vdm_steps"], batch=settings["vdm_batch"], seed=seed, rate=RATE
        )
        denoiser.eval()
    else:
        denoiser, schedule = training.digits_model(), LearnedSchedule(*ends)
    std = decoder_std(denoiser, learn, ends[0])
    if row in CHAINS:
        levels = LinearSchedule(*ends).levels(max(3, CHAINS[row] // settings["thin"]))
        variance: Variance = Posterior()
        if row.endswith("best variance"):
            moments = noise_moments(denoiser, learn, levels[:-1], noise=normal(0))
            variance = Analytic(levels[:-1], 1 - moments.residual.flatten(1).mean(1))
        found = vlb(denoiser, held_out, levels, variance=variance, std=std, noise=normal(seed))
        return in_bits([found]) | {"levels": levels.tolist(), "std": std, "images": SHARED_IMAGES}
    if row == "learned schedule":
        fit_schedule(schedule, denoiser, learn, steps=settings["schedule_steps"], batch=BATCH, seed=seed)
    elif row != "VDM":
        schedule = LinearSchedule(*ends)
    found = [
        continuous(denoiser, held_out, schedule, std, 100 * seed + i, settings) for i in range(settings["repeats"])
    ]
    cell = in_bits(found) | {"levels": schedule.levels(settings["draws"] + 1)[:-1].tolist(), "std": std}
    cell["images"] = settings["vdm_steps"] * settings["vdm_batch"] if row == "VDM" else SHARED_IMAGES
    if row in ("VDM", "diffusion, continuous"):
        return cell | {"training": in_bits([continuous(denoiser, known, schedule, std, seed, settings)])["bits"]}
    return cell | spread(denoiser, schedule, held_out, seed, settings["batches"])


def normal(seed: int) -> Any:
    """Noise like a tensor, from a stream of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator).to(x)


def autoencoder(
    latents: tuple[int, ...], learn: Tensor, held_out: Tensor, known: Tensor, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Train one, and bound the digits by it."""
    torch.manual_seed(seed)
    model = vae((1, 8, 8), latents, width=128)
    fit_vae(model, learn, steps=settings["vae_steps"], batch=settings["vae_batch"], rate=RATE, seed=seed)
    noise = normal(seed)
    with torch.no_grad():
        found = [as_terms(model, held_out, noise) for _ in range(settings["repeats"])]
        training_bits = in_bits([as_terms(model, known, noise)])["bits"]
        std = float(model.decoders[0].log_std.exp())
    images = settings["vae_steps"] * settings["vae_batch"]
    importance = iwae(model, held_out, settings["k"], noise=noise).mean() / held_out[0].numel() / math.log(2)
    return in_bits(found) | {"importance": float(importance), "training": training_bits, "std": std, "images": images}


def as_terms(model: Any, x: Tensor, noise: Any) -> Terms:
    """The bound of an autoencoder in the terms of a chain: the last latent's is the prior term."""
    found = elbo(model, x, noise=noise)
    return Terms(found.kl[-1], found.kl[:-1], found.reconstruction, found.dim)


def continuous(
    denoiser: Denoiser, x: Tensor, schedule: LogVarianceSchedule, std: float, seed: int, settings: Mapping[str, Any]
) -> Terms:
    """The bound in continuous time, its draws as steps, the noisiest first."""
    generator = torch.Generator().manual_seed(seed)
    options = {"std": std, "noise": normal(seed + 10_000), "generator": generator}
    found = continuous_vlb(denoiser, x, schedule, draws=settings["draws"], **options)
    return Terms(found.prior, found.steps.flip(0), found.reconstruction, found.dim)


@torch.no_grad()
def decoder_std(denoiser: Denoiser, x: Tensor, sigma: float) -> float:
    """The std that makes the digits likeliest about their denoised selves, among a few."""
    denoised = denoiser(x + sigma * normal(0)(x), sigma)
    tried = (sigma * torch.logspace(-0.6, 0.3, 46, dtype=torch.float64)).tolist()
    return max(tried, key=lambda std: float(GreyLevels().log_prob(x, denoised, std).mean()))


def in_bits(found: list[Terms]) -> dict[str, Any]:
    """Means over pictures and repeats, in bits a dimension, with their standard errors."""
    bits = [terms.bits for terms in found]
    total = torch.stack([terms.total for terms in bits]).double()
    cell: dict[str, Any] = {
        "bits": float(total.mean()),
        "error": float(total.mean(0).std()) / math.sqrt(total.shape[1]),
        "prior": float(torch.stack([terms.prior for terms in bits]).mean()),
        "between": float(torch.stack([terms.diffusion for terms in bits]).mean()),
        "reconstruction": float(torch.stack([terms.reconstruction for terms in bits]).mean()),
        "steps": torch.stack([terms.steps for terms in bits]).mean((0, 2)).tolist(),
    }
    if len(found) > 1:
        cell["draw_error"] = float(total.mean(1).std()) / math.sqrt(len(found))
    return cell


@torch.no_grad()
def spread(denoiser: Denoiser, schedule: LogVarianceSchedule, x: Tensor, seed: int, batches: int) -> dict[str, float]:
    """Mean and standard deviation of one draw of the loss, and the latter of a batch's mean."""
    generator, noise = torch.Generator().manual_seed(seed), normal(seed + 20_000)
    losses = []
    for _ in range(batches):
        x0 = x[torch.randint(len(x), (BATCH,), generator=generator)].double()
        t = low_discrepancy(BATCH, generator=generator)
        losses.append(diffusion_loss(denoiser, x0, schedule, t, noise(x0)))
    found = torch.stack(losses)
    return {
        "loss_mean": float(found.mean()),
        "loss_std": float(found.std()),
        "batch_std": float(found.mean(1).std()),
    }

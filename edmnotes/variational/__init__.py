"""Likelihoods from below: variational bounds of chains and autoencoders, and noise schedules learned by them.

Taught in the chapters ``elbo`` and ``vdm``.
"""

from edmnotes.variational.bound import (
    Decoder,
    Density,
    GreyLevels,
    Terms,
    bridge,
    consistency_vlb,
    gaussian_kl,
    prior_kl,
    step_kl,
    vlb,
)
from edmnotes.variational.vae import VAE, Conditional, Elbo, Output, elbo, fit_vae, iwae, vae
from edmnotes.variational.vdm import (
    LearnedSchedule,
    LinearSchedule,
    LogVarianceSchedule,
    ScheduleSigmas,
    continuous_vlb,
    diffusion_loss,
    fit_schedule,
    fit_vdm,
    low_discrepancy,
)

__all__ = [
    "VAE",
    "Conditional",
    "Decoder",
    "Density",
    "Elbo",
    "GreyLevels",
    "LearnedSchedule",
    "LinearSchedule",
    "LogVarianceSchedule",
    "Output",
    "ScheduleSigmas",
    "Terms",
    "bridge",
    "consistency_vlb",
    "continuous_vlb",
    "diffusion_loss",
    "elbo",
    "fit_schedule",
    "fit_vae",
    "fit_vdm",
    "gaussian_kl",
    "iwae",
    "low_discrepancy",
    "prior_kl",
    "step_kl",
    "vae",
    "vlb",
]

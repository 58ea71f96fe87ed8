"""Samplers: functions of a denoiser, a start and noise levels, each as short as its algorithm.

Taught in the chapters ``fokker_planck``, ``deterministic``, ``stochastic``, ``ddpm``, ``ddim`` and ``analytic_dpm``.
"""

from edmnotes.samplers.base import Churn, Solution
from edmnotes.samplers.chain import (
    Analytic,
    Beta,
    Capped,
    ChainStep,
    Interpolated,
    NoiseMoments,
    NoiseSquare,
    Posterior,
    Residual,
    Variance,
    ddim,
    ddpm,
    noise_moments,
)
from edmnotes.samplers.mcmc import (
    Predictor,
    Proportional,
    SignalToNoise,
    StepSize,
    ancestral,
    annealed_langevin,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)
from edmnotes.samplers.ode import adaptive, euler, heun, multistep, multistep_weights
from edmnotes.samplers.sde import reverse_sde

__all__ = [
    "Analytic",
    "Beta",
    "Capped",
    "ChainStep",
    "Churn",
    "Interpolated",
    "NoiseMoments",
    "NoiseSquare",
    "Posterior",
    "Predictor",
    "Proportional",
    "Residual",
    "SignalToNoise",
    "Solution",
    "StepSize",
    "Variance",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "euler",
    "heun",
    "langevin",
    "multistep",
    "multistep_weights",
    "noise_moments",
    "predictor_corrector",
    "reverse_diffusion",
    "reverse_sde",
]

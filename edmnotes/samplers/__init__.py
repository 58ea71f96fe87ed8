"""Samplers: functions of a denoiser, a start and noise levels, each as short as its algorithm.

Taught in the chapters ``fokker_planck``, ``deterministic`` and ``stochastic``.
"""

from edmnotes.samplers.base import Churn, Solution
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
    "Churn",
    "Predictor",
    "Proportional",
    "SignalToNoise",
    "Solution",
    "StepSize",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "euler",
    "heun",
    "langevin",
    "multistep",
    "multistep_weights",
    "predictor_corrector",
    "reverse_diffusion",
    "reverse_sde",
]

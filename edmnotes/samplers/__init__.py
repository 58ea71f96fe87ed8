"""Samplers: functions of a denoiser, a start and noise levels, each as short as its algorithm.

Taught in the chapters ``fokker_planck`` and ``deterministic``.
"""

from edmnotes.samplers.base import Churn, Solution
from edmnotes.samplers.mcmc import (
    Proportional,
    SignalToNoise,
    ancestral,
    annealed_langevin,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)
from edmnotes.samplers.ode import adaptive, euler, heun, multistep
from edmnotes.samplers.sde import reverse_sde

__all__ = [
    "Churn",
    "Proportional",
    "SignalToNoise",
    "Solution",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "euler",
    "heun",
    "langevin",
    "multistep",
    "predictor_corrector",
    "reverse_diffusion",
    "reverse_sde",
]

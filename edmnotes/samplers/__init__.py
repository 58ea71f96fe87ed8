"""Samplers: functions of a denoiser, a start and noise levels, each as short as its algorithm."""

from edmnotes.samplers.base import Churn, Solution
from edmnotes.samplers.ode import adaptive, euler, heun, multistep
from edmnotes.samplers.sde import reverse_sde

__all__ = ["Churn", "Solution", "adaptive", "euler", "heun", "multistep", "reverse_sde"]

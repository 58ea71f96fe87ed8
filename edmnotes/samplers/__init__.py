"""Samplers: functions of a denoiser, a start and noise levels, each as short as its algorithm."""

from edmnotes.samplers.base import Churn, Solution
from edmnotes.samplers.ode import euler, heun

__all__ = ["Churn", "Solution", "euler", "heun"]

"""Training: fit a denoiser, keep it on disk, take it up again where it stopped.

Taught in the chapters ``quickstart`` and ``preconditioning``.
"""

from edmnotes.training.checkpoint import about, digits_model, export, load
from edmnotes.training.classifier import fit_classifier
from edmnotes.training.fit import Config, Fitted, fit, untrained

__all__ = ["Config", "Fitted", "about", "digits_model", "export", "fit", "fit_classifier", "load", "untrained"]

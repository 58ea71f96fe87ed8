r"""Numbers that say how far generated samples are from real ones. Features are an argument; torch only.

Taught in the chapter ``metrics``.

Each sees something and is blind to the rest:

* :func:`inception_score` the classes only, and no real data at all;
* :func:`frechet_distance` mean and covariance of the features, :func:`kid` their first three moments;
* :func:`precision_recall` which regions are filled, not how densely;
* :func:`sliced_wasserstein` the whole law, along lines;
* :func:`nearest_neighbour_ratio`, alone, that samples are copies.

An *extractor* of features is anything with a method ``features`` and, for the Inception Score, logits when called: the
judge of the digits (:func:`edmnotes.judging.load`), or :class:`Inception`.

Everything is computed in float64 on the CPU, so a number does not depend on the device that made the features.
"""

from edmnotes.metrics.classes import inception_score
from edmnotes.metrics.inception import Inception
from edmnotes.metrics.kernels import GaussianKernel, PolynomialKernel, kid, mmd_squared
from edmnotes.metrics.moments import frechet_distance, frechet_from_moments
from edmnotes.metrics.neighbours import PrecisionRecall, nearest_distance, nearest_neighbour_ratio, precision_recall
from edmnotes.metrics.slices import directions, quantiles, sliced_wasserstein, sliced_wasserstein_to

__all__ = [
    "GaussianKernel",
    "Inception",
    "PolynomialKernel",
    "PrecisionRecall",
    "directions",
    "frechet_distance",
    "frechet_from_moments",
    "inception_score",
    "kid",
    "mmd_squared",
    "nearest_distance",
    "nearest_neighbour_ratio",
    "precision_recall",
    "quantiles",
    "sliced_wasserstein",
    "sliced_wasserstein_to",
]

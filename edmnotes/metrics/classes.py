"""Inception Score: what a classifier's answers alone tell."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from edmnotes.metrics import checks


def inception_score(probs: Float[Tensor, "n classes"], *, splits: int = 1) -> float:
    r"""Inception Score of a classifier's answers to samples (Salimans et al. 2016; label ``inception-score``).

    The exponential of the entropy of the mean answer less the mean entropy of an answer
    (label ``inception-entropies``), that is of the mutual information of sample and class, in nats. It is 1 where all
    answers are alike and the number of classes where each answer is certain and all classes are equally frequent. It
    never sees real data: one good sample of each class, repeated, gets the best score.

    *Few rows.* The entropy of a mean over n rows is too small, for certain answers by about (classes − 1) / (2 n)
    (label ``inception-bias``), so the score grows with n. It is usual to cut 50 000 samples into 10 splits and to give
    the mean of the splits' scores, which has the bias of 5000.

    Args:
        probs: one row a sample, not negative, each with sum 1: a softmax, not logits.
        splits: number of parts of equal size, up to one, that the rows are cut into in their order; shuffle rows that
            are sorted by class.

    Returns:
        The mean of the scores of the parts, between 1 and the number of classes.

    Raises:
        ValueError: if ``probs`` is not two-dimensional, is not finite, or has rows that are no probabilities, or if
            ``splits`` is below 1 or above the number of rows.
    """
    probs = checks.rows("probs", probs, least=1)
    least, sums = float(probs.min()), probs.sum(1)
    if least < 0 or (sums - 1).abs().max() > 1e-4:
        raise ValueError(
            f"probs has values from {least:.3g} and rows with sums from {float(sums.min()):.3g} to "
            f"{float(sums.max()):.3g}; rows must be probabilities: give logits.softmax(1)"
        )
    if not 1 <= splits <= len(probs):
        raise ValueError(f"splits is {splits}; with {len(probs)} rows it must be 1 to {len(probs)}")
    probs = probs / probs.sum(1, keepdim=True)
    scores = [math.exp(float(_entropy(part.mean(0)) - _entropy(part).mean())) for part in probs.tensor_split(splits)]
    return sum(scores) / splits


def _entropy(probs: Float[Tensor, "*n classes"]) -> Float[Tensor, "*n"]:
    """Entropy in nats; 0 log 0 is 0."""
    return -torch.special.xlogy(probs, probs).sum(-1)

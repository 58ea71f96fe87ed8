"""Inception Score against exact values and torchmetrics."""

import math

import pytest
import torch
import torchmetrics.image.inception
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import metrics


def answers(n, classes, seed, sharpness=3.0):
    g = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(n, classes, generator=g, dtype=torch.float64)).softmax(1)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_certain_answers_of_equal_frequency_score_the_number_of_classes(classes):
    certain = torch.eye(classes, dtype=torch.float64).repeat(3, 1)
    assert metrics.inception_score(certain) == pytest.approx(classes, rel=1e-14)


def test_what_a_softmax_in_half_precision_leaves_of_a_sum_does_not_count():
    assert metrics.inception_score(1.00005 * torch.eye(3, dtype=torch.float64)) == pytest.approx(3, rel=1e-14)


def test_equal_answers_score_one():
    assert metrics.inception_score(answers(1, 10, 0).expand(20, -1)) == pytest.approx(1, rel=1e-14)


def test_certain_answers_score_the_entropy_of_their_shares():
    """Label inception-shares: three in four of one class."""
    certain = torch.eye(2, dtype=torch.float64)[[0, 0, 0, 1]]
    shares = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert metrics.inception_score(certain) == pytest.approx(shares, rel=1e-14)


def test_it_is_the_mean_divergence_of_an_answer_from_the_mean_answer():
    """Label inception-score, as the paper defines it."""
    probs = answers(50, 7, 1)
    divergence = (probs * (probs / probs.mean(0)).log()).sum(1).mean()
    assert metrics.inception_score(probs) == pytest.approx(math.exp(divergence), rel=1e-12)


class Logits(torch.nn.Module):
    """An extractor that takes logits and gives them back."""

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore:std")  # of one split
@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save")
@pytest.mark.parametrize("splits", [1, 4])
def test_torchmetrics_finds_the_same(splits):
    """It shuffles the rows first: we give ours in its order."""
    logits = 3 * torch.randn(48, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = torchmetrics.image.inception.InceptionScore(feature=Logits(), splits=splits)
    theirs.update(logits)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = float(theirs.compute()[0])
        torch.manual_seed(3)
        shuffled = logits[torch.randperm(48)]
    assert metrics.inception_score(shuffled.softmax(1), splits=splits) == pytest.approx(expected, rel=1e-6)


def test_few_rows_score_too_little():
    """Label inception-bias: certain answers, log of the score; 2000 repeats leave a standard error of 0.001."""
    classes, n = 5, 40
    g = torch.Generator().manual_seed(4)
    drawn = torch.nn.functional.one_hot(torch.randint(classes, (2000, n), generator=g), classes).double()
    mean = sum(math.log(metrics.inception_score(part)) for part in drawn) / len(drawn)
    assert math.log(classes) - mean == pytest.approx((classes - 1) / (2 * n), rel=0.1)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 50), st.integers(0, 2**31))
def test_it_lies_between_one_and_the_number_of_classes(n, classes, sharpness, seed):
    score = metrics.inception_score(answers(n, classes, seed, sharpness).float())
    assert 1 - 1e-12 <= score <= classes + 1e-12


@pytest.mark.parametrize(
    ("probs", "splits", "message"),
    [
        (torch.zeros(3), 1, r"probs has shape \(3,\)"),
        (torch.zeros(0, 3), 1, r"probs has shape \(0, 3\)"),
        (torch.tensor([[2.0, -1.0]]), 1, "probs has values from -1 .* give logits.softmax"),
        (torch.tensor([[0.5, 0.4]]), 1, "sums from 0.9 to 0.9"),
        (torch.tensor([[math.nan, 0.4]]), 1, "probs holds 1 values that are not finite"),
        (torch.ones(3, 1), 0, "splits is 0; with 3 rows it must be 1 to 3"),
        (torch.ones(3, 1), 4, "splits is 4"),
    ],
)
def test_what_is_no_probability_is_refused(probs, splits, message):
    with pytest.raises(ValueError, match=message):
        metrics.inception_score(probs, splits=splits)

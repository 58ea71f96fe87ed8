"""KID and MMD against exact moments, scikit-learn's kernels and torchmetrics."""

import itertools

import pytest
import torch
import torchmetrics.image.kid
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from edmnotes import metrics


def sets(n, m, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g).double(), 1.3 * torch.randn(m, d, generator=g).double() + 0.2


def without_diagonal(matrix):
    return (matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))


@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 3), (50, 50, 64), (2, 2, 1)])
def test_scikit_learns_kernels_give_the_same(n, m, d):
    a, b = sets(n, m, d)
    for ours, theirs in [
        (metrics.PolynomialKernel(), lambda x, y: polynomial_kernel(x, y)),
        (metrics.PolynomialKernel(2), lambda x, y: polynomial_kernel(x, y, degree=2)),
        (metrics.GaussianKernel(0.7), lambda x, y: rbf_kernel(x, y, gamma=1 / (2 * 0.7**2))),
    ]:
        aa, bb, ab = (theirs(x.numpy(), y.numpy()) for x, y in ((a, a), (b, b), (a, b)))
        expected = without_diagonal(aa) + without_diagonal(bb) - 2 * ab.mean()
        assert metrics.mmd_squared(a, b, ours) == pytest.approx(expected, rel=1e-9)


class Passed(torch.nn.Module):
    """An extractor that takes features and gives them back."""

    num_features = 16

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_torchmetrics_finds_the_same():
    """One subset of all rows is the whole set, in some order."""
    a, b = sets(40, 40, 16)
    theirs = torchmetrics.image.kid.KernelInceptionDistance(Passed(), subsets=1, subset_size=40)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert metrics.kid(a, b) == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_it_is_unbiased_at_every_number_of_rows():
    """Label kid-moments, for laws on two points: every sample of two and of three rows, with its probability."""
    first, second = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])
    moments = [[float((law**k).mean()) for law in (first, second)] for k in (1, 2, 3)]
    exact = sum(weight * (a - b) ** 2 for weight, (a, b) in zip((3, 3, 1), moments, strict=True))
    for n in (2, 3):
        drawn = [
            metrics.kid(torch.tensor(a)[:, None], torch.tensor(b)[:, None])
            for a in itertools.product(first.tolist(), repeat=n)
            for b in itertools.product(second.tolist(), repeat=2)
        ]
        assert sum(drawn) / len(drawn) == pytest.approx(exact, rel=1e-12)
        assert min(drawn) < 0


def test_it_does_not_see_past_the_third_moment():
    """Two laws on a line with equal moments up to the third: 0 on average for the cubic kernel, not for others."""
    g = torch.Generator().manual_seed(1)
    signs = torch.randint(2, (2000, 1), generator=g).double() * 2 - 1
    normal = torch.randn(2000, 1, generator=g).double()
    assert abs(metrics.kid(signs, normal)) < 0.1
    assert metrics.mmd_squared(signs, normal, metrics.PolynomialKernel(4)) > 3
    assert metrics.mmd_squared(signs, normal, metrics.GaussianKernel(0.5)) > 0.05


def test_the_gaussian_kernel_on_normal_laws_is_exact():
    """N(0, 1) and N(1, 2²) on a line: a mean kernel is h / s exp(−δ² / 2s²), s² being h² and both variances."""
    h, g = 0.8, torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 2000, 1, generator=g).double()

    def mean(variances, apart):
        return h / (h**2 + variances) ** 0.5 * torch.exp(torch.tensor(-(apart**2) / (2 * (h**2 + variances)))).item()

    exact = mean(2, 0) + mean(8, 0) - 2 * mean(5, 1)
    assert metrics.mmd_squared(a, 2 * b + 1, metrics.GaussianKernel(h)) == pytest.approx(exact, abs=0.01)
    assert exact > 0.05


def test_a_wrong_kernel_is_refused():
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="bandwidth is"):
            metrics.GaussianKernel(bad)
    with pytest.raises(ValueError, match="degree is 0"):
        metrics.PolynomialKernel(0)

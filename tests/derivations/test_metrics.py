"""The mistakes that the chapter's formulas are most often written with are refused; and the library has its biases."""

from dataclasses import replace

import pytest
import torch
from sympy import Rational, Symbol, log, sqrt, symbols

from edmnotes import metrics
from edmnotes.derivations.core import VerificationError, registry
from edmnotes.derivations.metrics import FIRST, SECOND, K, N, cubic, mu, mu_other, n, of_normal, r, short, v, v_other

of_mean, mean_of = symbols(r"\mathcal{H}_{mean} \mathcal{H}_{each}", real=True)
trace, det = symbols("tr det", positive=True)
delta = Symbol(r"\delta", real=True)
w_1, w_2 = symbols("w_1 w_2", positive=True)
(m_1, m_2, m_3), (o_1, o_2, o_3) = FIRST, SECOND


def step(label):
    return registry().entries[label].step


def test_moments_of_a_normal_law():
    assert [of_normal(v)[order] for order in range(1, 7)] == [0, v, 0, 3 * v**2, 0, 15 * v**3]


def test_the_kernel_is_the_librarys():
    x, y = Rational(3, 2), Rational(-2)
    ours = metrics.PolynomialKernel()(torch.tensor([[1.5]]), torch.tensor([[-2.0]]))
    assert float(ours) == float(cubic(x, y))


def test_a_short_samples_standard_deviation():
    """Of N = 4 normal numbers: 0.9213, from any table of quality control."""
    assert float(step("mean-std").lhs.subs(N, 4).evalf()) == pytest.approx(0.9213, abs=5e-5)


def test_the_bias_on_a_line_is_that_of_many_draws():
    """The library's distance of two sets of N = 5, 20 000 times."""
    draws = torch.randn(2, 20_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (mean_a, mean_b), (std_a, std_b) = draws.mean(2), draws.std(2)
    distances = (mean_a - mean_b) ** 2 + (std_a - std_b) ** 2
    assert float(distances[0]) == pytest.approx(metrics.frechet_distance(draws[0, 0][:, None], draws[1, 0][:, None]))
    of_five = step("mean-std").lhs.subs(N, 5).evalf()
    predicted = float(step("frechet-bias-line").rhs.subs({short: of_five, N: 5, v: 1}))
    assert float(distances.mean()) == pytest.approx(predicted, abs=4 * float(distances.std()) / 20_000**0.5)


def test_the_library_takes_the_root_as_the_step_does():
    """Two covariances in the plane that do not commute: the trace by two invariants."""
    first = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    second = torch.tensor([[0.4, -0.2], [-0.2, 2.0]], dtype=torch.float64)
    origin, product = torch.zeros(2, dtype=torch.float64), first @ second
    root = float(step("root-trace").rhs.subs({trace: float(product.trace()), det: float(torch.linalg.det(product))}))
    expected = float(first.trace() + second.trace()) - 2 * root
    assert metrics.frechet_from_moments(origin, first, origin, second) == pytest.approx(expected, rel=1e-12)


ONE_MISTAKE = [
    ("inception-entropies", mean_of - of_mean),
    ("inception-entropies", of_mean + mean_of),
    ("inception-entropies", of_mean),  # diversity alone
    ("inception-most", log(K)),  # the exponential forgotten
    ("inception-shares", -w_1 * log(w_1)),
    ("inception-bias", (K - 1) / (2 * N)),  # "the score is too large"
    ("inception-bias", -K / (2 * N)),
    ("pairing", (mu - mu_other) ** 2 + v + v_other - r * sqrt(v * v_other)),
    ("pairing", (mu - mu_other) ** 2 + v + v_other - 2 * r * v * v_other),
    ("frechet-line", (mu - mu_other) ** 2 + (v - v_other) ** 2),  # variances for standard deviations
    ("frechet-line", mu - mu_other + (sqrt(v) - sqrt(v_other)) ** 2),
    ("frechet-line", (mu - mu_other) ** 2 + v + v_other - 2 / (v * v_other)),  # the note's inverse for the root
    ("root-trace", sqrt(trace)),  # as if one eigenvalue were 0
    ("root-trace", sqrt(trace + sqrt(det))),
    ("frechet-correlated", Rational(0)),  # coordinate by coordinate
    ("mean-std", Rational(1)),  # "the standard deviation is unbiased as its square is"
    ("mean-std-pair", sqrt(1 + 1 / N)),
    ("frechet-bias-line", 2 * v / N),  # the means alone
    ("frechet-bias-line", 2 * v / N + v * (1 - short**2)),
    ("frechet-bias-limit", 2 * v),
    ("frechet-bias-limit", Rational(0)),
    ("frechet-small", 1 / (2 * v)),
    ("frechet-bias", 2 * v * n / N),  # the means alone: linear in n
    ("frechet-bias", v * n * (n + 5) / N),
    ("frechet-bias", v * n * (n + 1) / (2 * N)),  # the covariances alone
    ("kid-moments", 3 * (m_1 - o_1) ** 2 + 3 * (m_2 - o_2) ** 2),
    ("kid-moments", (m_1 - o_1) ** 2 + (m_2 - o_2) ** 2 + (m_3 - o_3) ** 2),
    ("kid-diagonal", Rational(0)),
    ("kid-diagonal", (3 * v + 6 * v**2 + 15 * v**3) / N),  # one set
    ("precision-equal", Rational(1)),  # "equal laws have precision 1"
    ("precision-equal", Rational(1, 2)),
    ("sliced-gaussians", delta**2 + (sqrt(v) - sqrt(v_other)) ** 2),
    ("sliced-gaussians", delta**2 / n + (v - v_other) ** 2),
]


@pytest.mark.parametrize(
    ("label", "wrong"), ONE_MISTAKE, ids=[f"{label}-{i}" for i, (label, _) in enumerate(ONE_MISTAKE)]
)
def test_a_common_mistake_is_refused(label, wrong):
    with pytest.raises(VerificationError, match=label):
        replace(step(label), rhs=wrong, torch=()).verify()


def test_every_step_has_a_mistake():
    steps = {label for label, entry in registry().entries.items() if ".derivations.metrics." in entry.function}
    assert {label for label, _ in ONE_MISTAKE} == steps

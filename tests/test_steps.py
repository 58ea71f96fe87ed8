"""Step rules against the lists made by running NVlabs/edm (REFERENCE 4.1), and their contract."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import steps
from edmnotes.schedules import Discrete

LISTS = {
    steps.vp: "152.16697 86.01016 50.31126 30.45168 19.06626 12.34185 8.25080 5.68634 4.02876 2.92239 2.15826 1.61069 "
    "1.20239 .88463 .62582 .40465 .20589 .01049",
    steps.ve: "100 60.59175 36.71361 22.24542 13.47889 8.16710 4.94859 2.99844 1.81680 1.10083 .66701 .40416 .24489 "
    ".14838 .08991 .05448 .03301 .02",
    steps.edm: "80 57.58598 40.78557 28.37458 19.35245 12.91008 8.40094 5.31519 3.25682 1.92334 1.08817 .58535 .29644 "
    ".13952 .05995 .02293 .00753 .002",
}
each_rule = pytest.mark.parametrize("rule", LISTS, ids=lambda rule: rule.__name__)


@each_rule
def test_levels_are_those_of_edms_code(rule):
    listed = torch.tensor([float(level) for level in LISTS[rule].split()], dtype=torch.float64)
    torch.testing.assert_close(rule(18)[:-1], listed, rtol=0, atol=5.1e-6)


@each_rule
@given(n=st.integers(1, 300), low=st.floats(1e-4, 0.02), high=st.floats(1.0, 200.0))
def test_levels_decrease_strictly_from_end_to_end_then_zero(rule, n, low, high):
    levels = rule(n, low, high)
    assert levels.shape == (n + 1,)
    assert levels.dtype == torch.float64
    assert bool((levels.diff() < 0).all())
    assert levels[0] == high
    assert levels[-1] == 0
    if n > 1:
        assert levels[-2] == low


def test_rho_one_is_even_spacing():
    torch.testing.assert_close(steps.edm(5, 1.0, 9.0, rho=1.0)[:-1], torch.tensor([9.0, 7, 5, 3, 1]).double())


@each_rule
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_impossible_ends_are_refused(rule, ends):
    with pytest.raises(ValueError, match="sigma_min"):
        rule(5, *ends)


@each_rule
@pytest.mark.parametrize("n", [0, -3])
def test_no_levels_are_refused(rule, n):
    with pytest.raises(ValueError, match=f"n = {n}"):
        rule(n)


@pytest.mark.parametrize("rho", [0.0, -7.0, math.inf])
def test_an_impossible_rho_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        steps.edm(5, rho=rho)


# iDDPM's chain, and sub-sequences of chains.

IDDPM_18 = (
    "80.20368 9.68785 5.06820 3.41076 2.53610 1.98839 1.60238 1.32002 1.09800 .91331 .75976 .62600 .50463 .39585 "
    ".29457 .19851 .10404 .00642"
)
CHAIN = Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_iddpm_levels_are_those_of_edms_recursion_in_float64():
    """REFERENCE 4.1; NVlabs/edm's own last level is 4.6e-4 off, because its ᾱ is float32."""
    chain = steps.iddpm_levels()
    assert len(chain) == 1001
    torch.testing.assert_close(
        chain[:4], torch.tensor([20291.16961002, 641.66234512, 320.83039327, 213.88606297]).double(), rtol=1e-7, atol=0
    )
    assert float(chain[500]) == pytest.approx(1.0123895639480023, rel=1e-12)
    assert float(chain[998]) == pytest.approx(0.00935049, abs=5.1e-9)
    assert float(chain[999]) == pytest.approx(0.00642541, abs=5.1e-9)
    assert chain[1000] == 0
    inside = (chain >= 0.002) & (chain <= 81)
    assert int(inside.sum()) == 992
    assert int(inside.int().argmax()) == 8


def test_iddpm_chain_is_the_clipped_cosine_chain():
    """Two recursions, one chain: β_i = min(1 − ᾱ_i/ᾱ_{i−1}, 0.999) gives the same levels."""
    angles = math.pi / 2 * (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008
    squares = torch.cos(angles) ** 2
    cosine = Discrete((1 - squares[1:] / squares[:-1]).clamp(max=0.999))
    levels = cosine.sigma(torch.arange(1000, -1, -1, dtype=torch.float64))
    torch.testing.assert_close(steps.iddpm_levels(), levels, rtol=1e-9, atol=1e-12)


def test_iddpm_steps_are_those_of_edms_code():
    """To 1e-3: see above for what float32 does to that code's chain."""
    listed = torch.tensor([float(level) for level in IDDPM_18.split()], dtype=torch.float64)
    torch.testing.assert_close(steps.iddpm(18)[:-1], listed, rtol=1e-3, atol=5.1e-6)


@pytest.mark.parametrize("n", [1, 2, 18, 992])
def test_iddpm_steps_decrease_from_the_first_level_inside_to_the_last(n):
    levels = steps.iddpm(n)
    assert levels.shape == (n + 1,)
    assert bool((levels.diff() < 0).all())
    assert levels[0] == steps.iddpm_levels()[8]
    assert levels[-1] == 0
    if n > 1:
        assert levels[-2] == steps.iddpm_levels()[999]


@pytest.mark.parametrize("n", [1, 2, 5, 10, 25, 50, 100, 1000])
def test_linear_steps_are_evenly_spaced_steps_of_the_chain(n):
    indices = (1000 + (torch.arange(n) / max(n - 1, 1)).double() * (1 - 1000)).round()
    levels = steps.linear(n, CHAIN)
    assert levels.shape == (n + 1,)
    # Halves may round to either neighbour.
    found = CHAIN.sigma_inv(levels[:-1])
    assert float((found - indices).abs().max()) < 1 + 1e-6
    assert float((found - found.round()).abs().max()) < 1e-6
    assert found[0] == pytest.approx(1000)
    assert n == 1 or found[-1] == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 25])
def test_quadratic_steps_have_evenly_spaced_square_roots(n):
    found = CHAIN.sigma_inv(steps.quadratic(n, CHAIN)[:-1])
    roots = torch.linspace(1000**0.5, 1, n, dtype=torch.float64) if n > 1 else torch.tensor([1000**0.5]).double()
    assert float((found - roots**2).abs().max()) <= 0.5 + 1e-6


def test_more_levels_than_the_chain_has_are_refused():
    with pytest.raises(ValueError, match="n = 993"):
        steps.iddpm(993)
    with pytest.raises(ValueError, match="n = 1001"):
        steps.linear(1001, CHAIN)
    with pytest.raises(ValueError, match="n = 900"):
        steps.quadratic(900, CHAIN)


@pytest.mark.parametrize("n", [0, -1])
def test_no_levels_of_a_chain_are_refused(n):
    for rule in (steps.iddpm, lambda n: steps.linear(n, CHAIN), lambda n: steps.quadratic(n, CHAIN)):
        with pytest.raises(ValueError, match=f"n = {n}"):
            rule(n)
    with pytest.raises(ValueError, match="count"):
        steps.iddpm_levels(0)
    with pytest.raises(ValueError, match="c1"):
        steps.iddpm_levels(10, c1=1.0)


@given(n=st.integers(1, 300), high=st.floats(0.1, 1000.0))
def test_flow_steps_are_evenly_spaced_times(n, high):
    levels = steps.flow(n, high)
    times = levels / (1 + levels)
    assert levels[0] == high
    torch.testing.assert_close(times.diff(), -(times[0] / n).expand(n), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "high", "name"), [(0, 80.0, "n = 0"), (5, 0.0, "sigma_max"), (5, math.inf, "sigma_max")])
def test_impossible_flow_steps_are_refused(n, high, name):
    with pytest.raises(ValueError, match=name):
        steps.flow(n, high)

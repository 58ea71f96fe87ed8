"""Step rules against the lists made by running NVlabs/edm (REFERENCE 4.1), and their contract."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edmnotes import steps

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

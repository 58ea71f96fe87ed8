"""The chapter's own tables, what its minima rest on, and the mistakes its formulas are written with: all refused."""

from dataclasses import replace

import pytest
import torch
from sympy import Derivative, Rational, diff, exp, lambdify, limit, log, oo, solve, sqrt, symbols

from edmnotes import preconditioning as library
from edmnotes.derivations import preconditioning
from edmnotes.derivations.core import VerificationError, registry

STEPS = registry().entries
level, data, P = preconditioning.level, preconditioning.data, preconditioning.P
a, b, c_skip = preconditioning.a, preconditioning.b, preconditioning.c_skip
x0, eps = preconditioning.x0, preconditioning.eps
low, high = symbols(r"\sigma_{\min} \sigma_{\max}", positive=True)
v1, v2, kappa, loss = symbols(r"v_1 v_2 \kappa \ell", positive=True)
total = level**2 + data**2


def rhs(label):
    return STEPS[label].step.rhs


def test_the_second_derivative_is_positive_and_the_minimum_the_only_one():
    assert rhs("c-out-curvature").is_positive
    assert solve(rhs("c-out-slope"), c_skip) == [rhs("c-skip")]
    assert diff(preconditioning.SQUARED_OUT, c_skip, 2).equals(rhs("c-out-curvature"))


def test_the_curvature_of_the_learned_log_variance_is_positive():
    assert rhs("log-variance-curvature").is_positive


def test_the_skip_passes_the_input_at_low_levels_and_blocks_it_at_high_ones():
    assert limit(rhs("c-skip"), level, 0) == 1
    assert limit(rhs("c-skip"), level, oo) == 0
    assert limit(rhs("c-out") / level, level, 0) == 1
    assert limit(rhs("c-out"), level, oo) == data


def test_the_zero_networks_loss_is_1_at_every_level_only_for_the_second_moment():
    assert solve(rhs("zero-network-excess"), P) == [data**2]
    assert limit(rhs("zero-network-loss"), level, oo) == P / data**2


def test_the_rows_and_targets_are_choices_of_two_numbers():
    assert set(preconditioning.ROWS) == {"VP", "VE", "IDDPM", "Flow"}
    assert set(preconditioning.TARGETS) == {"X0", "Epsilon", "Score", "V", "Velocity"}
    assert preconditioning.ROWS["Flow"] == preconditioning.TARGETS["Velocity"] == preconditioning.VELOCITY


def test_v_for_data_of_unit_variance_is_edm_with_the_other_sign():
    assert rhs("c-skip").subs(data, 1) == rhs("v-skip")
    assert rhs("c-out").subs(data, 1) == -rhs("v-out")


@pytest.mark.parametrize("name", ["VP", "VE", "IDDPM", "Flow"])
def test_every_row_weighs_its_own_target_evenly(name):
    c, sigma = getattr(library, name)(), torch.logspace(-2, 1.8, 9, dtype=torch.float64)
    torch.testing.assert_close(c.weight(sigma) * c.c_out(sigma) ** 2, torch.ones_like(sigma))


def test_what_the_networks_are_told():
    """c_noise is chosen, not derived: EDM's and VE's logarithms, flow's time."""
    sigma = torch.logspace(-2, 1.8, 9, dtype=torch.float64)
    torch.testing.assert_close(library.EDM(0.5).c_noise(sigma), torch.log(sigma) / 4)
    torch.testing.assert_close(library.VE().c_noise(sigma), torch.log(sigma / 2))
    torch.testing.assert_close(library.Flow().c_noise(sigma), sigma / (1 + sigma))


@pytest.mark.parametrize("row", ["noise-weight", "velocity-weight"])
def test_the_rows_weights_in_edms_units(row):
    c = library.VP() if row == "noise-weight" else library.Flow()
    sigma = torch.logspace(-2, 1.8, 9, dtype=torch.float64)
    expected = lambdify([level, data], rhs(row), "numpy")(sigma.numpy(), 0.5)
    torch.testing.assert_close(c.weight(sigma) * library.EDM(0.5).c_out(sigma) ** 2, torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("network-loss", preconditioning.weight * preconditioning.c_out**2 * preconditioning.prediction**2),
        ("network-loss", preconditioning.weight * (preconditioning.prediction - preconditioning.target) ** 2),
        ("c-in", 1 / total),  # a note's: the root forgotten
        ("c-in", 1 / (level + data)),
        ("c-skip", level**2 / total),  # the two variances exchanged
        ("c-skip", data / (level + data)),
        ("c-out", level * data / total),
        ("c-out", level),  # that of the noise
        ("c-out-squared", (1 - c_skip) * data**2 + c_skip * level**2),
        ("c-out-squared", data**2 + c_skip**2 * level**2),  # the signal that passes the skip forgotten
        ("c-out-slope", 2 * total * c_skip - 2 * level**2),
        ("c-out-excess", total * (c_skip - data**2 / total) ** 2),
        ("loss-weight", total / (level * data)),  # the square forgotten
        ("loss-weight", 1 / level**2),
        ("edm-target", (data * x0 - level * eps) / sqrt(total)),  # data and noise exchanged
        ("edm-target", (level * x0 + data**2 * eps) / (data * sqrt(total))),
        ("target-low", eps),
        ("target-high", x0),  # not in units of the spread
        ("zero-network-loss", Rational(1)),  # a note's, whatever the mean
        ("zero-network-loss", (level**2 * P + data**2) / (total * data**2)),
        ("zero-network-excess", (P - data**2) / total),
        ("target-skip", -b / (b - a * level)),
        ("target-out", level / (a * level + b)),
        ("target-power", (a + b) ** 2 * P),
        ("v-target", (eps - level * x0) / (1 + level**2)),
        ("v-skip", 1 / (1 + level)),
        ("v-out", -level / (1 + level**2)),
        ("velocity-target", x0 - eps),
        ("velocity-skip", 1 / (1 + level**2)),
        ("velocity-out", level / (1 + level)),
        ("vp-train-density", level / (1 + level**2)),
        ("ve-train-density", 1 / (high - low)),  # σ itself drawn evenly
        ("flow-train-density", 1 / (1 + level) ** 2),  # the density of σ, not of its logarithm
        ("noise-weight", Rational(1)),
        ("velocity-weight", data**2 / total),
        ("log-variance-optimum", loss),
        ("log-variance-value", log(loss)),
        ("linear-floor", kappa / data**2),
        ("linear-floor", kappa * total / (data**2 * (level**2 + data**2 + kappa))),
        ("floor-low", Rational(0)),
        ("two-scale-gain", level**2 * (v1 - v2) / (4 * data**2 * (level**2 + v1) * (level**2 + v2))),
    ],
)
def test_a_common_mistake_is_refused(label, wrong):
    step = STEPS[label].step
    with pytest.raises(VerificationError, match=label):
        replace(step, rhs=wrong, torch=()).verify()


def test_the_weight_on_edm_levels_is_a_density_over_the_logarithm_not_over_the_level():
    step = STEPS["edm-train-density"].step
    with pytest.raises(VerificationError, match="edm-train-density"):
        replace(step, rhs=step.rhs / level).verify()


def test_a_uniform_time_is_not_a_uniform_logarithm():
    step = STEPS["train-density"].step
    t, sigma = preconditioning.t, preconditioning.sigma
    wrong = 1 / Derivative(sigma(t), t)
    with pytest.raises(VerificationError, match="train-density"):
        replace(step, rhs=wrong).verify()


def test_the_optimum_of_the_learned_log_variance_is_where_the_slope_is_zero():
    u = symbols("u", real=True)
    assert diff(exp(-u) * loss + u, u).subs(u, rhs("log-variance-optimum")) == 0

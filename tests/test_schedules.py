"""Schedules: values, derivatives, inverse, and the SDE they stand for."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from edmnotes.schedules import EDM, VE, VP

SCHEDULES = [EDM(), VE(), VP(), VP(beta_min=1e-4, beta_d=3.0), VP.fitted(0.002, 80.0)]
TIMES = torch.tensor([1e-3, 0.01, 0.1, 0.37, 0.8, 1.0], dtype=torch.float64)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@pytest.mark.parametrize(
    ("t", "sigma"), [(1.0, 152.1669702839464), (0.5, 3.41291830906912), (1e-3, 0.010485992786706403)]
)
def test_vp_levels_are_those_of_edms_code(t, sigma):
    """REFERENCE 4.1, from running NVlabs/edm."""
    assert float(VP().sigma(t)) == pytest.approx(sigma, rel=1e-12)


@pytest.mark.parametrize("t", [1e-9, 1e-5, 1e-3, 0.5, 1.0])
def test_vp_level_keeps_all_its_digits(t):
    """Against 40 digits. At t = 1e-5 REFERENCE's own value, √(exp(u) − 1) in float64, has lost five of them."""
    with mpmath.workdps(40):
        u = mpmath.mpf(t) * (mpmath.mpf(0.1) + mpmath.mpf(19.9) * mpmath.mpf(t) / 2)
        exact = mpmath.sqrt(mpmath.exp(u) - 1)
        assert abs(float(VP().sigma(t)) / exact - 1) < 1e-15
    assert float(VP().sigma(1e-5)) == pytest.approx(0.0010004976266502028, rel=1e-10)


@each_schedule
def test_inverse_undoes_sigma(schedule):
    torch.testing.assert_close(schedule.sigma_inv(schedule.sigma(TIMES)), TIMES, rtol=1e-12, atol=0)
    assert float(schedule.sigma_inv(0.0)) == 0
    assert float(schedule.sigma(0.0)) == 0


@each_schedule
def test_derivatives_are_those_of_autograd(schedule):
    for value, derivative in ((schedule.scale, schedule.scale_deriv), (schedule.sigma, schedule.sigma_deriv)):
        t = TIMES.clone().requires_grad_()
        total = value(t).sum()
        found = torch.autograd.grad(total, t)[0] if total.requires_grad else torch.zeros_like(TIMES)
        torch.testing.assert_close(derivative(TIMES), found, rtol=1e-9, atol=1e-12)


@each_schedule
def test_drift_and_diffusion_follow_from_scale_and_sigma(schedule):
    torch.testing.assert_close(schedule.drift(TIMES), schedule.scale_deriv(TIMES) / schedule.scale(TIMES))
    general = schedule.scale(TIMES) * torch.sqrt(2 * schedule.sigma(TIMES) * schedule.sigma_deriv(TIMES))
    torch.testing.assert_close(schedule.diffusion(TIMES), general)


@each_schedule
@pytest.mark.parametrize("t", [0.01, 0.37, 1.0])
def test_scale_and_sigma_come_back_from_drift_and_diffusion(schedule, t):
    """s = exp ∫f and σ² = σ_a² + ∫ g²/s², by quadrature from a = 1e-3."""
    start = 1e-3
    log_growth, _ = quad(lambda r: float(schedule.drift(r)), start, t, epsabs=1e-13, epsrel=1e-12)
    variance, _ = quad(
        lambda r: float((schedule.diffusion(r) / schedule.scale(r)) ** 2), start, t, epsabs=1e-13, epsrel=1e-12
    )
    assert float(schedule.scale(start)) * math.exp(log_growth) == pytest.approx(float(schedule.scale(t)), rel=1e-10)
    assert float(schedule.sigma(start)) ** 2 + variance == pytest.approx(float(schedule.sigma(t)) ** 2, rel=1e-10)


@each_schedule
def test_two_steps_make_one(schedule):
    a, b = schedule.transition(TIMES[:-1], TIMES[1:])
    a_long, b_long = schedule.transition(TIMES[0], TIMES[-1])
    variance = 0.0
    for a_step, b_step in zip(a, b, strict=True):
        variance = a_step**2 * variance + b_step**2
    torch.testing.assert_close(a.prod(), a_long)
    torch.testing.assert_close(variance, b_long**2)


@each_schedule
def test_snr_is_one_over_the_squared_level(schedule):
    torch.testing.assert_close(schedule.snr(TIMES), 1 / schedule.sigma(TIMES) ** 2)


def test_vp_preserves_unit_variance():
    vp = VP()
    torch.testing.assert_close(vp.scale(TIMES) ** 2 * (1 + vp.sigma(TIMES) ** 2), torch.ones_like(TIMES))
    torch.testing.assert_close(vp.alpha_bar(TIMES), vp.scale(TIMES) ** 2)


def test_fitted_vp_has_the_ends_it_was_asked_for():
    fitted = VP.fitted(0.002, 80.0)
    assert float(fitted.sigma(1e-3)) == pytest.approx(0.002, rel=1e-10)
    assert float(fitted.sigma(1.0)) == pytest.approx(80.0, rel=1e-12)
    assert fitted.beta_d == pytest.approx(17.5380, abs=5e-5)
    assert fitted.beta_min == pytest.approx(-0.004769, abs=5e-7)
    default = VP.fitted(float(VP().sigma(1e-3)), float(VP().sigma(1.0)))
    assert (default.beta_min, default.beta_d) == pytest.approx((0.1, 19.9), rel=1e-9)


@each_schedule
@given(t=st.floats(1e-3, 1.0), kind=st.sampled_from([torch.float32, torch.float64]))
def test_legal_times_give_finite_values_of_the_same_shape_and_dtype(schedule, t, kind):
    times = torch.tensor([[t, 1.0]], dtype=kind)
    for name in ("scale", "sigma", "scale_deriv", "sigma_deriv", "drift", "diffusion", "snr"):
        value = getattr(schedule, name)(times)
        assert value.shape == times.shape, name
        assert value.dtype == kind, name
        assert bool(value.isfinite().all()), name
    assert schedule.sigma_inv(schedule.sigma(times)).dtype == kind


@each_schedule
@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf, torch.tensor([0.5, -0.5])])
def test_a_time_or_level_outside_the_domain_is_refused(schedule, bad):
    with pytest.raises(ValueError, match=r"t = .*outside"):
        schedule.sigma(bad)
    with pytest.raises(ValueError, match=r"sigma = .*outside"):
        schedule.sigma_inv(bad)


def test_integer_times_are_refused():
    with pytest.raises(ValueError, match=r"t has dtype torch.int64"):
        VP().sigma(torch.tensor([1, 2]))


def test_a_step_that_would_take_noise_away_is_refused():
    with pytest.raises(ValueError, match="less noise"):
        EDM().transition(2.0, 1.0)


def test_times_without_a_level_are_refused_by_a_fitted_vp():
    with pytest.raises(ValueError, match="no noise level"):
        VP.fitted(0.002, 80.0).sigma(1e-4)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"beta_d": 0.0}, "beta_d"), ({"beta_d": math.nan}, "beta_d"), ({"beta_min": math.inf}, "beta_min")],
)
def test_impossible_vp_constants_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        VP(**arguments)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf)])
def test_ends_that_no_vp_has_are_refused(ends):
    with pytest.raises(ValueError, match="sigma_min"):
        VP.fitted(*ends)
    with pytest.raises(ValueError, match="too high for a beta that grows"):
        VP.fitted(0.5, 1.0)
    with pytest.raises(ValueError, match="t_min"):
        VP.fitted(0.01, 10.0, t_min=1.5)

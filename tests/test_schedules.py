"""Schedules: values, derivatives, inverse, and the SDE they stand for."""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from edmnotes.noise import PerSample
from edmnotes.schedules import EDM, VE, VP, Cosine, Discrete, FlowMatching, GeometricVE, from_sde


def unsolved(t):
    """A drift and a diffusion that nobody solved by hand."""
    return torch.cos(5 * t) - t


SDE = from_sde(unsolved, lambda t: 1 + t**2, end=1.5)
SDE_FROM_A_LEVEL = from_sde(lambda t: -torch.sin(3 * t), torch.exp, sigma0=0.3)
VP_AS_SDE = from_sde(VP().drift, VP().diffusion)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
FROM_ZERO = [
    *(EDM(), VE(), VP(), VP(beta_min=1e-4, beta_d=3.0), VP.fitted(0.002, 80.0), Cosine(), FlowMatching()),
    *(Discrete(BETAS), SDE, VP_AS_SDE),
]
SCHEDULES = [*FROM_ZERO, GeometricVE(), GeometricVE(0.002, 80.0), SDE_FROM_A_LEVEL]


def times_of(schedule):
    """Six times of the domain: dense near its beginning, the last at its end, or just before where that is left out."""
    end = schedule.times.high if schedule.times.high < math.inf else 1.0
    fractions = torch.tensor([1e-3, 0.01, 0.1, 0.37, 0.8, 1.0], dtype=torch.float64)
    return end * fractions * (0.999 if schedule.times.open else 1)


TIMES = times_of(VP())
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
    times = times_of(schedule)
    torch.testing.assert_close(schedule.sigma_inv(schedule.sigma(times)), times, rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", FROM_ZERO, ids=str)
def test_time_zero_is_level_zero(schedule):
    assert float(schedule.sigma_inv(0.0)) == 0
    assert float(schedule.sigma(0.0)) == pytest.approx(0, abs=1e-8)
    assert schedule.levels.low == 0


@pytest.mark.parametrize("schedule", [GeometricVE(), SDE_FROM_A_LEVEL], ids=str)
def test_a_schedule_may_begin_at_a_level(schedule):
    assert float(schedule.sigma(0.0)) == pytest.approx(schedule.levels.low, rel=1e-12)
    assert float(schedule.sigma_inv(schedule.levels.low)) == pytest.approx(0, abs=1e-14)
    with pytest.raises(ValueError, match="outside the domain"):
        schedule.sigma_inv(schedule.levels.low / 2)


@each_schedule
def test_the_domain_holds_its_own_levels(schedule):
    """float32 rounds an end outwards; the level it makes is still inside."""
    for kind in (torch.float32, torch.float64):
        ends = times_of(schedule)[[0, -1]].to(kind)
        assert schedule.sigma_inv(schedule.sigma(ends)).dtype == kind


@each_schedule
def test_derivatives_are_those_of_autograd(schedule):
    for value, derivative in ((schedule.scale, schedule.scale_deriv), (schedule.sigma, schedule.sigma_deriv)):
        t = times_of(schedule).requires_grad_()
        total = value(t).sum()
        found = torch.autograd.grad(total, t)[0] if total.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(t.detach()), found, rtol=1e-8, atol=1e-12)


@each_schedule
def test_drift_and_diffusion_follow_from_scale_and_sigma(schedule):
    t = times_of(schedule)
    torch.testing.assert_close(schedule.drift(t), schedule.scale_deriv(t) / schedule.scale(t))
    general = schedule.scale(t) * torch.sqrt(2 * schedule.sigma(t) * schedule.sigma_deriv(t))
    torch.testing.assert_close(schedule.diffusion(t), general)


@each_schedule
def test_scale_and_sigma_come_back_from_drift_and_diffusion(schedule):
    """s = exp ∫f and σ² = σ_a² + ∫ g²/s², by quadrature from the first time to each other one."""
    start, *times = times_of(schedule).tolist()
    if isinstance(schedule, Discrete):
        # Its coefficients jump at each step: rest on a short stretch, and give the quadrature the jumps.
        start, times = 995.0, [997.5, 1000.0]
    for t in times:
        options = {"epsabs": 1e-13, "epsrel": 1e-12, "limit": 200}
        options["points"] = [*range(996, math.ceil(t))] if isinstance(schedule, Discrete) else None
        log_growth, _ = quad(lambda r: float(schedule.drift(r)), start, t, **options)
        added, _ = quad(lambda r: float((schedule.diffusion(r) / schedule.scale(r)) ** 2), start, t, **options)
        assert float(schedule.scale(start)) * math.exp(log_growth) == pytest.approx(float(schedule.scale(t)), rel=1e-8)
        assert float(schedule.sigma(start)) ** 2 + added == pytest.approx(float(schedule.sigma(t)) ** 2, rel=1e-8)


@each_schedule
def test_from_sde_finds_the_schedule_behind_drift_and_diffusion(schedule):
    """(s, σ) → (f, g) → (s, σ) through the library's own inverse, to 1e-8."""
    if isinstance(schedule, Discrete):
        with pytest.raises(ValueError, match="too rough"):
            from_sde(schedule.drift, schedule.diffusion, end=1000.0)
        return
    # Away from the end where flow matching's and cosine's f and g are infinite.
    t = times_of(schedule) * (0.95 if schedule.times.open else 1)
    # VP fitted to very low levels has a negative β at first: it is a schedule from its second time on only.
    late = isinstance(schedule, VP) and schedule.beta_min < 0
    shift = float(t[0]) if late else 0.0
    start = float(schedule.sigma(shift)) if late else schedule.levels.low
    back = from_sde(
        lambda r: schedule.drift(r + shift), lambda r: schedule.diffusion(r + shift), start, end=float(t[-1]) - shift
    )
    scale = schedule.scale(t) / schedule.scale(shift)
    sigma = torch.sqrt(start**2 + (schedule.sigma(t) ** 2 - start**2) * float(schedule.scale(shift)) ** 2)
    torch.testing.assert_close(back.scale(t - shift), scale, rtol=1e-8, atol=0)
    torch.testing.assert_close(back.sigma(t - shift), sigma, rtol=1e-8, atol=0)


@each_schedule
def test_moments_of_the_simulated_sde_are_those_of_the_kernel(schedule):
    """Euler–Maruyama from a point x_0, with the library's f and g, against s x_0 and s σ."""
    times = times_of(schedule)
    first, last = float(times[1]), float(times[3])
    if isinstance(schedule, Discrete):
        first, last = 0.0, 100.0
    count, steps, x0 = 20_000, 400, 1.5
    stream = PerSample([5])
    start_std = schedule.scale(first) * schedule.sigma(first)
    x = schedule.scale(first) * x0 + start_std * stream.normal((count,))[0]
    grid = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    for t, t_next in pairwise(grid):
        h = t_next - t
        x = x + schedule.drift(t) * x * h + schedule.diffusion(t) * h.sqrt() * stream.normal((count,))[0]
    mean, std = float(schedule.scale(last)) * x0, float(schedule.scale(last) * schedule.sigma(last))
    # Standard errors: std/141 of the mean, std/200 of the std; 400 steps leave less than 1 % of each.
    assert float(x.mean()) == pytest.approx(mean, abs=4 * std / 141 + 0.01 * mean)
    assert float(x.std()) == pytest.approx(std, rel=4 / 200 + 0.01)


@each_schedule
def test_two_steps_make_one(schedule):
    t = times_of(schedule)
    a, b = schedule.transition(t[:-1], t[1:])
    a_long, b_long = schedule.transition(t[0], t[-1])
    variance = 0.0
    for a_step, b_step in zip(a, b, strict=True):
        variance = a_step**2 * variance + b_step**2
    torch.testing.assert_close(a.prod(), a_long)
    torch.testing.assert_close(variance, b_long**2)


@each_schedule
def test_snr_is_one_over_the_squared_level(schedule):
    torch.testing.assert_close(schedule.snr(times_of(schedule)), 1 / schedule.sigma(times_of(schedule)) ** 2)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Discrete(BETAS)], ids=str)
def test_unit_variance_is_preserved(schedule):
    t = times_of(schedule)
    torch.testing.assert_close(schedule.scale(t) ** 2 * (1 + schedule.sigma(t) ** 2), torch.ones_like(t))
    torch.testing.assert_close(schedule.alpha_bar(t), schedule.scale(t) ** 2)


def test_flow_matching_is_the_straight_line():
    t = times_of(FlowMatching())
    torch.testing.assert_close(FlowMatching().scale(t) * FlowMatching().sigma(t), t)
    torch.testing.assert_close(FlowMatching().scale(t), 1 - t)


@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.3, 0.9, 0.999])
def test_cosine_is_the_papers_formula(t):
    """ᾱ = cos² / cos² in 40 digits (Nichol and Dhariwal 2021, eq. 17)."""
    with mpmath.workdps(40):
        offset = mpmath.mpf(0.008)

        def squared_cosine(time):
            return mpmath.cos(mpmath.pi / 2 * (time + offset) / (1 + offset)) ** 2

        exact = mpmath.sqrt(squared_cosine(mpmath.mpf(0)) / squared_cosine(mpmath.mpf(t)) - 1)
        assert abs(float(Cosine().sigma(t)) / exact - 1) < 1e-12


# REFERENCE 4.2.
@pytest.mark.parametrize(
    ("betas", "t", "sigma"),
    [
        (BETAS, 1, 0.01000050003749898),
        (BETAS, 500, 3.424136619044041),
        (BETAS, 1000, 157.40728081040737),
        (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 1, 0.029167158151721113),
        (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 500, 1.612886194303876),
        (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 1000, 14.614641229333639),
    ],
)
def test_chains_have_the_levels_of_the_reference(betas, t, sigma):
    assert float(Discrete(betas).sigma(float(t))) == pytest.approx(sigma, rel=1e-11)


def clipped_cosine_betas(count):
    """β_i = min(1 − ᾱ_i/ᾱ_{i−1}, 0.999) of the cosine schedule (Nichol and Dhariwal 2021)."""
    cosines = torch.cos(math.pi / 2 * (torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008) ** 2
    return (1 - cosines[1:] / cosines[:-1]).clamp(max=0.999)


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [(1000, 0.006425412771141183, 20291.169610019886), (4000, 0.003141005595176851, 81164.64773562955)],
)
def test_the_clipped_cosine_chain_has_the_levels_of_the_reference(count, first, last):
    chain = Discrete(clipped_cosine_betas(count))
    assert float(chain.sigma(1.0)) == pytest.approx(first, rel=1e-10)
    assert float(chain.sigma(float(count))) == pytest.approx(last, rel=1e-10)
    assert int((chain.betas == 0.999).sum()) == 1


def test_chains_have_the_betas_and_alpha_bars_of_the_reference():
    cosine, linear = Discrete(clipped_cosine_betas(1000)), Discrete(BETAS)
    assert float(cosine.betas[0]) == pytest.approx(4.128422482196914e-05, rel=1e-9)
    assert float(cosine.betas[998]) == pytest.approx(0.7499993929011166, rel=1e-9)
    assert float(cosine.alpha_bar(1000.0)) == pytest.approx(2.4287669070348567e-09, rel=1e-9)
    assert float(Discrete(clipped_cosine_betas(4000)).betas[0]) == pytest.approx(9.865818813681315e-06, rel=1e-9)
    assert float(linear.alpha_bar(1000.0)) == pytest.approx(4.035829765375676e-05, rel=1e-12)


def test_a_chain_is_exact_at_whole_steps_and_linear_in_log_alpha_bar_between():
    chain = Discrete(BETAS)
    whole = torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(chain.alpha_bar(whole), torch.cumprod(1 - BETAS, 0))
    between = chain.alpha_bar(torch.tensor([41.25], dtype=torch.float64)).log()
    ends = chain.alpha_bar(torch.tensor([41.0, 42.0], dtype=torch.float64)).log()
    torch.testing.assert_close(between, 0.75 * ends[:1] + 0.25 * ends[1:])
    assert float(BETAS.sum()) == pytest.approx(10.05, abs=1e-12)


def test_fitted_vp_has_the_ends_it_was_asked_for():
    fitted = VP.fitted(0.002, 80.0)
    assert float(fitted.sigma(1e-3)) == pytest.approx(0.002, rel=1e-10)
    assert float(fitted.sigma(1.0)) == pytest.approx(80.0, rel=1e-12)
    assert fitted.beta_d == pytest.approx(17.5380, abs=5e-5)
    assert fitted.beta_min == pytest.approx(-0.004769, abs=5e-7)
    default = VP.fitted(float(VP().sigma(1e-3)), float(VP().sigma(1.0)))
    assert (default.beta_min, default.beta_d) == pytest.approx((0.1, 19.9), rel=1e-9)


@each_schedule
@given(fraction=st.floats(1e-3, 1.0), kind=st.sampled_from([torch.float32, torch.float64]))
def test_legal_times_give_finite_values_of_the_same_shape_and_dtype(schedule, fraction, kind):
    end = float(times_of(schedule)[-1])
    times = torch.tensor([[fraction * end, end]], dtype=kind)
    for name in ("scale", "sigma", "scale_deriv", "sigma_deriv", "drift", "diffusion", "snr"):
        value = getattr(schedule, name)(times)
        assert value.shape == times.shape, name
        assert value.dtype == kind, name
        assert bool(value.isfinite().all()), name
    assert schedule.sigma_inv(schedule.sigma(times)).dtype == kind


@each_schedule
@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf, torch.tensor([0.5, -0.5])])
def test_a_time_or_level_outside_the_domain_is_refused(schedule, bad):
    for method in ("scale", "sigma", "scale_deriv", "sigma_deriv", "drift", "diffusion", "snr"):
        with pytest.raises(ValueError, match=r"(?s)t = .*outside"):
            getattr(schedule, method)(bad)
    with pytest.raises(ValueError, match=r"(?s)sigma = .*outside"):
        schedule.sigma_inv(bad)


@pytest.mark.parametrize(
    ("schedule", "t"),
    [(FlowMatching(), 1.0), (Cosine(), 1.0), (GeometricVE(), 1.01), (Discrete(BETAS), 1000.5), (SDE, 1.6)],
    ids=str,
)
def test_times_after_the_end_are_refused(schedule, t):
    with pytest.raises(ValueError, match="outside the domain"):
        schedule.sigma(t)


@pytest.mark.parametrize(
    ("schedule", "sigma"), [(GeometricVE(), 101.0), (Discrete(BETAS), 158.0), (SDE_FROM_A_LEVEL, 50.0)], ids=str
)
def test_levels_that_are_never_reached_are_refused(schedule, sigma):
    with pytest.raises(ValueError, match="outside the domain"):
        schedule.sigma_inv(sigma)


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.5, 1.0], [[0.1]], [math.nan]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        Discrete(torch.tensor(betas))


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_impossible_ends_of_a_geometric_schedule_are_refused(ends):
    with pytest.raises(ValueError, match="sigma_min"):
        GeometricVE(*ends)


@pytest.mark.parametrize("offset", [0.0, -1.0, math.nan])
def test_an_impossible_offset_is_refused(offset):
    with pytest.raises(ValueError, match="offset"):
        Cosine(offset)


@pytest.mark.parametrize(
    ("f", "g", "options", "message"),
    [
        (lambda t: -t, lambda t: -t, {}, "g is not finite or is negative"),
        (lambda t: 1 / (t - t), lambda t: t, {}, "f is not finite"),
        (lambda t: -1 / (1 - t), lambda t: torch.sqrt(2 * t / (1 - t)), {}, "too rough"),
        (lambda t: -t, lambda t: t, {"end": 0.0}, "end = 0"),
        (lambda t: -t, lambda t: t, {"sigma0": -1.0}, "sigma0 = -1"),
    ],
)
def test_an_impossible_sde_is_refused(f, g, options, message):
    with pytest.raises(ValueError, match=message):
        from_sde(f, g, **options)


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

"""Euler, the α-family, the multistep method, the adaptive one: orders, exact values, cost, what they leave alone."""

import math
import sys
from functools import cache
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from edmnotes import steps
from edmnotes.exact import Gaussian, GaussianMixture
from edmnotes.noise import PerSample
from edmnotes.samplers import Churn, Solution, adaptive, euler, heun, multistep
from edmnotes.samplers.ode import multistep_weights
from edmnotes.schedules import EDM, VE, VP, Cosine, Discrete, FlowMatching, GeometricVE

SCHEDULES = [EDM(), VE(), VP()]
DATA = Gaussian(0.0, 0.5)
ONE = torch.ones(1, dtype=torch.float64)
ALL = [euler, heun, multistep, adaptive]
WITH_CALLBACK = [euler, heun, multistep]


def start(schedule, sigma, unscaled):
    """The state at level ``sigma`` in the schedule's coordinates."""
    return schedule.scale(schedule.sigma_inv(sigma)) * unscaled


# Values made by running NVlabs/edm on x = 80 and D = x .25 / (.25 + σ²) (REFERENCE, golden sampler outputs).


@pytest.mark.parametrize(
    ("n", "value"),
    [
        (2, 40.00028252668211),
        (5, 1.2578863076695737),
        (10, 0.6097980007989404),
        (18, 0.527624637001047),
        (256, 0.50009542467964),
    ],
)
def test_heun_gives_the_values_of_edms_code(n, value):
    solution = heun(DATA, 80 * ONE, steps.edm(n))
    assert float(solution.x) == pytest.approx(value, rel=1e-12)
    assert solution.nfe == 2 * n - 1


def test_the_midpoint_method_gives_the_value_of_edms_code():
    assert float(heun(DATA, 80 * ONE, steps.edm(18), alpha=0.5).x) == pytest.approx(0.49777461215724367, rel=1e-12)


GRID = {
    # rule, sampler: final values on the VP, VE and EDM schedules
    ("vp", euler): (0.4898416872132822, 1.462881783932525, 0.4228629148074598),
    ("vp", heun): (0.50419564475274, 0.23953984130933598, 0.512145891001178),
    ("edm", euler): (0.5222397520567094, 1.3792810188742075, 0.42303143640797725),
    ("edm", heun): (0.5040047307834306, 0.2529856994541205, 0.527624637001047),
}


RULES = ("vp", "ve", "iddpm", "edm")


def table_cell(rule, column, sampler):
    """One cell of the table of 4 step rules x 3 schedules x 2 solvers: where 18 levels take the latent 1."""
    sigmas = getattr(steps, rule)(18)
    # In this table the VP schedule is the one fitted to the ends of the step rule.
    schedule = (VP.fitted(float(sigmas[-2]), float(sigmas[0])), VE(), EDM())[column]
    return float(sampler(DATA, start(schedule, sigmas[0], sigmas[0] * ONE), sigmas, schedule=schedule).x)


@pytest.mark.parametrize(("rule", "sampler"), GRID)
@pytest.mark.parametrize("column", range(3))
def test_the_step_by_schedule_grid_gives_the_values_of_edms_code(rule, sampler, column):
    assert table_cell(rule, column, sampler) == pytest.approx(GRID[rule, sampler][column], rel=1e-12)


def levels_by_mpmath(rule):
    """The 18 levels above 0 of a step rule, from Table 1 of the paper."""
    ramp = [mpmath.mpf(i) / 17 for i in range(18)]
    if rule == "vp":
        b_d, b_min = mpmath.mpf("19.9"), mpmath.mpf("0.1")
        times = [1 + r * (mpmath.mpf("1e-3") - 1) for r in ramp]
        return [mpmath.sqrt(mpmath.exp(b_d * t**2 / 2 + b_min * t) - 1) for t in times]
    if rule == "ve":
        return [mpmath.sqrt(100**2 * (mpmath.mpf("0.02") ** 2 / 100**2) ** r) for r in ramp]
    if rule == "edm":
        low, high = mpmath.mpf("0.002") ** (mpmath.mpf(1) / 7), mpmath.mpf(80) ** (mpmath.mpf(1) / 7)
        return [(high + r * (low - high)) ** 7 for r in ramp]
    levels = [mpmath.mpf(0)]  # u_M, u_{M-1}, ...
    for j in range(1000, 0, -1):
        now, before = (mpmath.sin(mpmath.pi / 2 * k / (1000 * mpmath.mpf("1.008"))) ** 2 for k in (j, j - 1))
        levels.append(mpmath.sqrt((levels[-1] ** 2 + 1) / max(before / now, mpmath.mpf("0.001")) - 1))
    chain = [u for u in reversed(levels) if mpmath.mpf("0.002") <= u <= 81]
    return [chain[int(mpmath.floor((len(chain) - 1) * r + 0.5))] for r in ramp]


def cell_by_mpmath(rule, column, corrected):
    """The cell with 30 digits: the ODE in the score's form, its s and σ differentiated by mpmath."""
    with mpmath.workdps(30):
        levels = levels_by_mpmath(rule)
        low, high = mpmath.log(levels[-1] ** 2 + 1), mpmath.log(levels[0] ** 2 + 1)
        b_d = 2 * (low * 1000 - high) / (mpmath.mpf("1e-3") - 1)
        b_min = high - b_d / 2
        sigma = (lambda t: mpmath.sqrt(mpmath.expm1(b_d * t**2 / 2 + b_min * t)), mpmath.sqrt, lambda t: t)[column]
        time = (
            lambda level: (mpmath.sqrt(b_min**2 + 2 * b_d * mpmath.log(1 + level**2)) - b_min) / b_d,
            lambda level: level**2,
            lambda level: level,
        )[column]
        scale = (lambda t: 1 / mpmath.sqrt(1 + sigma(t) ** 2)) if column == 0 else (lambda t: mpmath.mpf(1))

        def slope(x, t):
            score = -(x / scale(t)) / (mpmath.mpf("0.25") + sigma(t) ** 2)
            growth = mpmath.diff(scale, t) / scale(t)
            return growth * x - scale(t) * mpmath.diff(sigma, t) * sigma(t) * score

        times = [*map(time, levels), mpmath.mpf(0)]
        x = scale(times[0]) * levels[0]
        for t, t_next in pairwise(times):
            here = slope(x, t)
            if corrected and t_next > 0:
                here = (here + slope(x + (t_next - t) * here, t_next)) / 2
            x += (t_next - t) * here
        return float(x)


@pytest.mark.parametrize("sampler", [euler, heun])
@pytest.mark.parametrize("column", range(3), ids=["vp", "sqrt", "linear"])
@pytest.mark.parametrize("rule", RULES)
def test_the_whole_table_agrees_with_a_second_implementation(rule, column, sampler):
    assert table_cell(rule, column, sampler) == pytest.approx(cell_by_mpmath(rule, column, sampler is heun), rel=1e-12)


@pytest.mark.parametrize(("sampler", "value"), [(euler, 0.5228071947), (heun, 0.5039801039)])
def test_plain_vp_on_edms_levels(sampler, value):
    sigmas, schedule = steps.edm(18), VP()
    found = sampler(DATA, start(schedule, 80.0, 80 * ONE), sigmas, schedule=schedule).x
    assert float(found) == pytest.approx(value, abs=5.1e-11)


# Orders of convergence, from σ = 80 to 0.05; the last step, to 0, is tested apart.


def nested_levels(n):
    """n steps from 80 to 0.05, each halved by 2n, then 0."""
    ends = (80 ** (1 / 7), 0.05 ** (1 / 7))
    return torch.cat([torch.linspace(*ends, n + 1, dtype=torch.float64) ** 7, torch.zeros(1).double()])


def gaussian_flow(x):
    """The exact probability-flow map from 80 to 0.05 for N(0.3, 0.5²)."""
    return 0.3 + (x - 0.3) * np.sqrt((0.05**2 + 0.25) / (80.0**2 + 0.25))


def mixture_flow(x):
    """On the line the flow keeps quantiles: solve F(y; 0.05) = F(x; 80)."""

    def cdf(y, sigma):
        return sum(w * norm.cdf(y, m, np.hypot(s, sigma)) for m, s, w in ((-1.0, 0.3, 0.4), (1.0, 0.5, 0.6)))

    return brentq(lambda y: cdf(y, 0.05) - cdf(x, 80.0), -20, 20, xtol=1e-14, rtol=1e-14)


TARGETS = {
    "gaussian": (Gaussian(0.3, 0.5), gaussian_flow),
    "mixture": (GaussianMixture([-1.0, 1.0], [0.3, 0.5], [0.4, 0.6]), mixture_flow),
}
METHODS = {
    "euler": (euler, {}, 1),
    "heun": (heun, {}, 2),
    "ralston": (heun, {"alpha": 2 / 3}, 2),
    "midpoint": (heun, {"alpha": 0.5}, 2),
}


def measured_orders(method, schedule, target, *, counts=(192, 384, 768)):
    sampler, options, _ = METHODS[method]
    data, flow = TARGETS[target]
    unscaled = 57.0
    errors = []
    for n in counts:
        x = start(schedule, 80.0, unscaled * ONE)
        states = sampler(data, x, nested_levels(n), schedule=schedule, trajectory=True, **options).trajectory
        end = states[-2] / schedule.scale(schedule.sigma_inv(0.05))
        errors.append(abs(float(end) - flow(unscaled)))
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method, schedule, target):
    # With s = 1 the midpoint method's leading error cancels on a single Gaussian: one order better than promised.
    lucky = method == "midpoint" and target == "gaussian" and not isinstance(schedule, VP)
    # ... and on the mixture with σ = √t its asymptotic regime begins late.
    counts = (512, 1024, 2048) if method == "midpoint" and target == "mixture" else (192, 384, 768)
    rates = measured_orders(method, schedule, target, counts=counts)
    assert np.all(np.abs(rates - METHODS[method][2] - lucky) < 0.15), rates


def test_a_wrong_weight_of_the_second_slope_loses_the_order(monkeypatch):
    """The order test can fail: weights that do not belong to α make a first-order method."""

    def broken(denoiser, x, sigmas, *, schedule, trajectory):
        first = heun(denoiser, x, sigmas, schedule=schedule, alpha=1.0, trajectory=True).trajectory
        second = euler(denoiser, x, sigmas, schedule=schedule, trajectory=True).trajectory
        return type("S", (), {"trajectory": 0.7 * first + 0.3 * second})

    monkeypatch.setitem(METHODS, "broken", (broken, {}, 2))
    assert not np.all(np.abs(measured_orders("broken", EDM(), "gaussian") - 2) < 0.15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("sampler", [euler, heun])
def test_final_std_on_a_gaussian_tends_to_the_exact_one(sampler, schedule):
    """The samplers are linear here, so the final std is a number, not an estimate."""
    sigmas = steps.edm(2000)
    out = sampler(DATA, start(schedule, sigmas[0], sigmas[0] * ONE), sigmas, schedule=schedule).x
    assert float(out) == pytest.approx(80 * 0.5 / np.sqrt(80**2 + 0.25), rel={euler: 1e-2, heun: 5e-5}[sampler])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_last_step_returns_what_euler_makes_of_it(schedule):
    """From σ_min to 0 both take one Euler step; on the EDM schedule that is D itself."""
    sigmas = steps.edm(6)
    states = heun(DATA, start(schedule, sigmas[0], 40 * ONE), sigmas, schedule=schedule, trajectory=True).trajectory
    t = schedule.sigma_inv(sigmas[-2])
    last = euler(DATA, states[-2], sigmas[-2:], schedule=schedule)
    assert float(last.x) == float(states[-1])
    if isinstance(schedule, EDM):
        assert float(states[-1]) == pytest.approx(float(DATA(states[-2], t)), rel=1e-12)


@pytest.mark.parametrize("sampler", WITH_CALLBACK)
@pytest.mark.parametrize(
    ("schedule", "sigma_min", "sigma_max"),
    [
        (GeometricVE(0.002, 80.0), 0.002, 80.0),
        (FlowMatching(), 0.002, 80.0),
        (Cosine(), 0.002, 80.0),
        (Discrete(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)), 0.01, 150.0),
    ],
    ids=str,
)
def test_every_schedule_is_sampled_on(sampler, schedule, sigma_min, sigma_max):
    """The final std tends to the exact one; where the schedule ends above level 0 the last step is D itself."""
    sigmas = steps.edm(1000, sigma_min, sigma_max)
    x = start(schedule, sigmas[0], sigmas[0] * ONE)
    solution = sampler(DATA, x, sigmas, schedule=schedule, trajectory=True)
    assert float(solution.x) == pytest.approx(0.5, rel={euler: 3e-2, heun: 1e-3, multistep: 3e-4}[sampler])
    if schedule.levels.low > 0:
        assert torch.equal(solution.x, DATA(solution.trajectory[-2], sigmas[-2]))


@pytest.mark.parametrize("sampler", ALL)
def test_levels_outside_the_schedule_are_refused(sampler):
    for schedule in (GeometricVE(0.02, 50.0), GeometricVE(0.01, 100.0)):
        with pytest.raises(ValueError, match=r"sigma = .*outside the domain"):
            sampler(DATA, ONE, steps.edm(5, 0.002, 80.0), schedule=schedule)


# The multistep method.


def lagrange_weight(sigmas, sigma_next, j):
    """∫ exp(λ − λ_1) ℓ_j(λ) dλ with 30 digits, the polynomial by its factors."""
    with mpmath.workdps(30):
        places = [-mpmath.log(mpmath.mpf(float(sigma))) for sigma in sigmas]
        end = -mpmath.log(mpmath.mpf(float(sigma_next)))

        def integrand(place):
            others = [other for k, other in enumerate(places) if k != j]
            return mpmath.exp(place - end) * mpmath.fprod((place - other) / (places[j] - other) for other in others)

        return float(mpmath.quad(integrand, mpmath.linspace(places[0], end, 9)))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "ratios",
    [
        [0.5, 1.2, 1.5, 1.1],
        [1e-3, 3.0, 1.01, 40.0],
        [0.999, 1.001, 1.0005, 1.002],
        [1 - 1e-8, 1 + 1e-8, 1 + 3e-8, 1 + 1e-8],
        [1e-9, 2.0, 2.0, 2.0],
    ],
    ids=["usual", "long", "short", "tiny", "huge"],
)
def test_multistep_weights_are_the_integrals_of_the_polynomials(order, ratios):
    """On uneven levels, from steps of 1e-8 in ln σ to steps over nine decades."""
    sigmas = 3.0 * torch.cumprod(torch.tensor([1.0, *ratios[1:]], dtype=torch.float64), 0)[:order]
    sigma_next = 3.0 * ratios[0]
    exact = [lagrange_weight(sigmas, sigma_next, j) for j in range(order)]
    found = multistep_weights(sigmas, sigma_next)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-12, atol=1e-12 * float(np.abs(exact).max()))
    assert float(found.sum()) == pytest.approx(float((sigmas[0] - sigma_next) / sigmas[0]), rel=1e-11)


@pytest.mark.parametrize("schedule", [*SCHEDULES, FlowMatching()], ids=str)
def test_order_one_is_ddim_and_on_edms_schedule_euler(schedule):
    """DDIM as its paper writes it, in s x_0 and s σ ε, and Euler in σ."""
    sigmas, data = steps.edm(7), TARGETS["mixture"][0]
    unscaled = 80 * PerSample(range(3)).normal(())
    found = multistep(data, start(schedule, 80.0, unscaled), sigmas, schedule=schedule, order=1, trajectory=True)
    x = unscaled
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        clean = data(x, sigma)
        x = clean + sigma_next * (x - clean) / sigma
        if sigma_next > 0:
            torch.testing.assert_close(found.trajectory[i + 1], start(schedule, sigma_next, x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.x, euler(data, unscaled, sigmas).x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("schedule", [VE(), VP(), Cosine(), FlowMatching(), GeometricVE(0.002, 80.0)], ids=str)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_multistep_method_does_not_depend_on_the_schedule(order, schedule):
    sigmas, data = steps.edm(9), TARGETS["mixture"][0]
    unscaled = 80 * PerSample(range(3)).normal(())
    found = multistep(data, start(schedule, 80.0, unscaled), sigmas, schedule=schedule, order=order)
    torch.testing.assert_close(found.x, multistep(data, unscaled, sigmas, order=order).x, rtol=1e-10, atol=1e-11)


PLANE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], [0.4, 0.6])


def between(high, low, n):
    """n steps from ``high`` to ``low``, each halved by 2n, then 0."""
    ends = (high ** (1 / 7), low ** (1 / 7))
    return torch.cat([torch.linspace(*ends, n + 1, dtype=torch.float64) ** 7, torch.zeros(1).double()])


def split_first(levels):
    """The first step in ln σ split at 1/2, 1/4, …: once more each time that the number of steps doubles."""
    n = len(levels) - 2
    fractions = 0.5 ** torch.arange(int(np.log2(n)), 0, -1, dtype=torch.float64)
    return torch.cat([levels[:1], levels[0] * (levels[1] / levels[0]) ** fractions, levels[1:]])


@cache
def flow_to_low(data, high):
    """Several starts at σ = ``high``, and where the flow takes them at σ = 0.05: the adaptive method at 1e-12."""
    place = torch.tensor([-1.3, -0.7, -0.2, 0.1, 0.4, 0.9, 1.5], dtype=torch.float64)
    x = high * (torch.stack([place, place.flip(0)], 1) if data is PLANE else place)
    ends = torch.tensor([high, 0.05, 0.0], dtype=torch.float64)
    return x, adaptive(data, x, ends, rtol=1e-12, atol=1e-13, trajectory=True).trajectory[-2]


def multistep_rates(data, high, order, levels_of, counts=(128, 256, 512)):
    """Rates of the root mean square error over the starts."""
    x, exact = flow_to_low(data, high)
    runs = [multistep(data, x, levels_of(high, 0.05, n), order=order, trajectory=True) for n in counts]
    errors = [float((run.trajectory[-2] - exact).square().mean().sqrt()) for run in runs]
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("data", [TARGETS["gaussian"][0], PLANE], ids=["gaussian", "plane"])
def test_multistep_order_of_convergence_from_a_high_start(order, data):
    """Start-up by lower orders is not seen here down to errors of 1e-8; it begins to bend order 4 on the Gaussian."""
    rates = multistep_rates(data, 80.0, order, between, counts=(32, 64, 128) if order < 3 else (128, 256, 512))
    assert np.all(np.abs(rates - order) < (0.15 if order < 4 else 0.3)), rates


@pytest.mark.parametrize("order", [3, 4])
def test_multistep_order_of_convergence_from_a_low_start(order):
    """At σ = 2 the denoiser moves from the first step on: start-up leaves second order, a split first step cures it."""
    plain = multistep_rates(PLANE, 2.0, order, between)
    assert np.all(np.abs(plain - 2) < 0.15), plain
    split = multistep_rates(PLANE, 2.0, order, lambda *ends: split_first(between(*ends)))
    assert np.all(np.abs(split - order) < 0.15), split


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep_with_few_levels_uses_the_values_it_has(order):
    """n levels have n − 1 steps with 1, 2, … values: more than that is never asked for, and never an error."""
    for n in (1, 2, 3, 4):
        sigmas = steps.edm(n)
        found = multistep(DATA, 80 * ONE, sigmas, order=order)
        assert float(found.x) == float(multistep(DATA, 80 * ONE, sigmas, order=min(order, max(n - 1, 1))).x)
        assert found.nfe == n
    assert torch.equal(multistep(DATA, 80 * ONE, steps.edm(1), order=order).x, DATA(80 * ONE, 80.0))


@pytest.mark.parametrize("order", [0, 5, -1, 2.5])
def test_an_order_outside_one_to_four_is_refused(order):
    with pytest.raises(ValueError, match=f"order = {order}"):
        multistep(DATA, ONE, steps.edm(9), order=order)


# The adaptive method.


@pytest.mark.parametrize("schedule", [*SCHEDULES, Cosine(), FlowMatching(), GeometricVE(0.05, 80.0)], ids=str)
def test_the_adaptive_method_meets_its_tolerance(schedule):
    ends = torch.tensor([80.0, 0.05, 0.0], dtype=torch.float64)
    errors, costs = [], []
    for rtol in (1e-5, 1e-8):
        x = start(schedule, 80.0, 57 * ONE)
        found = adaptive(TARGETS["mixture"][0], x, ends, schedule=schedule, rtol=rtol, atol=rtol, trajectory=True)
        states = found.trajectory[-2] / schedule.scale(schedule.sigma_inv(0.05))
        errors.append(abs(float(states) - mixture_flow(57.0)))
        costs.append(found.nfe)
    assert errors[0] < 1e-3
    assert errors[1] < 1e-6
    assert costs[0] < costs[1]
    assert torch.equal(found.x, TARGETS["mixture"][0](states, 0.05))


def test_the_adaptive_method_calls_the_denoiser_inside_the_levels_only():
    """Left alone, torchdiffeq steps over the end and interpolates back: to negative levels here."""
    heard = []

    def listening(x, sigma):
        heard.append(float(sigma))
        return DATA(x, sigma)

    solution = adaptive(listening, 80 * ONE, torch.tensor([80.0, 1.0, 1e-3, 0.0]))
    assert 1e-3 <= min(heard) <= max(heard) <= 80
    assert solution.nfe == len(heard)


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("tolerance", [0.0, -1e-6, float("nan"), float("inf")])
def test_an_impossible_tolerance_is_refused(name, tolerance):
    with pytest.raises(ValueError, match=name):
        adaptive(DATA, ONE, steps.edm(3), **{name: tolerance})


def test_without_torchdiffeq_the_adaptive_method_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"edmnotes\[ode\]"):
        adaptive(DATA, ONE, steps.edm(3))


# The contract.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("sampler", "cost"), [(euler, lambda n: n), (heun, lambda n: 2 * n - 1), (multistep, lambda n: n)]
)
@pytest.mark.parametrize("rule", [steps.edm, steps.vp, steps.ve], ids=lambda rule: rule.__name__)
def test_one_and_two_levels_work(schedule, n, sampler, cost, rule):
    sigmas = rule(n)
    solution = sampler(DATA, start(schedule, sigmas[0], sigmas[0] * ONE), sigmas, schedule=schedule)
    assert bool(solution.x.isfinite().all())
    assert solution.nfe == cost(n)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(sampler, shape, dtype):
    x = (80 * PerSample(range(3)).normal(shape[1:])).to(dtype)
    solution = sampler(DATA, x, steps.edm(4), trajectory=True)
    assert (solution.x.shape, solution.x.dtype) == (shape, dtype)
    assert solution.trajectory.shape == (5, *shape)
    torch.testing.assert_close(solution.trajectory[-1].to(dtype), solution.x)
    assert sampler(DATA, x, steps.edm(4)).trajectory is None


@pytest.mark.parametrize("sampler", [euler, heun])
@pytest.mark.parametrize("churn", [None, Churn(), Churn(amount=40, sigma_min=90.0)])
def test_without_churn_no_random_number_is_drawn(sampler, churn):
    before = torch.random.get_rng_state()

    def refuse(x):
        raise AssertionError("noise was drawn")

    sampler(DATA, 80 * ONE, steps.edm(5), churn=churn)
    sampler(DATA, 80 * ONE, steps.edm(5), churn=churn, noise=refuse)
    assert torch.equal(torch.random.get_rng_state(), before)


# Churn: the samplers are linear on a centred Gaussian, so a state is a list of factors, one for each independent draw.


class Directions:
    """In place of noise: each draw is a direction of its own. The final variance is then a sum of squares, exactly."""

    def __init__(self):
        self.drawn = 0

    def __call__(self, x):
        self.drawn += 1
        return torch.nn.functional.one_hot(torch.tensor([self.drawn]), x.shape[1]).to(x)


def churned_std(sampler, schedule, churn, n):
    """The std of samples of N(0, 0.5²) from σ = 20, without any sampling error."""
    sigmas = steps.edm(n, 0.002, 20.0)
    x = torch.zeros(1, n + 1, dtype=torch.float64)
    x[0, 0] = start(schedule, 20.0, np.sqrt(20.0**2 + 0.25))
    return float(sampler(DATA, x, sigmas, schedule=schedule, churn=churn, noise=Directions()).x.norm())


CHURNS = [Churn(10.0), Churn(40.0), Churn(80.0, 0.05, 10.0)]


@pytest.mark.parametrize("churn", CHURNS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("sampler", "tolerance"), [(euler, 0.03), (heun, 5e-4)])
def test_churn_ends_with_the_right_std_as_the_steps_get_finer(sampler, tolerance, schedule, churn):
    """Forgetting s(t_hat)/s(t), or noise of another variance, would end elsewhere at every n."""
    errors = [abs(churned_std(sampler, schedule, churn, n) - 0.5) for n in (250, 1000)]
    assert errors[1] < tolerance * 0.5
    assert errors[1] < errors[0] / 3


def noise_after_the_call(denoiser, x, sigmas, *, schedule, churn, noise):
    """Heun with the wrong order of peers: the first slope is taken before the noise is added."""
    for sigma, following in pairwise(sigmas):
        gamma = churn.gamma(float(sigma), len(sigmas) - 1)
        raised = sigma * (1 + gamma)
        slope = (x - denoiser(x, sigma)) / sigma
        x = x + torch.sqrt(raised**2 - sigma**2) * noise(x)
        stepped = x + (following - raised) * slope
        if following > 0:
            slope = (slope + (stepped - denoiser(stepped, following)) / following) / 2
        x = x + (following - raised) * slope
    return Solution(x, nfe=2 * len(sigmas) - 3)


@pytest.mark.parametrize("churn", CHURNS, ids=str)
def test_noise_after_the_network_call_fails_the_same_test(churn):
    assert abs(churned_std(noise_after_the_call, EDM(), churn, 1000) - 0.5) > 4 * 5e-4 * 0.5


@pytest.mark.parametrize("churn", CHURNS, ids=str)
def test_churn_with_random_numbers_has_the_std_of_the_exact_count(churn):
    """PerSample's noise in place of the directions: the same std to Monte-Carlo error."""
    n, count = 60, 20_000
    stream = PerSample([0])
    x = np.sqrt(20.0**2 + 0.25) * stream.normal((count,))
    found = float(heun(DATA, x, steps.edm(n, 0.002, 20.0), churn=churn, noise=stream).x.std())
    # Standard error of the std of 20 000 samples: 0.0025.
    assert found == pytest.approx(churned_std(heun, EDM(), churn, n), abs=0.01)


@pytest.mark.parametrize("sampler", WITH_CALLBACK)
def test_the_callback_hears_of_each_step(sampler):
    heard = []
    sigmas = steps.edm(3)
    solution = sampler(DATA, 80 * ONE, sigmas, callback=lambda **step: heard.append(step), trajectory=True)
    assert [step["i"] for step in heard] == [0, 1, 2]
    assert [step["sigma"] for step in heard] == sigmas[:-1].tolist()
    assert torch.equal(torch.stack([step["x"] for step in heard]), solution.trajectory[1:])
    torch.testing.assert_close(heard[0]["denoised"], DATA(80 * ONE, 80.0))


@pytest.mark.parametrize("sampler", ALL)
def test_conditions_reach_the_denoiser(sampler):
    class Conditional:
        def __call__(self, x, sigma, *, labels):
            return labels + 0 * x

    labels = torch.tensor([1.0, 2.0]).double()
    torch.testing.assert_close(sampler(Conditional(), torch.zeros(2).double(), steps.edm(3), labels=labels).x, labels)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize(
    "levels",
    [
        [1.0],
        [0.0],
        [],
        [1.0, 2.0, 0.0],
        [2.0, 2.0, 0.0],
        [2.0, 1.0],
        [2.0, -1.0, 0.0],
        [float("nan"), 0.0],
        [float("inf"), 1.0, 0.0],
        [[2.0, 1.0, 0.0]],
    ],
)
def test_levels_that_do_not_decrease_to_zero_are_refused(sampler, levels):
    with pytest.raises(ValueError, match="sigmas"):
        sampler(DATA, ONE, torch.tensor(levels))


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, float("nan")])
def test_an_alpha_outside_its_interval_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        heun(DATA, ONE, steps.edm(3), alpha=alpha)


@pytest.mark.parametrize("sampler", ALL)
def test_an_integer_start_is_refused(sampler):
    with pytest.raises(ValueError, match="int64"):
        sampler(DATA, torch.ones(2, dtype=torch.int64), steps.edm(3))


@pytest.mark.parametrize("sampler", [euler, heun])
@pytest.mark.parametrize("schedule", [*SCHEDULES, FlowMatching(), Cosine()], ids=str)
@given(
    levels=st.lists(st.floats(1e-3, 100), min_size=1, max_size=5, unique=True),
    amount=st.floats(0, 100),
    noise_scale=st.floats(0, 2),
    shape=st.sampled_from([(2,), (2, 3), (2, 1, 2, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_legal_levels_and_churn_give_finite_samples(sampler, schedule, levels, amount, noise_scale, shape, dtype):
    sigmas = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    x = torch.ones(shape, dtype=dtype)
    churn = Churn(amount, noise_scale=noise_scale)
    solution = sampler(DATA, x, sigmas, schedule=schedule, churn=churn, noise=PerSample([0, 1]))
    assert (solution.x.shape, solution.x.dtype) == (shape, dtype)
    assert bool(solution.x.isfinite().all())


@pytest.mark.parametrize("schedule", [*SCHEDULES, FlowMatching(), Cosine()], ids=str)
@given(
    levels=st.lists(st.floats(1e-3, 100), min_size=1, max_size=5, unique=True),
    order=st.integers(1, 4),
    shape=st.sampled_from([(2,), (2, 3), (2, 1, 2, 2)]),
)
@example(levels=[math.nextafter(60.0, math.inf), 60.0, 1.0], order=2, shape=(2,))
def test_legal_levels_give_finite_multistep_samples(schedule, levels, order, shape):
    """Also levels so near to each other that their logarithms agree."""
    sigmas = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    solution = multistep(DATA, torch.ones(shape), sigmas, schedule=schedule, order=order)
    assert (solution.x.shape, solution.x.dtype) == (shape, torch.float32)
    assert bool(solution.x.isfinite().all())

r"""Derivations of the chapter ``preconditioning``: four coefficients and a loss weight, targets, training levels.

Everything is written for one coordinate: ``x = x_0 + σ ε``, with ε standard normal. Where the data's moments are needed
they are ``CENTRED`` (mean 0, variance σ_data²) or ``SHIFTED`` (mean μ, mean square P).
"""

from collections.abc import Sequence

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Limit,
    Rational,
    Rel,
    Symbol,
    asin,
    atan,
    cos,
    diff,
    exp,
    log,
    oo,
    pi,
    sin,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for
from edmnotes.derivations.forward import expectation

DEFINITIONS = {
    "preconditioned-denoiser": "the form of the denoiser, chosen; the chapter finds its coefficients",
    "training-loss": "what training minimises, chosen",
    "effective-weight": "a name for the product that weighs the network's error",
    "linear-target": "what a network may be asked for: any linear combination",
    "learned-log-variance": "what is minimised when a log-variance is learned too, chosen",
}

NOT_PARSED: dict[str, str] = {}

x, x0, eps, mean, prediction = symbols(r"x x_0 \varepsilon \mu F", real=True)
level, data, P, weight, c_skip, c_out, c_in = symbols(r"\sigma sigma_data P \lambda c_skip c_out c_in", positive=True)
target, a, b = symbols("F_target a b", real=True)
t = Symbol("t", positive=True)
E = Function(r"\mathbb{E}")  # only names what a step computes
q = Function("q", positive=True)  # density of the training levels' logarithm
sigma = Function(r"\sigma", positive=True)

CENTRED = {x0: {1: Rational(0), 2: data**2}, eps: {1: Rational(0), 2: Rational(1)}}
SHIFTED = {x0: {1: mean, 2: P}, eps: {1: Rational(0), 2: Rational(1)}}
NOISY = x0 + level * eps

EDM_SKIP = data**2 / (level**2 + data**2)
EDM_OUT = level * data / sqrt(level**2 + data**2)
EDM_WEIGHT = (level**2 + data**2) / (level * data) ** 2
SQUARED_OUT = (1 - c_skip) ** 2 * data**2 + c_skip**2 * level**2

V = {a: -level / sqrt(1 + level**2), b: 1 / sqrt(1 + level**2)}
VELOCITY = {a: Rational(-1), b: Rational(1)}
TARGETS = {
    "X0": {a: Rational(1), b: Rational(0)},
    "Epsilon": {a: Rational(0), b: Rational(1)},
    "Score": {a: Rational(0), b: -1 / level},
    "V": V,
    "Velocity": VELOCITY,
}
ROWS = {
    "VP": TARGETS["Epsilon"],
    "VE": {a: Rational(0), b: Rational(-1)},
    "IDDPM": TARGETS["Epsilon"],
    "Flow": VELOCITY,
}


def _edm(method: str) -> Call:
    return Call(f"edmnotes.preconditioning:EDM.{method}", {"sigma": level}, init={"sigma_data": data})


def _rows(method: str) -> list[Call]:
    return [
        Call(f"edmnotes.preconditioning:{row}.{method}", {"sigma": level}, where=where) for row, where in ROWS.items()
    ]


@derivation
def regression_of_the_network() -> Derivation:
    """The loss of the denoiser is a regression of the raw network on an effective target."""
    denoised = c_skip * x + c_out * prediction
    solved = solve_for([Eq(c_skip * x + c_out * target, x0)], [target])
    return Derivation(
        "The network's own regression",
        [
            Step("effective-target", solved[target], (x0 - c_skip * x) / c_out, "what F should say so that D says x_0"),
            Step(
                "network-loss",
                weight * (denoised - x0) ** 2,
                weight * c_out**2 * (prediction - target) ** 2,
                "the error of D is c_out times the error of F",
                name=weight * (Symbol("D", real=True) - x0) ** 2,
                given={Symbol("D", real=True): denoised, target: (x0 - c_skip * x) / c_out},
            ),
        ],
    )


@derivation
def three_demands() -> Derivation:
    """Unit input, unit target, least amplification: an optimisation problem, and its only solution."""
    out_of_skip = Function("c_out", positive=True)(c_skip)
    power_in = expectation(NOISY**2, CENTRED)
    power_out = expectation((x0 - c_skip * NOISY) ** 2, CENTRED)
    slope = diff(power_out, c_skip)
    unit_input = solve_for([Eq(c_in**2 * power_in, 1)], [c_in])
    unit_target = solve_for([Eq(power_out / c_out**2, 1)], [c_out])
    least = solve_for([Eq(slope, 0)], [c_skip])
    unit_weight = solve_for([Eq(weight * EDM_OUT**2, 1)], [weight])
    return Derivation(
        "Three demands",
        [
            Step(
                "c-in",
                unit_input[c_in],
                1 / sqrt(level**2 + data**2),
                "first demand: the input has mean square 1",
                torch=_edm("c_in"),
            ),
            Step(
                "c-out-squared",
                unit_target[c_out] ** 2,
                SQUARED_OUT,
                "second demand: the target has mean square 1, whatever c_skip",
                name=c_out**2,
            ),
            Step(
                "c-out-slope",
                Derivative(power_out, c_skip),
                2 * (level**2 + data**2) * c_skip - 2 * data**2,
                "third demand: least c_out², so its slope in c_skip is 0",
                name=Derivative(SQUARED_OUT, c_skip),
            ),
            Step(
                "c-out-curvature",
                Derivative(power_out, (c_skip, 2)),
                2 * (level**2 + data**2),
                "the second derivative is positive: a minimum",
                name=Derivative(out_of_skip**2, (c_skip, 2)),
                given={out_of_skip: sqrt(SQUARED_OUT)},
            ),
            Step("c-skip", least[c_skip], EDM_SKIP, "where the slope is 0", torch=_edm("c_skip")),
            Step(
                "c-out",
                sqrt(power_out),
                EDM_OUT,
                "put the best c_skip into c_out²",
                name=c_out,
                given={c_skip: EDM_SKIP},
                torch=_edm("c_out"),
            ),
            Step(
                "c-out-excess",
                power_out,
                (level**2 + data**2) * (c_skip - EDM_SKIP) ** 2 + EDM_OUT**2,
                "complete the square: no other c_skip is as good, near or far",
                name=c_out**2,
            ),
            Step(
                "loss-weight",
                unit_weight[weight],
                EDM_WEIGHT,
                "every level weighs 1 for the network",
                torch=_edm("weight"),
            ),
        ],
    )


@derivation
def what_the_network_is_asked() -> Derivation:
    """EDM's skip is the best linear denoiser, and its target turns from noise to data as the level rises."""
    answer = (x0 - c_skip * NOISY) / c_out
    edm = {c_skip: EDM_SKIP, c_out: EDM_OUT}
    edm_target = (level * x0 - data**2 * eps) / (data * sqrt(level**2 + data**2))
    v = Symbol("v", positive=True)
    moments = {**CENTRED, x0: {1: Rational(0), 2: v}}
    return Derivation(
        "What the network is asked",
        [
            Step(
                "linear-denoiser",
                expectation(NOISY * x0, moments) / expectation(NOISY**2, moments),
                EDM_SKIP,
                "the slope of the least-squares line of x_0 on x",
                name=E(x * x0) / E(x**2),
                given={v: data**2},
            ),
            Step(
                "edm-target",
                answer,
                edm_target,
                "put EDM's coefficients into the target",
                name=target,
                given=edm,
            ),
            Step(
                "target-low",
                Limit(answer, level, 0),
                -eps,
                "at low levels the network is asked for the noise",
                name=Limit(target, level, 0),
                given={target: edm_target, **edm},
            ),
            Step(
                "target-high",
                Limit(answer, level, oo),
                x0 / data,
                "at high levels it is asked for the data",
                name=Limit(target, level, oo),
                given={target: edm_target, **edm},
            ),
        ],
    )


@derivation
def loss_of_a_zero_network() -> Derivation:
    """What a network that says 0 pays under EDM, for data that need not be centred."""
    loss = EDM_WEIGHT * expectation((x0 - EDM_SKIP * NOISY) ** 2, SHIFTED)
    L = Symbol("L", real=True)
    return Derivation(
        "The loss of a zero network",
        [
            Step(
                "zero-network-loss",
                loss,
                (level**2 * P + data**4) / ((level**2 + data**2) * data**2),
                "the noise pays by its variance, the data by their mean square",
                name=E(L),
            ),
            Step(
                "zero-network-excess",
                loss - 1,
                (P - data**2) / data**2 * level**2 / (level**2 + data**2),
                "what it pays above 1 is for a mean that σ_data does not know",
                name=E(L) - 1,
            ),
        ],
    )


@derivation
def targets_as_coefficients() -> Derivation:
    """x_0, ε, score, v, velocity: each is a choice of c_skip and c_out."""
    skip, out = symbols("c_skip c_out", real=True)
    D = Symbol("D", real=True)
    solved = solve_for([Eq(skip + a * out, 1), Eq(skip * level + b * out, 0)], [skip, out])
    angle = Symbol("phi", positive=True)
    circle = cos(angle) * x0 + sin(angle) * eps
    line = (1 - t) * x0 + t * eps
    inverse = solve_for([Eq(D, solved[skip].value * x + solved[out].value * prediction)], [prediction])

    def coefficient(label: str, value: Expr, name: Symbol, rhs: Expr, chosen: dict[Symbol, Expr], why: str) -> Step:
        return Step(label, value.subs(chosen), rhs, why, name=name)

    return Derivation(
        "Targets as coefficients",
        [
            Step(
                "target-skip",
                solved[skip],
                b / (b - a * level),
                "x_0 has factor 1 and ε factor 0 in c_skip x + c_out F",
                torch=_rows("c_skip"),
            ),
            Step("target-out", solved[out], level / (a * level - b), "the same two equations", torch=_rows("c_out")),
            Step(
                "target-from-denoised",
                inverse[prediction],
                a * D + b * (x - D) / level,
                "solve for F: D stands for the data, what is left for the noise",
                torch=[
                    Call(f"edmnotes.targets:{name}.value", {"denoised": D, "x": x, "sigma": level}, where=chosen)
                    for name, chosen in TARGETS.items()
                ],
            ),
            Step(
                "v-target",
                diff(circle, angle),
                (eps - level * x0) / sqrt(1 + level**2),
                "the speed along the circle on which signal and noise trade places",
                name=Symbol("v", real=True),
                given={angle: atan(level)},
            ),
            coefficient("v-skip", solved[skip].value, skip, 1 / (1 + level**2), V, "the target v"),
            coefficient("v-out", solved[out].value, out, -level / sqrt(1 + level**2), V, "the target v"),
            Step(
                "velocity-target",
                Derivative(line, t),
                eps - x0,
                "the speed along the line from data to noise",
            ),
            coefficient("velocity-skip", solved[skip].value, skip, 1 / (1 + level), VELOCITY, "the target velocity"),
            coefficient("velocity-out", solved[out].value, out, -level / (1 + level), VELOCITY, "the target velocity"),
            Step(
                "target-power",
                expectation(((x0 - skip * NOISY) / out) ** 2, SHIFTED),
                a**2 * P + b**2,
                "data and noise are independent, and the noise has mean 0",
                name=E(target**2),
                given={skip: solved[skip].value, out: solved[out].value},
            ),
        ],
    )


@derivation
def weights_of_the_rows() -> Derivation:
    """What a row's own loss weighs, in the units of EDM's network: λ of the row times c_out² of EDM."""

    def in_edm_units(label: str, out: Expr, rhs: Expr, why: str) -> Step:
        unit = solve_for([Eq(weight * out**2, 1)], [weight])[weight].value
        return Step(label, weight * c_out**2, rhs, why, given={weight: unit, c_out: EDM_OUT})

    return Derivation(
        "The rows' weights",
        [
            in_edm_units("noise-weight", level, EDM_SKIP, "a unit error of the noise, in EDM's units"),
            in_edm_units(
                "velocity-weight",
                level / (1 + level),
                (1 + level) ** 2 * data**2 / (level**2 + data**2),
                "a unit error of the velocity, in EDM's units",
            ),
        ],
    )


@derivation
def training_levels() -> Derivation:
    """The density of ln σ under each row's training distribution, by a change of variables."""
    start, first, last = symbols(r"\epsilon_t t_0 t_1", positive=True)
    beta_min, beta_d, time = symbols(r"\beta_{\min} \beta_d t", positive=True)
    low, high = symbols(r"\sigma_{\min} \sigma_{\max}", positive=True)
    centre, width = Symbol(r"P_{\text{mean}}", real=True), Symbol(r"P_{\text{std}}", positive=True)
    angle0 = Symbol(r"\theta_0", positive=True)
    vp_time = solve_for([Eq(beta_min * time + beta_d * time**2 / 2, log(1 + level**2))], [time])
    ve_time = solve_for([Eq(low * exp(log(high / low) * time), level)], [time])[time].value
    flow_time = solve_for([Eq(time / (1 - time), level)], [time])[time].value
    # the cosine's 1 + σ² is cos²(θ_0) / cos²(θ), with θ rising linearly from θ_0 to a right angle
    cosine_time = (pi / 2 - asin(cos(angle0) / sqrt(1 + level**2)) - angle0) / (pi / 2 - angle0)
    normal = exp(-(((log(level) - centre) / width) ** 2) / 2) / sqrt(2 * pi)
    vp_init = {"beta_min": beta_min, "beta_d": beta_d}
    plain_vp = {beta_min: Rational(1, 10), beta_d: Rational(199, 10)}

    def density(label: str, time_of_level: Expr, span: Expr, rhs: Expr, why: str, assuming: Sequence[Rel] = ()) -> Step:
        lhs = level * Derivative(time_of_level, level) / span
        return Step(label, lhs, rhs, why, name=q(log(level)), assuming=assuming)

    return Derivation(
        "Training levels",
        [
            Step(
                "train-density",
                1 / ((last - first) * Derivative(log(sigma(t)), t)),
                sigma(t) / ((last - first) * Derivative(sigma(t), t)),
                "a uniform time, seen on the axis of ln σ",
                name=q(log(sigma(t))),
                assuming=[last > first],
            ),
            Step(
                "vp-time",
                vp_time[time],
                (sqrt(beta_min**2 + 2 * beta_d * log(1 + level**2)) - beta_min) / beta_d,
                "solve VP's level for the time",
                torch=[
                    Call("edmnotes.schedules:VP.sigma_inv", {"sigma": level}, init=vp_init),
                    Call(
                        "edmnotes.preconditioning:VP.c_noise",
                        {"sigma": level},
                        init={"time_factor": 1},
                        where=plain_vp,
                    ),
                ],
            ),
            density(
                "vp-train-density",
                vp_time[time].value,
                1 - start,
                2 * level**2 / ((1 - start) * (1 + level**2) * sqrt(beta_min**2 + 2 * beta_d * log(1 + level**2))),
                "VP: a uniform time",
                assuming=[start < 1],
            ),
            density("ve-train-density", ve_time, Rational(1), 1 / log(high / low), "VE", assuming=[high > low]),
            density(
                "iddpm-train-density",
                cosine_time,
                Rational(1),
                cos(angle0) * level**2 / ((pi / 2 - angle0) * (1 + level**2) * sqrt(level**2 + sin(angle0) ** 2)),
                "iDDPM: a uniform step of the cosine",
                assuming=[angle0 < 1],
            ),
            density("flow-train-density", flow_time, Rational(1), level / (1 + level) ** 2, "flow: a uniform time"),
            Step(
                "edm-train-density",
                level * normal * Derivative((log(level) - centre) / width, level),
                exp(-((log(level) - centre) ** 2) / (2 * width**2)) / (sqrt(2 * pi) * width),
                "EDM: a normal ln σ",
                name=q(log(level)),
            ),
        ],
    )


@derivation
def learned_log_variance() -> Derivation:
    """The u that minimises e^(-u) l + u is ln l: every level's loss is divided by what it is."""
    mean_loss, u = Symbol(r"\ell", positive=True), Symbol("u", real=True)
    total = exp(-u) * mean_loss + u
    best = solve_for([Eq(diff(total, u), 0)], [u])
    return Derivation(
        "A learned log-variance",
        [
            Step("log-variance-optimum", best[u], log(mean_loss), "the slope in u is 0, and the curvature positive"),
            Step(
                "log-variance-curvature",
                Derivative(total, (u, 2)),
                exp(-u) * mean_loss,
                "the second derivative is positive: a minimum",
                name=Derivative(1 - exp(-u) * mean_loss, u),
            ),
            Step(
                "log-variance-value",
                total.subs(u, best[u]),
                1 + log(mean_loss),
                "put the best u in: what is left to minimise is the logarithm",
                name=total,
                given={u: log(mean_loss)},
            ),
        ],
    )


@derivation
def both_ends_are_hard() -> Derivation:
    """The least loss of a linear denoiser on a coordinate of variance κ, under EDM's weight with one σ_data for all."""
    kappa, k = symbols(r"\kappa k", positive=True)
    moments = {**CENTRED, x0: {1: Rational(0), 2: kappa}}
    error = expectation((x0 - k * NOISY) ** 2, moments)
    best = solve_for([Eq(diff(error, k), 0)], [k])[k].value
    floor = EDM_WEIGHT * error.subs(k, best)
    form = kappa * (level**2 + data**2) / (data**2 * (level**2 + kappa))
    R = Function("R", positive=True)(level)
    wide, narrow = symbols("v_1 v_2", positive=True)
    halves = (floor.subs(kappa, wide) + floor.subs(kappa, narrow)) / 2
    return Derivation(
        "Both ends are hard",
        [
            Step("linear-floor", floor, form, "the best linear guess, weighted", name=R),
            Step(
                "floor-low",
                Limit(floor, level, 0),
                Rational(1),
                "at low levels any coordinate that varies keeps a loss of 1",
                name=Limit(R, level, 0),
                given={R: form},
            ),
            Step(
                "floor-high",
                Limit(floor, level, oo),
                kappa / data**2,
                "at high levels the guess is the mean, and the loss the variance",
                name=Limit(R, level, oo),
                given={R: form},
            ),
            Step(
                "two-scale-gain",
                1 - halves,
                level**2 * (wide - narrow) ** 2 / (4 * data**2 * (level**2 + wide) * (level**2 + narrow)),
                "half of the directions wide, half narrow: a hump between the two",
                name=1 - R,
                given={data: sqrt((wide + narrow) / 2), R: halves},
            ),
        ],
    )

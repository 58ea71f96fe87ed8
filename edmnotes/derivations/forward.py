r"""Derivations of the chapter ``forward``: the noising formula, its chain, its SDE, and the rows of the table.

s and σ are functions of t, as on the page. Where a step needs s(0) = 1 and σ(0) = 0, ``START`` writes them through
two arbitrary functions, S(t)/S(0) and √(Z(t) − Z(0)), so that nothing else is assumed of them.
"""

from collections.abc import Mapping

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Integral,
    Limit,
    Poly,
    Rational,
    Subs,
    Sum,
    Symbol,
    cos,
    diff,
    exp,
    factorial,
    log,
    oo,
    pi,
    solve,
    sqrt,
    symbols,
    tan,
)

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for

DEFINITIONS = {
    "noising": "the model of the whole chapter: two free functions",
    "intro-noising": "the same formula, shown in the introduction",
    "recursion-ansatz": "the form of one step, chosen; the derivation finds a and b",
    "wiener": "what is meant by a Wiener process",
    "sde": "a notation for the limit of the chains",
    "euler-maruyama": "a numerical method, chosen",
    "vp-constraint": "what VP asks for: unit variance is kept",
    "vp-beta": "the choice of beta in this row of the table",
    "ve-schedule": "the choice of clock in this row of the table",
    "edm-schedule": "the choice of clock in this row of the table",
    "ddpm-step": "the chain of Ho et al. 2020, quoted",
    "smld-step": "the chain of Song and Ermon 2019, quoted",
    "flow-line": "the straight line of Lipman et al. 2023, quoted",
}

t, r, h = symbols("t r h", positive=True)
v, P, T, p = symbols("v P T p", positive=True)
x0, eps, mean = symbols(r"x_0 \varepsilon \mu", real=True)
s, sigma, g = (Function(name, positive=True) for name in ("s", r"\sigma", "g"))
f = Function("f", real=True)
S, Z = Function("S", positive=True), Function("Z", positive=True)
remainder = Function("O")  # the order of a remainder: both sides of a step must name the same
E = Function(r"\mathbb{E}")  # only names what a step computes
beta, alpha_bar = Function(r"\beta", positive=True), Function(r"\bar\alpha", positive=True)
beta_min, beta_d = symbols(r"\beta_{\min} \beta_d", positive=True)
sigma_min, sigma_max = symbols(r"\sigma_{\min} \sigma_{\max}", positive=True)
theta, offset = Function(r"\theta", positive=True), Symbol(r"\delta", positive=True)

DRIFT = Derivative(s(t), t) / s(t)
DIFFUSION = s(t) * sqrt(2 * sigma(t) * Derivative(sigma(t), t))
START = {s(t): S(t) / S(0), sigma(t): sqrt(Z(t) - Z(0))}
VP_BETA = {beta(t): beta_min + beta_d * t}
VP_ALPHA_BAR = {alpha_bar(t): exp(-beta_min * t - beta_d * t**2 / 2)}
VP = {s(t): sqrt(alpha_bar(t)), sigma(t): sqrt(1 / alpha_bar(t) - 1), **VP_ALPHA_BAR, **VP_BETA}
COSINE = {
    alpha_bar(t): cos(theta(t)) ** 2 / cos(theta(0)) ** 2,
    theta(t): pi / 2 * (t + offset) / (1 + offset),
}


def _vp(method: str) -> Call:
    return Call(f"edmnotes.schedules:VP.{method}", {"t": t}, init={"beta_min": beta_min, "beta_d": beta_d})


def expectation(polynomial: Expr, moments: Mapping[Symbol, Mapping[int, Expr]]) -> Expr:
    """The mean of a polynomial in independent variables with known moments.

    Args:
        polynomial: in the keys of ``moments``; anything else in it is constant.
        moments: for each variable, its raw moments by order.
    """
    variables = list(moments)
    total: Expr = Rational(0)
    for orders, coefficient in Poly(polynomial, *variables).terms():
        for variable, order in zip(variables, orders, strict=True):
            coefficient *= moments[variable][order] if order else 1
        total += coefficient
    return total


def normal_moment(order: int) -> Expr:
    """The unevaluated integral of z^order under the standard normal density."""
    z = Symbol("z", real=True)
    return Integral(z**order * exp(-(z**2) / 2) / sqrt(2 * pi), (z, -oo, oo))


def taylor(expression: Expr, order: int) -> Expr:
    """Taylor's formula about h = 0, its derivatives not yet carried out, with the order of what is left."""
    derivatives = [expression.subs(h, 0), *(Derivative(expression, (h, k)) for k in range(1, order + 1))]
    return sum((Subs(d, h, 0) * h**k / factorial(k) for k, d in enumerate(derivatives)), remainder(h ** (order + 1)))


@derivation
def noising_formula() -> Derivation:
    """Variance and signal-to-noise ratio of x_t = s (x_0 + σ ε)."""
    x = s(t) * (x0 + sigma(t) * eps)
    moments = {x0: {1: mean, 2: v + mean**2}, eps: {1: Rational(0), 2: Rational(1)}}
    variance = expectation(x**2, moments) - expectation(x, moments) ** 2
    noise_power = (s(t) * sigma(t)) ** 2 * normal_moment(2)
    return Derivation(
        "The noising formula",
        [
            Step(
                "noised-variance",
                variance,
                s(t) ** 2 * (v + sigma(t) ** 2),
                "variances of independent variables add, and s comes out squared",
                name=Function("V")(t),
            ),
            Step(
                "snr",
                s(t) ** 2 * P / noise_power,
                P / sigma(t) ** 2,
                "s multiplies signal and noise alike, so it cancels",
                torch=[
                    Call("edmnotes.schedules:VE.snr", {"t": t}, where={P: 1, sigma(t): sqrt(t)}),
                    Call("edmnotes.schedules:EDM.snr", {"t": t}, where={P: 1, sigma(t): t}),
                ],
            ),
        ],
    )


@derivation
def dividing_by_scale() -> Derivation:
    """Dividing by s changes units and nothing else: the point, and the density for one x_0."""
    x, x_t = symbols("x x_t", real=True)
    scale, level = symbols(r"s \sigma", positive=True)

    def normal(at: Expr, centre: Expr, std: Expr) -> Expr:
        return exp(-((at - centre) ** 2) / (2 * std**2)) / (sqrt(2 * pi) * std)

    return Derivation(
        "Dividing by the scale",
        [
            Step(
                "unscaled",
                x_t / s(t),
                x0 + sigma(t) * eps,
                "divide the noising formula by s",
                given={x_t: s(t) * (x0 + sigma(t) * eps)},
            ),
            Step(
                "kernel-unscaled",
                normal(x, scale * x0, scale * level),
                normal(x / scale, x0, level) / scale,
                "a normal density in other units",
            ),
        ],
    )


@derivation
def one_step_recursion() -> Derivation:
    """x_t = a x_{t-1} + b ε_t has the law of the one-jump formula exactly if a and b are these."""
    s0, s1, level0, level1 = symbols(r"s_{t-1} s_t \sigma_{t-1} \sigma_t", positive=True)
    a, b, start, end = symbols("a b t_0 t_1", positive=True)
    solved = solve_for(
        [Eq(s1, a * s0), Eq(s1**2 * level1**2, a**2 * (s0 * level0) ** 2 + b**2)],
        [a, b],
    )
    levels = {
        s0: sqrt(alpha_bar(start)),
        s1: sqrt(alpha_bar(end)),
        level0: sqrt(1 / alpha_bar(start) - 1),
        level1: sqrt(1 / alpha_bar(end) - 1),
        **VP_ALPHA_BAR,
    }

    def transition(item: int) -> Call:
        return Call(
            "edmnotes.schedules:VP.transition",
            {"start": start, "end": end},
            init={"beta_min": beta_min, "beta_d": beta_d},
            item=item,
            where=levels,
            assuming=[end > start],
        )

    return Derivation(
        "One-step recursion",
        [
            Step("recursion-mean", solved[a], s1 / s0, "match the conditional means", torch=transition(0)),
            Step(
                "recursion-noise",
                solved[b],
                s1 * sqrt(level1**2 - level0**2),
                "match the conditional variances",
                assuming=[level1 > level0],
                torch=transition(1),
            ),
        ],
    )


@derivation
def composition() -> Derivation:
    """Two steps of the recursion are one."""
    s1, s2, level0, level1, level2 = symbols(r"s_1 s_2 \sigma_0 \sigma_1 \sigma_2", positive=True)
    a2, b1, b2 = symbols("a_2 b_1 b_2", positive=True)
    return Derivation(
        "Two steps are one",
        [
            Step(
                "recursion-composed",
                a2**2 * b1**2 + b2**2,
                s2**2 * (level2**2 - level0**2),
                "the level between the two steps drops out",
                given={
                    a2: s2 / s1,
                    b1: s1 * sqrt(level1**2 - level0**2),
                    b2: s2 * sqrt(level2**2 - level1**2),
                },
                assuming=[level1 > level0, level2 > level1],
            ),
        ],
    )


@derivation
def small_step_limit() -> Derivation:
    """Taylor's formula for a and b² of a step of length h, and the coefficients of h."""
    a = s(t + h) / s(t)
    b_squared = s(t + h) ** 2 * (sigma(t + h) ** 2 - sigma(t) ** 2)
    return Derivation(
        "The step goes to zero",
        [
            Step(
                "scale-taylor",
                taylor(a, 2),
                1 + DRIFT * h + Derivative(s(t), t, 2) / (2 * s(t)) * h**2 + remainder(h**3),
                "expand the factor of the signal",
                name=a,
            ),
            Step(
                "noise-taylor",
                taylor(b_squared, 1),
                2 * s(t) ** 2 * sigma(t) * Derivative(sigma(t), t) * h + remainder(h**2),
                "expand the variance of the added noise",
                name=b_squared,
            ),
            Step("drift-from-scale", Limit((a - 1) / h, h, 0, "+"), DRIFT, "the limit of (a - 1) / h", name=f(t)),
            Step(
                "diffusion-from-sigma",
                sqrt(Limit(b_squared / h, h, 0, "+")),
                DIFFUSION,
                "the root of the limit of b² / h",
                name=g(t),
            ),
        ],
    )


@derivation
def wiener_process() -> Derivation:
    """Why √h, and what (dw)² = dt means."""
    n, k = symbols("n k", integer=True, positive=True)
    Q = Symbol("Q_n", positive=True)
    # A squared increment is h z²; the n of them are independent, so the variances of the squares add.
    square = T / n * normal_moment(2)
    variance_of_square = (T / n) ** 2 * normal_moment(4) - square**2
    return Derivation(
        "The Wiener process",
        [
            Step(
                "wiener-power",
                Sum((T / n) ** (2 * p), (k, 1, n)),
                T ** (2 * p) * n ** (1 - 2 * p),
                "add n equal variances",
            ),
            Step(
                "quadratic-variation-mean",
                Sum(square, (k, 1, n)),
                T,
                "the mean square of an increment is its step",
                name=E(Q),
            ),
            Step(
                "quadratic-variation-spread",
                Sum(variance_of_square, (k, 1, n)),
                2 * T**2 / n,
                "the fourth moment of a normal number is 3",
                name=E((Q - T) ** 2),
            ),
        ],
    )


@derivation
def sde_coefficients() -> Derivation:
    """From (f, g) back to (s, σ), and g from the actual noise variance."""
    coefficients = {f(t): DRIFT, g(t): DIFFUSION}
    return Derivation(
        "From the SDE back to the schedule",
        [
            Step(
                "scale-from-drift",
                s(t),
                exp(Integral(f(r), (r, 0, t))),
                "f is the derivative of log s, and s(0) = 1",
                given={**START, **coefficients},
            ),
            Step(
                "sigma-from-diffusion",
                sigma(t) ** 2,
                Integral(g(r) ** 2 / s(r) ** 2, (r, 0, t)),
                "g²/s² is the derivative of σ², and σ(0) = 0",
                given={**START, **coefficients},
            ),
            Step(
                "diffusion-from-variance",
                g(t) ** 2,
                Derivative(s(t) ** 2 * sigma(t) ** 2, t) - 2 * f(t) * s(t) ** 2 * sigma(t) ** 2,
                "what the noise variance grows beyond the drift's share",
                given=coefficients,
            ),
        ],
    )


@derivation
def law_of_the_sde() -> Derivation:
    """The moments of the SDE given x_0, and that they are those of the one-jump formula."""
    m, V, c = Function("m", real=True), Function("V", positive=True), Function("c")
    a, b_squared = 1 + f(t) * h, g(t) ** 2 * h
    # Variation of constants: V = s² c, and the equation of V leaves one for the rate of c.
    with_c = Eq(diff(s(t) ** 2 * c(t), t), 2 * DRIFT * s(t) ** 2 * c(t) + DIFFUSION**2)
    rate = solve(with_c, Derivative(c(t), t))[0].simplify()
    return Derivation(
        "The law of the SDE",
        [
            Step(
                "mean-ode",
                Limit((a * m(t) - m(t)) / h, h, 0, "+"),
                f(t) * m(t),
                "a step multiplies the mean",
                name=Derivative(m(t), t),
            ),
            Step(
                "variance-ode",
                Limit((a**2 * V(t) + b_squared - V(t)) / h, h, 0, "+"),
                2 * f(t) * V(t) + g(t) ** 2,
                "a step multiplies the variance by a square and adds its own",
                name=Derivative(V(t), t),
            ),
            Step(
                "mean-solution",
                x0 * exp(Integral(DRIFT.subs(t, r), (r, 0, t))),
                s(t) * x0,
                "separate the variables, from m(0) = x_0",
                name=m(t),
                given=START,
            ),
            Step(
                "variance-solution",
                s(t) ** 2 * Integral(rate.subs(t, r), (r, 0, t)),
                s(t) ** 2 * sigma(t) ** 2,
                "vary the constant, from V(0) = 0",
                name=V(t),
                given=START,
            ),
        ],
    )


@derivation
def variance_preserving() -> Derivation:
    """VP: one function left, and its closed forms for a linear β."""
    one = {s(t): 1 / sqrt(1 + sigma(t) ** 2), f(t): DRIFT}
    return Derivation(
        "VP",
        [
            Step(
                "vp-tie",
                DIFFUSION**2,
                -2 * f(t),
                "the variance stays at 1, so its two rates cancel",
                name=g(t) ** 2,
                given=one,
            ),
            Step("vp-drift", DRIFT, -beta(t) / 2, "by definition of β", name=f(t), given=VP, torch=_vp("drift")),
            Step("vp-diffusion", DIFFUSION, sqrt(beta(t)), "by the tie", name=g(t), given=VP, torch=_vp("diffusion")),
            Step(
                "vp-alpha-bar",
                exp(-Integral(beta(r), (r, 0, t))),
                exp(-beta_min * t - beta_d * t**2 / 2),
                "integrate β; both terms keep the minus sign",
                name=alpha_bar(t),
                given=VP_BETA,
                torch=_vp("alpha_bar"),
            ),
            Step(
                "vp-scale",
                exp(Integral(f(r), (r, 0, t))),
                sqrt(alpha_bar(t)),
                "integrate the drift",
                name=s(t),
                given={f(t): -beta(t) / 2, **VP_ALPHA_BAR, **VP_BETA},
                torch=_vp("scale"),
            ),
            Step(
                "vp-sigma",
                sqrt(Integral(g(r) ** 2 / s(r) ** 2, (r, 0, t))),
                sqrt(1 / alpha_bar(t) - 1),
                "integrate g²/s²",
                name=sigma(t),
                given={g(t): sqrt(beta(t)), s(t): sqrt(alpha_bar(t)), **VP_ALPHA_BAR, **VP_BETA},
                torch=_vp("sigma"),
            ),
        ],
    )


@derivation
def only_add() -> Derivation:
    """VE and EDM: s = 1, and the diffusion that their clocks ask for."""

    def diffusion_of(label: str, clock: Expr, rhs: Expr, row: str, why: str) -> Step:
        call = Call(f"edmnotes.schedules:{row}.diffusion", {"t": t})
        return Step(label, DIFFUSION, rhs, why, name=g(t), given={s(t): Rational(1), sigma(t): clock}, torch=call)

    return Derivation(
        "VE and EDM",
        [
            diffusion_of("ve-diffusion", sqrt(t), Rational(1), "VE", "σ² = t grows at rate 1"),
            diffusion_of("edm-diffusion", t, sqrt(2 * t), "EDM", "σ² = t² grows at rate 2t"),
        ],
    )


@derivation
def ddpm_chain() -> Derivation:
    """DDPM's chain as a VP chain, and its distance from VP's SDE."""
    s_i, level, before, beta_i = symbols(r"s_i \sigma_i \sigma_{i-1} \beta_i", positive=True)
    product, product_before = symbols(r"\bar\alpha_i \bar\alpha_{i-1}", positive=True)
    i, N = symbols("i N", integer=True, positive=True)
    b, beta_1, beta_N = symbols(r"\beta \beta_1 \beta_N", positive=True)
    linear = beta_min + beta_d * t
    solved = solve_for([Eq(product * (1 + level**2), 1)], [level])
    return Derivation(
        "DDPM's chain",
        [
            Step(
                "ddpm-sigma",
                solved[level],
                sqrt((1 - product) / product),
                "signal and noise of unit data add up to 1",
                assuming=[product < 1],
            ),
            Step(
                "ddpm-noise",
                s_i**2 * (level**2 - before**2),
                beta_i,
                "the noise that the recursion asks for is DDPM's",
                given={
                    s_i: sqrt(product),
                    level: sqrt((1 - product) / product),
                    before: sqrt((1 - product_before) / product_before),
                    product: (1 - beta_i) * product_before,
                },
                assuming=[beta_i < 1, product_before < 1],
            ),
            Step(
                "ddpm-taylor",
                taylor(sqrt(1 - b * h), 2),
                1 - b * h / 2 - b**2 * h**2 / 8 + remainder(h**3),
                "expand DDPM's factor",
                name=sqrt(1 - b * h),
                assuming=[b * h < 1],
            ),
            Step(
                "ddpm-log",
                taylor(log(1 - b * h), 2),
                -b * h - b**2 * h**2 / 2 + remainder(h**3),
                "expand the logarithm of its square",
                name=log(1 - b * h),
                assuming=[b * h < 1],
            ),
            Step(
                "beta-sum",
                Sum(beta_1 + (i - 1) / (N - 1) * (beta_N - beta_1), (i, 1, N)),
                N * (beta_1 + beta_N) / 2,
                "evenly spaced numbers have the mean of the two ends",
            ),
            Step("beta-integral", Integral(linear, (t, 0, 1)), beta_min + beta_d / 2, "integrate a line"),
            Step(
                "beta-squared-integral",
                Integral(linear**2, (t, 0, 1)),
                beta_min**2 + beta_min * beta_d + beta_d**2 / 3,
                "integrate its square",
            ),
        ],
    )


@derivation
def geometric_clock() -> Derivation:
    """GeometricVE: its level and its diffusion; the way back for a schedule that does not start at level 0."""
    start = {s(t): S(t) / S(0), sigma(t): sqrt(Z(t)), g(t): DIFFUSION}
    level, rate = symbols("A c", positive=True)
    growth = solve_for([Eq(level, sigma_min), Eq(level * exp(rate), sigma_max)], [level, rate])

    def geometric(method: str) -> Call:
        ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        return Call(f"edmnotes.schedules:GeometricVE.{method}", {"t": t}, init=ends)

    return Derivation(
        "A geometric clock",
        [
            Step(
                "geometric-ve-schedule",
                growth[level] * exp(growth[rate] * t),
                sigma_min * (sigma_max / sigma_min) ** t,
                "growth at a constant rate from σ_min to σ_max in a unit of time",
                name=sigma(t),
                assuming=[sigma_max > sigma_min, t < 1],
                torch=geometric("sigma"),
            ),
            Step(
                "geometric-ve-diffusion",
                DIFFUSION,
                sigma(t) * sqrt(2 * log(sigma_max / sigma_min)),
                "the logarithm of the level grows at a constant rate",
                name=g(t),
                given={s(t): Rational(1), sigma(t): sigma_min * (sigma_max / sigma_min) ** t},
                assuming=[sigma_max > sigma_min, t < 1],
                torch=geometric("diffusion"),
            ),
            Step(
                "sigma-from-start",
                sigma(t) ** 2,
                sigma(0) ** 2 + Integral(g(r) ** 2 / s(r) ** 2, (r, 0, t)),
                "the integral is only what was added since the start",
                given=start,
            ),
        ],
    )


@derivation
def cosine_row() -> Derivation:
    """The cosine row: its angle, and what that makes of ᾱ, β and σ."""
    factor, slope, angle = symbols("A c b", positive=True)
    scaled = solve_for([Eq(factor * cos(theta(0)) ** 2, 1)], [factor])
    line = solve_for([Eq(angle + slope, pi / 2), Eq(angle - slope * offset, 0)], [angle, slope])

    def cosine(method: str) -> Call:
        return Call(f"edmnotes.schedules:Cosine.{method}", {"t": t}, init={"offset": offset})

    return Derivation(
        "The cosine row",
        [
            Step(
                "cosine-alpha-bar",
                scaled[factor] * cos(theta(t)) ** 2,
                cos(theta(t)) ** 2 / cos(theta(0)) ** 2,
                "a squared cosine, scaled to be 1 at the start",
                name=alpha_bar(t),
                given={theta(t): COSINE[theta(t)]},
                assuming=[t < 1],
                torch=cosine("alpha_bar"),
            ),
            Step(
                "cosine-angle",
                line[angle] + line[slope] * t,
                pi / 2 * (t + offset) / (1 + offset),
                "the straight line from 0 at t = -δ to a right angle at t = 1",
                name=theta(t),
            ),
            Step(
                "cosine-beta",
                -Derivative(log(alpha_bar(t)), t),
                2 * tan(theta(t)) * Derivative(theta(t), t),
                "β is the rate at which the logarithm of ᾱ falls",
                name=beta(t),
                given=COSINE,
                assuming=[t < 1],
                torch=cosine("beta"),
            ),
            Step(
                "cosine-sigma",
                sqrt(1 / alpha_bar(t) - 1),
                sqrt(cos(theta(0)) ** 2 - cos(theta(t)) ** 2) / cos(theta(t)),
                "put the cosine into VP's level",
                name=sigma(t),
                given=COSINE,
                assuming=[t < 1],
                torch=cosine("sigma"),
            ),
        ],
    )


@derivation
def flow_matching() -> Derivation:
    """The straight line of flow matching as a schedule."""
    line = (1 - t) * x0 + t * eps
    scale, level, time = symbols(r"s \sigma t", positive=True)
    both = solve_for([Eq(scale, diff(line, x0)), Eq(scale * level, diff(line, eps))], [scale, level])
    inverse = solve_for([Eq(level, time / (1 - time))], [time])
    flow = {s(t): 1 - t, sigma(t): t / (1 - t)}

    def step(label: str, lhs: Expr, name: Expr, rhs: Expr, method: str, why: str) -> Step:
        call = Call(f"edmnotes.schedules:FlowMatching.{method}", {"t": t})
        return Step(label, lhs, rhs, why, name=name, given=flow, assuming=[t < 1], torch=call)

    return Derivation(
        "Flow matching",
        [
            step("flow-scale", both[scale], s(t), 1 - t, "scale", "the factor of the data is s"),
            step("flow-sigma", both[level], sigma(t), t / (1 - t), "sigma", "the factor of the noise is sσ"),
            step("flow-drift", DRIFT, f(t), -1 / (1 - t), "drift", "differentiate the scale"),
            step("flow-diffusion", DIFFUSION, g(t), sqrt(2 * t / (1 - t)), "diffusion", "differentiate the level"),
            Step(
                "flow-time",
                inverse[time],
                level / (1 + level),
                "solve for the time of a level",
                torch=Call("edmnotes.schedules:FlowMatching.sigma_inv", {"sigma": level}),
            ),
        ],
    )


@derivation
def variance_along_the_way() -> Derivation:
    """The variance of noised data of variance v under VP and under VE."""
    variance = s(t) ** 2 * (v + sigma(t) ** 2)
    V = Function("V")(t)
    return Derivation(
        "Preserving and exploding",
        [
            Step(
                "vp-variance",
                variance,
                1 + (v - 1) * s(t) ** 2,
                "what the data lacks to variance 1 fades with s²",
                name=V,
                given={s(t): 1 / sqrt(1 + sigma(t) ** 2)},
            ),
            Step(
                "ve-variance",
                variance,
                v + t,
                "the Wiener process adds its own variance",
                name=V,
                given={s(t): Rational(1), sigma(t): sqrt(t)},
            ),
        ],
    )


@derivation
def memory() -> Derivation:
    """How much a noised coordinate remembers of the clean one."""
    x = s(t) * (x0 + sigma(t) * eps)
    moments = {x0: {1: Rational(0), 2: v}, eps: {1: Rational(0), 2: Rational(1)}}
    covariance = expectation(x0 * x, moments)
    return Derivation(
        "Memory",
        [
            Step(
                "correlation",
                covariance / sqrt(v * expectation(x**2, moments)),
                sqrt(v) / sqrt(v + sigma(t) ** 2),
                "covariance over the root of the two variances",
                name=Function(r"\rho")(t),
            ),
        ],
    )

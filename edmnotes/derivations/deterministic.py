r"""Derivations of the chapter ``deterministic``: bends of trajectories, errors of steps, step rules, multistep methods.

The probability-flow ODE enters as :func:`slope`, the book's equation ``pf-ode-denoiser``. D is the denoised point;
where it is followed along the trajectory it is a function of time, and nothing else is assumed of it.
"""

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Integer,
    Integral,
    Limit,
    Rational,
    Subs,
    Symbol,
    diff,
    exp,
    interpolate,
    oo,
    prod,
    solve,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for
from edmnotes.derivations.forward import START, remainder, taylor

DEFINITIONS = {
    "euler-step": "a numerical method, chosen",
    "alpha-step": "a family of numerical methods, chosen; the derivation finds its weight",
    "moments": "names for the integrals that the multistep methods need",
}

t, r, h, chi = symbols(r"t r h \chi", positive=True)
v, c, drop = symbols(r"v c \Delta", positive=True)
D = Symbol("D", real=True)
s, sigma, omega = (Function(name, positive=True) for name in ("s", r"\sigma", r"\omega"))
x, D_t, nu = (Function(name, real=True) for name in ("x", "D", r"\nu"))
tau = Function(r"\tau")  # only names what a step computes
i, N = symbols("i N", integer=True, positive=True)
rho, sigma_min, sigma_max = symbols(r"\rho \sigma_{\min} \sigma_{\max}", positive=True)

X_DOT, S_DOT, SIGMA_DOT = (Derivative(function(t), t) for function in (x, s, sigma))


def slope(denoised: Expr) -> Expr:
    """dx/dt of the probability-flow ODE in terms of the denoised point (the book's ``pf-ode-denoiser``)."""
    growth = SIGMA_DOT / sigma(t)
    return (S_DOT / s(t) + growth) * x(t) - growth * s(t) * denoised


def along(expression: Expr, denoised: Expr) -> Expr:
    """The time derivative of an expression of x(t) along the trajectory."""
    return diff(expression, t).subs(X_DOT, slope(denoised))


@derivation
def one_trajectory() -> Derivation:
    """Unscaled, the trajectory depends on the schedule only through its clock; where its tangent leads."""

    def tangent(label: str, level: Expr, rhs: Expr, why: str) -> Step:
        name, given = x(t) - t * X_DOT, {s(t): Rational(1), sigma(t): level}
        return Step(label, x(t) - t * slope(D), rhs, why, name=name, given=given)

    return Derivation(
        "One trajectory",
        [
            Step(
                "unscaled-trajectory",
                along(x(t) / s(t), D),
                SIGMA_DOT / sigma(t) * (x(t) / s(t) - D),
                "the slope of s drops out",
                name=Derivative(x(t) / s(t), t),
            ),
            tangent("tangent-edm", t, D, "follow the tangent from time t back to time 0"),
            tangent("tangent-ve", sqrt(t), (x(t) + D) / 2, "the clock of VE is twice too slow for that"),
        ],
    )


@derivation
def euler_on_edm() -> Derivation:
    """Euler's step for s = 1, σ = t."""
    x_i, D_i = symbols("x_i D_i", real=True)
    here, there = symbols(r"\sigma_i \sigma_{i+1}", positive=True)
    step = slope(D).subs({x(t): x_i, D: D_i})
    return Derivation(
        "Euler's step on EDM's schedule",
        [
            Step(
                "euler-denoised",
                x_i + (there - here) * step.subs(t, here),
                there / here * x_i + (1 - there / here) * D_i,
                "the slope of EDM's trajectory, times the change of level",
                name=Symbol("x_{i+1}", real=True),
                given={s(t): Rational(1), sigma(t): t},
            )
        ],
    )


@derivation
def bends() -> Derivation:
    """Slope and bend of the trajectory, split into the schedule's part and the data's."""
    guess = (x(t) / s(t) - D_t(t)) / sigma(t)
    rate = -Derivative(D_t(t), t) / sigma(t)
    path = s(t) * D_t(t) + omega(t) * nu(t)

    def speed(of: Expr) -> Expr:
        """The time derivative of an expression of D and ν, of which ν moves as the first step says."""
        return diff(of, t).subs(Derivative(nu(t), t), rate)

    actual = {omega(t): s(t) * sigma(t)}
    bend = Derivative(x(t), t, 2)
    a, b = symbols("a b", positive=True)
    s_ddot, omega_ddot = Derivative(s(t), t, 2), Derivative(omega(t), t, 2)
    return Derivation(
        "Where a trajectory bends",
        [
            Step(
                "noise-guess-rate",
                along(guess, D_t(t)),
                rate,
                "the guess of the noise moves only if the guess of the data does",
                name=Derivative(nu(t), t),
            ),
            Step(
                "slope-parts",
                speed(path),
                S_DOT * D_t(t) + Derivative(omega(t), t) * nu(t),
                "the moves of the two guesses cancel",
                name=X_DOT,
                given=actual,
            ),
            Step(
                "bend-parts",
                speed(S_DOT * D_t(t) + Derivative(omega(t), t) * nu(t)),
                s_ddot * D_t(t) + omega_ddot * nu(t) - s(t) * SIGMA_DOT / sigma(t) * Derivative(D_t(t), t),
                "differentiate once more",
                name=bend,
                given=actual,
            ),
            Step(
                "edm-bend",
                speed(S_DOT * D_t(t) + Derivative(omega(t), t) * nu(t)),
                -Derivative(D_t(t), t) / t,
                "both second derivatives are 0",
                name=bend,
                given={**actual, s(t): Rational(1), sigma(t): t},
            ),
            Step(
                "level-error",
                speed(S_DOT * D_t(t) + Derivative(omega(t), t) * nu(t)) / (2 * s(t)) * (drop / SIGMA_DOT) ** 2,
                drop**2 / (2 * s(t) * SIGMA_DOT**2) * (s_ddot * D_t(t) + omega_ddot * nu(t))
                - drop**2 / (2 * sigma(t)) * Derivative(D_t(t), t) / SIGMA_DOT,
                "half the bend, times the square of the time that the drop takes, in unscaled units",
                name=Symbol(r"\tau"),
                given=actual,
            ),
            Step(
                "straight-clock",
                Integral(b, (r, 0, t)) / (1 - Integral(a, (r, 0, t))),
                b * t / (1 - a * t),
                "s and sσ are straight lines from 1 and 0",
                name=sigma(t),
                assuming=[a * t < 1],
            ),
        ],
    )


@derivation
def local_errors() -> Derivation:
    """What one step of Euler's method and of the α-family leaves, by Taylor's formula for any smooth slope."""
    X, T, alpha, W = symbols(r"X T \alpha W", real=True)
    bend, bend_rate, G = symbols(r"B \dot{B} G", real=True)
    v_0, v_t, v_tt, v_xt, v_xx = symbols("v_0 v_t v_tt v_xt v_xx", real=True)

    def velocity(at: Expr, time: Expr) -> Expr:
        """Any smooth slope about (X, T), up to the terms that reach h³."""
        dx, dt = at - X, time - T
        return v_0 + G * dx + v_t * dt + v_xx * dx**2 / 2 + v_xt * dx * dt + v_tt * dt**2 / 2

    # Derivatives of the solution through (X, T): each is the total derivative of the one before.
    totals = [velocity(x(t), t)]
    for _ in range(2):
        totals.append(diff(totals[-1], t).subs(X_DOT, totals[0]))
    first, second, third = (total.subs(x(t), X).subs(t, T) for total in totals)
    exact = X + h * first + h**2 / 2 * second + h**3 / 6 * third

    def step(weight: Expr) -> Expr:
        ahead = velocity(X + alpha * h * first, T + alpha * h)
        return X + h * ((1 - weight) * first + weight * ahead)

    quadratic = diff(exact - step(W), h, 2).subs(h, 0)
    solved = solve_for([Eq(quadratic, 0)], [W])
    return Derivation(
        "Local errors",
        [
            Step(
                "euler-local-error",
                taylor(x(t + h) - x(t) - h * X_DOT, 2),
                h**2 / 2 * Derivative(x(t), t, 2) + remainder(h**3),
                "the first term of Taylor's formula that Euler's step lacks",
                name=tau(h),
            ),
            Step("alpha-weight", solved[W], 1 / (2 * alpha), "the terms in h² must cancel"),
            Step(
                "alpha-local-error",
                taylor(exact - step(1 / (2 * alpha)), 3),
                h**3 * ((Rational(1, 6) - alpha / 4) * bend_rate + alpha / 4 * G * bend) + remainder(h**4),
                "what is left are terms in h³",
                name=tau(h),
                given={bend: second, bend_rate: third},
            ),
        ],
    )


@derivation
def gaussian_errors() -> Derivation:
    """The trajectory of Gaussian data, and the error of a step of Euler's by a drop Δ of the level."""
    rate = S_DOT / s(t) + (slope(v * x(t) / s(t) / (v + sigma(t) ** 2)) / x(t) - S_DOT / s(t)).simplify()
    path = c * s(t) * sqrt(v + sigma(t) ** 2)
    level = Symbol(r"\sigma", positive=True)

    def error(label: str, clock: Expr, time: Expr, rhs: Expr, why: str) -> Step:
        """Half the bend times the square of the time Δ / σ̇ that the drop takes; s is 1."""
        bend = Derivative(path.subs(sigma(t), clock).subs(s(t), 1), t, 2)
        value = Subs(bend / 2 * (drop / Derivative(clock, t)) ** 2, t, time)
        return Step(label, value, rhs, why, name=Symbol(r"\tau"))

    return Derivation(
        "The error of a step, by level",
        [
            Step(
                "gaussian-path",
                c * sqrt(v) * exp(Integral(rate.subs(t, r), (r, 0, t))),
                path,
                "separate the variables; c is x(0) in standard deviations",
                name=x(t),
                given=START,
            ),
            error("edm-level-error", t, level, c * v * drop**2 / (2 * (v + level**2) ** Rational(3, 2)), "σ is t"),
            error(
                "ve-level-error",
                sqrt(t),
                level**2,
                -c * level**2 * drop**2 / (2 * (v + level**2) ** Rational(3, 2)),
                "σ² is t",
            ),
        ],
    )


@derivation
def step_rules() -> Derivation:
    """The four rules: even in σ^(1/ρ), geometric as its limit, the cosine chain's recursion."""
    y0, y1 = symbols("y_0 y_1", real=True)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    share, B = Symbol("y", positive=True), Function("B", positive=True)
    line = solve_for([Eq(y0, top), Eq(y0 + (N - 1) * y1, bottom)], [y0, y1])
    curve = (top + share * (bottom - top)) ** rho

    level, before, A, A_before = symbols(r"u_j u_{j-1} \bar\alpha_j \bar\alpha_{j-1}", positive=True)
    chain = solve_for([Eq(A_before * (1 + before**2), A * (1 + level**2))], [before])

    def edm(number: int) -> Call:
        ends = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        where = {i: Integer(number), N: Integer(6)}
        return Call("edmnotes.steps:edm", {"n": Integer(6), **ends}, item=number, where=where)

    geometric = Call(
        "edmnotes.steps:ve",
        {"n": Integer(6), "sigma_min": sigma_min, "sigma_max": sigma_max},
        item=2,
        where={share: Rational(2, 5)},
    )
    return Derivation(
        "The step rules",
        [
            Step(
                "edm-steps",
                (line[y0] + i * line[y1]) ** rho,
                (top + i / (N - 1) * (bottom - top)) ** rho,
                "a straight line in σ^(1/ρ) between the two ends",
                name=Symbol(r"\sigma_i", positive=True),
                assuming=[i < N, sigma_max > sigma_min],
                torch=[edm(1), edm(4)],
            ),
            Step(
                "rho-spacing",
                diff(B(share) ** rho, share).subs(Derivative(B(share), share), bottom - top),
                -rho * (top - bottom) * sigma(share) ** (1 - 1 / rho),
                "differentiate, and write the power of the bracket as a power of σ",
                name=Derivative(sigma(share), share),
                given={sigma(share): B(share) ** rho},
                assuming=[sigma_max > sigma_min],
            ),
            Step(
                "rho-infinity",
                Limit(curve, rho, oo),
                sigma_max * (sigma_min / sigma_max) ** share,
                "a power of a small change of 1 becomes an exponential",
                assuming=[share < 1, sigma_max > sigma_min],
                torch=geometric,
            ),
            Step(
                "iddpm-levels",
                chain[before],
                sqrt(A / A_before * (level**2 + 1) - 1),
                "neighbours of a chain that preserves the variance",
                assuming=[A_before < A],
            ),
        ],
    )


@derivation
def where_to_step() -> Derivation:
    """The ρ that makes local errors equal, and the spacing that makes the sum of damped errors least."""
    p, m, A, price, n = symbols(r"p m A \Lambda n", positive=True)
    inverse = Symbol("y", real=True)
    equal = solve_for([Eq((p + 1) * (1 - inverse), m)], [inverse])
    stationary = solve_for([Eq(diff(A * n ** (-p) + price * n, n), 0)], [A])
    return Derivation(
        "Where to step",
        [
            Step(
                "equal-error-rho",
                equal[inverse],
                1 - m / (p + 1),
                "the power of σ in Δ^(p+1) must undo that of the error",
                name=1 / rho,
            ),
            Step(
                "least-error",
                stationary[A] * drop ** (p + 1),
                price / p,
                "set the derivative in the number of steps to 0",
                name=A * drop ** (p + 1),
                given={n: 1 / drop},
            ),
        ],
    )


def moment(k: int) -> Expr:
    """∫ e^(r−h) r^k dr over the step, the weight of the power r^k."""
    return Integral(exp(r - h) * r**k, (r, 0, h))


@derivation
def exponential_integrators() -> Derivation:
    """Multistep methods in χ = −log σ: the linear part exactly, D by a polynomial through its last values."""
    x_hat = Function(r"\hat x", real=True)
    X, D0, D1 = symbols(r"\hat{x}_i D_i D_{i-1}", real=True)
    C = Function("C")
    a, b, e = symbols("a b c", positive=True)
    psi = symbols(r"\psi_0 \psi_1 \psi_2 \psi_3", positive=True)
    psis = {name: moment(k) for k, name in enumerate(psi)}

    # Vary the constant: put x = e^(-r) C(r) into the equation and solve for the rate of C.
    varied = Eq(diff(exp(-r) * C(r), r), D_t(chi + r) - exp(-r) * C(r))
    rate = solve(varied, Derivative(C(r), r))[0]

    def step(nodes: list[tuple[Expr, Expr]]) -> Expr:
        """The step with D replaced by the polynomial through (χ-distance, value) pairs."""
        return exp(-h) * X + Integral(exp(r - h) * interpolate(nodes, r), (r, 0, h))

    there = Symbol(r"\hat{x}_{i+1}", real=True)

    def weight(label: str, nodes: list[Expr], rhs: Expr, name: str, why: str) -> Step:
        """The integral of the polynomial that is 1 at the last node and 0 at the others."""
        product = prod(r - node for node in nodes[:-1])
        integral = Integral(exp(r - h) * product.expand(), (r, 0, h)) / product.subs(r, nodes[-1])
        assuming = [b > a + h / 9, e > b + h / 9]
        return Step(label, integral, rhs, why, name=Symbol(name), given=psis, assuming=assuming)

    return Derivation(
        "Exponential integrators",
        [
            Step(
                "log-level-trajectory",
                Derivative(exp(-chi), chi) * (x_hat(chi) - D_t(chi)) / exp(-chi),
                D_t(chi) - x_hat(chi),
                "the slope in σ, times the rate of σ",
                name=Derivative(x_hat(chi), chi),
            ),
            Step(
                "variation-of-constants",
                exp(-h) * (x_hat(chi) + Integral(rate, (r, 0, h))),
                exp(-h) * x_hat(chi) + Integral(exp(r - h) * D_t(chi + r), (r, 0, h)),
                "vary the constant",
                name=x_hat(chi + h),
            ),
            Step(
                "multistep-one",
                step([(Integer(0), D0)]),
                exp(-h) * X + (1 - exp(-h)) * D0,
                "D stays what it is",
                name=there,
            ),
            Step(
                "multistep-two",
                step([(Integer(0), D0), (-a, D1)]),
                exp(-h) * X + (psi[0] + psi[1] / a) * D0 - psi[1] / a * D1,
                "a line through the last two",
                name=there,
                given=psis,
            ),
            weight(
                "multistep-three",
                [Integer(0), -a, -b],
                (psi[2] + a * psi[1]) / (b * (b - a)),
                "w_2",
                "the parabola of the oldest of three values",
            ),
            weight(
                "multistep-four",
                [Integer(0), -a, -b, -e],
                -(psi[3] + (a + b) * psi[2] + a * b * psi[1]) / (e * (e - a) * (e - b)),
                "w_3",
                "the cubic of the oldest of four values",
            ),
            Step(
                "multistep-error",
                taylor((moment(2) / 2 + h * moment(1) / 2).doit(), 3),
                Rational(5, 12) * h**3 + remainder(h**4),
                "a quadratic that is 0 at the two values, integrated",
                name=(psi[2] + h * psi[1]) / 2,
                given=psis,
            ),
        ],
    )

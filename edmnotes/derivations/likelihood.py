r"""Derivations of the chapter ``likelihood``: densities along a flow, their estimate, and what they mean for pixels.

A flow is x' = μ(x, t); along its paths the logarithm of the density is ψ, a function of time or of the level. The
probability-flow ODE gives μ in terms of a denoiser D, of which J is the Jacobian, a number where there is one
coordinate. n counts coordinates; Δ is the distance of neighbouring grey levels.
"""

from collections.abc import Sequence

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Integral,
    Matrix,
    Rational,
    Subs,
    Sum,
    Symbol,
    diff,
    exp,
    eye,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Derivation, Step, derivation, solve_for
from edmnotes.derivations.fokker_planck import NORMAL, normal
from edmnotes.derivations.forward import (
    DRIFT,
    E,
    expectation,
    h,
    r,
    remainder,
    s,
    sigma,
    sigma_max,
    sigma_min,
    t,
    taylor,
    v,
)

DEFINITIONS = {
    "hutchinson": "what is called Hutchinson's estimate",
    "discrete-mass": "how a density is read as a model of grey levels",
}

NOT_PARSED = {
    "change-of-variables-nd": "a divergence in n coordinates; the step writes it out for n = 2",
}

x, y, m, a = symbols("x y m a", real=True)
n, spacing = symbols(r"n \Delta", positive=True)
level = Symbol(r"\sigma", positive=True)
psi, L = Function(r"\psi", real=True), Symbol("L", real=True)
mu = Function(r"\mu", real=True)(x, t)
D, J = Function("D", real=True), Symbol("J", real=True)


def along(quantity: Expr, velocity: Sequence[Expr], coordinates: Sequence[Symbol]) -> Expr:
    """The rate at which a quantity changes in the eyes of a point that moves with the flow.

    Args:
        quantity: a function of the coordinates and t.
        velocity: of the flow, one component a coordinate.
        coordinates: x_1, ..., x_n.
    """
    moved = sum((u * diff(quantity, c) for u, c in zip(velocity, coordinates, strict=True)), Rational(0))
    return diff(quantity, t) + moved


def log_density_rate(coordinates: Sequence[Symbol], velocity: Sequence[Expr]) -> Expr:
    """The rate of log p_t along a path of the flow, when the continuity equation gives that of p_t in one place."""
    p = Function("p_t", positive=True)(*coordinates, t)
    lost = sum(Derivative(u * p, c) for u, c in zip(velocity, coordinates, strict=True))
    return along(log(p), velocity, coordinates).subs(Derivative(p, t), -lost)


def mean_over_normal(value: Expr, mean: Expr, std: Expr) -> Expr:
    """The mean of a polynomial in x, of degree up to 4, for x from N(mean, std²)."""
    draw = Symbol("z", real=True)
    return expectation(value.subs(x, mean + std * draw).expand(), {draw: NORMAL})


@derivation
def change_of_variables() -> Derivation:
    """The density along a path of a flow falls by the divergence of the velocity."""
    jacobian = Matrix(2, 2, symbols("A_{11} A_{12} A_{21} A_{22}", real=True))
    (a11, a12, a21, a22), step = jacobian, eye(2) + h * jacobian
    plane = symbols("x_1 x_2", real=True)
    pair = [Function(name, real=True)(*plane, t) for name in (r"\mu_1", r"\mu_2")]
    return Derivation(
        "Change of variables",
        [
            Step(
                "box-determinant",
                taylor(step.det(), 1),
                1 + h * (a11 + a22) + remainder(h**2),
                "only the diagonal survives in the first order",
                name=(1 + h * a11) * (1 + h * a22) - h**2 * a12 * a21,
            ),
            Step(
                "change-of-variables",
                log_density_rate([x], [mu]),
                -Derivative(mu, x),
                "what the density gains by moving along its own slope cancels",
                name=Derivative(psi(t), t),
            ),
            Step(
                "change-of-variables-nd",
                log_density_rate(plane, pair),
                -Derivative(pair[0], plane[0]) - Derivative(pair[1], plane[1]),
                "each coordinate adds its own stretching",
                name=Derivative(psi(t), t),
            ),
        ],
    )


@derivation
def probability_flow() -> Derivation:
    """The divergence of the probability-flow ODE on any schedule, and the log density as an integral over levels."""
    growth = Derivative(sigma(t), t) / sigma(t)
    velocity = (DRIFT + growth) * x - growth * s(t) * D(x / s(t), sigma(t))
    trace = Function("T", real=True)
    state, denoised, keep = Function("y", real=True)(level), Symbol("D", real=True), Symbol("k", positive=True)
    whitened = level * diff(state / sqrt(level**2 + v), level)
    return Derivation(
        "The probability flow",
        [
            Step(
                "flow-divergence",
                Derivative(velocity, x),
                DRIFT + growth * (1 - J),
                "the chain rule takes the scale out of the denoiser's slope",
                name=Derivative(mu, x),
                given={J: Subs(Derivative(D(y, sigma(t)), y), y, x / s(t))},
            ),
            Step(
                "log-density-integral",
                -Integral(Derivative(psi(r), r), (r, sigma_min, sigma_max)),
                Integral((n - trace(r)) / r, (r, sigma_min, sigma_max)),
                "integrate the divergence from one level to the other",
                name=psi(sigma_min) - psi(sigma_max),
                given={trace(r): n + r * Derivative(psi(r), r)},
            ),
            Step(
                "whitened-slope",
                whitened.subs(Derivative(state, level), (state - denoised) / level).subs(state, y),
                (keep * y - denoised) / sqrt(level**2 + v),
                "the growth of the divisor takes its share of y",
                name=level * Derivative(Function("z", real=True)(level), level),
                given={keep: v / (v + level**2)},
            ),
        ],
    )


@derivation
def one_gaussian() -> Derivation:
    """Data N(m, v): the log density by the flow, end to end; and how far the highest density is from a typical one."""
    volume = Integral((1 - v / (v + r**2)) / r, (r, sigma_min, sigma_max))
    latent = m + (x - m) * sqrt((v + sigma_max**2) / (v + sigma_min**2))
    density = normal(x, m, sqrt(v))
    below_top = (log(density.subs(x, m)) - log(density)).expand(force=True)
    return Derivation(
        "One Gaussian",
        [
            Step(
                "gaussian-log-volume",
                volume,
                log((v + sigma_max**2) / (v + sigma_min**2)) / 2,
                "the denoiser's slope is v/(v + σ²)",
            ),
            Step(
                "gaussian-log-density",
                log(normal(latent, m, sqrt(v + sigma_max**2))) + volume,
                -((x - m) ** 2) / (2 * (v + sigma_min**2)) - log(2 * pi * (v + sigma_min**2)) / 2,
                "the density of the latent and the volume together",
                name=psi(sigma_min),
            ),
            Step(
                "typical-gap",
                n * Integral((density * below_top).simplify(), (x, -oo, oo)),
                n / 2,
                "half a nat a coordinate",
                name=psi(m) - E(psi(x)),
            ),
        ],
    )


@derivation
def random_trace() -> Derivation:
    """The variance of Hutchinson's estimate for random signs and for normals, in two coordinates.

    M is the integral of J/σ over the path, a symmetric matrix for an exact denoiser.
    """
    directions = symbols(r"\xi_1 \xi_2", real=True)
    m11, m12, m22 = symbols("M_{11} M_{12} M_{22}", real=True)
    vector, integral = Matrix(directions), Matrix([[m11, m12], [m12, m22]])
    error = integral.trace() - (vector.T * integral * vector)[0]
    found, right = Symbol(r"\hat{\psi}", real=True), Symbol(r"\psi", real=True)

    i, j = symbols("i j", integer=True)
    signs = error.subs(dict(zip(directions, ((-1) ** i, (-1) ** j), strict=True)))
    normals = {**NORMAL, 4: Subs(Derivative(exp(h**2 / 2), (h, 4)), h, 0)}  # by the moment-generating function
    return Derivation(
        "Hutchinson's estimate",
        [
            Step(
                "hutchinson-signs",
                Sum(signs**2 / 4, (i, 0, 1), (j, 0, 1)),
                4 * m12**2,
                "the square of a sign is 1, so the diagonal adds no chance",
                name=E((found - right) ** 2),
            ),
            Step(
                "hutchinson-normals",
                expectation((error**2).expand(), dict.fromkeys(directions, normals)),
                2 * m11**2 + 4 * m12**2 + 2 * m22**2,
                "the square of a normal number has variance 2",
                name=E((found - right) ** 2),
            ),
        ],
    )


@derivation
def prior() -> Derivation:
    """What it costs to take N(0, σ_max²) for the density of the latents, for data N(m, v)."""
    std = sqrt(v + sigma_max**2)
    ratio = (log(normal(x, m, std)) - log(normal(x, 0, sigma_max))).expand(force=True)
    return Derivation(
        "The prior",
        [
            Step(
                "prior-gap",
                mean_over_normal(ratio, m, std),
                ((v + m**2) / sigma_max**2 - log(1 + v / sigma_max**2)) / 2,
                "the relative entropy of two normal densities",
                name=Symbol("K"),
            ),
        ],
    )


@derivation
def grey_levels() -> Derivation:
    """From a density to bits a dimension of grid values: the bound, its constant, and the best level to stop at."""
    mass, bits = symbols("P b", positive=True)
    p = Function("p", positive=True)
    cell = (a, -spacing / 2, spacing / 2)
    lost = Integral(log(mass / (spacing * p(a))), cell) / spacing
    cost = Integral((-log(normal(a, 0, level))).expand(force=True), cell) / spacing - log(spacing)
    slope = diff(cost.doit(), level)
    return Derivation(
        "Grey levels",
        [
            Step(
                "dequantisation-gap",
                log(mass),
                log(spacing) + Integral(log(p(a)), cell) / spacing + lost,
                "split the logarithm",
            ),
            Step(
                "bits-per-dim",
                solve_for([Eq(-n * bits * log(2), n * log(spacing) + L)], [bits])[bits],
                -L / (n * log(2)) - log(spacing) / log(2),
                "a code of b bits a dimension is one of probability 2 to the power −nb",
            ),
            Step(
                "grid-point-cost",
                cost,
                log(2 * pi * level**2 / spacing**2) / 2 + spacing**2 / (24 * level**2),
                "the mean square of the uniform noise is Δ²/12",
                name=Function("c")(level),
            ),
            Step(
                "best-level",
                solve_for([Eq(slope, 0)], [level])[level],
                spacing / sqrt(12),
                "where the slope of the cost is 0",
            ),
        ],
    )


@derivation
def mixed_codes() -> Derivation:
    """The mean square of a mix of two codes."""
    codes, weights = symbols("y_1 y_2", real=True), symbols("a_1 a_2", real=True)
    moments = {1: Rational(0), 2: sigma_max**2}
    mix = sum(w * c for w, c in zip(weights, codes, strict=True))
    return Derivation(
        "Mixed codes",
        [
            Step(
                "mixed-codes",
                expectation((mix**2).expand(), dict.fromkeys(codes, moments)),
                (weights[0] ** 2 + weights[1] ** 2) * sigma_max**2,
                "variances of independent numbers add",
                name=E(mix**2),
            ),
        ],
    )

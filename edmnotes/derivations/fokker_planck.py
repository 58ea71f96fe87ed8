r"""Derivations of the chapter ``fokker_planck``: the equation of a density, and the processes that share one.

A density p_t(x) is a function of x and t, as are the drift μ(x, t) and the test function. Most steps have one
coordinate, called x; those with n coordinates are checked with two. Stochastic differential equations are written with
a formal symbol d, so that dx = μ dt + γ dw is an equation between sums of products; a bar over w marks a process that
runs backwards, with dt < 0.

"For every test function φ" is carried out by :func:`adjoint`: two integrands, both linear in φ, have the same integral
for every φ that vanishes far out exactly if their variational derivatives agree, and that of a total derivative is 0.
"""

from collections.abc import Sequence

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Integral,
    Limit,
    Rational,
    Subs,
    Symbol,
    cos,
    diff,
    exp,
    factorial,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Derivation, Step, derivation, solve_for
from edmnotes.derivations.forward import DIFFUSION, DRIFT, START, expectation, f, g, h, r, s, sigma, t, v, x0

DEFINITIONS = {
    "sde-general": "the process whose density is sought: drift and diffusion are free",
    "current": "what is called the probability current",
    "diffusion-matrix": "what is called the diffusion matrix",
    "smoothed-density": "the density of x_0 + σ ε: that of a sum of independent variables",
}

NOT_PARSED = {
    "fokker-planck-nd": "sums over derivatives in indexed coordinates; the step writes them out for n = 2",
    "fokker-planck-isotropic": "divergence and Laplacian in n coordinates; the step writes them out for n = 2",
}

x, y, z, k, m = symbols("x y z k m", real=True)
eta = Symbol(r"\eta", positive=True)
level = Symbol(r"\sigma", positive=True)
d, w, w_bar = symbols(r"d w \bar{w}", real=True)  # d only stands before t, x and w
U = Symbol("U", real=True)  # an unknown drift
eps = Symbol(r"\varepsilon", real=True)
NORMAL = {1: Rational(0), 2: Rational(1), 3: Rational(0), 4: Rational(3)}

p = Function("p_t", positive=True)(x, t)
mu = Function(r"\mu", real=True)(x, t)
gamma_x = Function(r"\gamma", positive=True)(x, t)  # in the general equation it may depend on x
phi = Function(r"\varphi", real=True)(x)
gamma = Function(r"\gamma", positive=True)(t)
SCORE = Derivative(log(p), x)
SLOPE = Derivative(p, x)


def normal(at: Expr, centre: Expr, std: Expr) -> Expr:
    """The density of N(centre, std²) at a point of the line."""
    return exp(-((at - centre) ** 2) / (2 * std**2)) / (sqrt(2 * pi) * std)


def adjoint(integrand: Expr, test: Expr, coordinates: Sequence[Symbol]) -> Expr:
    """The factor that the test function is left with when every derivative of it has been moved away by parts.

    This is the variational derivative, the sum of (−∂)^α of the derivative of ``integrand`` by ∂^α ``test``; it does
    not see the boundary terms, which are total derivatives.

    Args:
        integrand: linear in ``test`` and its derivatives, up to the second.
        test: the test function, applied to the coordinates.
        coordinates: what the integral runs over.
    """
    by_once = [(a,) for a in coordinates]
    by_twice = [(a, b) for i, a in enumerate(coordinates) for b in coordinates[i:]]
    total = diff(integrand, test)
    for directions in (*by_once, *by_twice):
        coefficient = diff(integrand, Derivative(test, *directions))
        total += (-1) ** len(directions) * Derivative(coefficient, *directions)
    return total


def mean_change(
    test: Expr, coordinates: Sequence[Symbol], drift: Sequence[Expr], diffusion: Sequence[Sequence[Expr]], order: int
) -> Expr:
    """The change of a test function in a step of length h, on average and over h, for points at the coordinates.

    A step of Euler–Maruyama moves coordinate i by μ_i h + Σ_k γ_ik √h ε_k; the test function is expanded in this move,
    and the mean is taken over ε. The result is a polynomial in h.

    Args:
        test: the test function, applied to the coordinates.
        coordinates: x_1, ..., x_n.
        drift: μ_1, ..., μ_n.
        diffusion: the matrix γ, n rows.
        order: of the expansion; what is left out is of a higher order than h from 2 on.
    """
    draws = symbols(rf"\varepsilon_1:{len(diffusion[0]) + 1}", real=True)
    moves = [
        a * h + sum(b * sqrt(h) * e for b, e in zip(row, draws, strict=True))
        for a, row in zip(drift, diffusion, strict=True)
    ]
    moved: Expr = test
    terms: list[tuple[Expr, Expr]] = [(Rational(1), test)]
    for degree in range(1, order + 1):
        terms = [
            (factor * move, diff(value, x_i))
            for factor, value in terms
            for x_i, move in zip(coordinates, moves, strict=True)
        ]
        moved += sum(factor * value for factor, value in terms) / factorial(degree)
    mean = expectation(moved, dict.fromkeys(draws, NORMAL))
    return ((mean - test) / h).expand()


def fokker_planck_side(drift: Expr, diffusion: Expr) -> Expr:
    """The right side of the Fokker–Planck equation in one coordinate, for a density p_t."""
    return -Derivative(drift * p, x) + Derivative(diffusion**2 * p, (x, 2)) / 2


def drift_for(current: Expr, spread: Expr) -> Expr:
    """The drift whose current ``U p - spread`` is the one that is asked for."""
    return solve_for([Eq(U * p - spread, current)], [U])[U]


def sde(drift: Expr, diffusion: Expr, path: Symbol) -> Expr:
    """What dx equals: drift dt + diffusion dw."""
    return drift * d * t + diffusion * d * path


@derivation
def density_of_an_sde() -> Derivation:
    """The Fokker–Planck equation in one coordinate, from test functions."""
    R, F, J = (Function(name, real=True)(x, t) for name in "RFJ")
    rate = Limit(mean_change(phi, [x], [mu], [[gamma_x]], order=3), h, 0, "+")
    written = mu * Derivative(phi, x) + gamma_x**2 * Derivative(phi, (x, 2)) / 2
    side = adjoint(p * rate.doit(), phi, [x])
    return Derivation(
        "The Fokker–Planck equation",
        [
            Step("generator", rate, written, "expand the test function, and take the mean over the noise", name=R),
            Step(
                "by-parts",
                p * R,
                phi * F
                + Derivative(
                    phi * mu * p + gamma_x**2 * p * Derivative(phi, x) / 2 - phi * Derivative(gamma_x**2 * p, x) / 2,
                    x,
                ),
                "move the derivatives from the test function to the density",
                given={R: written, F: fokker_planck_side(mu, gamma_x)},
            ),
            Step(
                "fokker-planck",
                side,
                fokker_planck_side(mu, gamma_x),
                "for every test function the factors of it agree",
                name=Derivative(p, t),
            ),
            Step(
                "continuity",
                side,
                -Derivative(J, x),
                "both terms are derivatives",
                name=Derivative(p, t),
                given={J: mu * p - Derivative(gamma_x**2 * p, x) / 2},
            ),
        ],
    )


@derivation
def several_coordinates() -> Derivation:
    """The Fokker–Planck equation with a diffusion matrix, written out for two coordinates and two noises."""
    xs = symbols("x_1 x_2", real=True)
    at = (*xs, t)
    density = Function("p_t", positive=True)(*at)
    test = Function(r"\varphi", real=True)(*xs)
    drift = [Function(rf"\mu_{i}", real=True)(*at) for i in (1, 2)]
    matrix = [[Function(rf"\gamma_{{{i}{j}}}", positive=True)(*at) for j in (1, 2)] for i in (1, 2)]
    one = gamma
    isotropic = [[one, Rational(0)], [Rational(0), one]]

    def computed(rows: Sequence[Sequence[Expr]]) -> Expr:
        return adjoint(density * mean_change(test, xs, drift, rows, order=2).subs(h, 0), test, xs)

    D = [[(a[0] * b[0] + a[1] * b[1]) / 2 for b in matrix] for a in matrix]
    transport = -sum(Derivative(drift[i] * density, xs[i]) for i in range(2))
    spread = sum(Derivative(D[i][j] * density, xs[i], xs[j]) for i in range(2) for j in range(2))
    laplacian = sum(Derivative(density, (x_i, 2)) for x_i in xs)
    return Derivation(
        "Several coordinates",
        [
            Step(
                "fokker-planck-nd",
                computed(matrix),
                transport + spread,
                "each pair of coordinates shares the noises that move both",
                name=Derivative(density, t),
            ),
            Step(
                "fokker-planck-isotropic",
                computed(isotropic),
                transport + one**2 * laplacian / 2,
                "one noise a coordinate, all of one size",
                name=Derivative(density, t),
            ),
        ],
    )


@derivation
def heat() -> Derivation:
    """The smoothed density obeys a heat equation, by Fourier transform; and with a scale, the SDE's own equation."""
    transform, of_data = Function(r"\hat{p}", real=True)(k, t), Function(r"\hat{p}_0", real=True)(k)
    kernel = Integral(cos(k * z) * normal(z, 0, sigma(t)), (z, -oo, oo))
    damped = of_data * exp(-(sigma(t) ** 2) * k**2 / 2)
    wave = Integral(cos(k * (x - y)) * exp(-(sigma(t) ** 2) * k**2 / 2), (k, -oo, oo)) / (2 * pi)
    return Derivation(
        "The heat equation",
        [
            Step(
                "kernel-transform",
                Integral(cos(k * z) * normal(z, 0, level), (z, -oo, oo)),
                exp(-(level**2) * k**2 / 2),
                "a Gaussian integral",
            ),
            Step(
                "smoothed-transform",
                of_data * kernel,
                damped,
                "the transform of a convolution is the product of the transforms",
                name=transform,
            ),
            Step(
                "transform-rate",
                Derivative(transform, t),
                -sigma(t) * Derivative(sigma(t), t) * k**2 * transform,
                "differentiate the exponent",
                given={transform: damped},
            ),
            Step(
                "heat-equation",
                Derivative(p, t),
                sigma(t) * Derivative(sigma(t), t) * Derivative(p, (x, 2)),
                "transform back, for a point mass at y; the equation is linear, so it holds for every average over y",
                given={p: wave},
            ),
            Step(
                "forward-fokker-planck",
                Derivative(p, t),
                -Derivative(f(t) * x * p, x) + g(t) ** 2 * Derivative(p, (x, 2)) / 2,
                "for a point mass at y, and so for every average over y",
                given={p: normal(x, s(t) * y, s(t) * sigma(t)), f(t): DRIFT, g(t): DIFFUSION},
            ),
        ],
    )


@derivation
def sde_family() -> Derivation:
    """Every process with the marginals p(x; σ(t)), for s = 1: any noise, and the drift that it asks for."""
    heating = sigma(t) * Derivative(sigma(t), t)
    drift = drift_for(-heating * SLOPE, gamma**2 * SLOPE / 2)
    written = (gamma**2 / 2 - heating) * SCORE
    still = Function("p", positive=True)(x)
    return Derivation(
        "The SDE family",
        [
            Step(
                "sde-family",
                sde(drift, gamma, w),
                sde(written, gamma, w),
                "the drift makes up for the noise that is too much or too little",
                name=d * x,
            ),
            Step(
                "family-marginals",
                -Derivative(mu * p, x) + gamma**2 * Derivative(p, (x, 2)) / 2,
                heating * Derivative(p, (x, 2)),
                "p times the gradient of log p is the gradient of p",
                given={mu: written},
            ),
            Step(
                "langevin-sde",
                sde(drift_for(Rational(0), gamma**2 * SLOPE / 2), gamma, w),
                sde(gamma**2 * SCORE / 2, gamma, w),
                "the drift for which no probability flows",
                name=d * x,
            ),
            Step(
                "langevin-stationary",
                Derivative(gamma**2 * still * Derivative(log(still), x) / 2, x),
                gamma**2 * Derivative(still, (x, 2)) / 2,
                "what the drift gathers the noise spreads",
            ),
        ],
    )


@derivation
def reverse_time() -> Derivation:
    """Processes that run through the marginals of dx = f x dt + g dw, there or back, with any noise."""
    forward = f(t) * x * p - g(t) ** 2 * SLOPE / 2  # the current of the forward process
    # Run backwards, a process of drift μ and noise γ is one of drift -μ in the time that grows.
    backward = -(-Derivative(-mu * p, x) + Derivative(gamma**2 * p, (x, 2)) / 2)

    def drift(strength: Expr) -> Expr:
        return drift_for(forward, -(strength**2) * SLOPE / 2)

    written = f(t) * x - (1 + eta**2) * g(t) ** 2 * SCORE / 2
    D = Function("D", real=True)
    score = (D(x / s(t), sigma(t)) - x / s(t)) / (s(t) * sigma(t) ** 2)
    schedule = {f(t): DRIFT, g(t): DIFFUSION}
    at = Symbol("r", positive=True)
    smoothed = Function("p", positive=True)
    growth = Derivative(sigma(t), t) / sigma(t)
    return Derivation(
        "Backwards in time",
        [
            Step(
                "backward-fokker-planck",
                backward,
                -Derivative(mu * p, x) - gamma**2 * Derivative(p, (x, 2)) / 2,
                "turn the sign of time, and with it the sign of the drift",
                name=Derivative(p, t),
            ),
            Step(
                "scaled-family",
                sde(drift_for(forward, gamma**2 * SLOPE / 2), gamma, w),
                sde(f(t) * x + (gamma**2 - g(t) ** 2) * SCORE / 2, gamma, w),
                "forwards, with any noise and any scale",
                name=d * x,
            ),
            Step(
                "reverse-sde",
                sde(drift(g(t)), g(t), w_bar),
                sde(f(t) * x - g(t) ** 2 * SCORE, g(t), w_bar),
                "half of the score undoes the noise of the way there, half that of the way back",
                name=d * x,
            ),
            Step(
                "sde-strength",
                sde(drift(eta * g(t)), eta * g(t), w_bar),
                sde(written, eta * g(t), w_bar),
                "the same with another noise",
                name=d * x,
            ),
            Step(
                "strength-marginals",
                -Derivative(mu * p, x) - (eta * g(t)) ** 2 * Derivative(p, (x, 2)) / 2,
                -Derivative(f(t) * x * p, x) + g(t) ** 2 * Derivative(p, (x, 2)) / 2,
                "the noise strength drops out",
                given={mu: written},
            ),
            Step(
                "pf-ode",
                drift(Rational(0)) * d * t,
                (f(t) * x - g(t) ** 2 * SCORE / 2) * d * t,
                "no noise at all",
                name=d * x,
            ),
            Step(
                "scaled-score",
                SCORE,
                score,
                "the chain rule gives 1/s, Tweedie's formula 1/σ²",
                given={
                    p: smoothed(x / s(t), sigma(t)) / s(t),
                    D(x, at): x + at**2 * Subs(Derivative(log(smoothed(z, at)), z), z, x),
                },
            ),
            Step(
                "pf-ode-denoiser",
                (f(t) * x - g(t) ** 2 * score / 2) * d * t,
                ((DRIFT + growth) * x - growth * s(t) * D(x / s(t), sigma(t))) * d * t,
                "insert f, g and the score",
                name=d * x,
                given=schedule,
            ),
            Step(
                "strength-denoiser",
                sde(f(t) * x - (1 + eta**2) * g(t) ** 2 * score / 2, eta * g(t), w_bar),
                sde(
                    DRIFT * x + (1 + eta**2) * growth * (x - s(t) * D(x / s(t), sigma(t))),
                    eta * DIFFUSION,
                    w_bar,
                ),
                "insert f, g and the score",
                name=d * x,
                given=schedule,
            ),
        ],
    )


@derivation
def one_gaussian() -> Derivation:
    """Data N(0, v) and s = 1, where every member is linear: what equal marginals leave open."""
    clock = Symbol("q", positive=True)  # σ², of which σ̇σ dt is half the differential
    rate = 1 / (2 * (v + clock))  # the PF-ODE's, by that clock
    growth = Integral(rate, (clock, 0, level**2))
    rho, kappa = symbols(r"\rho_{\eta} \kappa", positive=True)
    return Derivation(
        "One Gaussian",
        [
            Step(
                "gaussian-flow",
                x0 * exp(growth),
                x0 * sqrt(1 + level**2 / v),
                "the score is linear, so the ODE only stretches",
                name=Symbol("x_t"),
            ),
            Step(
                "memory-of-strength",
                v * exp((1 - eta**2) * growth) / sqrt(v * (v + level**2)),
                (v / (v + level**2)) ** (eta**2 / 2),
                "the covariance with the start, over both spreads",
                name=rho,
            ),
            Step(
                "fixed-start-variance",
                (v + level**2) ** (1 - eta**2) * Integral(eta**2 * (v + clock) ** (eta**2 - 1), (clock, 0, level**2)),
                (v + level**2) * (1 - rho**2),
                "noise of every moment, stretched since",
                name=Function("V")(level),
                given={rho: (v / (v + level**2)) ** (eta**2 / 2)},
            ),
            Step(
                "start-forgotten",
                exp(-Integral((1 + eta**2) * rate, (clock, 0, level**2))),
                (v / (v + level**2)) ** ((1 + eta**2) / 2),
                "a difference of two starts decays at the rate of the drift",
                name=kappa,
            ),
            Step(
                "backwards-variance",
                v + sigma(t) ** 2 + Integral(g(r) ** 2, (r, 0, t)),
                v + 2 * sigma(t) ** 2,
                "noise is added on both ways",
                given={g(t): sqrt(2 * sigma(t) * Derivative(sigma(t), t)), sigma(t): START[sigma(t)]},
            ),
        ],
    )


@derivation
def both_ends() -> Derivation:
    """What starting from pure noise, and stopping at a level above 0, cost."""
    top, low = symbols(r"\sigma_{\max} \sigma_{\min}", positive=True)
    moments = {x0: {1: Rational(0), 2: v}, eps: NORMAL}
    kept = expectation((v / (v + low**2) * (x0 + low * eps)) ** 2, moments)
    ratio = log(normal(x, y, top)) - log(normal(x, 0, top))
    return Derivation(
        "Both ends",
        [
            Step(
                "start-divergence",
                Integral((normal(x, y, top) * ratio.expand(force=True)).simplify(), (x, -oo, oo)),
                y**2 / (2 * top**2),
                "the Kullback–Leibler divergence of two normal laws of one variance",
                name=Function("K")(y),
            ),
            Step(
                "last-step-std",
                sqrt(kept),
                v / sqrt(v + low**2),
                "the mean of the possible clean points spreads less than they do",
                name=Symbol("S_D"),
            ),
        ],
    )

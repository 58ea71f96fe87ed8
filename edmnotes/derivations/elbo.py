r"""Derivations of the chapter ``elbo``: the evidence bound and its gap, encoders, decoders and hierarchies.

Where nothing but probabilities is used, the latent z takes n values: q(z) is any encoder for the point x at hand,
made of arbitrary positive numbers by dividing them by their sum, and Z is the evidence, the sum of the p(x, z). Where a
closed form is wanted, the model is linear, x = a z + b ε. κ is the variance of the data in one direction.
"""

from collections.abc import Mapping
from typing import Any

from sympy import (
    Add,
    Derivative,
    Eq,
    Expr,
    Function,
    IndexedBase,
    Integral,
    Product,
    Rational,
    Subs,
    Sum,
    Symbol,
    Tuple,
    diff,
    erf,
    exp,
    expand_log,
    log,
    oo,
    pi,
    solve,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Call, Derivation, Solved, Step, derivation, solve_for
from edmnotes.derivations.fokker_planck import NORMAL, normal
from edmnotes.derivations.forward import E, expectation, h, remainder

DEFINITIONS = {
    "hvae-middle": "a term of the bound, named",
    "hvae-top": "a term of the bound, named",
    "iwae": "the bound of Burda et al. 2016, by its definition",
}

NOT_PARSED: dict[str, str] = {}

x, y, u, m, eps = symbols(r"x y u m \varepsilon", real=True)
a, b, c, kappa, spacing, Z = symbols(r"a b c \kappa \Delta Z", positive=True)
n, k, i, j, N = symbols("n k i j N", integer=True, positive=True)
z, z1, z2, index, second_index = symbols(r"z z_1 z_2 \iota \iota_2", integer=True, positive=True)
L = Symbol(r"\mathcal{L}", real=True)

p, q, w, r = (Function(name, positive=True) for name in ("p", "q", "w", "r"))
likelihood = Function("p_x", positive=True)
U, Phi = Function("U", real=True), Function(r"\Phi", positive=True)
number = Function("c", positive=True)


class LinearSum(Sum):
    """A sum over the values of a latent, of which only linearity is used; SymPy tries more and takes long.

    ``doit`` splits it, takes constants out and gives the index one name; with numbers for limits it is written out.
    """

    def doit(self, **hints: Any) -> Expr:
        """Return constants times sums that cannot be split further."""
        inside = self.function.doit(**hints)
        for limits in self.limits:  # SymPy keeps a sum of a sum as one with two limits
            inside = _linear_sum(inside, *limits)
        return inside


def _linear_sum(inside: Expr, variable: Symbol, first: Expr, last: Expr) -> Expr:
    if last.is_number:
        return Add(*(inside.subs(variable, value) for value in range(first, last + 1)))
    total: Expr = Rational(0)
    for term in Add.make_args(expand_log(inside, force=True).expand(power_exp=False, power_base=False)):
        constant, rest = term.as_independent(variable, as_Add=False)
        name = second_index if rest.has(index) else index
        total += constant * (last if rest == 1 else LinearSum(rest.subs(variable, name), (name, first, last)))
    return total


def over(value: Expr, variable: Symbol = z, last: Symbol = n) -> LinearSum:
    """The sum over the values 1 … ``last`` of a latent, or over as many draws."""
    return LinearSum(value, (variable, 1, last))


FEW = [n < 4]  # for the numbers only; the algebra keeps n
NORMALISED = {q(z): number(z) / over(number(z))}
EVIDENCE = {Z: over(p(x, z))}
BOUND = over(q(z) * log(p(x, z) / q(z)))


def log_normal(at: Expr, centre: Expr, std: Expr) -> Expr:
    """The logarithm of the density of N(centre, std²)."""
    return expand_log(log(normal(at, centre, std)), force=True)


def mean_over(value: Expr, *draws: Symbol) -> Expr:
    """The mean of a polynomial in independent standard normal numbers."""
    return expectation(value, dict.fromkeys(draws, NORMAL))


def variance_over(value: Expr, draw: Symbol) -> Expr:
    """The variance of a polynomial in one standard normal number."""
    moments = {draw: {order: Subs(Derivative(exp(h**2 / 2), (h, order)), h, 0) for order in range(1, 9)}}
    return expectation((value**2).expand(), moments) - expectation(value.expand(), moments) ** 2


def gaussian_kl(mean: Expr, std: Expr) -> Expr:
    """The divergence of N(mean, std²) from N(0, 1), by the mean of the logarithm of their ratio."""
    draw = mean + std * eps
    return mean_over((log_normal(draw, mean, std) - log_normal(draw, 0, 1)).expand(), eps)


def positive_root(equation: Expr, unknown: Symbol, at: Mapping[Symbol, int]) -> Solved:
    """The solution of ``equation`` = 0 that is positive at a point, where exactly one must be."""
    (root,) = (value for value in solve(equation, unknown) if value.subs(at) > 0)
    return Solved(unknown, root, Tuple(Eq(equation, 0)))


@derivation
def four_ways() -> Derivation:
    """The bound and its gap: by Jensen, by the posterior, by the weights' mean, and by the least free energy."""
    weights = {w(z): p(x, z) / q(z), **NORMALISED, **EVIDENCE}
    share, multiplier = symbols(r"q \lambda", positive=True)
    best = solve_for(
        [Eq(diff(share * (log(p(x, z)) - log(share)) + multiplier * share, share), 0), Eq(Z * exp(multiplier - 1), 1)],
        [share, multiplier],
    )[share]
    return Derivation(
        "Four ways to the bound",
        [
            Step(
                "evidence",
                over(p(z) * likelihood(z)),
                over(p(x, z)),
                "the prior times the decoder is the joint law; add it up over the latent",
                name=Z,
                given={likelihood(z): p(x, z) / p(z)},
                assuming=FEW,
            ),
            Step(
                "elbo",
                over(q(z) * log(w(z))),
                over(q(z) * log(p(x, z) / q(z))),
                "the mean of the logarithm of the weights",
                name=L,
                given=weights,
                assuming=FEW,
            ),
            Step(
                "evidence-weights",
                over(p(x, z)),
                over(q(z) * w(z)),
                "multiply and divide by the encoder",
                name=Z,
                given=weights,
                assuming=FEW,
            ),
            Step(
                "log-tangent",
                Integral((u - y) / y**2, (y, Z, u)),
                u / Z - 1 - log(u / Z),
                "Taylor's formula with its remainder",
                assuming=[u > 0],
            ),
            Step(
                "jensen-gap",
                log(Z) - over(q(z) * log(w(z))),
                over(q(z) * (w(z) / Z - 1 - log(w(z) / Z))),
                "the mean of w/Z is 1",
                name=log(Z) - L,
                given=weights,
                assuming=FEW,
            ),
            Step(
                "evidence-ratio",
                log(Z),
                over(q(z) * log(p(x, z) / r(z))),
                "the ratio is the evidence for every z, so any average of its logarithm is",
                given={r(z): p(x, z) / Z, **NORMALISED},
                assuming=FEW,
            ),
            Step(
                "elbo-gap",
                log(Z) - BOUND,
                over(q(z) * log(q(z) / r(z))),
                "subtract the bound",
                name=log(Z) - L,
                given={r(z): p(x, z) / Z, **NORMALISED, **EVIDENCE},
                assuming=FEW,
            ),
            Step(
                "free-energy",
                BOUND,
                -over(q(z) * U(z)) - over(q(z) * log(q(z))),
                "minus the mean energy, plus the entropy",
                name=L,
                given={U(z): -log(p(x, z)), **NORMALISED},
                assuming=FEW,
            ),
            Step(
                "best-encoder",
                best,
                exp(-U(z)) / Z,
                "slope 0 for each z, with a multiplier for the sum",
                name=q(z),
                given={U(z): -log(p(x, z))},
            ),
            Step(
                "elbo-at-best",
                BOUND.subs(q(z), p(x, z) / Z),
                log(Z),
                "put it into the bound",
                name=L,
                given=EVIDENCE,
                assuming=FEW,
            ),
        ],
    )


@derivation
def linear_model() -> Derivation:
    """x = a z + b ε with one Gaussian encoder: everything in closed form."""
    draw = m + c * eps
    bound = mean_over(log_normal(x, a * draw, b) + log_normal(draw, 0, 1) - log_normal(draw, m, c), eps)
    spread = a**2 + b**2
    best = {m: a * x / spread, c: b / sqrt(spread)}
    return Derivation(
        "One linear latent",
        [
            Step(
                "linear-elbo",
                bound,
                -((x - a * m) ** 2 + a**2 * c**2) / (2 * b**2)
                - log(2 * pi * b**2) / 2
                - (m**2 + c**2 - 1 - log(c**2)) / 2,
                "the mean of a square is the square of the mean and the variance",
                name=L,
            ),
            Step(
                "linear-encoder-mean",
                solve_for([Eq(diff(bound, m), 0)], [m])[m],
                a * x / spread,
                "slope 0 in m",
            ),
            Step(
                "linear-encoder-std",
                solve_for([Eq(diff(bound, c), 0)], [c])[c],
                b / sqrt(spread),
                "slope 0 in c; x does not matter",
            ),
            Step(
                "linear-tight",
                bound.subs(best),
                -(x**2) / (2 * spread) - log(2 * pi * spread) / 2,
                "put both in: the log density of N(0, a² + b²)",
                name=L,
            ),
        ],
    )


@derivation
def mean_field() -> Derivation:
    """x = a (z_1 + z_2) + b ε with an encoder that keeps its latents independent: where the bound leads, and ML."""
    first, second = symbols(r"\varepsilon_1 \varepsilon_2", real=True)
    codes = [m + c * first, m + c * second]
    bound = mean_over(
        log_normal(x, a * (codes[0] + codes[1]), b) + sum(log_normal(d, 0, 1) - log_normal(d, m, c) for d in codes),
        first,
        second,
    )
    mean = solve_for([Eq(diff(bound, m), 0)], [m])[m]
    std = solve_for([Eq(diff(bound, c), 0)], [c])[c]
    whole = Symbol("V", positive=True)
    evidence = log_normal(x, 0, sqrt(whole))
    best = bound.subs({m: mean.value, c: std.value})

    def over_data(value: Expr) -> Expr:
        """The mean over data of variance κ, as a function of the model's variance."""
        return expectation(value.expand(), {x: {1: Rational(0), 2: kappa}}).subs(a, sqrt((whole - b**2) / 2))

    slope = diff(over_data(best), whole).together().as_numer_denom()[0]
    return Derivation(
        "Two latents, one number",
        [
            Step("mean-field-mean", mean, a * x / (2 * a**2 + b**2), "slope 0 in m"),
            Step("mean-field-std", std, b / sqrt(a**2 + b**2), "slope 0 in c"),
            Step(
                "mean-field-gap",
                evidence.subs(whole, 2 * a**2 + b**2) - best,
                log(1 + a**2 / b**2) - log(1 + 2 * a**2 / b**2) / 2,
                "the same for every x",
                name=log(Z) - L,
            ),
            Step(
                "likelihood-variance",
                solve_for([Eq(diff(over_data(evidence), whole), 0)], [whole])[whole],
                kappa,
                "slope 0 of the mean log likelihood",
            ),
            Step(
                "mean-field-variance",
                positive_root(slope, whole, {kappa: 3, b: 1}),
                (kappa + sqrt(kappa**2 + 8 * kappa * b**2)) / 4,
                "slope 0 of the mean bound, with its best encoder",
            ),
        ],
    )


@derivation
def many_weights() -> Derivation:
    """The importance-weighted bound rises with the number of draws; how fast the gap closes, and when it is slow."""
    weight, bounds = IndexedBase("w", positive=True), IndexedBase(r"\mathcal{L}", real=True)
    spread = Symbol("v_w", positive=True)
    T, total = Symbol("T", positive=True), over(weight[i], i, k)
    curvature = Subs(Derivative(log(1 + h), (h, 2)), h, 0)
    return Derivation(
        "Many weights",
        [
            Step(
                "iwae-subsets",
                T / k,
                over((T - weight[j]) / (k - 1), j, k) / k,
                "each weight is left out once",
                given={T: total},
            ),
            Step(
                "iwae-gap",
                -curvature / 2 * over(spread / k**2, i, k) + remainder(k**-2),
                spread / (2 * k) + remainder(k**-2),
                "the second term of the logarithm's series; the mean of k weights has a k-th of the variance",
                name=log(Z) - bounds[k],
            ),
            Step(
                "weight-spread",
                Integral((normal(u, 0, 1) / normal(u, 0, c)) ** 2 * normal(u, 0, c), (u, -oo, oo)) - 1,
                c**2 / sqrt(2 * c**2 - 1) - 1,
                "the mean of the squared weight; it is finite only if the encoder is wide enough",
                name=spread,
                given={c: sqrt((1 + h**2) / 2)},
            ),
        ],
    )


@derivation
def autoencoder() -> Derivation:
    """The two terms of the bound, the reparameterisation, and what its common mistake computes."""
    factor, mean = symbols("c_0 m_0", positive=True)
    second = {order: mean_over(((mean + factor * eps) ** order).expand(), eps) for order in (1, 2)}
    found = solve_for([Eq(second[1], m), Eq(second[2] - second[1] ** 2, c**2)], [mean, factor])
    square = (m + c * eps) ** 2
    spread = a**2 + b**2
    slip = mean_over(log_normal(x, a * (m + c**2 * eps), b), eps) - gaussian_kl(m, c)
    return Derivation(
        "The variational autoencoder",
        [
            Step(
                "elbo-terms",
                over(q(z) * log(p(z) * likelihood(z) / q(z))),
                over(q(z) * log(likelihood(z))) - over(q(z) * log(q(z) / p(z))),
                "split the logarithm",
                name=L,
                given=NORMALISED,
                assuming=FEW,
            ),
            Step(
                "reparameterisation",
                found[mean] + found[factor] * eps,
                m + c * eps,
                "match the mean and the variance",
                name=Symbol("z", real=True),
            ),
            Step(
                "path-gradient-spread",
                variance_over(diff(square, c), eps),
                4 * m**2 + 8 * c**2,
                "fourth moments of a normal number",
                name=Symbol("v_p", positive=True),
            ),
            Step(
                "score-gradient-spread",
                variance_over(square * (eps**2 - 1) / c, eps),
                2 * m**4 / c**2 + 60 * m**2 + 74 * c**2,
                "moments up to the eighth",
                name=Symbol("v_s", positive=True),
            ),
            Step(
                "squared-std-excess",
                slip - log_normal(x, 0, sqrt(spread)),
                (1 - c**2) ** 2 / 2,
                "the latent's noise is too small, and the picture is decoded too well",
                name=Symbol(r"\mathcal{L}_{wrong}") - log(Z),
                given={m: a * x / spread, c: b / sqrt(spread)},
            ),
        ],
    )


@derivation
def gaussians() -> Derivation:
    """Gaussian encoders and decoders: the divergence, the density of a picture, the mass of a grey level."""
    m1, m2, pixel, guess = symbols("m_1 m_2 x D", real=True)
    c1, c2 = symbols("c_1 c_2", positive=True)
    H, mass, missed = symbols("H P M", positive=True)
    pixels, guesses = IndexedBase("x", real=True), IndexedBase("D", real=True)
    misses = over((pixels[j] - guesses[j]) ** 2, j)
    cost = -over(log_normal(pixels[j], guesses[j], b), j)
    draw = m1 + c1 * eps
    divergence = log(c2 / c1) + (c1**2 + (m1 - m2) ** 2) / (2 * c2**2) - Rational(1, 2)
    standard = {Phi(u): (1 + erf(u / sqrt(2))) / 2}
    return Derivation(
        "Gaussian encoders and decoders",
        [
            Step(
                "gaussian-kl",
                mean_over((log_normal(draw, m1, c1) - log_normal(draw, m2, c2)).expand(), eps),
                divergence,
                "the mean of the logarithm of the ratio, a square",
                name=H,
                torch=Call(
                    "edmnotes.variational:gaussian_kl", {"mean": m1, "std": c1, "other_mean": m2, "other_std": c2}
                ),
            ),
            Step(
                "gaussian-kl-prior",
                divergence.subs({m1: m, c1: c, m2: 0, c2: 1}),
                (m**2 + c**2 - 1) / 2 - log(c),
                "put in the standard normal law",
                name=H,
            ),
            Step(
                "gaussian-decoder",
                cost,
                misses / (2 * b**2) + n * log(2 * pi * b**2) / 2,
                "the logarithm of a product of normal densities",
                name=-log(Function("p_x", positive=True)(z)),
            ),
            Step(
                "decoder-std",
                solve_for([Eq(diff(missed / (2 * b**2) + n * log(b), b), 0)], [b])[b],
                sqrt(misses / n),
                "slope 0 in b",
                given={missed: misses},
            ),
            Step(
                "discretised-gaussian",
                Integral(normal(y, guess, b), (y, pixel - spacing / 2, pixel + spacing / 2)),
                Phi((pixel + spacing / 2 - guess) / b) - Phi((pixel - spacing / 2 - guess) / b),
                "the normal density, integrated over the level's bin",
                name=mass,
                given=standard,
            ),
        ],
    )


@derivation
def collapse() -> Derivation:
    """One direction of a linear model: when the best decoder does not use its latent."""
    spread = a**2 + b**2
    likelihood = expectation(log_normal(x, 0, sqrt(spread)).expand(), {x: {1: Rational(0), 2: kappa}})
    slope = diff(likelihood, a)
    used = solve_for([Eq((slope / a).simplify(), 0)], [a])[a]
    divergence = expectation(gaussian_kl(a * x / spread, b / sqrt(spread)).expand(), {x: {1: Rational(0), 2: kappa}})
    mean = Function(r"\ell", real=True)
    return Derivation(
        "Collapse",
        [
            Step(
                "collapse-slope",
                slope,
                a * (kappa - a**2 - b**2) / (a**2 + b**2) ** 2,
                "differentiate the mean log likelihood",
                name=Derivative(mean(a), a),
            ),
            Step("collapse-factor", used, sqrt(kappa - b**2), "the other zero", assuming=[kappa > b**2]),
            Step(
                "collapse-curvature",
                Subs(Derivative(slope, a), a, 0),
                (kappa - b**2) / b**4,
                "the slope's own slope at 0",
                name=Subs(Derivative(mean(a), (a, 2)), a, 0),
            ),
            Step(
                "collapse-nats",
                divergence.subs(a, sqrt(kappa - b**2)),
                log(kappa / b**2) / 2,
                "the mean over the data of the divergence from the prior",
                name=E(Symbol("H")),
                assuming=[kappa > b**2],
            ),
        ],
    )


@derivation
def hierarchy() -> Derivation:
    """The bound of a Markovian hierarchy, by level, and its gap."""
    up, down = IndexedBase("q", positive=True), IndexedBase("p", positive=True)
    q1, q2, p2, p3, r1, r2 = (Function(name, positive=True) for name in ["q_1", "q_2", "p_2", "p_3", "r_1", "r_2"])
    c1, c2 = (Function(name, positive=True) for name in ["c_1", "c_2"])

    def first(value: Expr) -> Expr:
        return over(value, z1)

    def second(value: Expr) -> Expr:
        return over(value, z2)

    encoders = {q1(z1): c1(z1) / first(c1(z1)), q2(z1, z2): c2(z1, z2) / second(c2(z1, z2))}
    above = second(p2(z1, z2) * p3(z2))
    evidence = {Z: first(likelihood(z1) * above)}
    posteriors = {r1(z1): likelihood(z1) * above / Z, r2(z1, z2): p2(z1, z2) * p3(z2) / above}
    weight = likelihood(z1) * p2(z1, z2) * p3(z2) / (q1(z1) * q2(z1, z2))
    bound = first(second(q1(z1) * q2(z1, z2) * log(weight)))
    middle, top = symbols("M H", real=True)
    return Derivation(
        "A hierarchy of latents",
        [
            Step(
                "hvae-elbo",
                expand_log(log(down[N + 1] * Product(down[i] / up[i], (i, 1, N))), force=True),
                log(down[N + 1]) + Sum(log(down[i] / up[i]), (i, 1, N)),
                "the logarithm of the product",
                name=log(Symbol("w", positive=True)),
            ),
            Step(
                "hvae-terms",
                bound,
                first(q1(z1) * log(likelihood(z1))) - middle - top,
                "split the logarithm; each level meets the one above it",
                name=L,
                given={
                    middle: first(q1(z1) * second(q2(z1, z2) * log(q1(z1) / p2(z1, z2)))),
                    top: first(q1(z1) * second(q2(z1, z2) * log(q2(z1, z2) / p3(z2)))),
                    **encoders,
                },
                assuming=FEW,
            ),
            Step(
                "hvae-gap",
                log(Z) - bound,
                first(q1(z1) * log(q1(z1) / r1(z1)))
                + first(q1(z1) * second(q2(z1, z2) * log(q2(z1, z2) / r2(z1, z2)))),
                "the posterior of a chain is a chain",
                name=log(Z) - L,
                given={**encoders, **posteriors, **evidence},
                assuming=FEW,
            ),
        ],
    )

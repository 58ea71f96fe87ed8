r"""Derivations of the chapter ``tweedie``: denoisers, scores, and the losses that find them.

Most steps stand in one coordinate with arbitrary weights. That is enough for every dimension: the kernel is a product,
and for the k-th coordinate the factors of the others only change the weights. Finite data keep a symbolic number n of
points; continuous data keep an arbitrary density p_0 under an integral that is never carried out (:class:`Linear`).
"""

from typing import Any

from sympy import (
    Add,
    Derivative,
    Eq,
    Expr,
    Function,
    IndexedBase,
    Integral,
    Rational,
    Subs,
    Sum,
    Symbol,
    cosh,
    diff,
    exp,
    expand,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Derivation, Step, derivation, solve_for
from edmnotes.derivations.forward import E, expectation

DEFINITIONS = {
    "kernel": "the density of the noise, for short",
    "smoothed-finite": "the noise's density, averaged over where it may have started",
    "smoothed-any": "the same average over a density",
    "denoising-loss": "the loss that is chosen to be minimised",
    "exponential-family": "the family, by its definition",
    "energy": "the model, by its definition",
    "explicit-score-matching": "the loss that one would like to minimise",
    "implicit-score-matching": "the loss of Hyvärinen 2005; how it differs from the explicit one is derived",
    "denoising-score-matching": "the loss of Vincent 2011; how it differs from the explicit one is derived",
    "sliced-score-matching": "the loss of Song et al. 2019; how it differs from the implicit one is derived",
    "fisher-divergence": "the divergence, by its definition",
}

x, y, z, u, a, b = symbols("x y z u a b", real=True)
x0, mean, nu, m = symbols(r"x_0 \mu \nu m", real=True)
v, V, Z, tau, w = symbols(r"v V Z \tau w_1", positive=True)
sigma = Symbol("sigma", positive=True)
i, n = symbols("i n", integer=True, positive=True)
weight, point = IndexedBase("w", positive=True), IndexedBase("y", real=True)

K, p0 = Function("K", positive=True), Function("p_0", positive=True)
p, q = Function("p", positive=True), Function("q", positive=True)
D, S, s, C = Function("D", real=True), Function("S", real=True), Function(r"\psi", real=True), Function("C", real=True)


def normal(offset: Expr, variance: Expr) -> Expr:
    """The normal density at ``offset`` from its mean."""
    return exp(-(offset**2) / (2 * variance)) / sqrt(2 * pi * variance)


class Linear(Integral):
    """An integral over an unknown function, of which only linearity is used.

    SymPy cannot carry such an integral out and takes many seconds to find out; ``doit`` here only splits sums and takes
    constants out. The numbers see an ordinary integral.
    """

    def doit(self, **hints: Any) -> Expr:
        """Split the sum under the integral and take out what does not depend on the variable."""
        inside, limits = self.args[0].doit(**hints), self.args[1:]
        total: Expr = Rational(0)
        for term in Add.make_args(expand(inside, power_exp=False, power_base=False, log=False)):
            constant, rest = term.as_independent(limits[0][0], as_Add=False)
            total += constant * Linear(rest, *limits)
        return total


def over_points(value: Expr) -> Expr:
    """The sum of w_i K(x − y_i) times ``value`` over n points."""
    return Sum(weight[i] * K(x - point[i]) * value, (i, 1, n))


def over_line(value: Expr) -> Expr:
    """The integral of p_0(y) K(x − y) times ``value``."""
    return Linear(p0(y) * K(x - y) * value, (y, a, b))


ONE = Rational(1)
FEW = [n < 3]  # for the numbers only, which take long; the algebra keeps n
KERNEL = {K(u): normal(u, sigma**2)}
SMOOTHED = over_points(ONE)
IDEAL = over_points(point[i]) / SMOOTHED
VARIANCE = over_points(point[i] ** 2) / SMOOTHED - IDEAL**2
IDEAL_ANY = over_line(y) / over_line(ONE)
VARIANCE_ANY = over_line(y**2) / over_line(ONE) - IDEAL_ANY**2
FINITE = {p(x, sigma): SMOOTHED, D(x, sigma): IDEAL, C(x, sigma): VARIANCE, **KERNEL}
ANY = {p(x, sigma): over_line(ONE), D(x, sigma): IDEAL_ANY, C(x, sigma): VARIANCE_ANY, **KERNEL}
SCORE = {S(x, sigma): Derivative(log(p(x, sigma)), x)}
LOG_SLOPE = Derivative(log(p(x, sigma)), x)


def gaussian_denoiser(centre: Expr, variance: Expr) -> Expr:
    """D(x; σ) for data that are one Gaussian."""
    return centre + variance / (variance + sigma**2) * (x - centre)


def minimiser(loss: Expr) -> Expr:
    """Where a quadratic loss in z has slope 0, by linearity of its sum or integral."""
    flat = Symbol("z", real=True)
    slope = diff(loss, flat)
    at_zero, rate = slope.subs(flat, 0), diff(slope, flat)
    return solve_for([Eq(at_zero + rate * flat, 0)], [flat])[flat]


@derivation
def best_guess() -> Derivation:
    """The mean square distance from a guess is the variance plus the square of the guess's error."""
    moments = {x0: {1: mean, 2: v + mean**2}}
    return Derivation(
        "The best guess",
        [
            Step(
                "best-guess",
                expectation((z - x0) ** 2, moments),
                v + (z - mean) ** 2,
                "the guess only enters through its distance from the mean",
                name=E((z - x0) ** 2),
            )
        ],
    )


@derivation
def finite_data() -> Derivation:
    """Tweedie's formula for n points with any weights, and the denoiser that minimises the loss on them."""
    at_point = over_points((z - point[i]) ** 2)
    return Derivation(
        "Finite data",
        [
            Step(
                "kernel-slope",
                Derivative(K(x - y), x),
                (y - x) / sigma**2 * K(x - y),
                "differentiate the exponent",
                given=KERNEL,
            ),
            Step(
                "tweedie-finite",
                x + sigma**2 * LOG_SLOPE,
                IDEAL,
                "each kernel's slope carries the factor y_i - x; the x of all terms add up to x",
                given=FINITE,
                assuming=FEW,
            ),
            Step(
                "loss-at-a-point",
                at_point,
                p(x, sigma) * (z - D(x, sigma)) ** 2 + p(x, sigma) * C(x, sigma),
                "complete the square",
                given=FINITE,
                assuming=FEW,
            ),
            Step(
                "ideal-denoiser-finite",
                minimiser(at_point),
                IDEAL,
                "the loss at x is least where its slope in z is 0",
                name=D(x, sigma),
                given=KERNEL,
                assuming=FEW,
            ),
        ],
    )


@derivation
def any_density() -> Derivation:
    """The same for a density: sums become integrals, and the derivative goes under the integral."""
    slope = Symbol("g", real=True)
    return Derivation(
        "Any density",
        [
            Step(
                "ideal-denoiser",
                minimiser(over_line((z - y) ** 2)),
                IDEAL_ANY,
                "the loss at x is least where its slope in z is 0",
                name=D(x, sigma),
                given=KERNEL,
                assuming=[b > a],
            ),
            Step(
                "tweedie",
                D(x, sigma),
                x + sigma**2 * LOG_SLOPE,
                "differentiate under the integral",
                given=ANY,
                assuming=[b > a],
            ),
            Step(
                "score-from-denoiser",
                solve_for([Eq(D(x, sigma), x + sigma**2 * slope)], [slope])[slope],
                (D(x, sigma) - x) / sigma**2,
                "solve for the slope",
                name=LOG_SLOPE,
            ),
        ],
    )


@derivation
def mixtures() -> Derivation:
    """Closed forms: one Gaussian and a mixture."""
    weights = symbols("w_1 w_2", positive=True)
    means, variances = symbols(r"\mu_1 \mu_2", real=True), symbols("v_1 v_2", positive=True)
    densities = [Function(rf"\varphi_{k}", positive=True) for k in (1, 2)]
    guesses = [Function(f"D_{k}", real=True) for k in (1, 2)]
    given: dict[Expr, Expr] = {}
    for density, guess, centre, spread in zip(densities, guesses, means, variances, strict=True):
        given[density(x)] = normal(x - centre, spread + sigma**2)
        given[guess(x)] = gaussian_denoiser(centre, spread)
    shares = [weight * density(x) for weight, density in zip(weights, densities, strict=True)]
    said = [share * guess(x) for share, guess in zip(shares, guesses, strict=True)]
    return Derivation(
        "Gaussians and their mixtures",
        [
            Step(
                "gaussian-denoiser",
                x + sigma**2 * LOG_SLOPE,
                gaussian_denoiser(mean, v),
                "noise adds its variance; then Tweedie's formula",
                name=D(x, sigma),
                given={p(x, sigma): normal(x - mean, v + sigma**2)},
            ),
            Step(
                "mixture-denoiser",
                x + sigma**2 * Derivative(log(Add(*shares)), x),
                Add(*said) / Add(*shares),
                "each component guesses for itself, and has its say by how likely it is",
                name=D(x, sigma),
                given=given,
            ),
        ],
    )


@derivation
def exponential_family() -> Derivation:
    """The posterior mean and variance of a natural parameter, from the marginal alone."""
    zeta = Symbol("zeta", real=True)
    prior, carrier, A = Function("q", positive=True), Function("c", positive=True), Function("A", real=True)
    guess, marginal = Function(r"\hat\zeta", real=True), Function("p", positive=True)

    def over_parameters(value: Expr) -> Expr:
        return Linear(prior(zeta) * carrier(x) * exp(zeta * x - A(zeta)) * value, (zeta, a, b))

    posterior_mean = over_parameters(zeta) / over_parameters(ONE)
    return Derivation(
        "Exponential families",
        [
            Step(
                "natural-mean",
                posterior_mean,
                Derivative(log(marginal(x) / carrier(x)), x),
                "only the factor exp(ζx) is differentiated, and it brings down ζ",
                name=guess(x),
                given={marginal(x): over_parameters(ONE)},
                assuming=[b > a],
            ),
            Step(
                "natural-variance",
                over_parameters(zeta**2) / over_parameters(ONE) - posterior_mean**2,
                Derivative(guess(x), x),
                "differentiate once more",
                name=Function(r"\hat v")(x),
                given={guess(x): posterior_mean},
                assuming=[b > a],
            ),
            Step(
                "natural-gaussian",
                sigma**2 * Derivative(log(marginal(x) / K(x)), x),
                x + sigma**2 * Derivative(log(marginal(x)), x),
                "with c = K and ζ = y/σ² the mean of y is Tweedie's",
                name=sigma**2 * guess(x),
                given=KERNEL,
            ),
        ],
    )


@derivation
def posterior_spread() -> Derivation:
    """The covariance of the clean data given the noisy, from the denoiser's Jacobian."""
    x_k, x_l, C_kl = symbols("x_k x_l C_{kl}", real=True)
    first, second = IndexedBase("y", real=True), IndexedBase("z", real=True)
    D_k = Function("D_k", real=True)

    def over_both(value: Expr) -> Expr:
        return Sum(weight[i] * K(x_k - first[i]) * K(x_l - second[i]) * value, (i, 1, n))

    total = over_both(ONE)
    guess = over_both(first[i]) / total
    covariance = over_both(first[i] * second[i]) / total - guess * over_both(second[i]) / total
    return Derivation(
        "The posterior's spread",
        [
            Step(
                "posterior-variance",
                VARIANCE_ANY,
                sigma**2 * Derivative(D(x, sigma), x),
                "the kernel's slope brings down a second y",
                name=C(x, sigma),
                given={D(x, sigma): IDEAL_ANY, **KERNEL},
                assuming=[b > a],
            ),
            Step(
                "posterior-covariance",
                covariance,
                sigma**2 * Derivative(D_k(x_k, x_l), x_l),
                "the same with the kernel of another coordinate",
                name=C_kl,
                given={D_k(x_k, x_l): guess, **KERNEL},
                assuming=[sigma > 1, *FEW],
            ),
            Step(
                "second-tweedie",
                sigma**2 * Derivative(D(x, sigma), x),
                sigma**2 + sigma**4 * Derivative(S(x, sigma), x),
                "put Tweedie's formula into it",
                name=C(x, sigma),
                given={D(x, sigma): x + sigma**2 * S(x, sigma)},
            ),
        ],
    )


@derivation
def no_normaliser() -> Derivation:
    """The score of an energy model."""
    U = Function("U", real=True)
    return Derivation(
        "No normaliser",
        [
            Step(
                "score-of-energy",
                Derivative(log(p(x)), x),
                -Derivative(U(x), x),
                "log Z does not depend on x",
                given={p(x): exp(-U(x)) / Z},
            )
        ],
    )


@derivation
def implicit() -> Derivation:
    """Explicit and implicit score matching differ by a constant and a boundary term."""
    slope = Derivative(p(x), x)
    explicit = Linear(p(x) * (s(x) - S(x)) ** 2, (x, a, b)) / 2
    implicit_loss = Linear(p(x) * (s(x) ** 2 / 2 + Derivative(s(x), x)), (x, a, b))
    J_E, J_I = symbols("J_E J_I")
    return Derivation(
        "Implicit score matching",
        [
            Step(
                "integration-by-parts",
                p(x) * (s(x) - slope / p(x)) ** 2 / 2,
                p(x) * (s(x) ** 2 / 2 + Derivative(s(x), x)) + slope**2 / (2 * p(x)) - Derivative(p(x) * s(x), x),
                "the cross term is a derivative less a term without p'",
            ),
            Step(
                "hyvarinen-constant",
                explicit - implicit_loss,
                Linear(p(x) * S(x) ** 2, (x, a, b)) / 2 - p(b) * s(b) + p(a) * s(a),
                "integrate from a to b",
                name=J_E - J_I,
                given={S(x): slope / p(x)},
                assuming=[b > a],
                by_numbers="SymPy does not integrate a product with an unknown ψ by parts",
            ),
        ],
    )


@derivation
def denoising() -> Derivation:
    """Explicit and denoising score matching differ by the posterior's variance, and so by the ideal denoiser's loss."""
    target = over_line((s(x) - (y - x) / sigma**2) ** 2)
    explicit = p(x, sigma) * (s(x) - S(x, sigma)) ** 2
    return Derivation(
        "Denoising score matching",
        [
            Step(
                "denoising-constant",
                target,
                explicit + p(x, sigma) * C(x, sigma) / sigma**4,
                "complete the square; what is left does not hold ψ",
                given={**SCORE, **ANY},
                assuming=[b > a],
            ),
            Step(
                "fisher-information",
                p(x, sigma) * S(x, sigma) ** 2,
                p(x, sigma) * (1 / sigma**2 - C(x, sigma) / sigma**4) + Derivative(Derivative(p(x, sigma), x), x),
                "p'' is p times the square of the score plus its slope",
                given={**SCORE, C(x, sigma): sigma**2 + sigma**4 * Derivative(S(x, sigma), x)},
            ),
        ],
    )


@derivation
def sliced() -> Derivation:
    """A trace from random directions, and how much two kinds of direction scatter."""
    A_11, A_12, A_21, A_22, V_n, V_s = symbols("A_{11} A_{12} A_{21} A_{22} V_n V_s", real=True)
    v_1, v_2, t = symbols(r"\xi_1 \xi_2 t", real=True)
    form = A_11 * v_1**2 + (A_12 + A_21) * v_1 * v_2 + A_22 * v_2**2
    # The k-th moment is the k-th derivative at 0 of the generating function E[exp(t v)].
    normals, signs = (
        {direction: {k: Subs(Derivative(generating, (t, k)), t, 0) for k in range(1, 5)} for direction in (v_1, v_2)}
        for generating in (exp(t**2 / 2), cosh(t))
    )

    def variance(moments: dict) -> Expr:
        return expectation(form**2, moments) - expectation(form, moments) ** 2

    return Derivation(
        "Sliced score matching",
        [
            Step(
                "sliced-trace",
                expectation(form, normals),
                A_11 + A_22,
                "squares have mean 1, products mean 0",
                name=E(form),
            ),
            Step(
                "sliced-spread-normal",
                variance(normals),
                2 * A_11**2 + 2 * A_22**2 + (A_12 + A_21) ** 2,
                "the fourth moment of a normal number is 3",
                name=V_n,
            ),
            Step(
                "sliced-spread-signs",
                variance(signs),
                (A_12 + A_21) ** 2,
                "the square of a sign is 1, without spread",
                name=V_s,
            ),
        ],
    )


@derivation
def heat_flow() -> Derivation:
    """Along the heat flow the Kullback-Leibler divergence falls by the Fisher divergence (de Bruijn)."""
    ratio = log(p(x, tau) / q(x, tau))
    flux, H, F = Function("B", real=True), Function("H"), Function("F")
    slope_p, slope_q = Derivative(p(x, tau), x), Derivative(q(x, tau), x)
    with_noise = v + sigma**2
    gap = (mean - nu) ** 2 / (2 * with_noise)
    divergence = {H(sigma): gap, F(sigma): (mean - nu) ** 2 / with_noise**2}

    def along_heat(value: Expr) -> Expr:
        """The derivative in τ, where p and q obey the heat equation."""
        heat = {Derivative(f(x, tau), tau): Derivative(f(x, tau), (x, 2)) / 2 for f in (p, q)}
        return diff(value, tau).subs(heat)

    log_ratio = ((x - nu) ** 2 - (x - mean) ** 2) / (2 * with_noise)
    moments = {x: {1: mean, 2: with_noise + mean**2}}
    return Derivation(
        "Along the heat flow",
        [
            Step(
                "kl-integrand",
                along_heat(p(x, tau) * ratio),
                Derivative(flux(x, tau), x) - p(x, tau) * Derivative(ratio, x) ** 2 / 2,
                "put the heat equation in for both slopes in τ",
                name=Derivative(p(x, tau) * ratio, tau),
                given={
                    flux(x, tau): slope_p * (1 + ratio) / 2 - p(x, tau) * slope_q / (2 * q(x, tau)),
                },
            ),
            Step(
                "kl-gaussians",
                expectation(log_ratio, moments),
                gap,
                "two normal laws of one variance",
                name=H(sigma),
            ),
            Step(
                "fisher-gaussians",
                expectation(diff(log_ratio, x) ** 2, moments),
                (mean - nu) ** 2 / with_noise**2,
                "their scores differ by a constant",
                name=F(sigma),
            ),
            Step(
                "de-bruijn",
                Derivative(H(sigma), sigma),
                -sigma * F(sigma),
                "integrate over x; τ = σ² brings the factor 2σ",
                given=divergence,
            ),
            Step(
                "kl-from-fisher",
                (mean - nu) ** 2 / (2 * v),
                Integral(sigma * F(sigma), (sigma, 0, oo)),
                "integrate over all noise levels",
                name=H(0),
                given=divergence,
            ),
        ],
    )


@derivation
def two_points() -> Derivation:
    """Two separated modes: where the weights are, and are not, in the score."""
    two = w * exp(-((x - m) ** 2) / (2 * sigma**2)) + (1 - w) * exp(-((x + m) ** 2) / (2 * sigma**2))
    return Derivation(
        "Two points",
        [
            Step(
                "two-point-denoiser",
                x + sigma**2 * Derivative(log(two), x),
                m - 2 * m / (1 + w / (1 - w) * exp(2 * m * x / sigma**2)),
                "Tweedie's formula, divided by the second kernel",
                name=D(x, sigma),
                assuming=[w < 1],
            ),
        ],
    )

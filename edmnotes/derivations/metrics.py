r"""Derivations of the chapter ``metrics``: what each number is on normal laws, and what few samples make of it.

N is the number of samples of a set, n that of coordinates. One law has the mean μ and the variance v, the other μ' and
v'; both sets have N rows.
"""

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Integral,
    Limit,
    Rational,
    Subs,
    Sum,
    Symbol,
    exp,
    gamma,
    log,
    oo,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Derivation, Step, derivation, solve_for
from edmnotes.derivations.fokker_planck import NORMAL, normal
from edmnotes.derivations.forward import expectation

DEFINITIONS = {
    "inception-score": "the score of Salimans et al. 2016, its logarithm",
    "frechet": "the distance of two normal laws; its form on a line and in a plane is derived",
    "region": "the region of a set of points, chosen by Kynkäänniemi et al. 2019",
    "mmd": "the squared distance of the mean embeddings of two laws, written out",
    "kid": "the kernel of Bińkowski et al. 2018, chosen",
    "sliced-wasserstein": "the mean over directions of the squared distance of quantiles",
}

N, n, K, j = symbols("N n K j", integer=True, positive=True)
v, u, r, e = symbols("v u r e", positive=True)
v_other = Symbol("v'", positive=True)
mu, mu_other = symbols(r"\mu \mu'", real=True)
z = Symbol("z", real=True)
frechet, bias = symbols(r"\mathcal{F} \mathcal{B}", real=True)
short = Symbol("c_N", positive=True)
IS = Symbol(r"\mathrm{IS}", positive=True)
FIRST, SECOND = symbols("m_1 m_2 m_3", real=True), symbols("m'_1 m'_2 m'_3", real=True)
APART = sqrt(v) - sqrt(v_other)


def of_normal(variance: Expr) -> dict[int, Expr]:
    """The moments of a normal law about 0, up to the sixth."""
    even = {2: variance, 4: 3 * variance**2, 6: 15 * variance**3}
    return {order: even.get(order, Rational(0)) for order in range(1, 7)}


def cubic(x: Expr, y: Expr) -> Expr:
    """The kernel of KID, on a line."""
    return (x * y + 1) ** 3


@derivation
def inception() -> Derivation:
    """The Inception Score is a difference of entropies, between 1 and the number of classes, and too small."""
    answers = symbols("p_11 p_12 p_13", positive=True), symbols("p_21 p_22 p_23", positive=True)
    means = symbols("q_1:4", positive=True)
    of_mean, mean_of = symbols(r"\mathcal{H}_{mean} \mathcal{H}_{each}", real=True)
    entropies = {
        of_mean: -sum(q * log(q) for q in means),
        mean_of: -sum(p * log(p) for row in answers for p in row) / 2,
        **{q: (a + b) / 2 for q, a, b in zip(means, *answers, strict=True)},
    }
    share, shares = Symbol("p", positive=True), symbols("w_1 w_2", positive=True)
    curvature = Subs(Derivative(-share * log(share), (share, 2)), share, 1 / K)
    return Derivation(
        "The Inception Score",
        [
            Step(
                "inception-entropies",
                sum(p * log(p / q) for row in answers for p, q in zip(row, means, strict=True)) / 2,
                of_mean - mean_of,
                "the logarithm of a ratio is a difference; two samples and three classes",
                name=log(IS),
                given=entropies,
            ),
            Step(
                "inception-most",
                exp(Sum(log(1 / (1 / K)) / K, (j, 1, K))),
                K,
                "each answer certain, all classes alike: the divergence of a certain answer from the mean",
                name=Symbol(r"\mathrm{IS}_{\max}", positive=True),
            ),
            Step(
                "inception-shares",
                shares[0] * log(1 / shares[0]) + shares[1] * log(1 / shares[1]),
                -shares[0] * log(shares[0]) - shares[1] * log(shares[1]),
                "two classes with these shares, certain answers: the divergence of each from the mean",
                name=log(IS),
            ),
            Step(
                "inception-bias",
                Sum(curvature / 2 * (1 / K) * (1 - 1 / K) / N, (j, 1, K)),
                -(K - 1) / (2 * N),
                "half the curvature of the entropy, times the variance of a share among N",
                name=bias,
            ),
        ],
    )


@derivation
def normal_laws() -> Derivation:
    """The Fréchet distance of normal laws is the least mean square distance of a pairing, and its square root."""
    first, second = symbols(r"\varepsilon_1 \varepsilon_2", real=True)
    x = mu + sqrt(v) * first
    y = mu_other + sqrt(v_other) * (r * first + sqrt(1 - r**2) * second)
    paired = expectation((x - y) ** 2, {first: NORMAL, second: NORMAL})
    trace, det, value, other = symbols(r"tr det \kappa_1 \kappa_2", positive=True)
    return Derivation(
        "Distance of two normal laws",
        [
            Step(
                "pairing",
                paired,
                (mu - mu_other) ** 2 + v + v_other - 2 * r * sqrt(v * v_other),
                "each sample of one law paired with one of the other, with correlation r",
                name=Symbol(r"\mathcal{C}"),
                assuming=[r < 1],
            ),
            Step(
                "frechet-line",
                Subs(paired, r, 1),
                (mu - mu_other) ** 2 + (sqrt(v) - sqrt(v_other)) ** 2,
                "the best pairing is in order: correlation 1",
                name=frechet,
            ),
            Step(
                "root-trace",
                sqrt(value) + sqrt(other),
                sqrt(trace + 2 * sqrt(det)),
                "the square of a sum, by the trace and the determinant of the product",
                name=Symbol(r"\mathcal{T}"),
                given={trace: value + other, det: value * other},
            ),
            Step(
                "frechet-correlated",
                (1 - sqrt(1 + r)) ** 2 + (1 - sqrt(1 - r)) ** 2,
                4 - 2 * sqrt(1 + r) - 2 * sqrt(1 - r),
                "common axes, the diagonals: standard deviations along them",
                name=frechet,
                assuming=[r < 1],
            ),
        ],
    )


@derivation
def few_samples() -> Derivation:
    """The bias of the Fréchet distance between two sets of one normal law."""
    q = Symbol("q", positive=True)
    x, y = symbols("x y", real=True)
    mean_a, mean_b, std_a, std_b = symbols("x_a x_b s_a s_b", real=True)
    Gamma = Function(r"\Gamma")
    half = (N - 1) / Rational(2)
    chi_square = q ** (half - 1) * exp(-q / 2) / (2**half * gamma(half))
    of_mean, of_std = {1: mu, 2: mu**2 + v / N}, {1: short * sqrt(v), 2: v}
    exact = sqrt(2 / (N - 1)) * Gamma(N / Rational(2)) / Gamma(half)
    gammas = {Gamma(z): gamma(z)}
    moments = {x: of_normal(v), y: of_normal(v)}
    diagonal, beside = expectation(x**4, moments) - v**2, expectation(x**2 * y**2, moments)
    return Derivation(
        "Few samples, Fréchet",
        [
            Step(
                "mean-std",
                Integral(sqrt(q / (N - 1)) * chi_square, (q, 0, oo)),
                exact,
                "the sum of squares about the mean has the law of chi-square with N - 1 degrees of freedom",
                name=short,
                given=gammas,
            ),
            Step(
                "frechet-bias-line",
                expectation((mean_a - mean_b) ** 2, {mean_a: of_mean, mean_b: of_mean})
                + expectation((std_a - std_b) ** 2, {std_a: of_std, std_b: of_std}),
                2 * v / N + 2 * v * (1 - short**2),
                "two means and two standard deviations, independent; the mean of a sample's variance is v",
                name=bias,
            ),
            Step(
                "mean-std-pair",
                exact * exact.subs(N, N + 1),
                sqrt(1 - 1 / N),
                "the middle Γ cancels, and Γ((N + 1) / 2) is (N - 1) / 2 times Γ((N - 1) / 2)",
                name=short * Symbol("c_{N+1}", positive=True),
                given=gammas,
            ),
            Step(
                "frechet-bias-limit",
                Limit(N * (2 * v / N + 2 * v * (1 - short**2)), N, oo),
                3 * v,
                "neighbours agree in the limit; two parts in three from the means, one from the standard deviations",
                name=Limit(N * bias, N, oo),
                given={short: (1 - 1 / N) ** Rational(1, 4)},
            ),
            Step(
                "frechet-small",
                Limit((sqrt(v + e) - sqrt(v)) ** 2 / e**2, e, 0, "+"),
                1 / (4 * v),
                "a small change e of a variance, to second order",
                name=Symbol(r"\mathcal{Q}"),
            ),
            Step(
                "frechet-bias",
                n * 2 * v / N + 2 * (n * diagonal + n * (n - 1) * beside) / N / (4 * v),
                v * n * (n + 5) / (2 * N),
                "each entry of both covariances varies; each change costs its square over 4 v",
                name=bias,
            ),
        ],
    )


@derivation
def kernels() -> Derivation:
    """The estimate of KID is unbiased and compares three moments; with the diagonal it is not."""
    a, b = symbols("a_1 a_2", real=True), symbols("b_1 b_2", real=True)
    moments = {x: dict(zip((1, 2, 3), FIRST, strict=True)) for x in a}
    moments |= {y: dict(zip((1, 2, 3), SECOND, strict=True)) for y in b}
    estimate = cubic(*a) + cubic(*b) - 2 * sum(cubic(x, y) for x in a for y in b) / 4
    x, y = symbols("x y", real=True)
    same = {x: of_normal(v), y: of_normal(v)}
    return Derivation(
        "Kernels",
        [
            Step(
                "kid-moments",
                expectation(estimate, moments),
                sum(c * (one - other) ** 2 for c, one, other in zip((3, 3, 1), FIRST, SECOND, strict=True)),
                "two samples of each law: means of products of independent numbers",
                name=Symbol(r"\mathcal{K}"),
            ),
            Step(
                "kid-diagonal",
                2 * (Integral(cubic(z, z) * normal(z, 0, sqrt(v)), (z, -oo, oo)) - expectation(cubic(x, y), same)) / N,
                (6 * v + 12 * v**2 + 30 * v**3) / N,
                "one pair in N is a sample with itself, in both sets; equal normal laws",
                name=bias,
            ),
        ],
    )


@derivation
def regions_and_lines() -> Derivation:
    """What two sets of one law get for precision, and the sliced distance of isotropic normal laws."""
    delta = Symbol(r"\delta", real=True)
    square = Symbol(r"\overline{\xi^2}", positive=True)
    of_one = solve_for([Eq(n * square, 1)], [square])[square]
    return Derivation(
        "Regions and lines",
        [
            Step(
                "precision-equal",
                1 - Integral(exp(-u) * (1 - exp(-u)), (u, 0, oo)) ** 2,
                Rational(3, 4),
                "a point is outside if both neighbours have a nearer one on their other side",
            ),
            Step(
                "sliced-gaussians",
                delta**2 * of_one + APART**2,
                delta**2 / n + (sqrt(v) - sqrt(v_other)) ** 2,
                "n coordinates of a unit vector, alike, whose squares add up to 1",
                name=Symbol(r"\mathcal{W}^2"),
            ),
        ],
    )

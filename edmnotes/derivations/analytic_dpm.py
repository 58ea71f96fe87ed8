r"""Derivations of the chapter ``analytic_dpm``: how much noise a reverse step should add.

A step goes from the level σ to σ' < σ, in unscaled coordinates and in one of them: x = x_0 + σ ε. Given x, the clean
point has mean D and variance C, the noise ε has mean ν = (x − D) / σ; the step's own law given x_0 keeps the part k of
the noise and adds fresh noise of standard deviation c. A hat marks what a network says.
"""

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Rational,
    Sum,
    Symbol,
    diff,
    log,
    pi,
    sqrt,
    symbols,
)
from sympy.tensor.indexed import IndexedBase

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for
from edmnotes.derivations.forward import E, expectation
from edmnotes.derivations.tweedie import IDEAL_ANY, KERNEL, ONE, VARIANCE_ANY, b, over_line, sigma, y
from edmnotes.derivations.tweedie import a as lowest

DEFINITIONS = {
    "analytic-step": "the family of steps, chosen: part of the noise kept, the rest drawn anew",
    "analytic-noise-square": "a measure of the denoiser, chosen: the mean square of its guess of the noise",
}

x, x0, D, eps, nu, nu_hat = symbols(r"x x_0 D \varepsilon \nu \hat\nu", real=True)
m, m_theta = symbols(r"m m_\theta", real=True)
level, after = sigma, Symbol(r"\sigma'", positive=True)
c, k, C, C_bar, V, v, Q, Q_hat, Gamma = symbols(r"c k C \bar{C} V v Q \hat{Q} \Gamma", positive=True)
c_theta, best, least, most, cap = symbols(r"c_\theta c_* c_{\min} c_{\max} c_{\text{data}}", positive=True)
s0, s1, beta, alpha_bar0, alpha_bar1 = symbols(r"s_{t-1} s_t \beta_t \bar\alpha_{t-1} \bar\alpha_t", positive=True)
beta_tilde, paper = symbols(r"\tilde\beta_t \lambda_t", positive=True)
H = Function(r"\mathcal{H}", real=True)

NORMAL = {1: Rational(0), 2: Rational(1)}
DOWN = [after < level]
KEPT = {k: sqrt(after**2 - c**2) / level}
DDPM = {c: after * sqrt(1 - after**2 / level**2)}
GUESS = {nu: (x - D) / level}
NEXT = k * x + (1 - k) * x0 + c * eps
OPTIMAL = c**2 + (1 - k) ** 2 * level**2 * (1 - Gamma)
OF_DDPM = (level**2 - after**2) * (1 - (1 - after**2 / level**2) * Gamma)
LETTERS = {
    s0: sqrt(alpha_bar0),
    level: sqrt(1 / alpha_bar1 - 1),
    after: sqrt(1 / alpha_bar0 - 1),
    alpha_bar1: alpha_bar0 * (1 - beta),
}
CHAIN = [alpha_bar0 < 1, beta < 1]
DENSITY = {D: IDEAL_ANY, C: VARIANCE_ANY, **KERNEL}
GAUSSIAN_GAIN = v / (v + level**2)
CENTRED = {1: Rational(0), 2: V}


def cross_entropy(std: Expr) -> Expr:
    """The mean of −log N(x'; m_θ, std²), in nats, when x' has mean m and variance V."""
    z = Symbol("z", real=True)
    moments = {z: {1: m, 2: V + m**2}}
    return log(2 * pi * std**2) / 2 + expectation((z - m_theta) ** 2, moments) / (2 * std**2)


def given_point(value: Expr) -> Expr:
    """The mean of a polynomial in x_0 and fresh noise, given x."""
    return expectation(value, {x0: {1: D, 2: C + D**2}, eps: NORMAL})


def given_noise(value: Expr) -> Expr:
    """The mean of a polynomial in the noise that is in x, given x."""
    return expectation(value, {eps: {1: nu, 2: Q}})


def of_points(value: Expr) -> Expr:
    """The mean of a function of y over p_0 and the kernel: given x."""
    return over_line(value) / over_line(ONE)


@derivation
def matching() -> Derivation:
    """The Gaussian nearest to any law has its mean and its variance; what other variances cost."""
    i, d = symbols("i d", integer=True, positive=True)
    spread = IndexedBase("V", positive=True)
    one, two = symbols("V_1 V_2", positive=True)
    slope = diff(cross_entropy(c_theta), c_theta)
    rest = solve_for([Eq(slope, 0)], [c_theta])[c_theta]
    of_all = d * log(2 * pi * c_theta**2) / 2 + Sum(spread[i], (i, 1, d)) / (2 * c_theta**2)
    flat = solve_for([Eq(diff(of_all, c_theta), 0)], [c_theta])[c_theta]
    H_1, H_2 = symbols(r"\mathcal{H}_1 \mathcal{H}_2")

    def both(first: Expr, second: Expr) -> Expr:
        """The cross entropies of two coordinates, about their means, with these variances for the step."""
        own = ((one, first), (two, second))
        return sum((log(2 * pi * chosen) / 2 + variance / (2 * chosen) for variance, chosen in own), Rational(0))

    return Derivation(
        "Matching moments",
        [
            Step(
                "matching-cross-entropy",
                cross_entropy(c_theta),
                log(2 * pi * c_theta**2) / 2 + (V + (m - m_theta) ** 2) / (2 * c_theta**2),
                "of the law itself only its mean and its variance enter",
                name=H(c_theta),
            ),
            Step(
                "matching-slope",
                Derivative(cross_entropy(c_theta), c_theta),
                (c_theta**2 - V - (m - m_theta) ** 2) / c_theta**3,
                "it falls, then rises",
                name=Derivative(H(c_theta), c_theta),
            ),
            Step(
                "matching-variance",
                rest**2,
                V + (m - m_theta) ** 2,
                "the variance and the square of the mean's error",
                name=c_theta**2,
            ),
            Step(
                "matching-cost",
                cross_entropy(c_theta) - cross_entropy(best),
                log(c_theta / best) + (best**2 / c_theta**2 - 1) / 2,
                "what a wrong variance costs",
                name=H(c_theta) - H(best),
                given={V: best**2 - (m - m_theta) ** 2},
                assuming=[best > 2],
            ),
            Step(
                "matching-isotropic",
                flat**2,
                Sum(spread[i], (i, 1, d)) / d,
                "one variance for all coordinates: their mean",
                name=c_theta**2,
            ),
            Step(
                "matching-isotropic-cost",
                both((one + two) / 2, (one + two) / 2) - both(one, two),
                log((one + two) ** 2 / (4 * one * two)) / 2,
                "the logarithm of the mean against the mean of the logarithms",
                name=H_1 - H_2,
            ),
        ],
    )


@derivation
def optimal_variance() -> Derivation:
    """The mean and the variance of a step given only the noisy point (the law of total variance)."""
    mean = given_point(NEXT)
    return Derivation(
        "The optimal variance",
        [
            Step(
                "analytic-kept",
                solve_for([Eq(k**2 * level**2 + c**2, after**2)], [k])[k],
                sqrt(after**2 - c**2) / level,
                "kept and fresh noise together have the level σ'",
                assuming=[c < after],
            ),
            Step(
                "analytic-mean",
                mean,
                D + k * level * nu,
                "the clean point's mean is D, fresh noise has none",
                name=m,
                given=GUESS,
            ),
            Step(
                "analytic-variance",
                given_point(NEXT**2) - mean**2,
                c**2 + (1 - k) ** 2 * C,
                "the mean of the variances plus the variance of the means",
                name=V,
            ),
            Step(
                "analytic-isotropic",
                expectation(c**2 + (1 - k) ** 2 * C, {C: {1: C_bar}}),
                c**2 + (1 - k) ** 2 * C_bar,
                "one variance for all points and coordinates: the mean",
                name=best**2,
            ),
        ],
    )


@derivation
def from_noise() -> Derivation:
    """The posterior variance from the mean square of the guessed noise, and the step's variance from that."""
    middle = (lowest + b) / 2
    return Derivation(
        "The variance from the noise",
        [
            Step(
                "analytic-noise-variance",
                of_points(((x - y) / level) ** 2),
                nu**2 + C / level**2,
                "the mean square of the noise given x is the square of its mean plus its variance",
                name=Q,
                given={**GUESS, **DENSITY},
                assuming=[b > lowest],
            ),
            Step(
                "analytic-trace",
                solve_for([Eq(expectation(nu**2 + C / level**2, {nu: {2: Gamma}, C: {1: C_bar}}), 1)], [C_bar])[C_bar],
                level**2 * (1 - Gamma),
                "over all points the noise has mean square 1",
                assuming=[Gamma < 1],
            ),
            Step(
                "analytic-estimate",
                c**2 + (1 - k) ** 2 * C_bar,
                OPTIMAL,
                "put the estimate in",
                name=best**2,
                given={C_bar: level**2 * (1 - Gamma)},
            ),
            Step(
                "analytic-between",
                OPTIMAL,
                Gamma * c**2 + (1 - Gamma) * (c**2 + (1 - k) ** 2 * level**2),
                "linear in the noise square, between its values at 1 and at 0",
                name=best**2,
            ),
            Step(
                "analytic-lower",
                OPTIMAL.subs(Gamma, 1),
                after**2 * (1 - after**2 / level**2),
                "at a noise square of 1 nothing is added",
                name=least**2,
                given={**KEPT, **DDPM},
                assuming=DOWN,
            ),
            Step(
                "analytic-upper",
                OPTIMAL.subs(Gamma, 0),
                level**2 - after**2,
                "at a noise square of 0 the noise of the forward step is undone by as much",
                name=most**2,
                given={**KEPT, **DDPM},
                assuming=DOWN,
            ),
            Step(
                "analytic-bounded",
                given_point((b - x0) * (x0 - lowest)),
                (b - lowest) ** 2 / 4 - (D - middle) ** 2 - C,
                "multiply out, with the mean and the variance of the clean point",
                name=E((b - x0) * (x0 - lowest)),
            ),
            Step(
                "analytic-clip",
                c**2 + (1 - k) ** 2 * C_bar,
                c**2 + (1 - k) ** 2 * (b - lowest) ** 2 / 4,
                "the largest variance that data between a and b can have",
                name=cap**2,
                given={C_bar: ((b - lowest) / 2) ** 2},
            ),
        ],
    )


@derivation
def rows() -> Derivation:
    """The step of DDPM and that of DDIM, the paper's formula, and the two data sets for which older rules are right."""
    unit = {Gamma: level**2 / (1 + level**2), **LETTERS}
    return Derivation(
        "Both forms",
        [
            Step(
                "analytic-ddpm",
                OPTIMAL,
                OF_DDPM,
                "DDPM's own noise, k = σ'² / σ²",
                name=best**2,
                given={**KEPT, **DDPM},
                assuming=DOWN,
            ),
            Step(
                "analytic-ddim",
                OPTIMAL,
                (level - after) ** 2 * (1 - Gamma),
                "DDIM keeps all noise, k = σ' / σ",
                name=best**2,
                given={k: after / level, c: Rational(0)},
                assuming=DOWN,
            ),
            Step(
                "analytic-paper",
                s0**2 * OPTIMAL,
                paper**2 + (sqrt((1 - alpha_bar1) / (1 - beta)) - sqrt(1 - alpha_bar0 - paper**2)) ** 2 * (1 - Gamma),
                "in the letters of the paper",
                name=s0**2 * best**2,
                given={**KEPT, c: paper / s0, **LETTERS},
                assuming=[*CHAIN, paper**2 < 1 - alpha_bar0],
                torch=Call(
                    "edmnotes.samplers:ChainStep.analytic",
                    {"unexplained": 1 - Gamma},
                    init={
                        "sigma": sqrt(1 / alpha_bar1 - 1),
                        "sigma_next": sqrt(1 / alpha_bar0 - 1),
                        "eta": paper / sqrt((1 - alpha_bar0) / (1 - alpha_bar1) * beta),
                    },
                    assuming=[Gamma < 1],
                ),
            ),
            Step(
                "analytic-point",
                s0**2 * OF_DDPM,
                (1 - alpha_bar0) / (1 - alpha_bar1) * beta,
                "a point mass: nothing to be unsure of",
                name=s0**2 * best**2,
                given={Gamma: Rational(1), **LETTERS},
                assuming=CHAIN,
            ),
            Step(
                "analytic-unit",
                s0**2 * OF_DDPM,
                beta,
                "normal data of variance 1",
                name=s0**2 * best**2,
                given=unit,
                assuming=CHAIN,
            ),
        ],
    )


@derivation
def gaussian_data() -> Derivation:
    """On normal data every step is linear, and the variance of the points goes from level to level by arithmetic."""
    after_step, last = symbols("V' V_0", positive=True)
    factor = Symbol("A", positive=True)
    gain = {factor: k + (1 - k) * GAUSSIAN_GAIN}
    return Derivation(
        "Normal data",
        [
            Step(
                "analytic-gaussian",
                expectation(((x - GAUSSIAN_GAIN * x) / level) ** 2, {x: {1: Rational(0), 2: v + level**2}}),
                level**2 / (v + level**2),
                "the square of a linear guess",
                name=Gamma,
            ),
            Step(
                "analytic-propagation",
                expectation((k * x + (1 - k) * GAUSSIAN_GAIN * x + c_theta * eps) ** 2, {x: CENTRED, eps: NORMAL}),
                factor**2 * V + c_theta**2,
                "fresh noise is independent of the point",
                name=after_step,
                given=gain,
            ),
            Step(
                "analytic-exact",
                factor**2 * (v + level**2) + OPTIMAL,
                v + after**2,
                "the law of total variance once more",
                name=after_step,
                given={**gain, **KEPT, Gamma: level**2 / (v + level**2)},
                assuming=[c < after],
            ),
            Step(
                "analytic-last",
                GAUSSIAN_GAIN**2 * (v + level**2),
                v - v * level**2 / (v + level**2),
                "the last step answers the mean, which spreads less than the data",
                name=last,
            ),
        ],
    )


@derivation
def wrong_guess() -> Derivation:
    """What a network that guesses ν̂ in place of ν does to either estimate."""
    residual = given_noise((eps - nu_hat) ** 2)
    guessed = {nu: (x - D) / level, m: k * x + (1 - k) * D, V: c**2 + (1 - k) ** 2 * C}
    return Derivation(
        "A wrong guess",
        [
            Step(
                "extended-noise-square",
                c**2 + (1 - k) ** 2 * C,
                c**2 + (1 - k) ** 2 * level**2 * (Q - nu**2),
                "the variance of the noise is its mean square less the square of its mean",
                name=V,
                given={Q: nu**2 + C / level**2},
            ),
            Step(
                "extended-residual",
                residual,
                C / level**2 + (nu - nu_hat) ** 2,
                "the spread of the noise and the square of the error",
                name=Q_hat,
                given={Q: nu**2 + C / level**2},
            ),
            Step(
                "extended-wrong-mean",
                V + (m - m_theta) ** 2,
                c**2 + (1 - k) ** 2 * level**2 * Q_hat,
                "the best variance about a wrong mean",
                name=c_theta**2,
                given={
                    Q_hat: C / level**2 + (nu - nu_hat) ** 2,
                    m_theta: k * x + (1 - k) * (x - level * nu_hat),
                    **guessed,
                },
            ),
            Step(
                "extended-difference",
                Q - nu_hat**2 - residual,
                2 * nu_hat * (nu - nu_hat),
                "the two forms differ by the guess times its error",
                name=Q - nu_hat**2 - Q_hat,
            ),
        ],
    )


@derivation
def terms_of_the_bound() -> Derivation:
    """What a step costs in the evidence bound, with any variance, with the posterior's and with the best one."""
    fresh = Symbol("z", real=True)
    apart = (1 - k) * level * (nu_hat - eps)  # the mean of the step given x_0, less the model's
    ratio = log(c_theta / c) - fresh**2 / 2
    averaged = expectation((apart + c * fresh) ** 2 / (2 * c_theta**2), {eps: {1: nu, 2: Q}, fresh: NORMAL})
    cost = log(c_theta / c) + ((c**2 + (1 - k) ** 2 * level**2 * Q_hat) / c_theta**2 - 1) / 2
    chosen, optimal = symbols(r"\tilde{H} H_*")
    return Derivation(
        "The terms of the bound",
        [
            Step(
                "analytic-term",
                expectation(ratio, {fresh: NORMAL}) + averaged,
                cost,
                "the divergence of two normal laws, averaged over the noise given x",
                name=Symbol("H"),
                given={Q_hat: Q - 2 * nu * nu_hat + nu_hat**2},
            ),
            Step(
                "analytic-term-least",
                cost,
                log(best**2 / c**2) / 2,
                "with the best variance the squares are worth as much as they cost",
                name=optimal,
                given={c_theta: best, Q_hat: (best**2 - c**2) / ((1 - k) ** 2 * level**2)},
                assuming=[best > c],
            ),
            Step(
                "analytic-term-posterior",
                cost,
                (level**2 / after**2 - 1) * Q_hat / 2,
                "the posterior's variance",
                name=chosen,
                given={c_theta: c, **KEPT, **DDPM},
                assuming=DOWN,
            ),
            Step(
                "analytic-term-best",
                log(best**2 / c**2) / 2,
                log(1 + (level**2 / after**2 - 1) * Q_hat) / 2,
                "the best variance about this mean: the rest of the cost is 0",
                name=optimal,
                given={best: sqrt(c**2 + (1 - k) ** 2 * level**2 * Q_hat), **KEPT, **DDPM},
                assuming=DOWN,
            ),
        ],
    )

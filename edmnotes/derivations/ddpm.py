r"""Derivations of the chapter ``ddpm``: the chain, its posterior, the weights of its bound, its variances, its limit.

The letters are DDPM's: α_t = 1 − β_t and ᾱ_t = α_t ᾱ_{t−1}. ``CHAIN`` writes both through α_t and ᾱ_{t−1}, which are
free in (0, 1). m is the mean of x_{t−1} given x_t and x_0, c² the variance of the step back.
"""

from sympy import (
    Derivative,
    Eq,
    Expr,
    Function,
    Limit,
    Rational,
    Subs,
    Symbol,
    log,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for
from edmnotes.derivations.forward import beta as rate
from edmnotes.derivations.forward import eps, expectation, h, sigma, t, v, x0
from edmnotes.derivations.stochastic import D, S, alpha_bar, before, beta, guess, level0, level1, s0, s1, x_t

DEFINITIONS = {
    "learned-variance": "the form that iDDPM gives its learned variance, quoted",
    "hybrid-loss": "the loss of iDDPM, quoted",
}

alpha, earlier, posterior = symbols(r"\alpha_t \bar\alpha_{t-1} \tilde\beta_t", positive=True)
c, C, z, varrho = symbols(r"c C z \varrho", positive=True)
m, m_theta, turn = symbols(r"m m_\theta v", real=True)
H = Function("H", positive=True)

CHAIN = {beta: 1 - alpha, alpha_bar: alpha * earlier}
SMALL = [alpha < 1, earlier < 1]
LEVELS = {
    level1: sqrt((1 - alpha_bar) / alpha_bar),
    level0: sqrt((1 - earlier) / earlier),
    s1: sqrt(alpha_bar),
    s0: sqrt(earlier),
}
SIGMA = sqrt((1 - alpha_bar) / alpha_bar)
VARIANCE = (1 - earlier) / (1 - alpha_bar) * beta
MISS = (m - m_theta) ** 2


def mean(clean: Expr) -> Expr:
    """The mean of x_{t−1} given x_t and the clean point."""
    return sqrt(earlier) * beta / (1 - alpha_bar) * clean + sqrt(alpha) * (1 - earlier) / (1 - alpha_bar) * x_t


def by_noise(noise: Expr) -> Expr:
    """The clean point from x_t and the noise in it."""
    return (x_t - sqrt(1 - alpha_bar) * noise) / sqrt(alpha_bar)


def divergence(squared: Expr, miss: Expr, variance: Expr) -> Expr:
    """KL divergence of N(m, ``squared``) from N(m_θ, ``variance``), with ``miss`` for (m − m_θ)²."""
    y = Symbol("y", real=True)
    gap = sqrt(miss)
    log_ratio = log(variance / squared) / 2 + (y - gap) ** 2 / (2 * variance) - y**2 / (2 * squared)
    return expectation(log_ratio, {y: {1: Rational(0), 2: squared}})


@derivation
def marginal() -> Derivation:
    """The chain's law of x_t given x_0."""
    return Derivation(
        "The marginal",
        [
            Step(
                "chain-marginal-variance",
                alpha * (1 - earlier) + beta,
                1 - alpha_bar,
                "a step shrinks the noise that is there and adds its own",
                given=CHAIN,
                assuming=SMALL,
            ),
            Step(
                "chain-marginal",
                s1 * (x0 + level1 * eps),
                sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps,
                "the noising formula with the chain's scale and level",
                name=x_t,
                given={s1: sqrt(alpha_bar), level1: SIGMA},
                assuming=[alpha_bar < 1],
            ),
        ],
    )


@derivation
def posterior_law() -> Derivation:
    """The law of x_{t−1} given x_t and x_0, by completing the square."""
    square = (x_t - sqrt(alpha) * before) ** 2 / beta + (before - sqrt(earlier) * x0) ** 2 / (1 - earlier)
    precision = alpha / beta + 1 / (1 - earlier)
    return Derivation(
        "The posterior",
        [
            Step(
                "chain-posterior-precision",
                Derivative(square / 2, before, before),
                precision,
                "the two precisions add",
                name=1 / posterior,
            ),
            Step(
                "chain-posterior-variance",
                solve_for([Eq(1 / posterior, precision.subs(beta, 1 - alpha))], [posterior])[posterior],
                (1 - earlier) / (1 - alpha_bar) * beta,
                "one over the precision",
                given=CHAIN,
                assuming=SMALL,
            ),
            Step(
                "chain-posterior-mean",
                solve_for([Eq(square.diff(before), 0)], [before])[before],
                mean(x0),
                "the top of the parabola",
                name=m,
                given=CHAIN,
                assuming=SMALL,
            ),
            Step(
                "chain-posterior",
                square - (x_t - sqrt(alpha_bar) * x0) ** 2 / (1 - alpha_bar),
                (before - m) ** 2 / posterior,
                "the square is complete, and nothing is left over",
                given={m: mean(x0), posterior: VARIANCE, **CHAIN},
                assuming=SMALL,
            ),
        ],
    )


@derivation
def one_mean() -> Derivation:
    """The mean of the posterior by noise, by score and by v; and the same posterior without a scale."""
    unscaled = level0**2 / level1**2
    return Derivation(
        "The mean in other words",
        [
            Step(
                "chain-mean-noise",
                mean(x0),
                (x_t - beta / sqrt(1 - alpha_bar) * eps) / sqrt(alpha),
                "put the clean point in by the noise",
                name=m,
                given={x0: by_noise(eps), **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-mean-score",
                mean(x0),
                (x_t + beta * S) / sqrt(alpha),
                "the score is the noise over its standard deviation, with the sign turned",
                name=m,
                given={x0: (x_t + (1 - alpha_bar) * S) / sqrt(alpha_bar), **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-mean-v",
                mean(x0),
                sqrt(alpha) * x_t - sqrt(earlier) * beta / sqrt(1 - alpha_bar) * turn,
                "and by the speed along the circle",
                name=m,
                given={x0: sqrt(alpha_bar) * x_t - sqrt(1 - alpha_bar) * turn, **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-bridge-mean",
                mean(x0) / sqrt(earlier),
                x0 + unscaled * (x_t / sqrt(alpha_bar) - x0),
                "divide by the scale: the bridge between two levels",
                name=m / sqrt(earlier),
                given={**LEVELS, **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-bridge-variance",
                VARIANCE / earlier,
                level0**2 * (1 - unscaled),
                "and by its square",
                name=posterior / earlier,
                given={**LEVELS, **CHAIN},
                assuming=SMALL,
            ),
        ],
    )


@derivation
def targets_of_the_chain() -> Derivation:
    """The targets in DDPM's letters, each as a function of x_t and another."""
    noised = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps
    at = {"x": x_t / sqrt(alpha_bar), "sigma": SIGMA}
    circle = sqrt(alpha_bar) * eps - sqrt(1 - alpha_bar) * x0
    back = solve_for([Eq(x_t, noised), Eq(turn, circle)], [x0, eps])
    small = [alpha_bar < 1]
    return Derivation(
        "Targets in DDPM's letters",
        [
            Step(
                "chain-x0-from-noise",
                solve_for([Eq(x_t, noised)], [x0])[x0],
                by_noise(eps),
                "solve for the clean point",
                assuming=small,
                torch=Call("edmnotes.targets:Epsilon.denoised", {"value": eps, **at}),
            ),
            Step(
                "chain-score",
                (-((x_t - sqrt(alpha_bar) * x0) ** 2) / (2 * (1 - alpha_bar))).diff(x_t),
                -eps / sqrt(1 - alpha_bar),
                "the slope of the log density of one noised point",
                name=S,
                given={x_t: noised},
                assuming=small,
            ),
            Step(
                "chain-x0-from-score",
                solve_for([Eq(S, -(x_t - sqrt(alpha_bar) * x0) / (1 - alpha_bar))], [x0])[x0],
                (x_t + (1 - alpha_bar) * S) / sqrt(alpha_bar),
                "Tweedie's formula with a scale",
                assuming=small,
                torch=Call("edmnotes.targets:Score.denoised", {"value": sqrt(alpha_bar) * S, **at}),
            ),
            Step(
                "chain-v",
                (eps - level1 * x0) / sqrt(1 + level1**2),
                circle,
                "v of the earlier chapter at the chain's level",
                name=turn,
                given={level1: SIGMA},
                assuming=small,
            ),
            Step(
                "chain-x0-from-v",
                back[x0],
                sqrt(alpha_bar) * x_t - sqrt(1 - alpha_bar) * turn,
                "turn the circle back",
                assuming=small,
                torch=Call("edmnotes.targets:V.denoised", {"value": turn, **at}),
            ),
            Step(
                "chain-noise-from-v",
                back[eps],
                sqrt(1 - alpha_bar) * x_t + sqrt(alpha_bar) * turn,
                "and for the noise",
                assuming=small,
            ),
        ],
    )


@derivation
def weights() -> Derivation:
    """One step's share of the bound, and what it weighs the error of the noise with."""
    weight = Symbol("w_t", positive=True)
    ratio = sigma(t) ** 2 / sigma(t - h) ** 2
    half = Rational(1, 2)
    product = Function(r"\bar\alpha", positive=True)(t)
    return Derivation(
        "The weights of the bound",
        [
            Step(
                "chain-kl",
                divergence(posterior, MISS, c**2),
                half * (log(c**2 / posterior) + (posterior + MISS) / c**2 - 1),
                "two normal laws with the variances β̃ and c²",
                name=Symbol("H_t"),
            ),
            Step(
                "chain-loss-weight",
                MISS / (2 * c**2),
                beta**2 / (2 * c**2 * alpha * (1 - alpha_bar)) * (eps - guess) ** 2,
                "both means by noise: x cancels",
                given={m: mean(by_noise(eps)), m_theta: mean(by_noise(guess)), **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-weight-noise",
                beta**2 / (2 * posterior * alpha * (1 - alpha_bar)),
                half * (level1**2 / level0**2 - 1),
                "with the posterior's own variance only the two levels are left",
                name=weight,
                given={posterior: VARIANCE, **LEVELS, **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-weight-clean",
                weight / level1**2,
                half * (1 / level0**2 - 1 / level1**2),
                "an error of the clean point is an error of the noise times the level",
                given={weight: half * (level1**2 / level0**2 - 1)},
                assuming=[level0 < level1],
            ),
            Step(
                "chain-weight-limit",
                Limit((ratio - 1) / (2 * h), h, 0, "+"),
                Derivative(log(sigma(t)), t),
                "short steps: the same weight for equal parts of the logarithm of the level",
            ),
            Step(
                "chain-weight-vp",
                Derivative(log(sigma(t)), t),
                rate(t) / (2 * (1 - product)),
                "on VP's clock",
                given={sigma(t): sqrt(1 / product - 1), rate(t): -Derivative(log(product), t)},
            ),
        ],
    )


@derivation
def step_back() -> Derivation:
    """The ancestral step, and the true mean and variance of x_{t−1} given x_t alone."""
    clean = {x0: {1: D, 2: C + D**2}}
    best = Function("c_*", positive=True)
    share = mean(x0).coeff(x0)
    gaussian = beta * (earlier * v + 1 - earlier) / (alpha_bar * v + 1 - alpha_bar)
    return Derivation(
        "The step back",
        [
            Step(
                "chain-ancestral",
                s0 * (D + level0**2 / level1**2 * (x_t / s1 - D)) + c * eps,
                mean(D) + c * eps,
                "the posterior with D in the place of the clean point",
                name=before,
                given={**LEVELS, **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-exact-mean",
                expectation(mean(x0), clean),
                (x_t + beta * S) / sqrt(alpha),
                "the mean is linear in the clean point, whose mean given x is D",
                name=Symbol("m_*", real=True),
                given={D: (x_t + (1 - alpha_bar) * S) / sqrt(alpha_bar), **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-exact-variance",
                expectation(posterior + mean(x0) ** 2, clean) - expectation(mean(x0), clean) ** 2,
                posterior + earlier * beta**2 / (1 - alpha_bar) ** 2 * C,
                "the variance of the bridge, and that of its mean",
                name=Symbol("c_*", positive=True) ** 2,
                given=CHAIN,
                assuming=SMALL,
                torch=Call(
                    "edmnotes.samplers:ChainStep.analytic",
                    {"unexplained": C * alpha_bar / (1 - alpha_bar)},
                    init={"sigma": SIGMA, "sigma_next": sqrt((1 - earlier) / earlier)},
                    where={posterior: VARIANCE},
                ),
            ),
            Step(
                "chain-gaussian-variance",
                posterior + share**2 * C,
                gaussian,
                "the variance that is left of a Gaussian of variance v",
                name=best(v) ** 2,
                given={C: v * level1**2 / (v + level1**2), posterior: VARIANCE, **LEVELS, **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-point-variance",
                Subs(gaussian, v, 0),
                posterior,
                "data that are one point",
                name=best(0) ** 2,
                given={posterior: VARIANCE, **CHAIN},
                assuming=SMALL,
            ),
            Step(
                "chain-unit-variance",
                Subs(gaussian, v, 1),
                beta,
                "data of variance 1",
                name=best(1) ** 2,
                given=CHAIN,
                assuming=SMALL,
            ),
        ],
    )


@derivation
def as_sde() -> Derivation:
    """The ancestral step of a chain with β h in a step of length h, as h goes to 0."""
    b, product = symbols(r"\beta \bar\alpha", positive=True)
    x = Symbol("x", real=True)
    shrunk = b * h * (1 - product / (1 - b * h)) / (1 - product)
    inside = [b * h < 1, product < 1 - b * h]
    return Derivation(
        "The limit of short steps",
        [
            Step(
                "chain-drift-limit",
                Limit((m - x) / h, h, 0, "+"),
                b / 2 * x + b * S,
                "the factor 1/√(1 − βh) is 1 + βh/2, to first order",
                given={m: (x + b * h * S) / sqrt(1 - b * h)},
                assuming=inside,
            ),
            Step(
                "chain-variance-limit",
                Limit(posterior / h, h, 0, "+"),
                b,
                "one step before, ᾱ is larger by the factor 1/(1 − βh), which goes to 1",
                given={posterior: shrunk},
                assuming=inside,
            ),
        ],
    )


@derivation
def strides() -> Derivation:
    """A step of the chain over several of its own, and the last one."""
    i, j = symbols(r"\bar\alpha_i \bar\alpha_j", positive=True)
    stride = Symbol(r"\beta_{ij}", positive=True)
    s_i, level_i, level_j = symbols(r"s_i \sigma_i \sigma_j", positive=True)
    return Derivation(
        "Strides",
        [
            Step(
                "chain-stride",
                s_i**2 * (level_i**2 - level_j**2),
                1 - i / j,
                "the noise that the recursion adds between two levels",
                name=stride,
                given={s_i: sqrt(i), level_i: sqrt((1 - i) / i), level_j: sqrt((1 - j) / j)},
                assuming=[i < j, j < 1],
            ),
            Step(
                "chain-last-step",
                Limit(mean(D), earlier, 1, "-"),
                D,
                "nothing is left of x at level 0",
                name=Symbol("m_1"),
                given=CHAIN,
                assuming=[alpha < 1],
            ),
        ],
    )


@derivation
def learned_variance() -> Derivation:
    """The bound as a function of the variance of the step back: its slope, its best value, what that gains."""

    def share(variance: Expr) -> Expr:
        return divergence(posterior, varrho, variance)

    squared = Symbol("c^2", positive=True)
    flat = solve_for([Eq(Derivative(share(squared), squared).doit(), 0)], [squared])[squared]
    return Derivation(
        "A learned variance",
        [
            Step(
                "learned-variance-slope",
                Derivative(divergence(posterior, MISS, beta**z * posterior ** (1 - z)), z),
                Rational(1, 2) * log(beta / posterior) * (1 - (posterior + MISS) / c**2),
                "differentiate one step's share of the bound",
                name=Derivative(H(z), z),
                given={c: sqrt(beta**z * posterior ** (1 - z))},
            ),
            Step(
                "learned-variance-best",
                flat,
                posterior + varrho,
                "the slope is 0 on average",
            ),
            Step(
                "learned-variance-gain",
                share(posterior) - share(posterior + varrho),
                Rational(1, 2) * (varrho / posterior - log(1 + varrho / posterior)),
                "put both variances in",
                name=H(posterior) - H(posterior + varrho),
            ),
        ],
    )

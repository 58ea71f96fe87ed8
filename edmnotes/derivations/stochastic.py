r"""Derivations of the chapter ``stochastic``: samplers with noise, and what each leaves of the density.

S stands for the score at the point in question. Biases are computed on Gaussian data of variance v about 0, where a
point at level σ has variance u = v + σ² and every step is linear: x becomes c x + √α ε, so that variances obey a
recursion that can be solved.
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
    Symbol,
    exp,
    log,
    oo,
    sqrt,
    symbols,
)

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for
from edmnotes.derivations.fokker_planck import NORMAL
from edmnotes.derivations.forward import DIFFUSION, DRIFT, expectation, f, g, h, s, sigma, t, v

DEFINITIONS = {
    "langevin-step": "the step of Euler and Maruyama on Langevin's equation",
    "churn-gamma": "the rule of Algorithm 2, quoted",
    "asymmetry": "a measure, chosen: the size of the skew part beside that of the symmetric one",
}

x, x_t, eps, S = symbols(r"x x_t \varepsilon S", real=True)
guess = Symbol(r"\varepsilon_\theta", real=True)
D = Symbol("D", real=True)
a, b = symbols("a b", positive=True)
s0, s1, level0, level1 = symbols(r"s_{t-1} s_t \sigma_{t-1} \sigma_t", positive=True)
beta, alpha_bar = symbols(r"\beta_t \bar\alpha_t", positive=True)
alpha, u, V, r = symbols(r"\alpha u V r", positive=True)
eta, delta, rho, gamma, k = symbols(r"\eta \delta \rho \gamma k", positive=True)
level, hat = symbols(r"\sigma \hat\sigma", positive=True)
before = Symbol("x_{t-1}", real=True)

CHAIN = {a: s1 / s0, b: s1 * sqrt(level1**2 - level0**2)}
VP_CHAIN = {a: sqrt(1 - beta), b: sqrt(beta)}
VE_CHAIN = {a: Rational(1), b: sqrt(level1**2 - level0**2)}
RESIDUAL = (D - x_t / s1) / (s1 * level1**2)
STEP = (2 - a) * x_t + b**2 * S + b * eps
SMALL = [beta < 1, alpha_bar < 1]


def variance_after(factor: Expr, added: Expr) -> Expr:
    """The variance of factor · x + √added · ε when x has the variance V and mean 0."""
    moments = {x: {1: Rational(0), 2: V}, eps: NORMAL}
    return expectation((factor * x + sqrt(added) * eps) ** 2, moments)


@derivation
def reverse_chain() -> Derivation:
    """The chain that the reverse SDE becomes, in general and for VP and VE, by noise and by residual."""
    drift_share, noise_share = symbols(r"f_h g^2_h", real=True)  # f h and g² h, as the forward chain has them
    back_a = s(t) / s(t - h)
    back_b = s(t) ** 2 * (sigma(t) ** 2 - sigma(t - h) ** 2)
    return Derivation(
        "The reverse chain",
        [
            Step(
                "reverse-chain",
                x_t - (drift_share * x_t - noise_share * S) + sqrt(noise_share) * eps,
                STEP,
                "a step of Euler and Maruyama, with a - 1 for f h and b² for g² h",
                name=before,
                given={drift_share: a - 1, noise_share: b**2},
            ),
            Step(
                "reverse-chain-rate",
                Limit((1 - back_a) / h, h, 0, "+") * x + Limit(back_b / h, h, 0, "+") * S,
                -(f(t) * x - g(t) ** 2 * S),
                "the coefficients of the forward step, and dt is negative",
                name=Symbol("R"),
                given={f(t): DRIFT, g(t): DIFFUSION},
            ),
            Step(
                "vp-reverse-noise",
                STEP,
                (2 - sqrt(1 - beta)) * x_t - beta / sqrt(1 - alpha_bar) * guess + sqrt(beta) * eps,
                "the score is the noise over its standard deviation, with the sign turned",
                name=before,
                given={**VP_CHAIN, S: -guess / sqrt(1 - alpha_bar)},
                assuming=SMALL,
            ),
            Step(
                "vp-reverse-residual",
                STEP,
                (2 - sqrt(1 - beta)) * x_t + beta / (s1 * level1**2) * (D - x_t / s1) + sqrt(beta) * eps,
                "the score by the denoiser",
                name=before,
                given={**VP_CHAIN, S: RESIDUAL},
                assuming=SMALL,
            ),
            Step(
                "ve-reverse-noise",
                STEP,
                x_t - (level1**2 - level0**2) / level1 * guess + sqrt(level1**2 - level0**2) * eps,
                "nothing is scaled; the noise is taken away, so its sign is minus",
                name=before,
                given={**VE_CHAIN, S: -guess / level1},
                assuming=[level1 > level0],
            ),
            Step(
                "ve-reverse-residual",
                STEP,
                x_t + (1 - level0**2 / level1**2) * (D - x_t) + sqrt(level1**2 - level0**2) * eps,
                "part of the way to the denoised point, so its sign is plus",
                name=before,
                given={**VE_CHAIN, S: RESIDUAL.subs(s1, 1)},
                assuming=[level1 > level0],
            ),
        ],
    )


@derivation
def ancestral() -> Derivation:
    """The law of x at t − 1 given x at t and x_0, with D in the place of x_0."""
    y, c = symbols("y c", positive=True)
    # log q(x_{t-1} = y | x_t, x_0), up to a constant
    exponent = -((y - s0 * D) ** 2) / (2 * s0**2 * level0**2) - (x_t - a * y) ** 2 / (2 * b**2)
    exponent = exponent.subs({a: s1 / s0, b**2: s1**2 * (level1**2 - level0**2)})
    peak = solve_for([Eq(exponent.diff(y), 0)], [y])[y]
    width = solve_for([Eq(1 / c**2, (-exponent.diff(y, 2)).together())], [c])[c]
    after = [level1 > level0]
    mean = (x_t + b**2 * S) / a
    return Derivation(
        "The ancestral step",
        [
            Step(
                "ancestral-mean",
                peak.value,
                mean,
                "complete the square, and put D for the clean point",
                name=Symbol("m"),
                given={**CHAIN, S: RESIDUAL},
                assuming=after,
            ),
            Step(
                "ancestral-std",
                width,
                b / a * level0 / level1,
                "the two precisions add",
                given=CHAIN,
                assuming=after,
            ),
            Step(
                "ancestral-difference",
                mean - ((2 - a) * x_t + b**2 * S),
                (1 - a) ** 2 / a * x_t + b**2 * (1 - a) / a * S,
                "both terms are of second order in the step",
                name=Symbol("m") - Symbol(r"\tilde m"),
            ),
            Step(
                "vp-ancestral",
                mean + c * eps,
                (x_t - beta / sqrt(1 - alpha_bar) * guess) / sqrt(1 - beta) + c * eps,
                "the step of DDPM",
                name=before,
                given={**VP_CHAIN, S: -guess / sqrt(1 - alpha_bar)},
                assuming=SMALL,
            ),
            Step(
                "ve-ancestral",
                mean + b / a * level0 / level1 * eps,
                x_t - (level1**2 - level0**2) / level1 * guess + level0 / level1 * sqrt(level1**2 - level0**2) * eps,
                "the step of SMLD's chain",
                name=before,
                given={**VE_CHAIN, S: -guess / level1},
                assuming=after,
            ),
        ],
    )


@derivation
def langevin() -> Derivation:
    """Langevin's steps on a Gaussian: a recursion of variances and where it rests; and what a score hides."""
    recursion = variance_after(1 - alpha / (2 * u), alpha)
    w, R = symbols(r"w R", positive=True)
    first, second = (Function(name, positive=True)(x) for name in ("p_1", "p_2"))
    density = w * first + (1 - w) * second
    S1, S2 = symbols("S_1 S_2", real=True)
    return Derivation(
        "Langevin dynamics at one level",
        [
            Step(
                "langevin-recursion",
                recursion,
                (1 - alpha / (2 * u)) ** 2 * V + alpha,
                "the score of the Gaussian is linear; variances of independent parts add",
                name=Symbol("V'"),
            ),
            Step(
                "langevin-variance",
                solve_for([Eq(V, recursion)], [V])[V],
                u / (1 - alpha / (4 * u)),
                "the variance that a step leaves as it is",
                assuming=[alpha < 4 * u],
            ),
            Step(
                "langevin-bias",
                (V - u) / u,
                alpha / (4 * u - alpha),
                "of first order in the step",
                given={V: u / (1 - alpha / (4 * u))},
                assuming=[alpha < 4 * u],
            ),
            Step(
                "langevin-approach",
                recursion - u / (1 - alpha / (4 * u)),
                (1 - alpha / (2 * u)) ** 2 * (V - u / (1 - alpha / (4 * u))),
                "each step multiplies the excess by one factor",
                name=Symbol("V'") - u / (1 - alpha / (4 * u)),
                assuming=[alpha < 4 * u],
            ),
            Step(
                "weight-sensitivity",
                Derivative(log(density), x, w),
                R * (1 - R) / (w * (1 - w)) * (S1 - S2),
                "differentiate the score by the weight",
                name=Derivative(Function("S")(x, w), w),
                given={R: w * first / density, S1: Derivative(log(first), x), S2: Derivative(log(second), x)},
                assuming=[w < 1],
            ),
        ],
    )


@derivation
def annealed() -> Derivation:
    """The steps of SMLD, and the corrector's: both hold a ratio of drift to noise fixed."""
    level_i, level_last = symbols(r"\sigma_i \sigma_L", positive=True)
    alpha_i, step, part = symbols(r"\alpha_i \epsilon \varphi", positive=True)
    score_length, noise_length, dim = symbols(r"\ell_S \ell_\varepsilon n", positive=True)

    def ratio(of: Expr, signal: Expr, noise: Expr) -> Expr:
        return of / 2 * signal / (sqrt(of) * noise)

    def far_out(of: Expr, at: Expr) -> Expr:
        return ratio(of, sqrt(dim) / at, sqrt(dim))

    rests = solve_for([Eq(V, variance_after(1 - alpha / (2 * u), alpha).subs(alpha, 4 * r**2 * u**2 / V))], [V])[V]
    return Derivation(
        "Annealing and correcting",
        [
            Step(
                "smld-step-size",
                solve_for([Eq(far_out(alpha_i, level_i), far_out(step, level_last))], [alpha_i])[alpha_i],
                step * level_i**2 / level_last**2,
                "the same ratio of drift to noise at all levels",
                torch=Call(
                    "edmnotes.samplers:Proportional.__call__",
                    {"sigma": level_i, "score": score_length, "drawn": noise_length},
                    init={"fraction": step / level_last**2},
                    assuming=[step < 4 * level_last**2],
                ),
            ),
            Step(
                "smld-bias",
                (V - u) / u,
                part * level**2 / (4 * v + (4 - part) * level**2),
                "a step in proportion to the variance of the noise",
                given={V: u / (1 - part * level**2 / (4 * u)), u: v + level**2},
                assuming=[part < 4],
            ),
            Step(
                "snr-step",
                solve_for([Eq(ratio(alpha, score_length, noise_length), r)], [alpha])[alpha],
                4 * r**2 * noise_length**2 / score_length**2,
                "the length that makes the drift r times as long as the noise",
                torch=Call(
                    "edmnotes.samplers:SignalToNoise.__call__",
                    {"sigma": level, "score": score_length, "drawn": noise_length},
                    init={"ratio": r},
                ),
            ),
            Step(
                "snr-variance",
                rests,
                u * (1 + r**2),
                "in many coordinates the lengths are those of their means",
            ),
        ],
    )


@derivation
def churn() -> Derivation:
    """Algorithm 2: what it adds, that this leaves the family of densities, and which SDE it tends to."""
    N, wave, amount, scale, width = symbols(r"N k S_{churn} S_{noise} \Delta", positive=True)
    after, squared = symbols(r"\sigma' \eta^2", positive=True)
    transform = Function(r"\hat{p}_0", real=True)(wave)
    added = solve_for([Eq(level**2 + N**2, ((1 + gamma) * level) ** 2)], [N])[N]
    # one step of n on the levels of EDM; h is 1/n, and both sides vanish with it
    of_churn = (gamma * (2 + gamma) * level**2).subs(gamma, amount * h)
    of_sde = level**2 - (level ** (1 / rho) - width * h) ** (2 * rho)
    return Derivation(
        "Churn",
        [
            Step("churn-noise", added, level * sqrt(gamma * (2 + gamma)), "variances of independent noises add"),
            Step(
                "churn-marginal",
                transform * exp(-(level**2) * wave**2 / 2) * exp(-(N**2) * wave**2 / 2),
                transform * exp(-(hat**2) * wave**2 / 2),
                "more noise of the same kind is the same family at a higher level",
                given={N: sqrt(hat**2 - level**2)},
                assuming=[hat > level],
            ),
            Step(
                "churn-bound",
                solve_for([Eq(((1 + gamma) * level) ** 2, 2 * level**2)], [gamma])[gamma],
                sqrt(2) - 1,
                "the variance added is at most the variance that is there",
            ),
            Step(
                "churn-strength",
                solve_for([Eq(gamma * (2 + gamma) * level**2, squared * (level**2 - after**2))], [squared])[squared],
                gamma * (2 + gamma) * level**2 / (level**2 - after**2),
                "equal noise in a step",
                name=eta**2,
                assuming=[level > after],
            ),
            Step(
                "churn-limit",
                Subs(Derivative(of_churn, h), h, 0) / Subs(Derivative(of_sde, h), h, 0),
                amount * level ** (1 / rho) / (rho * width),
                "both noises are of first order in the step: the ratio of their slopes",
                name=eta**2,
            ),
            Step(
                "noise-scale",
                level**2 + scale**2 * N**2 - hat**2,
                (scale**2 - 1) * (hat**2 - level**2),
                "what is there, less what the denoiser is told",
                given={N: sqrt(hat**2 - level**2)},
                assuming=[hat > level],
            ),
        ],
    )


@derivation
def wrong_score() -> Derivation:
    """A score that is too large by the factor 1 + δ, on a Gaussian, under any strength: what remains at the end."""
    q = Symbol("q", positive=True)  # σ², which falls from σ_max² to 0
    W = Function("W", positive=True)(q)
    exponent = eta**2 + delta * (1 + eta**2)
    factor = 1 - (1 + eta**2) * (1 + delta) * h / (2 * (v + q))
    after = variance_after(factor, eta**2 * h).subs(V, W * (v + q)) / (v + q - h)
    return Derivation(
        "A wrong score",
        [
            Step(
                "wrong-score-rate",
                Limit((W - after) / h, h, 0, "+"),
                (k * W - eta**2) / (v + q),
                "a step of the SDE on the clock σ²",
                name=Derivative(W, q),
                given={k: exponent},
            ),
            Step(
                "wrong-score-variance",
                v**k * ((v + level**2) ** -k + Integral(eta**2 * (v + q) ** (-k - 1), (q, 0, level**2))),
                eta**2 / k + (1 - eta**2 / k) * (v / (v + level**2)) ** k,
                "vary the constant, from 1 at the start",
                name=Function("W")(0),
            ),
            Step(
                "wrong-score-rest",
                Limit(eta**2 / exponent, eta, oo),
                1 / (1 + delta),
                "the law that the wrong score itself describes",
                name=Symbol(r"W_\infty"),
            ),
        ],
    )


@derivation
def symmetry() -> Derivation:
    """The Jacobian of an exact denoiser is symmetric; and what a rotation does to Langevin's steps."""
    first, second = symbols("x_1 x_2", real=True)
    density = Function("p", positive=True)(first, second)
    D1, D2 = (Function(name, real=True)(first, second) for name in ("D_1", "D_2"))
    omega = Symbol(r"\omega", real=True)
    draws = symbols(r"\varepsilon_1 \varepsilon_2", real=True)
    shrink, turn = 1 - alpha / (2 * u), alpha * omega / 2
    moved = shrink * first + turn * second + sqrt(alpha) * draws[0]
    moments = {z: {1: Rational(0), 2: V} for z in (first, second)} | {draws[0]: NORMAL}
    return Derivation(
        "A conservative field",
        [
            Step(
                "jacobian-symmetric",
                Derivative(D1, second),
                Derivative(D2, first),
                "second derivatives of one function may be exchanged",
                given={
                    D1: first + level**2 * Derivative(log(density), first),
                    D2: second + level**2 * Derivative(log(density), second),
                },
            ),
            Step(
                "rotation-variance",
                solve_for([Eq(V, expectation(moved**2, moments))], [V])[V],
                u / (1 - alpha / (4 * u) * (1 + u**2 * omega**2)),
                "a rotation only turns; a finite step along it also leads outwards",
                assuming=[alpha * (1 + u**2 * omega**2) < 4 * u],
            ),
        ],
    )

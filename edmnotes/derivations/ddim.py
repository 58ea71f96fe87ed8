r"""Derivations of the chapter ``ddim``: backward steps of any noise that keep the marginals, and what they do.

One step goes from the scale s_t and the level σ_t to s_{t−1} and σ_{t−1}; ω = sσ is the actual noise. Nothing uses
s² + ω² = 1 except where DDPM's letters stand. The noise of a backward step has the standard deviation c, which is free.
"""

from sympy import (
    Derivative,
    Eq,
    Expr,
    Limit,
    Subs,
    Symbol,
    cos,
    exp,
    pi,
    sin,
    sqrt,
    symbols,
    tan,
)

from edmnotes.derivations.core import Call, Derivation, Step, derivation, solve_for
from edmnotes.derivations.fokker_planck import NORMAL
from edmnotes.derivations.forward import DRIFT, expectation, h, s, sigma, t, v

DEFINITIONS = {
    "family-ansatz": "the form of one backward step, chosen; the derivation finds k and j",
    "ddim-eta": "the scale on which the free noise is measured, chosen: 1 is DDPM's",
    "sigma-hat": "the other noise of the DDIM paper, quoted",
    "ddim-encoder": "a numerical method, chosen: Euler's step upwards",
    "slerp": "the path between two latents, chosen: an arc of a circle",
}

x0, x_t, D, eps, eps1, eps2 = symbols(r"x_0 x_t D \varepsilon \varepsilon_1 \varepsilon_2", real=True)
nu = Symbol(r"\nu", real=True)
before = Symbol("x_{t-1}", real=True)
s0, s1 = symbols("s_{t-1} s_t", positive=True)
level0, level1 = symbols(r"\sigma_{t-1} \sigma_t", positive=True)
omega0, omega1 = symbols(r"\omega_{t-1} \omega_t", positive=True)
alpha_bar0, alpha_bar1 = symbols(r"\bar\alpha_{t-1} \bar\alpha_t", positive=True)
k, c, eta, beta = symbols(r"k c \eta \beta", positive=True)
j = Symbol("j", real=True)
hat = Symbol(r"\hat c", positive=True)
theta, theta0, theta1 = symbols(r"\theta \theta_{t-1} \theta_t", positive=True)
w, length = symbols(r"w \ell", positive=True)
A = Symbol("A", positive=True)

FACTOR = sqrt(omega0**2 - c**2) / omega1
FAMILY = {j: s0 - k * s1, k: FACTOR}
ACTUAL = {omega0: s0 * level0, omega1: s1 * level1}
MARKOV = s0 * level0 * sqrt(1 - level0**2 / level1**2)
GUESS = (x_t - s1 * D) / omega1
DDPM = {
    s0: sqrt(alpha_bar0),
    s1: sqrt(alpha_bar1),
    omega0: sqrt(1 - alpha_bar0),
    omega1: sqrt(1 - alpha_bar1),
    level0: sqrt(1 / alpha_bar0 - 1),
    level1: sqrt(1 / alpha_bar1 - 1),
}
REAL = [omega0 > c]
DOWN = [level1 > level0]
CHAIN = [alpha_bar1 < alpha_bar0, alpha_bar0 < 1]
ANGLES = [theta0 < theta1, theta1 < pi / 2]
MOMENTS = {eps1: NORMAL, eps2: NORMAL}


def covariance(first: Expr, second: Expr) -> Expr:
    """The covariance of two polynomials in the two independent standard normal numbers."""
    return expectation(first * second, MOMENTS) - expectation(first, MOMENTS) * expectation(second, MOMENTS)


def gaussian_factor(start: Expr, end: Expr) -> Expr:
    """What a DDIM step between two levels multiplies an unscaled point by, on data of variance v about 0."""
    x = Symbol("x", positive=True)
    denoised = v / (v + start**2) * x
    return (denoised + end * (x - denoised) / start) / x


@derivation
def family() -> Derivation:
    """The backward steps that keep the law of x at t - 1 given x_0: two equations for three unknowns."""
    noised = s1 * x0 + omega1 * eps1
    step = k * noised + j * x0 + c * eps2
    mean = expectation(step, MOMENTS)
    solved = solve_for(
        [Eq(mean.coeff(x0), s0), Eq(covariance(step, step), omega0**2)],
        [k, j],
    )
    return Derivation(
        "The family",
        [
            Step(
                "family-mean",
                mean,
                s0 * x0,
                "the mean that x at t - 1 must have",
                given=FAMILY,
                assuming=REAL,
            ),
            Step(
                "family-variance",
                covariance(step, step),
                omega0**2,
                "its variance; those of independent noises add",
                given=FAMILY,
                assuming=REAL,
            ),
            Step("family-factor", solved[k], FACTOR, "from the variance", assuming=REAL),
            Step(
                "family-share",
                solved[j],
                s0 - k * s1,
                "from the mean",
                given={k: FACTOR},
                assuming=REAL,
            ),
            Step(
                "family-correlation",
                covariance(step, noised) / (omega0 * omega1),
                sqrt(1 - c**2 / omega0**2),
                "what the marginals leave open",
                name=Symbol(r"\rho"),
                given=FAMILY,
                assuming=REAL,
            ),
        ],
    )


@derivation
def markov() -> Derivation:
    """The forward step of a member, which of them is Markov, and how large its noise can be."""
    y = Symbol("y", real=True)
    # log q(x_t = y | x_{t-1}, x_0), up to a constant
    exponent = -((before - k * y - j * x0) ** 2) / (2 * c**2) - (y - s1 * x0) ** 2 / (2 * omega1**2)
    peak = solve_for([Eq(exponent.diff(y), 0)], [y])[y]
    open_share = (s1 - k * omega1**2 / omega0**2 * s0).subs(k, FACTOR)
    return Derivation(
        "The forward step",
        [
            Step(
                "family-forward",
                peak.value,
                s1 * x0 + k * omega1**2 / omega0**2 * (before - s0 * x0),
                "complete the square",
                name=Symbol("m"),
                given={c: sqrt(omega0**2 - k**2 * omega1**2), j: s0 - k * s1},
                assuming=[omega0 > k * omega1],
            ),
            Step(
                "family-markov",
                solve_for([Eq(open_share.subs(ACTUAL), 0)], [c])[c],
                MARKOV,
                "the clean point drops out at one size of the noise only",
                assuming=DOWN,
            ),
            Step(
                "ddim-eta-chain",
                (eta * MARKOV) ** 2,
                eta**2 * (1 - alpha_bar0) / (1 - alpha_bar1) * (1 - alpha_bar1 / alpha_bar0),
                "the same in DDPM's letters",
                name=c**2,
                given=DDPM,
                assuming=CHAIN,
                torch=Call(
                    "edmnotes.samplers:ChainStep.kept",
                    init={"sigma": DDPM[level1], "sigma_next": DDPM[level0], "eta": eta},
                    assuming=[eta < 1],
                ),
            ),
            Step(
                "ddim-eta-bound",
                solve_for([Eq(eta * MARKOV, s0 * level0)], [eta])[eta],
                1 / sqrt(1 - level0**2 / level1**2),
                "no more than all noise can be fresh",
                assuming=DOWN,
            ),
        ],
    )


@derivation
def loss() -> Derivation:
    """Every member asks the network for the same thing, with other weights."""
    drawn = k * x_t + j * x0 + c * eps1
    ratio = ((drawn - (k * x_t + j * D)) ** 2 - (drawn - (k * x_t + j * x0)) ** 2) / (2 * c**2)
    weight = (j / c) ** 2 / 2
    return Derivation(
        "The loss",
        [
            Step(
                "family-loss",
                expectation(ratio, {eps1: NORMAL}),
                j**2 / (2 * c**2) * (x0 - D) ** 2,
                "two normal laws of one variance: the squared distance of their means",
                name=Symbol("H"),
            ),
            Step(
                "family-weight",
                weight,
                (1 / level0**2 - 1 / level1**2) / 2,
                "DDPM's member",
                name=j**2 / (2 * c**2),
                given={j: s0 - k * s1, k: FACTOR.subs(ACTUAL), c: MARKOV},
                assuming=DOWN,
            ),
        ],
    )


@derivation
def update() -> Derivation:
    """The step that samples, in any coordinates, in DDPM's letters and unscaled."""
    step = k * x_t + j * D + c * eps
    ddim = s0 * D + omega0 * nu
    return Derivation(
        "The step",
        [
            Step(
                "ddim-step",
                step,
                s0 * D + sqrt(omega0**2 - c**2) * nu + c * eps,
                "part of the noise is the one that is there, part of it fresh",
                name=before,
                given={**FAMILY, nu: GUESS},
                assuming=REAL,
            ),
            Step(
                "ddim-step-chain",
                s0 * D + sqrt(omega0**2 - c**2) * nu + c * eps,
                sqrt(alpha_bar0) * (x_t - sqrt(1 - alpha_bar1) * nu) / sqrt(alpha_bar1)
                + sqrt(1 - alpha_bar0 - c**2) * nu
                + c * eps,
                "DDPM's letters, and the clean point by the guess of the noise",
                name=before,
                given={D: (x_t - sqrt(1 - alpha_bar1) * nu) / sqrt(alpha_bar1), **DDPM},
                assuming=[*CHAIN, alpha_bar0 + c**2 < 1],
            ),
            Step(
                "ddim-euler",
                ddim / s0,
                x_t / s1 + (level0 - level1) * nu,
                "divide by the scale: Euler's step with σ for the clock",
                name=before / s0,
                given={nu: (x_t / s1 - D) / level1, **ACTUAL},
            ),
        ],
    )


@derivation
def small_steps() -> Derivation:
    """As the steps get short, η is the noise strength of the reverse SDE."""
    x = Symbol("x", real=True)
    back = s(t - h) * sigma(t - h)
    fresh = eta**2 * (1 - sigma(t - h) ** 2 / sigma(t) ** 2)  # the share of the variance that is drawn
    moved = s(t - h) * D + back * sqrt(1 - fresh) * (x - s(t) * D) / (s(t) * sigma(t))
    return Derivation(
        "Small steps",
        [
            Step(
                "ddim-limit-drift",
                -Subs(Derivative(moved, h), h, 0),
                DRIFT * x + (1 + eta**2) * Derivative(sigma(t), t) / sigma(t) * (x - s(t) * D),
                "the mean of a step over its length, which is negative",
                name=Symbol(r"\mu"),
            ),
            Step(
                "ddim-limit-noise",
                Limit(back**2 * fresh / h, h, 0, "+"),
                eta**2 * (2 * s(t) ** 2 * sigma(t) * Derivative(sigma(t), t)),
                "the variance of a step over its length",
                name=Symbol(r"\gamma") ** 2,
            ),
        ],
    )


@derivation
def clocks() -> Derivation:
    """Euler's step on the VP ODE in time is another one: where the two part."""
    x, omega = symbols(r"x \omega", positive=True)
    alpha_bar = 1 - omega**2
    grown = exp(beta * h)  # ᾱ at t - h over ᾱ at t, for a constant rate
    ddim = sqrt(grown) * (x - omega * nu) + sqrt(1 - alpha_bar * grown) * nu
    euler = (1 + beta * h / 2) * x - beta * h / (2 * omega) * nu
    return Derivation(
        "Two clocks",
        [
            Step(
                "vp-euler",
                x - h * (-beta / 2 * x - beta / 2 * (-nu / omega)),
                (1 + beta * h / 2) * x - beta * h / (2 * omega) * nu,
                "drift and half of the score, a step of length h backwards",
                name=before,
            ),
            Step(
                "vp-ddim-difference",
                Limit((ddim - euler) / h**2, h, 0, "+"),
                beta**2 / 8 * (x - nu / omega**3),
                "they agree to first order; the next one grows towards the data",
                name=Symbol("B"),
                assuming=[omega < 1],
            ),
        ],
    )


@derivation
def one_gaussian() -> Derivation:
    """Data of variance v: a step of DDIM, what it loses, and the same on the way up and back."""
    exact = sqrt((v + level0**2) / (v + level1**2))
    lost = v * (level1 - level0) ** 2 / ((v + level0**2) * (v + level1**2))
    return Derivation(
        "One Gaussian",
        [
            Step(
                "ddim-gaussian",
                gaussian_factor(level1, level0),
                (v + level1 * level0) / (v + level1**2),
                "the denoiser is linear",
                name=A,
            ),
            Step(
                "ddim-loss-of-variance",
                1 - (gaussian_factor(level1, level0) / exact) ** 2,
                lost,
                "beside the exact factor, of second order in the step",
                name=1 - A**2 * (v + level1**2) / (v + level0**2),
            ),
            Step(
                "ddim-angle",
                gaussian_factor(level1, level0) / exact,
                cos(theta1 - theta0),
                "with the angle whose tangent is the level over the data's spread",
                name=A * sqrt((v + level1**2) / (v + level0**2)),
                given={level0: sqrt(v) * tan(theta0), level1: sqrt(v) * tan(theta1)},
                assuming=ANGLES,
            ),
            Step(
                "ddim-two-steps",
                cos(theta1 - theta) * cos(theta - theta0),
                (cos(theta1 - theta0) + cos(theta1 + theta0 - 2 * theta)) / 2,
                "largest where the level between is at the middle of the angle",
            ),
            Step(
                "ddim-round-trip",
                gaussian_factor(level1, level0) * gaussian_factor(level0, level1),
                1 - lost,
                "up by one step and down by one",
                name=A * Symbol("A'"),
            ),
        ],
    )


@derivation
def sigma_hat() -> Derivation:
    """DDPM's mean with the larger noise: what a step leaves above the level it should reach."""
    squared = 1 - alpha_bar1 / alpha_bar0
    member = squared * (1 - alpha_bar0) / (1 - alpha_bar1)
    mean_noise = sqrt(1 - alpha_bar0 - member)  # of the member with η = 1, around a clean point that is known
    return Derivation(
        "The larger noise",
        [
            Step(
                "sigma-hat-excess",
                mean_noise**2 + hat**2 - (1 - alpha_bar0),
                (alpha_bar0 - alpha_bar1) ** 2 / (alpha_bar0 * (1 - alpha_bar1)),
                "the variance that is there, less the one that the next call is told",
                name=Symbol("V") - (1 - alpha_bar0),
                given={hat: sqrt(squared)},
                assuming=CHAIN,
            ),
        ],
    )


@derivation
def between() -> Derivation:
    """Two latents of one length, the angle θ apart: the length of what lies between, on a line and on an arc."""

    def squared(first: Expr, second: Expr) -> Expr:
        return length**2 * (first**2 + second**2 + 2 * first * second * cos(theta))

    return Derivation(
        "Between two latents",
        [
            Step(
                "linear-length",
                squared(1 - w, w),
                (1 - 2 * w * (1 - w) * (1 - cos(theta))) * length**2,
                "a chord lies inside the sphere",
                name=Symbol(r"\ell_w") ** 2,
            ),
            Step(
                "slerp-length",
                squared(sin((1 - w) * theta) / sin(theta), sin(w * theta) / sin(theta)),
                length**2,
                "an arc stays on it",
                name=Symbol(r"\ell_w") ** 2,
                assuming=[theta < pi],
            ),
        ],
    )

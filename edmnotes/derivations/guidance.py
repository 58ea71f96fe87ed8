r"""Derivations of the chapter ``guidance``: what a condition adds to a denoiser, in a chain and in continuous form.

One coordinate; φ(x) stands for the chance p(y | x; σ) of what is asked for. Exaggerated guidance, with Ω above 1, is
worked out where all is known: on two points of data, and on two Gaussians, told N(m, v_y) and untold N(0, v).
"""

from sympy import Eq, Expr, Function, Integral, Limit, Rational, Symbol, exp, log, oo, sqrt, symbols, tanh

from edmnotes.derivations.core import Derivation, Solved, Step, derivation, solve_for

DEFINITIONS = {
    "similarity": "a potential, chosen: how alike two pictures are to an embedding",
}

x, x_t, y, m, G, k, a = symbols("x x_t m_y m G k a", real=True)
level, c, alpha_bar, v, told, top = symbols(r"\sigma c \bar\alpha_t v v_y T", positive=True)
scale = Symbol(r"\Omega", real=True)
p, phi = (Function(name, positive=True)(x) for name in ("p", r"\phi"))
D, D_y, nu, nu_y = symbols(r"D D_y \nu \nu_y", real=True)

# Tweedie's formula, with p and then with p φ / P for the density.
DENOISER = {D: x + level**2 * log(p).diff(x)}
TOLD = {D_y: x + level**2 * log(p * phi).diff(x)}


@derivation
def bayes() -> Derivation:
    """What the condition adds to the score, to the denoiser and to the guess of the noise."""
    P = Symbol("P", positive=True)
    return Derivation(
        "Bayes' rule for scores and denoisers",
        [
            Step(
                "guidance-bayes",
                log(p * phi / P).diff(x),
                log(p).diff(x) + log(phi).diff(x),
                "the chance of y over all x is a constant, and falls out of the gradient",
                name=Symbol("S_y"),
            ),
            Step(
                "guided-denoiser",
                D_y,
                D + level**2 * log(phi).diff(x),
                "Tweedie's formula for the score and for the told score",
                name=D_y,
                given={**TOLD, **DENOISER},
            ),
            Step(
                "guided-noise",
                (x - D_y) / level,
                nu - level * log(phi).diff(x),
                "the guess of the noise is what the denoiser leaves, over its standard deviation",
                name=nu_y,
                given={**TOLD, nu: (x - DENOISER[D]) / level},
            ),
            Step(
                "guided-noise-chain",
                nu - level * sqrt(alpha_bar) * G,
                nu - sqrt(1 - alpha_bar) * G,
                "a gradient in x is √ᾱ times one in x_t = √ᾱ x, and √ᾱ σ = √(1 − ᾱ)",
                name=nu_y,
                given={level: sqrt((1 - alpha_bar) / alpha_bar)},
                assuming=[alpha_bar < 1],
            ),
        ],
    )


def tilted_step(log_phi: Expr) -> tuple[Solved, Expr]:
    """Peak and variance of N(m, c²) times exp(log_phi), for a log_phi of second degree in m_y."""
    exponent = -((y - m) ** 2) / (2 * c**2) + log_phi
    return solve_for([Eq(exponent.diff(y), 0)], [y])[y], -1 / exponent.diff(y, 2)


@derivation
def chain() -> Derivation:
    """The step of a chain told y: its mean is shifted; what the shift leaves out; where the gradient is taken."""
    flat, _ = tilted_step(G * (y - m))
    bent, width = tilted_step(G * (y - m) + k * (y - m) ** 2 / 2)
    gentle = [c**2 * k < Rational(1, 2)]
    return Derivation(
        "Classifier guidance in a chain",
        [
            Step(
                "chain-shift", flat, m + c**2 * G, "complete the square for a potential of slope G", name=Symbol("m_y")
            ),
            Step(
                "chain-shift-exact",
                bent,
                m + c**2 * G / (1 - c**2 * k),
                "the same with a second derivative k",
                assuming=gentle,
            ),
            Step(
                "chain-width-exact",
                width,
                c**2 / (1 - c**2 * k),
                "the precisions of the step and of the potential add",
                name=Symbol("c_y") ** 2,
                assuming=gentle,
            ),
            Step(
                "chain-shift-error",
                bent.value - (m + c**2 * G),
                c**4 * k * G / (1 - c**2 * k),
                "the exact mean less the shifted one",
                name=Symbol("e"),
                assuming=gentle,
            ),
            Step(
                "gradient-at-start",
                c**2 * ((G * (y - m) + k * (y - m) ** 2 / 2).diff(y).subs(y, x_t) - G),
                c**2 * k * (x_t - m),
                "the slope of the potential at x_t in place of that at m",
                name=Symbol("e'"),
            ),
        ],
    )


@derivation
def scales() -> Derivation:
    """Extrapolation is the scaled gradient; the same for the noise; on two points it is not the scaled posterior."""
    # Two points, -1 and 1, of weights e^{-b} and e^{b}: what the noise adds to their logs differs by 2x/σ².
    up, down = exp(scale * a + x / level**2), exp(-scale * a - x / level**2)
    return Derivation(
        "Scales other than 1",
        [
            Step(
                "extrapolated-denoiser",
                D + scale * level**2 * log(phi).diff(x),
                D + scale * (D_y - D),
                "the gradient is what telling y adds to the denoiser",
                name=Symbol(r"D_\Omega"),
                given={**TOLD, **DENOISER},
            ),
            Step(
                "extrapolated-noise",
                (x - (D + scale * (D_y - D))) / level,
                scale * nu_y - (scale - 1) * nu,
                "the same in guesses of the noise",
                name=Symbol(r"\nu_\Omega"),
                given={nu: (x - D) / level, nu_y: (x - D_y) / level},
            ),
            Step(
                "two-point-guided",
                D + scale * (D_y - D),
                (1 - scale) * tanh(x / level**2) + scale * tanh(x / level**2 + a),
                "the denoisers of two points of equal and of unequal weights",
                name=Symbol(r"D_\Omega"),
                given={D: tanh(x / level**2), D_y: tanh(x / level**2 + a)},
            ),
            Step(
                "two-point-tilted",
                (up - down) / (up + down),
                tanh(x / level**2 + scale * a),
                "the mean of the points by their weights; at Ω = 0 and 1 it is the untold and the told denoiser",
                name=Symbol(r"\tilde D_\Omega"),
            ),
        ],
    )


@derivation
def gaussians() -> Derivation:
    """Guided down the probability-flow ODE a Gaussian stays one: which, and which it should have been."""
    sigma = Symbol(r"\sigma", positive=True)
    guess, asked = v * x / (v + sigma**2), (told * x + sigma**2 * m) / (told + sigma**2)
    rate = (1 - scale) / (v + sigma**2) + scale / (told + sigma**2)
    u = Symbol("u", positive=True)  # the level, as what is integrated over
    # What the ODE multiplies a difference of two points by, from the level T to 0.
    flow = (v / (v + top**2)) ** ((1 - scale) / 2) * (told / (told + top**2)) ** (scale / 2)
    exponent = -scale * (x - m) ** 2 / (2 * told) - (1 - scale) * x**2 / (2 * v)
    peak = solve_for([Eq(exponent.diff(x), 0)], [x])[x]
    proper = [scale / told + (1 - scale) / v > Rational(1, 10)]
    same = u * scale * m / (v + u**2) ** Rational(3, 2)
    return Derivation(
        "Guidance between two Gaussians",
        [
            Step(
                "guided-slope",
                (x - (guess + scale * (asked - guess))) / sigma,
                sigma * rate * x - sigma * scale * m / (told + sigma**2),
                "the slope of the ODE, (x − D) / σ, is linear in x",
                name=Symbol("x'"),
            ),
            Step(
                "guided-flow",
                exp(-Integral((sigma * rate).subs(sigma, u), (u, 0, top))),
                flow,
                "integrate the coefficient of x",
                name=Symbol("R"),
            ),
            Step(
                "guided-width",
                Limit(top * flow, top, oo),
                v ** ((1 - scale) / 2) * told ** (scale / 2),
                "the start has standard deviation T, and T is large",
                name=Symbol(r"\sigma_\Omega"),
                by_numbers="SymPy does not find a limit with a symbolic power",
            ),
            Step(
                "tilted-variance",
                -1 / exponent.diff(x, 2),
                1 / (scale / told + (1 - scale) / v),
                "the second derivative of the log of the tilted density",
                name=Symbol(r"v_\Omega"),
                assuming=proper,
            ),
            Step(
                "tilted-mean",
                peak,
                scale * m / (scale + (1 - scale) * told / v),
                "its peak",
                name=Symbol(r"m_\Omega"),
                assuming=proper,
            ),
            Step(
                "guided-mean",
                sqrt(v) * Integral(same, (u, 0, oo)),
                scale * m,
                "for equal variances: variation of constants from pure noise",
                name=Symbol(r"m_\Omega"),
            ),
        ],
    )

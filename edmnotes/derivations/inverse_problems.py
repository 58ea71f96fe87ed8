r"""Derivations of the chapter ``inverse_problems``: sampling what a measurement leaves open, by Tweedie's mean.

The measurement is y = A x_0 + σ_y ε, in one coordinate. C is the variance of x_0 given the noised x, and D its mean,
whose derivative is C/σ². The bias of diffusion posterior sampling is worked out on Gaussian data N(0, v) with A = 1,
where the guided ODE is linear.
"""

from sympy import (
    Derivative,
    Eq,
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

from edmnotes.derivations.core import Derivation, Step, derivation, solve_for

DEFINITIONS = {
    "measurement": "what is measured, by assumption",
    "measured-likelihood": "the chance of the measurement given the noised point, by the rule of total probability",
    "dps-likelihood": "the approximation that is the method: the mean in the place of all x_0",
}

x, x_0, y, m = symbols("x x_0 y m", real=True)
A = Symbol("A", real=True)
level, noise, v, C, top = symbols(r"\sigma \sigma_y v C T", positive=True)
scale = Symbol(r"\Omega", positive=True)
D = Symbol("D", real=True)

# log of N(x_0; D, C) N(y; A x_0, σ_y²), up to a constant
JOINT = -((x_0 - D) ** 2) / (2 * C) - (y - A * x_0) ** 2 / (2 * noise**2)


@derivation
def gaussian_posterior() -> Derivation:
    """If x_0 given x were normal: the told mean and variance, the chance of the measurement, and Tweedie in between."""
    at = Symbol("x_*", real=True)
    mean = D + C / level**2 * (x - at)  # near the point in question; the slope of the denoiser is C/σ²
    likelihood = -((y - A * mean) ** 2) / (2 * noise**2)
    component = JOINT.subs({D: m, C: v})
    peak = solve_for([Eq(component.diff(x_0), 0)], [x_0])[x_0].value
    told = D + A * C * (y - A * D) / (noise**2 + A**2 * C)
    return Derivation(
        "A measurement and one Gaussian",
        [
            Step(
                "measured-mean",
                solve_for([Eq(JOINT.diff(x_0), 0)], [x_0])[x_0].value,
                told,
                "the peak of the product of two Gaussians",
                name=Symbol("D_y"),
            ),
            Step(
                "measured-covariance",
                -1 / Derivative(JOINT, (x_0, 2)),
                noise**2 * C / (noise**2 + A**2 * C),
                "their precisions add",
                name=Symbol("C_y"),
            ),
            Step(
                "component-evidence",
                component.subs(x_0, peak),
                -((y - A * m) ** 2) / (2 * (noise**2 + A**2 * v)),
                "what is left of the exponent at the peak, where a component has m and v for D and C",
                name=Symbol("e"),
            ),
            Step(
                "dps-denoiser",
                Subs(mean + level**2 * Derivative(likelihood, x), x, at),
                D + A * C * (y - A * D) / noise**2,
                "the chain rule, and the slope of the denoiser is C/σ²",
                name=Symbol("D_y"),
            ),
            Step(
                "dps-overstep",
                (A * C * (y - A * D) / noise**2) / (told - D),
                1 + A**2 * C / noise**2,
                "the one step over the other",
                name=Symbol("r"),
            ),
        ],
    )


@derivation
def width() -> Derivation:
    """Down the ODE, on Gaussian data: too narrow, exponentially, and the scale that would mend the width."""
    u = Symbol("u", positive=True)  # the level, as what is integrated over
    guess, C_x = v * x / (v + level**2), v * level**2 / (v + level**2)
    guided = guess + scale * C_x * (y - guess) / noise**2
    coefficient = level / (v + level**2) + scale * level * v**2 / (noise**2 * (v + level**2) ** 2)
    flow = sqrt(v / (v + top**2)) * exp(-scale * v * top**2 / (2 * noise**2 * (v + top**2)))
    narrow, exact = sqrt(v) * exp(-scale * v / (2 * noise**2)), sqrt(v * noise**2 / (v + noise**2))
    return Derivation(
        "The width that posterior sampling leaves",
        [
            Step(
                "dps-slope",
                (x - guided) / level,
                coefficient * x - scale * level * v * y / (noise**2 * (v + level**2)),
                "the slope of the ODE with the guided denoiser",
                name=Symbol("x'"),
            ),
            Step(
                "dps-flow",
                exp(-Integral(coefficient.subs(level, u), (u, 0, top))),
                flow,
                "integrate the coefficient of x",
                name=Symbol("R"),
            ),
            Step(
                "dps-width",
                Limit(top * flow, top, oo),
                narrow,
                "the start has standard deviation T, and T is large",
                name=Symbol(r"\sigma_\Omega"),
            ),
            Step(
                "measured-width",
                sqrt(Subs(noise**2 * C / (noise**2 + A**2 * C), (C, A), (v, Rational(1)))),
                exact,
                "the exact posterior of the data themselves",
                name=Symbol(r"\sigma_*"),
            ),
            Step(
                "dps-scale",
                solve_for([Eq(log(narrow / exact), 0)], [scale])[scale],
                noise**2 / v * log(1 + v / noise**2),
                "the scale at which the two widths are one",
            ),
        ],
    )

r"""Derivations of the chapter ``vdm``: the evidence bound of a diffusion model, its forms, its limit and its schedule.

Unscaled coordinates: x_i = x_0 + σ_i ε, at levels σ_1 < ... < σ_N; one coordinate stands for all. L is the logarithm of
p(x_0, ..., x_N) / q(x_1, ..., x_N | x_0). Its factors are p_i = p(x_{i-1} | x_i), with p_{N+1} for the prior, and
q_i = q(x_i | x_{i-1}); beside them stand the marginal q̄_i = q(x_i | x_0) and the bridge q̃_i = q(x_{i-1} | x_i, x_0).
Φ(σ) is the mean squared error of a denoiser at a level, Ψ(ℓ) that of its guess of the noise at σ² = e^ℓ.
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
    Limit,
    Rational,
    Subs,
    Sum,
    Symbol,
    exp,
    expand_log,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)
from sympy.tensor.indexed import Indexed

from edmnotes.derivations.core import Derivation, Step, derivation, solve_for
from edmnotes.derivations.fokker_planck import NORMAL, normal
from edmnotes.derivations.forward import E, expectation, h, r, sigma_max, sigma_min, t, v
from edmnotes.derivations.likelihood import mean_over_normal

DEFINITIONS = {
    "vlb-path": "a name for what the evidence bound is the mean of",
    "log-snr": "a name for the logarithm of the variance of the noise",
}

x, x0, y, D = symbols("x x_0 y D", real=True)
eps, eps_next = symbols(r"\varepsilon \varepsilon'", real=True)
before, here = symbols("x_{i-1} x_i", real=True)
level, below = symbols(r"\sigma \sigma'", positive=True)
level0, level1 = symbols(r"\sigma_{i-1} \sigma_i", positive=True)
last, last_but_one = symbols(r"\sigma_N \sigma_{N-1}", positive=True)
c, K = symbols("c K", positive=True)
m, L = symbols("m L", real=True)
N, i = symbols("N i", integer=True, positive=True)
q_here, p_here, p_after, q_bar, q_bar0, q_tilde = symbols(
    r"q_i p_i p_{i+1} \bar{q}_i \bar{q}_{i-1} \tilde{q}_i", positive=True
)
Phi, Psi = (Function(name, positive=True) for name in (r"\Phi", r"\Psi"))
ell = Function(r"\ell", real=True)
ell_min, ell_max = symbols(r"\ell_{\min} \ell_{\max}", real=True)
bound = Symbol(r"\mathcal{I}", positive=True)

MEAN = x0 + below**2 / level**2 * (x - x0)
VARIANCE = below**2 * (1 - below**2 / level**2)
LOWER = [level > below]
ONE = Rational(1)
MOMENTS = {**NORMAL, 4: Subs(Derivative(exp(h**2 / 2), (h, 4)), h, 0)}  # by the moment-generating function
NO_SUBSTITUTION = "SymPy does not substitute in the integral of a function that it does not know"


class LogSum(Sum):
    """A sum of logarithms over i, whose ends SymPy does not split off by itself.

    ``doit`` takes the logarithms apart, shifts every sequence to the index i, and leaves the terms 2 … N − 1 of each as
    a sum, the others as they are; with numbers for limits it is written out.
    """

    def doit(self, **hints: Any) -> Expr:
        """Return the sums of single sequences from 2 to N − 1, and what lies outside."""
        ((index, first, final),) = self.limits
        if final.is_number:
            return Add(*(self.function.subs(index, value) for value in range(first, final + 1)))
        total: Expr = Rational(0)
        for term in Add.make_args(expand_log(self.function, force=True)):
            (sequence,) = term.atoms(Indexed)
            shift = sequence.indices[0] - index
            plain = term.subs(index, index - shift)
            start, end = first + shift, final + shift
            below = [plain.subs(index, value) for value in range(start, 2)]
            above = [plain.subs(index, N + value) for value in range(end - N + 1)]
            total += Add(*below, Sum(plain, (index, 2, N - 1)), *above)
        return total


def log_normal(at: Expr, centre: Expr, std: Expr) -> Expr:
    """The logarithm of the density of N(centre, std²), taken apart."""
    return expand_log(log(normal(at, centre, std)), force=True)


def relative_entropy(mean: Expr, std: Expr, other_mean: Expr, other_std: Expr) -> Expr:
    """The mean of log N(x; mean, std²) − log N(x; other_mean, other_std²) under the first."""
    ratio = log_normal(x, mean, std) - log_normal(x, other_mean, other_std)
    return mean_over_normal(ratio, mean, std)


def step_cost(upper: Expr, lower: Expr, square: Expr, scale: Expr = ONE) -> Expr:
    """The relative entropy of the bridge to the model's step, which has D in the place of x_0.

    Args:
        upper: the level that the step starts from.
        lower: the one it goes to.
        square: (x_0 − D)².
        scale: s at the lower level; the step is taken in coordinates multiplied by it.
    """
    at, point = {level: upper, below: lower}, Symbol("p", real=True)
    centre, std = MEAN.subs(x, point), scale * sqrt(VARIANCE)
    cost = relative_entropy(scale * centre, std, scale * centre.subs(x0, D), std)
    return cost.subs(x0, D + sqrt(square)).subs(at)


@derivation
def bridge() -> Derivation:
    """The law of a point at a lower level, given the one at a higher level and the clean one."""
    exponent = -((y - x0) ** 2) / (2 * below**2) - (x - y) ** 2 / (2 * (level**2 - below**2))
    peak = solve_for([Eq(exponent.diff(y), 0)], [y])[y]
    width = solve_for([Eq(1 / c**2, (-exponent.diff(y, 2)).together())], [c])[c]
    at = {x: here, level: level1, below: level0}
    z = Symbol("z", real=True)
    landed = MEAN.subs(x, x0 + level * eps) + c * z
    return Derivation(
        "The bridge",
        [
            Step(
                "bridge-mean",
                peak.value,
                MEAN,
                "the product of two normal densities",
                name=m,
                assuming=LOWER,
            ),
            Step(
                "bridge-variance",
                width.value**2,
                VARIANCE,
                "their precisions add",
                name=c**2,
                assuming=LOWER,
            ),
            Step(
                "bridge-marginal",
                expectation(((landed - x0) ** 2).expand(), {z: NORMAL, eps: NORMAL}),
                below**2,
                "averaged over the higher point, the bridge lands on the lower level",
                name=E((Symbol("x'", real=True) - x0) ** 2),
                given={c: sqrt(VARIANCE)},
                assuming=LOWER,
            ),
            Step(
                "bridge-bayes",
                normal(before, MEAN.subs(at), level0 * sqrt(level1**2 - level0**2) / level1),
                q_here * q_bar0 / q_bar,
                "Bayes' rule, with all the factors in front",
                name=q_tilde,
                given={
                    q_here: normal(here, before, sqrt(level1**2 - level0**2)),
                    q_bar: normal(here, x0, level1),
                    q_bar0: normal(before, x0, level0),
                },
                assuming=[level1 > level0],
            ),
        ],
    )


@derivation
def two_forms() -> Derivation:
    """One logarithm, sorted in two ways."""
    p, q, marginal, posterior = (IndexedBase(name, positive=True) for name in ("p", "q", r"\bar{q}", r"\tilde{q}"))
    model = LogSum(log(p[i]), (i, 1, N + 1))
    by_bayes = log(posterior[i]) + log(marginal[i]) - log(marginal[i - 1])
    return Derivation(
        "Two forms of the bound",
        [
            Step(
                "consistency-elbo",
                model - LogSum(log(q[i]), (i, 1, N)),
                log(p[1]) + LogSum(log(p[i + 1] / q[i]), (i, 1, N - 1)) + log(p[N + 1] / q[N]),
                "each point is reached by the encoder from one side, by the model from the other",
                name=L,
            ),
            Step(
                "denoising-elbo",
                model - log(marginal[1]) - LogSum(by_bayes, (i, 2, N)),
                log(p[1]) + LogSum(log(p[i] / posterior[i]), (i, 2, N)) + log(p[N + 1] / marginal[N]),
                "Bayes' rule in all steps but the first; the marginals cancel in pairs",
                name=L,
            ),
        ],
    )


@derivation
def terms() -> Derivation:
    """The terms in closed form: the prior against a marginal and against a step, a step, and their sum."""
    alpha, alpha_bar, alpha_bar0 = symbols(r"\alpha_t \bar\alpha_t \bar\alpha_{t-1}", positive=True)
    levels, start = IndexedBase(r"\sigma", positive=True), Symbol("R", real=True)
    square = Symbol("e", positive=True)
    one_step = step_cost(level, below, square).factor()
    snr0, snr1 = alpha_bar0 / (1 - alpha_bar0), alpha_bar / (1 - alpha_bar)
    against_a_step = relative_entropy(before, sqrt(last**2 - last_but_one**2), Rational(0), last)
    drawn = against_a_step.subs(before, x0 + last_but_one * eps)
    to_zero = log_normal(x, x0, last) - log_normal(x, Rational(0), last)
    return Derivation(
        "The terms of the bound",
        [
            Step(
                "vlb-prior",
                Integral((normal(x, x0, last) * to_zero).simplify(), (x, -oo, oo)),
                x0**2 / (2 * last**2),
                "two normal laws of one variance, one centre at the clean point and one at 0",
                name=K,
            ),
            Step(
                "vlb-prior-step",
                expectation(drawn.expand(), {eps: NORMAL}),
                x0**2 / (2 * last**2) - log(1 - last_but_one**2 / last**2) / 2,
                "a single step has less noise than the prior, about a centre of its own",
                name=E(K),
                assuming=[last > last_but_one],
            ),
            Step(
                "vlb-snr",
                step_cost(level, below, (x0 - D) ** 2),
                (1 / below**2 - 1 / level**2) / 2 * (x0 - D) ** 2,
                "one variance, and means that differ by a share of the denoiser's error",
                name=K,
                assuming=LOWER,
            ),
            Step(
                "snr-weight",
                step_cost(1 / sqrt(snr1), 1 / sqrt(snr0), (x0 - D) ** 2, scale=sqrt(alpha_bar0)),
                (snr0 - snr1) / 2 * (x0 - D) ** 2,
                "the same in DDPM's coordinates and letters: a scale changes no relative entropy",
                name=K,
                given={alpha: alpha_bar / alpha_bar0},
                assuming=[alpha_bar < alpha_bar0, alpha_bar0 < 1],
            ),
            Step(
                "vlb-terms",
                relative_entropy(x0, levels[N], Rational(0), levels[N])
                + Sum(one_step.subs({level: levels[i], below: levels[i - 1], square: Phi(levels[i])}), (i, 2, N))
                + start,
                x0**2 / (2 * levels[N] ** 2)
                + Sum((1 / levels[i - 1] ** 2 - 1 / levels[i] ** 2) / 2 * Phi(levels[i]), (i, 2, N))
                + start,
                "prior, steps and reconstruction",
                name=-E(L),
            ),
        ],
    )


@derivation
def monte_carlo() -> Derivation:
    """What single draws of the terms scatter by; and a relative entropy that is not one."""
    a, g = symbols("a g", real=True)
    b, apart = symbols("b u", positive=True)
    drawn = m + c * eps
    # x_{i+1}, seen from x_i a step of standard deviation h away; both steps alike, and short
    share = level**2 / (level**2 + h**2)
    model_std = sqrt(level**2 * (1 - share))
    at = before + h * eps
    above = at + h * eps_next
    logs = log(normal(at, before, h) / normal(at, D + share * (above - D), model_std))
    again, z = symbols(r"\varepsilon'' z", real=True)
    step = Symbol("b'", positive=True)
    both = sqrt(b**2 + step**2)
    way = b**2 / both * z + b * step / both * y  # from x_{i-1} to x_i, when x_{i+1} is z times the sum's std away
    reached = before + b * eps + step * eps_next
    wrong, right = ((before + b * e - a - g * reached) ** 2 / (2 * c**2) for e in (again, eps))
    draws = dict.fromkeys((eps, eps_next, again), NORMAL)
    return Derivation(
        "The terms by single draws",
        [
            Step(
                "log-ratio",
                log_normal(drawn, m, c) - log_normal(drawn, m - apart, c),
                K + sqrt(2 * K) * eps,
                "the logarithm is linear in the noise",
                name=log(q_tilde / p_here),
                given={K: apart**2 / (2 * c**2)},
            ),
            Step(
                "consistency-term",
                Limit(logs, h, 0, "+"),
                (eps_next**2 - eps**2) / 2,
                "in short steps the denoiser drops out, and two unrelated squares are left",
                name=log(q_here / p_after),
            ),
            Step(
                "consistency-variance",
                expectation(((eps_next**2 - eps**2) ** 2 / 4).expand(), {eps: MOMENTS, eps_next: MOMENTS}),
                Rational(1),
                "the square of a normal number has variance 2",
                name=E(log(q_here / p_after) ** 2),
            ),
            Step(
                "consistency-averaged",
                expectation((log_normal(way, Rational(0), b) - log_normal(way, both * z, step)).expand(), {y: NORMAL}),
                log(step / b) + (step**2 - b**2) / (2 * (step**2 + b**2)) * (z**2 - 1),
                "between two neighbours a point hangs on a bridge of its own",
                name=E(log(q_here / p_after)),
            ),
            Step(
                "consistency-excess",
                expectation((wrong - right).expand(), draws),
                g * b**2 / c**2,
                "the next point was made from this one, and the two are correlated",
                name=E(K) - E(log(q_here / p_after)),
            ),
        ],
    )


@derivation
def more_steps() -> Derivation:
    """A level put in between lowers the bound; the limit; and Gaussian data, where all of it is known."""
    between = Symbol(r"\sigma''", positive=True)
    u = Symbol("u", positive=True)
    error = v * level**2 / (v + level**2)
    integral = Integral(Phi(r) / r**3, (r, sigma_min, sigma_max))
    deviation = D - x0
    at_the_data = relative_entropy(x0, sigma_max, Rational(0), sqrt(v + sigma_max**2))
    first_error = v * sigma_min**2 / (v + sigma_min**2)
    decoder = -log_normal(y, Rational(0), sqrt(first_error))

    def cost(upper: Expr, lower: Expr) -> Expr:
        return step_cost(upper, lower, Phi(upper))

    return Derivation(
        "More steps",
        [
            Step(
                "vlb-split",
                cost(level, below) - cost(between, below) - cost(level, between),
                (1 / below**2 - 1 / between**2) / 2 * (Phi(level) - Phi(between)),
                "one step less the two that take its place",
                assuming=[level > between, between > below],
            ),
            Step(
                "vlb-continuous",
                Integral(-Derivative(1 / (2 * r**2), r) * Phi(r), (r, sigma_min, sigma_max)),
                integral,
                "the weights are the drops of half the signal-to-noise ratio",
                name=bound,
            ),
            Step(
                "gaussian-error",
                expectation(
                    (deviation.subs(D, v / (v + level**2) * (x0 + level * eps)) ** 2).expand(),
                    {x0: {1: Rational(0), 2: v}, eps: NORMAL},
                ),
                error,
                "the denoiser of a Gaussian",
                name=Phi(level),
            ),
            Step(
                "vlb-gaussian",
                integral,
                log((1 + v / sigma_min**2) / (1 + v / sigma_max**2)) / 2,
                "the integral for a Gaussian",
                name=bound,
                given={Phi(u): error.subs(level, u)},
            ),
            Step(
                "vlb-gaussian-total",
                expectation(at_the_data.expand(), {x0: {1: Rational(0), 2: v}})
                + log((1 + v / sigma_min**2) / (1 + v / sigma_max**2)) / 2
                + expectation(decoder.expand(), {y: {1: Rational(0), 2: first_error}}),
                (1 + log(2 * pi * v)) / 2,
                "prior, integral and reconstruction: the levels cancel",
                name=-E(L),
            ),
        ],
    )


@derivation
def schedule() -> Derivation:
    """The bound on the clock ℓ = log σ², and which density of ℓ estimates it with the least variance."""
    q, there, A, price = symbols(r"q M A \Lambda", positive=True)
    M, density, time = (Function(name, positive=True) for name in ("M", "q", "t"))
    estimate = Symbol(r"\hat{\mathcal{I}}", positive=True)
    now = Symbol(r"\ell", real=True)
    span = (r, ell_min, ell_max)
    clock = {ell_min: log(sigma_min**2), ell_max: log(sigma_max**2)}
    return Derivation(
        "The schedule",
        [
            Step(
                "vlb-noise",
                Integral(Phi(level) / level**3, (level, sigma_min, sigma_max)).transform(level, exp(r / 2)),
                Integral(Psi(r), span) / 2,
                "the error of the noise is that of the clean point over σ²",
                name=bound,
                given={Psi(r): Phi(exp(r / 2)) / exp(r), **clock},
            ),
            Step(
                "vlb-invariance",
                Integral(Derivative(ell(t), t) * Psi(ell(t)), (t, 0, 1)),
                Integral(Psi(r), (r, ell(0), ell(1))),
                "a change of variables: only the ends are left",
                by_numbers=NO_SUBSTITUTION,
            ),
            Step(
                "schedule-moment",
                Integral(M(r) / (2 * Derivative(time(r), r)) ** 2 * Derivative(time(r), r), span),
                Integral(M(r) / (4 * density(r)), span),
                "the mean of the square, over the levels drawn",
                name=E(estimate**2),
                given={density(r): Derivative(time(r), r)},
            ),
            Step(
                "schedule-best",
                solve_for([Eq((there / (4 * q) + price * q).diff(q), 0)], [q])[q],
                sqrt(there) / (2 * sqrt(price)),
                "where the slope of the cost of a share is 0",
            ),
            Step(
                "schedule-least",
                Integral(M(r) / (4 * density(r)), span),
                A / 4 * Integral(sqrt(M(r)), span),
                "with the best shares, divided by their sum",
                name=E(estimate**2),
                given={density(r): sqrt(M(r)) / A},
            ),
            Step(
                "schedule-gaussian",
                Integral(v / (v + exp(r)), (r, ell_min, now)),
                log((1 + v * exp(-ell_min)) / (1 + v * exp(-now))),
                "the time at which the best schedule of a Gaussian is at ℓ, in a unit of its own",
            ),
            Step(
                "unweighted-slope",
                Derivative(v / (v + exp(r)), r),
                -v * exp(r) / (v + exp(r)) ** 2,
                "more noise is easier to guess",
                name=Derivative(Psi(r), r),
            ),
        ],
    )


@derivation
def weights() -> Derivation:
    """EDM's loss beside the bound."""
    data = Symbol(r"\sigma_{data}", positive=True)
    weight, q = Function(r"\lambda", positive=True), Function("q", positive=True)
    return Derivation(
        "EDM's loss and the bound",
        [
            Step(
                "edm-over-bound",
                weight(level) * q(log(level)) * level**2,
                (1 + level**2 / data**2) * q(log(level)),
                "what EDM gives to an interval of log σ, over what the bound gives",
                given={weight(level): (level**2 + data**2) / (level * data) ** 2},
            ),
        ],
    )

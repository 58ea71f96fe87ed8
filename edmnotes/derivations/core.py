r"""Steps, derivations and the registry that ties a page's equation to its proof.

A :class:`Step` keeps two sides apart: the left is *computed* (solved, differentiated, integrated, a limit), the right
is what a person writes on the page. :meth:`Derivation.verify` checks each step in two independent ways: numbers at
seeded random points with 30 digits (undefined functions s(t), sigma(t) replaced by concrete smooth positive ones), and
SymPy's reduction of the difference to 0. Both must agree. Where SymPy cannot reduce a true difference, the step must
say so with a reason (``by_numbers=``); the verdict then prints ``≈`` in place of ``✓``, and the excuse is refused as
soon as SymPy can.

How to write a chapter's module, so that the page ties::

    # symbols are named as on the page
    s0, s1, v0, v1 = symbols(r"s_{t-1} s_t \sigma_{t-1} \sigma_t", positive=True)
    a, b = symbols("a b", positive=True)

    DEFINITIONS = {"recursion-ansatz": "the form of one step, chosen"}  # label: reason; a definition has no step
    NOT_PARSED = {}  # label: reason; has a step, but LaTeX that cannot be read

    @derivation
    def one_step_recursion() -> Derivation:
        mean, variance = Eq(s1, a * s0), Eq(s1**2 * v1**2, a**2 * (s0 * v0) ** 2 + b**2)
        solved = solve_for([mean, variance], [a, b])
        noise = s1 * sqrt(v1**2 - v0**2)
        return Derivation("One-step recursion", [
            Step("recursion-mean", solved[a], s1 / s0, "match the conditional means"),
            Step("recursion-noise", solved[b], noise, "match the variances", assuming=[v1 > v0]),
        ])

* Name symbols and functions by the page's LaTeX (``Function(r"\sigma")``, ``symbols(r"\beta_{\min}")``); ``sigma_data``
  is read as ``\sigma_{data}``, and ``\text``, ``\mathrm`` and braces make no difference.
* The page's equation reads ``name = side (= side ...)``. Its first member must be the step's ``name`` (of a
  :func:`solve_for` result: the unknown, without saying so) or, when the step has no name, equal ``lhs``; every later
  member must equal ``rhs``. So ``f(t) = \frac{\dot s(t)}{s(t)}`` needs ``name=f(t)``. One label is one equation;
  conditions stand in the sentence.
* ``\dot\sigma(t)`` is the derivative of the step's function ``\sigma``; a function written bare (``\dot s / s``) is
  taken at the one argument (or list of arguments) it has in the step. ``p(x; \sigma)`` is ``p(x, \sigma)``.
* ``\frac{\partial^2 p_t}{\partial x^2}`` is a second derivative; ``\nabla`` is the derivative in ``x`` of the factor
  that follows, in a step whose one coordinate is called x. A step may hold a stochastic differential equation, with a
  symbol ``d``: then ``\mathrm d x = u\, \mathrm d t + g\, \mathrm d w`` is read as the product d·x = u·d·t + g·d·w.
* ``given={s(t): exp(-Integral(beta(u), (u, 0, t)) / 2)}`` are definitions that hold in this step: they are put in
  before checking.
* ``assuming=[v1 > v0]`` limits the random points. Symbols are drawn from (0.2, 2.2) if positive, else (-2, 2);
  integers from 2..6.
* ``torch=Call("edmnotes.schedules:VP.drift", {"t": t}, init={"beta_min": b_min, "beta_d": b_d})`` names the library
  function that must return ``rhs``; a test imports it (this module does not) and compares.
"""

import importlib
import inspect
import pkgutil
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import mpmath
from sympy import (
    Derivative,
    Dummy,
    Eq,
    Expr,
    Float,
    Lambda,
    Limit,
    Product,
    Rational,
    Subs,
    Sum,
    Symbol,
    Tuple,
    exp,
    expand,
    factorial,
    lambdify,
    nan,
    oo,
    radsimp,
    simplify,
    solve,
    sympify,
    together,
    zoo,
)
from sympy import latex as to_latex
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.tensor.indexed import Indexed

DIGITS = 30
TOLERANCE = mpmath.mpf(10) ** -15
POINTS = 4

LABEL = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class VerificationError(ValueError):
    """A step whose two sides are not the same, or that could not be shown to be."""


class Solved(Expr):
    """The value that equations give to an unknown, kept apart from an expression that merely looks the same.

    Made by :func:`solve_for`; ``doit()`` is the value.
    """

    is_commutative = True

    def __new__(cls, unknown: Symbol, value: Expr, equations: Tuple) -> "Solved":
        """Hold ``value`` as the solution of ``equations`` for ``unknown``."""
        return Expr.__new__(cls, unknown, value, equations)

    @property
    def unknown(self) -> Symbol:
        """The symbol solved for."""
        return self.args[0]

    @property
    def value(self) -> Expr:
        """What the equations make it."""
        return self.args[1]

    @property
    def free_symbols(self) -> set[Symbol]:
        """The symbols of the value; the unknowns are gone."""
        return self.value.free_symbols

    def doit(self, **hints: Any) -> Expr:
        """Return the value."""
        return self.value.doit(**hints)

    def _latex(self, printer: Any) -> str:
        return printer.doprint(self.unknown)


def solve_for(equations: Sequence[Eq], unknowns: Sequence[Symbol]) -> dict[Symbol, Solved]:
    """Solve equations that have exactly one solution in the unknowns, whose assumptions (positive, ...) count.

    Args:
        equations: SymPy equalities.
        unknowns: the symbols to solve for.

    Returns:
        ``{unknown: Solved}``; use a value as the left side of a step, its name on the page is then the unknown.

    Raises:
        ValueError: if there is no solution, more than one, or a solution that leaves an unknown open.
    """
    found = solve(list(equations), list(unknowns), dict=True)
    if len(found) != 1 or set(found[0]) != set(unknowns):
        raise ValueError(
            f"equations={list(equations)} have {len(found)} solutions {found} for unknowns={list(unknowns)}; "
            "one is needed: add an equation, or declare the unknowns positive"
        )
    return {unknown: Solved(unknown, value, Tuple(*equations)) for unknown, value in found[0].items()}


@dataclass(frozen=True, eq=False)
class Case:
    """One comparison of a library function with a step: call ``target`` with these numbers and expect ``expected``."""

    init: Mapping[str, float]
    args: Mapping[str, float]
    expected: float


@dataclass(frozen=True, eq=False)
class Call:
    """A library function that must return a step's right side. Only named here: a test imports and calls it.

    Attributes:
        target: ``"module:qualname"``, such as ``"edmnotes.schedules:VP.diffusion"``.
        args: argument name -> the step's symbol (or an expression of them) that it is, or a whole number, such as the
            number of levels, which is passed as such.
        init: the same for the constructor of the class, when ``target`` is a method or property.
        item: which item of a returned tuple is meant.
        where: what to put into the right side first, such as ``{s_t: exp(-t_1)}`` when the function takes times and
            the step has levels.
        assuming: relations that the random points must keep, besides the step's own.
    """

    target: str
    args: Mapping[str, Any] = field(default_factory=dict)
    init: Mapping[str, Any] = field(default_factory=dict)
    item: int | None = None
    where: Mapping[Any, Any] = field(default_factory=dict)
    assuming: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:[\w.]+", self.target):
            raise ValueError(f"target={self.target!r} is not 'module:qualname', such as 'edmnotes.schedules:VP.drift'")

    def cases(self, step: "Step", count: int = 5) -> list[Case]:
        """Return ``count`` seeded cases: numbers for the arguments and the value that ``step`` expects.

        Raises:
            ValueError: if the right side keeps an undefined function, or a symbol that no argument gives.
        """
        expression = _put_in(_put_in(step.rhs, self.where), step.given)
        if functions := _unknown_functions(expression):
            raise ValueError(
                f"step {step.label!r}: {functions} of {self.target} are undefined; say what they are in where="
            )
        wanted = {name: _put_in(sympify(value), step.given) for name, value in {**self.init, **self.args}.items()}
        symbols = set().union(expression.free_symbols, *(value.free_symbols for value in wanted.values()))
        relations = [*step.assuming, *self.assuming]
        made = []
        for i in range(count):
            point = draw(symbols, relations, random.Random(f"{step.label} {self.target} {i}"))
            number = {n: int(v) if v.is_Integer else float(_number(v, point)) for n, v in wanted.items()}
            expected = float(_number(expression, point))
            made.append(Case({n: number[n] for n in self.init}, {n: number[n] for n in self.args}, expected))
        return made


@dataclass(frozen=True, eq=False)
class Step:
    """One displayed equation of the book and its proof: ``lhs`` (computed) equals ``rhs`` (as written on the page).

    Attributes:
        label: the equation's label on the page.
        lhs: the computed side; leave ``Derivative``, ``Integral``, ``Limit``, ``Sum`` unevaluated, take a solution from
            :func:`solve_for`.
        rhs: the side a person writes.
        why: the sentence of the chapter.
        name: what the page writes before its first equals sign, when that is not ``lhs`` itself.
        given: definitions that hold here, ``{symbol or applied function: expression}``.
        assuming: relations between symbols that the random points must keep.
        by_numbers: why SymPy cannot reduce the difference to 0, if it cannot.
        torch: the library functions that must return ``rhs``.

    Raises:
        ValueError: for an ``Eq`` as a side, sides that are one expression, a rounded number, no ``why``, or a label
            that is not lower-case words joined by dashes.
    """

    label: str
    lhs: Expr
    rhs: Expr
    why: str
    name: Expr | None = field(default=None, kw_only=True)
    given: Mapping[Expr, Expr] = field(default_factory=dict, kw_only=True)
    assuming: Sequence[Any] = field(default=(), kw_only=True)
    by_numbers: str = field(default="", kw_only=True)
    torch: Sequence[Call] | Call = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not LABEL.fullmatch(self.label):
            raise ValueError(f"label={self.label!r} is not lower-case words joined by dashes")
        for side in ("lhs", "rhs", "name"):
            value = getattr(self, side)
            if side == "name" and value is None:
                continue
            object.__setattr__(self, side, _expression(self.label, side, value))
        if not self.why.strip():
            raise ValueError(f"step {self.label!r}: why is empty; write the sentence of the chapter")
        if self.lhs == self.rhs:
            raise ValueError(
                f"step {self.label!r}: lhs and rhs are one expression, {self.lhs}, and claim nothing. "
                "Leave the computation unevaluated (Derivative, Integral, Limit, Sum) or take it from solve_for"
            )
        if self.name is None and isinstance(self.lhs, Solved):
            object.__setattr__(self, "name", self.lhs.unknown)
        given = {sympify(k): _expression(self.label, "given", v) for k, v in dict(self.given).items()}
        for name in given:
            if not isinstance(name, Symbol) and not (
                isinstance(name, AppliedUndef) and all(a.is_Symbol for a in name.args)
            ):
                raise ValueError(f"step {self.label!r}: given defines {name}, which is neither a symbol nor f(symbol)")
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "assuming", _relations(self.label, self.assuming))
        object.__setattr__(self, "torch", (self.torch,) if isinstance(self.torch, Call) else tuple(self.torch))

    @property
    def subject(self) -> Expr:
        """What the page writes on the left, the name or else the computed side."""
        return self.lhs if self.name is None else self.name

    def latex(self) -> str:
        """Return the equation in LaTeX, ``subject = rhs``."""
        return f"{to_latex(self.subject)} = {to_latex(self.rhs)}"

    def verify(self) -> "Line":
        """Check the step by numbers and by SymPy.

        Raises:
            VerificationError: naming the label, both sides and the difference.
        """
        for i in range(POINTS):
            point, left, right, difference = compare(self.lhs, self.rhs, self, f"{self.label} {i}")
            if difference is not None:
                raise VerificationError(
                    f"step {self.label!r}: the sides differ\n  lhs: {self.lhs}\n  rhs: {self.rhs}\n"
                    f"  at {point}: {left} against {right}, difference {difference}"
                )
        reduced = _reduces_to_zero(_put_in(self.lhs, self.given), _put_in(self.rhs, self.given))
        if not reduced and not self.by_numbers:
            raise VerificationError(
                f"step {self.label!r}: SymPy does not reduce lhs - rhs to 0 (the numbers agree)\n"
                f"  lhs: {self.lhs}\n  rhs: {self.rhs}\n  write a smaller step, or say why in by_numbers="
            )
        if reduced and self.by_numbers:
            raise VerificationError(f"step {self.label!r}: SymPy reduces it to 0; drop by_numbers={self.by_numbers!r}")
        return Line("✓" if reduced else "≈", self.label, self.why)


@dataclass(frozen=True)
class Line:
    """The verdict on one step: ``✓`` (SymPy and numbers) or ``≈`` (numbers, and a stated reason why SymPy cannot)."""

    mark: str
    label: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """What :meth:`Derivation.verify` found; prints one line a step."""

    lines: tuple[Line, ...]

    def __repr__(self) -> str:
        width = max(len(line.label) for line in self.lines)
        return "\n".join(f"{line.mark} {line.label:<{width}}  {line.why}" for line in self.lines)


@dataclass(frozen=True, eq=False)
class Derivation:
    """A titled sequence of steps.

    Raises:
        ValueError: if there is no step, or two steps have one label.
    """

    title: str
    steps: Sequence[Step]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        labels = [step.label for step in self.steps]
        if not labels:
            raise ValueError(f"derivation {self.title!r} has no steps")
        if doubled := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"derivation {self.title!r} has several steps labelled {doubled}; a label is one equation")

    def verify(self) -> Verdict:
        """Check every step; the verdict prints one line each.

        Raises:
            VerificationError: at the first step that does not hold.
        """
        return Verdict(tuple(step.verify() for step in self.steps))

    def _repr_latex_(self) -> str:
        rows = r" \\ ".join(
            f"{to_latex(step.subject)} &= {to_latex(step.rhs)} && {_text(step.why)}" for step in self.steps
        )
        return rf"$$\begin{{aligned}} {rows} \end{{aligned}}$$"


def _escaped(text: str) -> str:
    return re.sub(r"([&%#_{}$])", r"\\\1", text)


def _text(words: str) -> str:
    return rf"\text{{{re.sub(r'([&%#_{}$])', lambda m: chr(92) + m[1], words)}}}"


# --- numbers ----------------------------------------------------------------------------------------------------------


def draw(symbols: Iterable[Symbol], assuming: Iterable[Any], source: random.Random) -> dict[Symbol, Rational]:
    """Draw an exact random value for each symbol: positive ones in (0.2, 2.2), integers in 2..6, others in (-2, 2).

    Args:
        symbols: what to draw.
        assuming: relations the values must keep; tried until they hold.
        source: the seeded generator.

    Raises:
        ValueError: if 2000 draws never meet ``assuming``.
    """
    relations = list(assuming)
    ordered = sorted(set(symbols).union(*(relation.free_symbols for relation in relations)), key=str)
    for _ in range(2000):
        point = {symbol: _value(symbol, source) for symbol in ordered}
        if all(relation.subs(point) == True for relation in relations):  # noqa: E712  (SymPy's true is not Python's)
            return point
    raise ValueError(f"assuming={relations} never held in 2000 draws of {ordered}; weaken it")


def compare(
    left: Expr, right: Expr, step: Step, seed: str
) -> tuple[dict[Symbol, Rational], mpmath.mpf, mpmath.mpf, mpmath.mpf | None]:
    """Evaluate two expressions at one random point of a step, with its definitions put in.

    Args:
        left: an expression in the step's symbols.
        right: another.
        step: whose ``given`` and ``assuming`` hold.
        seed: of the point and of the functions that stand in for undefined ones.

    Returns:
        The point, both values, and their difference, or None in place of the difference if they agree to ``TOLERANCE``.

    Raises:
        VerificationError: if a value is not a finite real number there.
    """
    left, right = (_concrete(_put_in(side, step.given), seed) for side in (left, right))
    point = draw(left.free_symbols | right.free_symbols, step.assuming, random.Random(seed))
    values = []
    for side in (left, right):
        try:
            values.append(_number(side, point))
        except ValueError as error:
            raise VerificationError(f"step {step.label!r}: {error}; see assuming=") from None
    difference = abs(values[0] - values[1])
    scale = max(map(abs, values)) if all(values) else mpmath.mpf(1)
    return point, values[0], values[1], difference if difference > TOLERANCE * scale else None


def _value(symbol: Symbol, source: random.Random) -> Rational:
    if symbol.is_integer:
        return Rational(source.randint(2, 6))
    fraction = Rational(source.randint(1, 10006), 10007)
    if symbol.is_nonnegative:
        return Rational(1, 5) + 2 * fraction
    return 4 * fraction - 2


def _unknown_functions(expression: Expr) -> set[str]:
    return {str(e.func) for e in expression.atoms(AppliedUndef)} | {str(e.base) for e in expression.atoms(Indexed)}


def _concrete(expression: Expr, seed: str) -> Expr:
    """Put a positive, increasing, smooth function in place of each undefined one and of each indexed sequence."""

    def stand_in(name: str, args: Sequence[Expr]) -> Expr:
        source = random.Random(f"{seed} {name}")
        floor, height, rate = (Rational(source.randint(200, 800), 1009) for _ in range(3))
        return floor + height * exp(sum((rate * (k + 1) * arg for k, arg in enumerate(args)), Rational(0)) / len(args))

    expression = _evaluate(expression)
    expression = expression.replace(lambda e: isinstance(e, Indexed), lambda e: stand_in(str(e.base), e.indices))
    expression = expression.replace(lambda e: isinstance(e, AppliedUndef), lambda e: stand_in(str(e.func), e.args))
    return _evaluate(expression)


def _evaluate(expression: Expr) -> Expr:
    """Carry out solutions and derivatives, and leave integrals, sums and limits to the numbers."""
    expression = expression.replace(lambda e: isinstance(e, Solved), lambda e: e.value)
    for kind in (Subs, Derivative):  # a Subs first: around a derivative done before it, SymPy would merge the two
        expression = expression.replace(lambda e, kind=kind: isinstance(e, kind), lambda e: e.doit(integrals=False))
    return expression


def _number(expression: Expr, point: Mapping[Symbol, Rational]) -> mpmath.mpf:
    """Evaluate at a point in mpmath: sums written out, integrals by quadrature, limits by extrapolation.

    Raises:
        ValueError: if the value is not a finite real number.
    """
    whole = {symbol: value for symbol, value in point.items() if value.is_Integer}
    value = _evaluate(expression).subs(whole)
    value = value.replace(lambda e: isinstance(e, Sum | Product), lambda e: e.doit())
    if value.has(zoo, nan):
        raise ValueError(f"{expression} has no value: it is {value}, at {dict(point)}")
    with mpmath.workdps(DIGITS + 15):
        try:
            value = value.replace(lambda e: isinstance(e, Limit), lambda e: _limit(e, point))
            number = mpmath.mpmathify(_function(value, point)())
        except (ZeroDivisionError, OverflowError) as error:
            raise ValueError(f"{expression} has no value at {dict(point)}: {error}") from None
        if not mpmath.isfinite(number) or abs(mpmath.im(number)) > TOLERANCE * abs(number):
            raise ValueError(f"{expression} is {mpmath.nstr(number)}, not a finite real number, at {dict(point)}")
        return mpmath.re(number)


def _function(expression: Expr, point: Mapping[Symbol, Rational], *variables: Symbol) -> Callable[..., Any]:
    """Return a function of the variables that evaluates an expression at a point, to the working precision."""
    symbols = sorted(expression.free_symbols - set(variables), key=str)
    values = [mpmath.mpf(point[symbol].p) / point[symbol].q for symbol in symbols]
    compiled = lambdify([*variables, *symbols], expression, "mpmath")
    return lambda *arguments: compiled(*arguments, *values)


def _limit(limit: Limit, point: Mapping[Symbol, Rational]) -> Float:
    """Extrapolate to the limit (Richardson, in powers of the distance), without SymPy's own limits."""
    inside, variable, target, direction = limit.args
    side = -1 if str(direction) == "-" else 1
    at = _function(inside, point, variable)
    end = None if target in (oo, -oo) else _function(target, point)()
    sign = -1 if target == -oo else 1
    with mpmath.workdps(80):
        diagonal: list[mpmath.mpf] = []
        previous: list[mpmath.mpf] = []
        for k in range(5, 21):
            row = [at(sign * mpmath.mpf(2) ** k if end is None else end + side * mpmath.mpf(2) ** -k)]
            for order, coarse in enumerate(previous, start=1):
                row.append(row[-1] + (row[-1] - coarse) / (2**order - 1))
            previous = row
            diagonal.append(row[-1])
        if not abs(diagonal[-1] - diagonal[-2]) <= mpmath.mpf(10) ** -20 * (1 + abs(diagonal[-1])):
            raise ValueError(f"{limit} does not settle: {diagonal[-2]}, {diagonal[-1]}")
        return Float(diagonal[-1], DIGITS + 15)


# --- SymPy ------------------------------------------------------------------------------------------------------------


def _put_in(expression: Expr, definitions: Mapping[Expr, Expr]) -> Expr:
    """Replace names by their definitions, also inside definitions; f(t) also at other arguments and under d/dt."""
    expression = expression.replace(lambda e: isinstance(e, Solved), lambda e: e.value)
    for _ in definitions:
        for name, value in definitions.items():
            if isinstance(name, AppliedUndef):
                expression = expression.replace(name.func, Lambda(name.args, value))
            else:
                expression = expression.subs(name, value)
    return expression


def _reduces_to_zero(left: Expr, right: Expr) -> bool:
    """Say whether SymPy reduces the difference to 0, or that of the squares (the numbers have fixed the sign)."""
    left, right = (side.replace(lambda e: isinstance(e, Limit), _smooth).doit() for side in (left, right))
    difference = left - right
    attempts: tuple[Callable[[], Expr], ...] = (
        lambda: difference,
        lambda: expand(difference),
        lambda: simplify(difference),
        lambda: simplify(expand(left**2 - right**2)),
        lambda: radsimp(together(expand(difference))),
        lambda: simplify(expand(difference.rewrite(exp), func=True)),
    )
    return any(attempt() == 0 for attempt in attempts)


def _smooth(limit: Limit) -> Expr:
    """Take a limit of undefined functions, which SymPy leaves alone, by their Taylor polynomials.

    They are smooth, so f(t + h) is f(t) + h f'(t) + h^2 f''(t) / 2 up to a term that the limit must not need; if it
    did, the numbers would have disagreed.
    """
    inside, variable, target, direction = limit.args
    derivatives: dict[Symbol, Expr] = {}

    def polynomial(function: AppliedUndef) -> Expr:
        arg = function.args[0]
        start = arg.subs(variable, target)
        if len(function.args) != 1 or not arg.has(variable) or not isinstance(start, Symbol):
            return function
        terms = []
        for k in range(3):
            value = Dummy(f"d{k}", positive=True) if k == 0 else Dummy(f"d{k}", real=True)
            derivatives[value] = Derivative(function.func(start), (start, k)) if k else function.func(start)
            terms.append(value * (arg - start) ** k / factorial(k))
        return sum(terms[1:], terms[0])

    inside = inside.replace(lambda e: isinstance(e, AppliedUndef), polynomial)
    values = {function: dummy for dummy, function in derivatives.items()}
    return Limit(inside.subs(values), variable, target, direction).doit().subs(derivatives)


def _expression(label: str, side: str, value: Any) -> Expr:
    value = sympify(value)
    if not isinstance(value, Expr):
        raise ValueError(f"step {label!r}: {side}={value} is not an expression; keep the two sides apart, not in an Eq")
    if value.atoms(Float):
        raise ValueError(f"step {label!r}: {side}={value} holds a rounded number; write Rational(1, 2) for 0.5")
    return value


def _relations(label: str, assuming: Sequence[Any]) -> tuple[Any, ...]:
    for relation in assuming:
        if not isinstance(relation, Relational):
            raise ValueError(f"step {label!r}: assuming holds {relation!r}, not a relation such as v1 > v0")
    return tuple(assuming)


# --- the registry -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Entry:
    """A step and the qualified name of the function that derives it, such as ``edmnotes.derivations.forward.vp``."""

    function: str
    step: Step


@dataclass(frozen=True, eq=False)
class Registry:
    """What the derivation modules say about the book's labels.

    Attributes:
        entries: label -> step and function.
        definitions: label -> why it is a definition.
        not_parsed: label -> why the page's LaTeX of this step can only be compared by eye.
    """

    entries: Mapping[str, Entry]
    definitions: Mapping[str, str]
    not_parsed: Mapping[str, str]

    def proved_by(self, function: str) -> list[str]:
        """Return the labels that a function proves, in its order."""
        return [label for label, entry in self.entries.items() if entry.function == function]


def derivation(builder: Callable[[], Derivation]) -> Callable[[], Derivation]:
    """Mark a function without arguments as a derivation, for the registry to find.

    Raises:
        ValueError: if the function takes arguments.
    """
    if inspect.signature(builder).parameters:
        raise ValueError(f"{builder.__name__} takes arguments; a derivation is one thing, called without any")
    builder.__is_derivation__ = True  # type: ignore[attr-defined]
    return builder


def collect(modules: Iterable[ModuleType]) -> Registry:
    """Build the registry of modules: functions marked by :func:`derivation`, ``DEFINITIONS`` and ``NOT_PARSED``.

    Raises:
        ValueError: if a label has two steps, a step and a definition, no reason, or is "not parsed" without a step.
    """
    entries: dict[str, Entry] = {}
    definitions: dict[str, str] = {}
    not_parsed: dict[str, str] = {}
    for module in modules:
        for name, builder in _builders(module):
            function = f"{module.__name__}.{name}"
            for step in builder().steps:
                if step.label in entries:
                    raise ValueError(
                        f"label {step.label!r} has two steps, {entries[step.label].function} and {function}"
                    )
                entries[step.label] = Entry(function, step)
        for listed, found in ((definitions, "DEFINITIONS"), (not_parsed, "NOT_PARSED")):
            for label, reason in getattr(module, found, {}).items():
                if not reason.strip() or label in listed:
                    raise ValueError(f"{module.__name__}.{found}: {label!r} is listed twice or without a reason")
                listed[label] = reason
    if derived := sorted(entries.keys() & definitions.keys()):
        raise ValueError(
            f"definitions {derived} have steps; what is derived is no definition: drop it from DEFINITIONS"
        )
    if stray := sorted(not_parsed.keys() - entries.keys()):
        raise ValueError(f"NOT_PARSED lists {stray} without a step; write the step, or list a definition with a reason")
    return Registry(entries, definitions, not_parsed)


@cache
def registry() -> Registry:
    """Return the registry of all modules of this package; errors as :func:`collect`."""
    package = importlib.import_module(__package__)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return collect(importlib.import_module(f"{__package__}.{name}") for name in names)


def _builders(module: ModuleType) -> Iterator[tuple[str, Callable[[], Derivation]]]:
    for name, value in vars(module).items():
        if getattr(value, "__is_derivation__", False) and value.__module__ == module.__name__:
            yield name, value

"""Steps are verified two ways, wrong ones are refused, and the registry keeps labels apart."""

import importlib
import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from sympy import (
    Add,
    Derivative,
    Eq,
    Expr,
    Float,
    Function,
    Indexed,
    IndexedBase,
    Integer,
    Integral,
    Limit,
    Mul,
    Pow,
    Product,
    Rational,
    Sum,
    Symbol,
    atan,
    cos,
    exp,
    log,
    oo,
    pi,
    sin,
    sqrt,
    symbols,
)

from edmnotes.derivations import core
from edmnotes.derivations.core import (
    Call,
    Derivation,
    Step,
    VerificationError,
    collect,
    derivation,
    registry,
    solve_for,
)

t, u, h = symbols("t u h", positive=True)
n, i = symbols("n i", integer=True, positive=True)
s, sigma = Function("s"), Function(r"\sigma")
s0, s1, v0, v1 = symbols(r"s_{t-1} s_t \sigma_{t-1} \sigma_t", positive=True)
a, b = symbols("a b", positive=True)

STEPS = {label: entry.step for label, entry in registry().entries.items()}


def recursion() -> Derivation:
    solved = solve_for([Eq(s1, a * s0), Eq(s1**2 * v1**2, a**2 * (s0 * v0) ** 2 + b**2)], [a, b])
    return Derivation(
        "One-step recursion",
        [
            Step("recursion-mean", solved[a], s1 / s0, "match the conditional means"),
            Step("recursion-noise", solved[b], s1 * sqrt(v1**2 - v0**2), "match the variances", assuming=[v1 > v0]),
        ],
    )


def test_the_verdict_prints_one_line_a_step():
    assert repr(recursion().verify()) == (
        "✓ recursion-mean   match the conditional means\n✓ recursion-noise  match the variances"
    )


def test_latex_shows_the_name_and_the_reason():
    latex = recursion()._repr_latex_()
    assert latex.startswith("$$")
    assert r"a &= \frac{s_{t}}{s_{t-1}} && \text{match the conditional means}" in latex


@pytest.mark.parametrize(
    "step",
    [
        Step("derivative", Derivative(s(t) ** 2, t), 2 * s(t) * Derivative(s(t), t), "chain rule"),
        Step("limit", Limit((s(t + h) / s(t) - 1) / h, h, 0), Derivative(s(t), t) / s(t), "undefined functions"),
        Step("limit-at-infinity", Limit((1 + t / n) ** n, n, oo), exp(t), "compound interest"),
        Step("integral", Integral(exp(-(u**2) / 2), (u, -oo, oo)), sqrt(2 * pi), "Gauss"),
        Step("integral-of-a-function", Integral(2 * s(u) * s(u).diff(u), (u, 0, t)), s(t) ** 2 - s(0) ** 2, "by parts"),
        Step("sum", Sum(i, (i, 1, n)), n * (n + 1) / 2, "Gauss, earlier"),
        Step("product", Product(2 * t, (i, 1, n)), (2 * t) ** n, "n equal factors"),
        Step("square-root", sqrt(s1**2 * v1**2 - s1**2 * v0**2), s1 * sqrt(v1**2 - v0**2), "s", assuming=[v1 > v0]),
        Step("given", s(t) ** 2 * (1 + sigma(t) ** 2), 1, "VP", given={sigma(t): sqrt(s(t) ** -2 - 1), s(t): exp(-t)}),
        Step("given-under-d", Derivative(s(t), t) / s(u), -exp(u - t), "at other arguments", given={s(t): exp(-t)}),
        Step("sequence", Sum(IndexedBase("x")[i], (i, 1, 2)), IndexedBase("x")[1] + IndexedBase("x")[2], "written out"),
    ],
    ids=lambda step: step.label,
)
def test_a_true_step_passes_and_its_mutants_do_not(step):
    assert step.verify().mark == "✓"
    for name, mutant in mutants(step):
        assert refused(step, mutant), f"{name}: {mutant} passed for {step.rhs}"


def test_a_wrong_step_is_named_with_both_sides_and_the_difference():
    wrong = Step("wrong", Derivative(t**2, t), 3 * t, "a slip")
    with pytest.raises(VerificationError, match=r"'wrong'.*\n.*Derivative\(t\*\*2, t\)\n.*3\*t\n.*against.*difference"):
        wrong.verify()


def test_a_wrong_step_stops_its_derivation():
    good, bad = (Step(label, Derivative(t**2, t), k * t, "why") for label, k in (("good", 2), ("bad", 3)))
    with pytest.raises(VerificationError, match="'bad'"):
        Derivation("both", [good, bad]).verify()


def test_numbers_alone_do_not_pass_without_a_reason():
    machin = Step("machin", 16 * atan(Rational(1, 5)) - 4 * atan(Rational(1, 239)), pi, "Machin")
    with pytest.raises(VerificationError, match="SymPy does not reduce"):
        machin.verify()
    assert replace(machin, by_numbers="SymPy does not add arcus tangents").verify().mark == "≈"


def test_the_excuse_is_refused_where_sympy_does_reduce():
    with pytest.raises(VerificationError, match="drop by_numbers"):
        Step("stale", sin(t) ** 2, 1 - cos(t) ** 2, "Pythagoras", by_numbers="too hard").verify()


def test_agreement_of_squares_does_not_hide_a_sign():
    with pytest.raises(VerificationError, match="differ"):
        Step("sign", sqrt(t**2 + 2 * t + 1), -t - 1, "a root is positive").verify()


def test_a_step_outside_its_domain_asks_for_assuming():
    with pytest.raises(VerificationError, match=r"not a finite real number.*assuming="):
        Step("outside", sqrt((v1 - v0) * (v1 + v0)), sqrt(v1**2 - v0**2), "for v0 < v1 only").verify()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", Eq(t, u), t, "why"), "not an expression.*not in an Eq"),
        (("x", Eq(t, t), t, "why"), "not an expression"),
        (("x", t * (t + 1), t * (t + 1), "why"), "one expression"),
        (("x", Derivative(t**2, t), Float(2.0) * t, "why"), "rounded number.*Rational"),
        (("Not a label", Derivative(t**2, t), 2 * t, "why"), "lower-case words"),
        (("x", Derivative(t**2, t), 2 * t, " "), "why is empty"),
    ],
)
def test_what_claims_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Step(*arguments)


def test_given_defines_symbols_and_functions_only():
    with pytest.raises(ValueError, match=r"given defines s\(0\)"):
        Step("x", Derivative(s(t), t), 2 * t, "why", given={s(0): 1})


def test_the_reason_is_text_in_latex():
    latex = Derivation("x", [Step("x", Derivative(t**2, t), 2 * t, "50 % of s_t & more")])._repr_latex_()
    assert r"\text{50 \% of s\_t \& more}" in latex


def test_assuming_takes_relations_only():
    with pytest.raises(ValueError, match="not a relation"):
        Step("x", Derivative(t**2, t), 2 * t, "why", assuming=[t])


def test_a_condition_that_never_holds_is_an_error():
    with pytest.raises(ValueError, match="never held"):
        Step("x", Derivative(t**2, t), 2 * t, "why", assuming=[t > 10]).verify()


def test_solutions_keep_their_unknown_and_stay_apart_from_what_looks_the_same():
    solved = solve_for([Eq(a * s0, s1)], [a])[a]
    assert solved != s1 / s0
    assert solved.doit() == s1 / s0
    assert Step("mean", solved, s1 / s0, "why").name == a


@pytest.mark.parametrize(
    ("equations", "unknowns"),
    [([Eq(Symbol("x") ** 2, 4)], [Symbol("x")]), ([Eq(a, a + 1)], [a]), ([Eq(a, b)], [a, b])],
    ids=["two", "none", "open"],
)
def test_solve_for_wants_exactly_one_solution(equations, unknowns):
    with pytest.raises(ValueError, match="one is needed"):
        solve_for(equations, unknowns)


def test_derivations_refuse_no_steps_and_doubled_labels():
    step = Step("twice", Derivative(t**2, t), 2 * t, "why")
    with pytest.raises(ValueError, match="no steps"):
        Derivation("empty", [])
    with pytest.raises(ValueError, match=r"\['twice'\]"):
        Derivation("double", [step, step])


# --- mutations --------------------------------------------------------------------------------------------------------


def mutants(step: Step) -> list[tuple[str, Expr]]:
    """The right side with one sign, factor 2, square root or index changed, wherever there is one."""
    whole = step.rhs
    made = [("sign", -whole), ("factor 2", 2 * whole), ("shift", whole + 1)]
    for part in [node for node in _nodes(whole) if isinstance(node, Add)]:
        made += [("sign", whole.xreplace({part: part - 2 * term})) for term in part.args]
    for part in [node for node in _nodes(whole) if isinstance(node, Mul) and node.args[0].is_Rational]:
        number = part.args[0]
        if 2 in (number.p, number.q):
            made.append(("factor 2", whole.xreplace({part: part / number})))
    for part in [node for node in _nodes(whole) if isinstance(node, Pow) and abs(node.exp) == Rational(1, 2)]:
        made.append(("square root", whole.xreplace({part: part.base ** (2 * part.exp)})))
    names = sorted(step.rhs.free_symbols | core._put_in(step.lhs, step.given).free_symbols, key=str)
    for symbol in whole.free_symbols:
        neighbours = [other for other in names if other != symbol and _stem(other) == _stem(symbol)]
        made += [("index", whole.xreplace({symbol: other})) for other in neighbours]
    return [(name, mutant) for name, mutant in made if mutant != whole]


def refused(step: Step, rhs: Expr) -> bool:
    try:
        replace(step, rhs=rhs).verify()
    except VerificationError:
        return True
    return False


def _nodes(expression: Expr) -> list[Expr]:
    return [expression, *(node for arg in expression.args for node in _nodes(arg) if isinstance(node, Expr))]


def _stem(symbol: Expr) -> str:
    name = str(symbol.base) if isinstance(symbol, Indexed) else str(symbol)
    return name.split("_")[0] if "_" in name else f"{name} alone"


def test_the_mutations_find_signs_factors_roots_and_indices():
    found = mutants(Step("m", Derivative(t, t), 2 * s1 * sqrt(v1**2 - v0**2), "w"))
    assert {"sign", "factor 2", "square root", "index", "shift"} == {name for name, _ in found}
    assert 2 * s1 * (v1**2 - v0**2) in [mutant for _, mutant in found]
    assert s1 * sqrt(v1**2 - v0**2) in [mutant for _, mutant in found]
    assert 2 * s1 * sqrt(v1**2 + v0**2) in [mutant for _, mutant in found]


@pytest.mark.parametrize("label", STEPS)
def test_every_step_of_the_book_holds(label):
    assert STEPS[label].verify().label == label


@pytest.mark.parametrize("label", STEPS)
def test_every_mutant_of_every_step_of_the_book_is_refused(label):
    step = STEPS[label]
    for name, mutant in mutants(step):
        assert refused(step, mutant), f"{name}: {mutant} passed for {step.rhs}"


# --- the library's functions ------------------------------------------------------------------------------------------


def library(call: Call, case: core.Case) -> float:
    """Call the function that a step names, in float64."""
    module, _, path = call.target.partition(":")
    owner, arguments = importlib.import_module(module), dict(case.args)
    *parents, last = path.split(".")
    for name in parents:
        owner = getattr(owner, name)
    if isinstance(owner, type):
        owner = owner(**case.init)
    given = {k: x if isinstance(x, int) else torch.tensor([x], dtype=torch.float64) for k, x in arguments.items()}
    member = getattr(owner, last)
    result = member(**given) if callable(member) else member  # a property is a value already
    return float(result if call.item is None else result[call.item])


@pytest.mark.parametrize(
    ("label", "call"), [pytest.param(x, c, id=f"{x} {c.target}") for x, step in STEPS.items() for c in step.torch]
)
def test_the_library_returns_what_the_step_says(label, call):
    for case in call.cases(STEPS[label]):
        assert library(call, case) == pytest.approx(case.expected, rel=1e-9, abs=1e-12), case
    wrong = replace(STEPS[label], rhs=STEPS[label].rhs * Rational(1000001, 1000000) + Rational(1, 10**9))
    assert any(library(call, c) != pytest.approx(c.expected, rel=1e-9, abs=1e-12) for c in call.cases(wrong))


def test_a_call_names_a_module_and_a_function():
    with pytest.raises(ValueError, match="module:qualname"):
        Call("edmnotes.schedules.VP.drift", {"t": t})


def test_a_call_cannot_be_compared_while_functions_are_undefined():
    step = Step("drift", Derivative(log(s(t)), t), Derivative(s(t), t) / s(t), "why")
    with pytest.raises(ValueError, match="undefined; say what they are in where="):
        Call("edmnotes.schedules:VP.drift", {"t": t}).cases(step)
    (case,) = Call("edmnotes.schedules:VP.drift", {"t": t}, where={s(t): exp(-3 * t)}).cases(step, count=1)
    assert case.expected == pytest.approx(-3)


# --- the registry -----------------------------------------------------------------------------------------------------


def chapter(**contents: object) -> ModuleType:
    module = ModuleType("chapter")
    for name, value in contents.items():
        if callable(value):
            value.__module__ = "chapter"
        setattr(module, name, value)
    return module


def one(label: str):
    @derivation
    def builder() -> Derivation:
        return Derivation("one", [Step(label, Derivative(t**2, t), 2 * t, "why")])

    return builder


def test_the_registry_ties_a_label_to_its_step_and_function():
    found = collect([chapter(first=one("a"), second=one("b"), DEFINITIONS={"c": "chosen"}, NOT_PARSED={"b": "odd"})])
    assert found.entries["a"].function == "chapter.first"
    assert found.entries["a"].step.rhs == 2 * t
    assert found.proved_by("chapter.second") == ["b"]
    assert (found.definitions, found.not_parsed) == ({"c": "chosen"}, {"b": "odd"})


def test_the_registry_finds_marked_functions_of_the_module_only():
    imported = one("a")
    module = chapter(plain=lambda: None)
    module.imported = imported
    assert not collect([module]).entries


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"first": one("a"), "second": one("a")}, "two steps, chapter.first and chapter.second"),
        ({"first": one("a"), "DEFINITIONS": {"a": "chosen"}}, "is no definition"),
        ({"first": one("a"), "NOT_PARSED": {"b": "odd"}}, "without a step"),
        ({"DEFINITIONS": {"a": " "}}, "without a reason"),
    ],
)
def test_the_registry_refuses_contradictions(contents, message):
    with pytest.raises(ValueError, match=message):
        collect([chapter(**contents)])


def test_a_label_is_listed_once():
    with pytest.raises(ValueError, match="listed twice"):
        collect([chapter(DEFINITIONS={"a": "chosen"}), chapter(DEFINITIONS={"a": "chosen again"})])


def test_a_derivation_takes_no_arguments():
    with pytest.raises(ValueError, match="takes arguments"):
        derivation(lambda x: x)


def test_numbers_are_the_same_in_every_run():
    step = Step("seeded", Derivative(s(t), t), s(t), "false on purpose")
    first, second = (core.compare(step.lhs, step.rhs, step, "seed") for _ in range(2))
    assert first == second
    assert first != core.compare(step.lhs, step.rhs, step, "another seed")


def test_integers_stay_integers_and_positive_symbols_positive():
    for seed in range(20):
        point = core.draw({n, t, Symbol("x", real=True)}, [t > 1], random.Random(seed))
        assert point[n] in {Integer(k) for k in range(2, 7)}
        assert point[t] > 1

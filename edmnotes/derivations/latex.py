r"""Reads the book's LaTeX back into SymPy, in the symbols of the step that it should state.

SymPy's ``parse_latex`` (the antlr grammar) does the parsing. It knows few of the book's symbols and guesses at the
rest, so every symbol is first replaced by one plain letter and every product gets its sign. Reading is strict: a
command that is not known here, a symbol that the step does not have, a doubtful ``1/2x`` or two statements under one
label are errors.
"""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sympy import Derivative, Dummy, Expr, Limit, Subs, Symbol, pi
from sympy.core.function import AppliedUndef
from sympy.parsing.latex import LaTeXParsingError, parse_latex
from sympy.tensor.indexed import Indexed, IndexedBase

from edmnotes.derivations.core import Solved, Step


class ReadError(ValueError):
    """LaTeX that this module does not read."""


class SaidTwice(ValueError):
    """An equation with the same side twice."""


Tree = list  # of str (a character or a command) and Tree (a group in braces)

ACCENT_WORDS = "dot ddot bar hat tilde vec overline widehat mathbf boldsymbol mathcal mathbb"
GREEK_WORDS = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega pi ell"
)
ACCENTS, GREEK = set(ACCENT_WORDS.split()), set(GREEK_WORDS.split())
WORDS = {"mathrm", "text", "textrm", "operatorname", "mathit", "mathsf", "rm"}
FUNCTIONS = {"exp", "log", "ln", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"}
SPACING = {",", ";", ":", "!", " ", "left", "right", "displaystyle", "limits", "nolimits"} | {
    size + side for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")
}
LETTERS = "abcfghjklmnopqrstuvwxyzABCDFGHJKLMPRTUVWXYZ"  # d, e, i, E, I, N, O, Q, S mean something to somebody
OPEN = {"(": ")", "[": "]", r"\{": r"\}", r"\lbrack": r"\rbrack"}
RELATIONS = {"<", ">", "sim", "approx", "le", "leq", "ge", "geq", "propto", "equiv", "ne", "neq", "simeq", "in", "to"}


def read(latex: str, step: Step) -> list[Expr]:
    """Parse the members of ``a = b (= c ...)`` into SymPy, in the symbols of a step.

    Raises:
        ReadError: if there is anything that is not understood, or a symbol that the step does not have.
        SaidTwice: if a side stands there twice.
    """
    tree = _tree(re.sub(r"\\(begin|end)\{(aligned|split)\}", " ", latex))
    while tree and (tree[-1] in (".", ",", ";", ":", r"\quad", r"\qquad") or _is_space(tree[-1])):
        tree.pop()
    names = _Names(step)
    members = [_Writer(names).write(member) for member in _members(tree)]
    if len(set(members)) < len(members):
        raise SaidTwice("a side stands there twice, which says nothing")
    return [_parse(member, names) for member in members]


def _members(tree: Tree) -> list[Tree]:
    """Cut at the equals signs that stand outside brackets; a new row may only go on with one."""
    members: list[Tree] = [[]]
    depth = 0
    for token in tree:
        if isinstance(token, str):
            depth += (token in OPEN) - (token in OPEN.values())
            if token.lstrip("\\") in RELATIONS:
                raise ReadError(f"{token!r} is no equality")
            if token == "=" and depth == 0:
                while members[-1] and (members[-1][-1] == "\\\\" or _is_space(members[-1][-1])):
                    members[-1].pop()
                members.append([])
                continue
            if token in ("\\\\", r"\quad", r"\qquad") and not _visible(members[-1]):
                continue
        members[-1].append(token)
    if len(members) < 2 or not all(map(_visible, members)):
        raise ReadError("no equals sign with something on both sides")
    return members


def _is_space(token: Any) -> bool:
    return isinstance(token, str) and (
        token.isspace() or token in ("~", "&") or (token[0] == "\\" and token[1:] in SPACING)
    )


def _visible(tree: Tree) -> bool:
    return any(not _is_space(token) for token in tree)


def _tree(latex: str) -> Tree:
    root: Tree = []
    stack = [root]
    for match in re.finditer(r"\\[A-Za-z]+|\\\\|\\.|.", re.sub(r"(?<!\\)%.*", "", latex), re.S):
        token = match[0]
        if token == "{":
            stack.append([])
            stack[-2].append(stack[-1])
        elif token == "}":
            if len(stack) == 1:
                raise ReadError("a brace closes that was never opened")
            stack.pop()
        else:
            stack[-1].append(" " if token.isspace() else token)
    if len(stack) > 1:
        raise ReadError("a brace is never closed")
    return root


@dataclass
class _Names:
    """What the step means by each symbol, and the letters that stand for them while ``parse_latex`` works."""

    step: Step
    known: dict[str, Any] = field(init=False)
    letters: dict[Any, str] = field(init=False, default_factory=dict)
    arguments: dict[str, set[tuple[Expr, ...]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {}
        given: Mapping[Expr, Expr] = self.step.given
        for side in (self.step.subject, self.step.lhs, self.step.rhs, *given.keys(), *given.values()):
            expression = side.replace(lambda e: isinstance(e, Solved), lambda e: e.value)
            no_symbols = {limit.args[3] for limit in expression.atoms(Limit)}
            for sequence in expression.atoms(Indexed):
                self._know(str(sequence.base.label), sequence.base)
                no_symbols.add(sequence.base.label)
            for symbol in expression.atoms(Symbol) - no_symbols:
                self._know(symbol.name, symbol)
            for applied in expression.atoms(AppliedUndef):
                name = self._know(applied.func.__name__, applied.func)
                if not any(side is value for value in given.values()):
                    self.arguments.setdefault(name, set()).add(applied.args)

    def _know(self, sympy_name: str, meaning: Any) -> str:
        name = _canonical(sympy_name)
        if self.known.setdefault(name, meaning) != meaning:
            raise ReadError(f"the step has two things named {name}: {self.known[name]!r} and {meaning!r}")
        return name

    @property
    def free(self) -> set[Symbol]:
        """Every symbol that the page may use."""
        return {symbol for value in self.known.values() if isinstance(value, Expr) for symbol in value.free_symbols}

    def letter(self, meaning: Any) -> str:
        """Return the letter for a name, a derivative ``(name, order)`` or an expression."""
        if meaning not in self.letters:
            if len(self.letters) == len(LETTERS):
                raise ReadError(f"has more than {len(LETTERS)} symbols")
            self.letters[meaning] = LETTERS[len(self.letters)]
        return self.letters[meaning]

    def only_arguments(self, name: str) -> tuple[Expr, ...]:
        """Return the arguments of a function that the page writes bare: the one made of symbols, or else the one."""
        found = self.arguments.get(name, set())
        plain = {args for args in found if all(isinstance(arg, Symbol) for arg in args)} or found
        if len(plain) != 1:
            raise ReadError(f"{name} is written without its argument, which could be any of {sorted(map(str, plain))}")
        return next(iter(plain))


@lru_cache(maxsize=1000)
def _grammar(plain: str) -> Expr:
    try:
        return parse_latex(plain, strict=True)
    except LaTeXParsingError as error:
        raise ReadError(f"parse_latex gives up on {plain!r}: {str(error).splitlines()[0]}") from None


def _parse(plain: str, names: _Names) -> Expr:
    parsed = _grammar(plain)
    functions: dict[str, Callable[..., Expr]] = {}
    symbols: dict[Symbol, Expr] = {}
    for meaning, letter in names.letters.items():
        if isinstance(meaning, Expr):
            symbols[Symbol(letter)] = meaning
        elif isinstance(meaning, tuple):
            functions[letter] = _derivative(names.known[meaning[0]], meaning[1])
        elif isinstance(known := names.known.get(meaning, Symbol(meaning)), Symbol):
            symbols[Symbol(letter)] = known
        else:
            functions[letter] = known.__getitem__ if isinstance(known, IndexedBase) else known
    symbols[Symbol("pi")] = pi

    def meant(e: Expr) -> Expr:
        # Each node once: replace() may visit what it has just put in, if a product collapses onto it.
        if not e.args:
            return symbols.get(e, e)
        args = [meant(arg) for arg in e.args]
        return functions[e.func.__name__](*args) if isinstance(e, AppliedUndef) else e.func(*args)

    parsed = meant(parsed)
    if unknown := {symbol for symbol in parsed.free_symbols if isinstance(symbol, Symbol)} - names.free:
        raise ReadError(
            f"the page's {', '.join(sorted(map(str, unknown)))} is unknown to the step, "
            f"which has {', '.join(sorted(names.known))}"
        )
    return parsed


def _derivative(function: Callable[[Expr], Expr], order: int) -> Callable[[Expr], Expr]:
    def derivative(arg: Expr) -> Expr:
        if isinstance(arg, Symbol):
            return Derivative(function(arg), (arg, order))
        inner = Dummy("x", positive=True)
        return Subs(Derivative(function(inner), (inner, order)), inner, arg)

    return derivative


class _Writer:
    """Writes a tree as LaTeX that ``parse_latex`` reads without a doubt: letters and explicit products."""

    def __init__(self, names: _Names) -> None:
        self.names = names

    def write(self, tree: Tree) -> str:
        out: list[str] = []
        previous = (
            ""  # what stands before the next factor: "", "factor", "slash", "closed" (a product would be doubtful)
        )
        i = self._skip(tree, 0)
        while i < len(tree):
            token = tree[i]
            if token in ("+", "-", "/", r"\cdot", r"\times", "*"):
                if token == "/" and previous != "factor":
                    raise ReadError("a slash without a plain factor before it; write \\frac")
                out.append(r"\cdot" if token in ("*", r"\times") else token)
                previous, i = "slash" if token == "/" else "", i + 1
            elif variable := self._differential(tree, i):
                name, i = variable
                out.append(f"d {name}")
                previous = "closed"
            elif token in (r"\int", r"\sum", r"\prod", r"\lim"):
                self._multiply(out, previous)
                text, i = self._big(tree, i)
                out.append(text)
                previous = ""
            else:
                self._multiply(out, previous)
                text, i, closed = self._factor(tree, i)
                out.append(text)
                previous = "closed" if closed or previous == "slash" else "factor"
            i = self._skip(tree, i)
        return " ".join(out)

    @staticmethod
    def _multiply(out: list[str], previous: str) -> None:
        if previous == "closed":
            raise ReadError(f"doubtful product after {out[-1]!r}; write brackets, \\frac or \\cdot")
        if previous == "factor":
            out.append(r"\cdot")

    @staticmethod
    def _skip(tree: Tree, i: int) -> int:
        while i < len(tree) and _is_space(tree[i]):
            i += 1
        return i

    def _argument(self, tree: Tree, i: int) -> tuple[Tree, int]:
        r"""Return what a command such as ``\frac`` takes next: a group or one token."""
        i = self._skip(tree, i)
        if i == len(tree):
            raise ReadError("an argument is missing at the end")
        return (tree[i] if isinstance(tree[i], list) else [tree[i]]), i + 1

    def _bracket(self, tree: Tree, i: int) -> tuple[Tree, int] | None:
        """Return the inside of the bracket that opens at ``i``, if one does, and the place after it."""
        i = self._skip(tree, i)
        if i == len(tree) or isinstance(tree[i], list) or tree[i] not in OPEN:
            return None
        opening, closing, depth = tree[i], OPEN[tree[i]], 0
        for j in range(i, len(tree)):
            depth += (tree[j] == opening) - (tree[j] == closing)
            if depth == 0:
                return tree[i + 1 : j], j + 1
        raise ReadError(f"bracket {opening!r} is never closed")

    def _power(self, tree: Tree, i: int) -> tuple[str, int]:
        j = self._skip(tree, i)
        if j < len(tree) and tree[j] == "^":
            exponent, j = self._argument(tree, j + 1)
            return f"^{{{self.write(exponent)}}}", j
        return "", i

    def _differential(self, tree: Tree, i: int) -> tuple[str, int] | None:
        r"""Return the variable of ``\mathrm d u`` or ``du`` and the place after it."""
        if (after := _after_d(tree, i)) is None or "d" in self.names.known:
            return None
        after = self._skip(tree, after)
        if after == len(tree) or not _starts_atom(tree[after]):
            return None
        atom = _Atom.scan(tree, after, self.names.known)
        return self.names.letter(atom.name), atom.end

    def _big(self, tree: Tree, i: int) -> tuple[str, int]:
        command, text, i = tree[i], tree[i], self._skip(tree, i + 1)
        while i < len(tree) and tree[i] in ("_", "^"):
            script = tree[i]
            inside, i = self._argument(tree, i + 1)
            if script == "_" and command == r"\lim":
                text += f"_{{{self._approach(inside)}}}"
            elif script == "_" and command != r"\int":
                if "=" not in inside:
                    raise ReadError(f"{command} needs its first index, such as {command}_{{i=1}}")
                cut = inside.index("=")
                text += f"_{{{self.write(inside[:cut])} = {self.write(inside[cut + 1 :])}}}"
            else:
                text += f"{script}{{{self.write(inside)}}}"
            i = self._skip(tree, i)
        if "^" not in text and command in (r"\sum", r"\prod"):
            raise ReadError(f"{command} needs its last index")
        return text, i

    def _approach(self, inside: Tree) -> str:
        arrow = next((k for k, token in enumerate(inside) if token in (r"\to", r"\rightarrow")), None)
        if arrow is None:
            raise ReadError(r"\lim needs where it goes, such as \lim_{h \to 0}")
        target, side = inside[arrow + 1 :], ""
        if len(target) > 1 and target[-2] == "^" and target[-1] in ("+", "-", ["+"], ["-"]):
            side, target = f"^{{{target[-1][0]}}}", target[:-2]
        return f"{self.write(inside[:arrow])} \\to {self.write(target)}{side}"

    def _factor(self, tree: Tree, i: int) -> tuple[str, int, bool]:
        """Write one factor with its power; also say whether a product may not follow without a sign."""
        token, closed = tree[i], False
        if isinstance(token, list):
            text, i = f"({self.write(token)})", i + 1
        elif token.isdigit():
            number = re.match(r"\d+(\.\d+)?", "".join(t if isinstance(t, str) else "{" for t in tree[i:]))
            assert number is not None
            text, i = number[0], i + len(number[0])
            if (j := self._skip(tree, i)) < len(tree) and isinstance(tree[j], str) and tree[j].isdigit():
                raise ReadError(f"two numbers side by side after {text}; write \\cdot")
        elif (bracket := self._bracket(tree, i)) is not None:
            text, i = f"({self.write(bracket[0])})", bracket[1]
        elif token in (r"\frac", r"\dfrac", r"\tfrac"):
            text, i, closed = self._fraction(tree, i)
        elif token == r"\nabla" and isinstance(self.names.known.get("x"), Symbol):
            text, i, closed = self._gradient(tree, i)
        elif token == r"\sqrt":
            degree = ""
            if (root := self._bracket(tree, i + 1)) is not None:
                degree, i = f"[{self.write(root[0])}]", root[1] - 1
            inside, i = self._argument(tree, i + 1)
            text = f"\\sqrt{degree}{{{self.write(inside)}}}"
        elif token == r"\infty":
            text, i = token, i + 1
        elif token.lstrip("\\") in FUNCTIONS and len(token) > 1:
            text, i, closed = self._function(tree, i)
        elif _starts_atom(token):
            return *self._atom(tree, i), False
        elif token in ("\\\\", r"\quad", r"\qquad"):
            raise ReadError("several statements under one label, which is one equation")
        else:
            raise ReadError(f"{token!r} is unknown to edmnotes.derivations.latex")
        power, i = self._power(tree, i)
        return text + power, i, closed

    def _fraction(self, tree: Tree, i: int) -> tuple[str, int, bool]:
        above, i = self._argument(tree, i + 1)
        below, i = self._argument(tree, i)
        above, below, order = self._order(above, below)
        variable = self._differential(below, self._skip(below, 0)) or self._partial(below)
        over = _after_d(above, self._skip(above, 0))
        if variable is None or over is None:
            return f"\\frac{{{self.write(above)}}}{{{self.write(below)}}}", i, False
        if self._skip(below, variable[1]) != len(below):
            raise ReadError("a derivative is \\frac{d}{dt} or \\frac{d^2}{dt^2}, in one variable")
        closed = not _visible(above[over:])
        if closed:
            operand, i, _ = (
                self._factor(tree, self._skip(tree, i)) if self._skip(tree, i) < len(tree) else ("", i, False)
            )
        else:
            operand = self.write(above[over:])
        if not operand:
            raise ReadError("a derivative of nothing")
        for _ in range(order):
            operand = f"\\frac{{d}}{{d {variable[0]}}} ({operand})"
        return operand, i, closed

    def _order(self, above: Tree, below: Tree) -> tuple[Tree, Tree, int]:
        r"""Return what stands above and below without the powers of ``\frac{d^2}{dt^2}``, and the order."""
        over, under = _after_d(above, self._skip(above, 0)), _after_d(below, self._skip(below, 0))
        if over is None or under is None or (k := self._skip(above, over)) == len(above) or above[k] != "^":
            return above, below, 1
        order, rest = self._argument(above, k + 1)
        atom = _Atom.scan(below, self._skip(below, under), self.names.known)
        if atom.power != order or len(order) != 1 or not str(order[0]).isdigit():
            raise ReadError("a higher derivative needs its order, a digit, above and below")
        at = max(i for i, token in enumerate(below[: atom.end]) if token == "^")
        return above[:over] + above[rest:], below[:at] + below[atom.end :], int(order[0])

    def _gradient(self, tree: Tree, i: int) -> tuple[str, int, bool]:
        r"""Write ``\nabla`` of the factor that follows, in a step whose one coordinate is called x."""
        i = self._skip(tree, i + 1)
        if i == len(tree):
            raise ReadError("a gradient of nothing")
        text, i, _ = self._factor(tree, i)
        return f"\\frac{{d}}{{d {self.names.letter('x')}}} ({text})", i, True

    def _partial(self, below: Tree) -> tuple[str, int] | None:
        start = self._skip(below, 0)
        if start + 1 < len(below) and below[start] == r"\partial":
            atom = _Atom.scan(below, self._skip(below, start + 1), self.names.known)
            return self.names.letter(atom.name), atom.end
        return None

    def _function(self, tree: Tree, i: int) -> tuple[str, int, bool]:
        name = tree[i]
        if (bracket := self._bracket(tree, i + 1)) is not None:
            return f"{name} ({self.write(bracket[0])})", bracket[1], False
        i = self._skip(tree, i + 1)
        if i == len(tree) or tree[i] in ("^", "_"):
            raise ReadError(f"{name} has no plain argument; write {name}(...)")
        text, i, _ = self._factor(tree, i)
        return f"{name} ({text})", i, True

    def _atom(self, tree: Tree, i: int) -> tuple[str, int]:
        """Write one symbol, applied function or member of a sequence, with its power."""
        names = self.names
        atom = _Atom.scan(tree, i, names.known)
        i = atom.end
        if atom.name in ("e", r"\pi") and atom.name not in names.known:
            power = f"^{{{self.write(atom.power)}}}" if atom.power else ""
            if atom.name == "e":
                return f"\\exp ({self.write(atom.power) if atom.power else '1'})", i
            return rf"\pi {power}", i
        known = names.known.get(atom.name)
        derived = names.known.get(atom.underived)
        if known is None and atom.underived and isinstance(derived, type):
            letter, function = names.letter((atom.underived, atom.order)), atom.underived
        elif isinstance(known, type):
            letter, function = names.letter(atom.name), atom.name
        elif isinstance(names.known.get(atom.base), IndexedBase) and atom.index:
            letter, function = names.letter(atom.base), ""
            text = f"{letter}({self.write(atom.index)})"
        else:
            letter, function = names.letter(atom.name), ""
            text = letter
        power = f"^{{{self.write(atom.power)}}}" if atom.power else ""
        if function:
            if (bracket := self._bracket(tree, i)) is not None:
                text, i = f"{letter}({', '.join(map(self.write, _split(bracket[0])))})", bracket[1]
            else:
                text = f"{letter}({', '.join(map(names.letter, names.only_arguments(function)))})"
        if not power:
            power, i = self._power(tree, i)
        return text + power, i


def _split(inside: Tree) -> list[Tree]:
    parts: list[Tree] = [[]]
    for token in inside:
        if token in (",", ";"):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _after_d(tree: Tree, i: int) -> int | None:
    r"""Return the place after a differential's d (``d``, ``\mathrm d``, ``\partial``) at ``i``."""
    if i < len(tree) and tree[i] in ("d", r"\partial"):
        return i + 1
    if i < len(tree) and tree[i] == r"\mathrm":
        rest = [k for k in range(i + 1, len(tree)) if not _is_space(tree[k])]
        if rest and tree[rest[0]] in ("d", ["d"]):
            return rest[0] + 1
    return None


def _starts_atom(token: Any) -> bool:
    if isinstance(token, list):
        return False
    command = token[1:]
    return (len(token) == 1 and token.isalpha()) or (token[0] == "\\" and command in ACCENTS | WORDS | GREEK)


@dataclass(frozen=True)
class _Atom:
    r"""One symbol as written: ``\dot\sigma_t^2`` has an index, a power and, with order 1, underived ``\sigma_{t}``."""

    name: str
    base: str
    underived: str
    order: int
    index: Tree
    power: Tree
    end: int

    @classmethod
    def scan(cls, tree: Tree, i: int, known: Container[str] = ()) -> "_Atom":
        base, i = _base(tree, i)
        primes = 0
        index: Tree = []
        power: Tree = []
        while True:
            j = _Writer._skip(tree, i)
            if j < len(tree) and tree[j] == "'" and not power:
                primes, i = primes + 1, j + 1
            elif j < len(tree) and tree[j] in ("_", "^") and not (index if tree[j] == "_" else power):
                k = _Writer._skip(tree, j + 1)
                if k == len(tree):
                    raise ReadError(f"nothing after {tree[j]!r}")
                script = tree[k] if isinstance(tree[k], list) else [tree[k]]
                if isinstance(tree[k], str) and tree[k][1:] in WORDS:  # _\mathrm{data}, without braces around it
                    k = _Writer._skip(tree, k + 1)
                    script = tree[k] if k < len(tree) and isinstance(tree[k], list) else script
                index, power = (script, power) if tree[j] == "_" else (index, script)
                i = k + 1
            else:
                break
        sub = f"_{{{_script(index)}}}" if index else ""
        name = base + "'" * primes + sub
        if power and f"{name}^{{{_script(power)}}}" in known:
            name, power = f"{name}^{{{_script(power)}}}", []
        underived, order = base + sub if primes else "", primes
        if dotted := re.fullmatch(r"\\(d+)ot\{(.*)\}", base):
            underived, order = dotted[2] + sub, len(dotted[1])
        return cls(name, base, underived, order, index, power, i)


def _base(tree: Tree, i: int) -> tuple[str, int]:
    token = tree[i]
    command = token[1:]
    if command in WORDS or command in ACCENTS:
        j = _Writer._skip(tree, i + 1)
        if j == len(tree):
            raise ReadError(f"nothing after {token!r}")
        inside = tree[j] if isinstance(tree[j], list) else [tree[j]]
        if command in WORDS:
            return "".join(inside if all(isinstance(t, str) for t in inside) else [_script(inside)]).strip(), j + 1
        inner, end = _base(inside, _Writer._skip(inside, 0)) if inside and _starts_atom(inside[0]) else ("", -1)
        if not inner or _visible(inside[end:]):
            if isinstance(tree[j], list) or not _starts_atom(tree[j]):
                raise ReadError(f"{token} over more than one symbol")
            inner, end = _base(tree, j)
            return f"\\{command}{{{inner}}}", end
        return f"\\{command}{{{inner}}}", j + 1
    return token, i + 1


def _script(tree: Tree) -> str:
    r"""Write an index without what makes no difference: spaces, ``\text``, ``\mathrm``, needless braces."""
    out = []
    for token in tree:
        if isinstance(token, list):
            inner = _script(token)
            out.append(inner if len(tree) == 1 or len(token) == 1 or _previous_is_word(tree, token) else f"{{{inner}}}")
        elif not _is_space(token) and token[1:] not in WORDS:
            out.append(token[1:] if token in (r"\min", r"\max") else token)
    return "".join(out)


def _previous_is_word(tree: Tree, token: Tree) -> bool:
    i = next(k for k, other in enumerate(tree) if other is token)
    return i > 0 and isinstance(tree[i - 1], str) and tree[i - 1][1:] in WORDS


def _canonical(name: str) -> str:
    r"""Return a SymPy name as a page would give it: ``sigma_data`` is ``\sigma_{data}``, ``x0`` is ``x_{0}``."""
    plain = re.fullmatch(r"([A-Za-z]+?)(\d*)(?:_(\w+))?", name)
    if plain and not (len(plain[1]) == 1 and name == plain[1]):
        base = f"\\{plain[1]}" if plain[1] in GREEK else plain[1]
        sub = f"\\{plain[3]}" if plain[3] in GREEK else (plain[2] or plain[3] or "")
        return base + (f"_{{{sub}}}" if sub else "")
    tree = _tree(name)
    if not tree or not _starts_atom(tree[0]):
        raise ReadError(f"the step's name {name!r} is no LaTeX symbol; name it as on the page")
    atom = _Atom.scan(tree, 0)
    return atom.name + (f"^{{{_script(atom.power)}}}" if atom.power else "")

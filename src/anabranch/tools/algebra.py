"""Exact arithmetic, and equations in the reals, by sympy."""

from __future__ import annotations

from typing import Any

from anabranch.tools.isolated import isolated
from anabranch.tools.results import Solver, library, needs
from anabranch.tools.syntax import Notation, Tree

EXPRESSION = Notation(
    binary={
        "=": (1, 2),
        "+": (3, 4),
        "-": (3, 4),
        "*": (5, 6),
        "/": (5, 6),
        "%": (5, 6),
        "^": (10, 9),
        "**": (10, 9),
    },
    prefix={"-": 7, "+": 7},
    numbers=True,
)
"""`+ - * / %`, powers as `^` or `**`, `sqrt(x)` and `abs(x)`; and `2x`, which binds before
what stands to its left: `1/2x` is `1/(2*x)`."""

GRAMMAR = r"""
equation: sum " = " sum "\n"
sum: product ((" + " | " - ") product)*
product: power ((" * " | " / ") power)*
power: "-"? atom ("^" atom)?
atom: NUMBER | NAME | "(" sum ")" | "sqrt(" sum ")"
NUMBER: /[0-9]{1,15}(\.[0-9]{1,9})?/
NAME: /[a-z][a-z_]{0,20}/
"""
"""What a model may write, in Lark's syntax: `equation*` and then `sum`, which is asked for."""


def algebra(*, seconds: float = 5.0) -> Solver:
    """A solver of equations, one a line, and on the last line the expression that is asked for.

    The value is exact; of several solutions, all the values that the expression takes, by size.

    Raises:
        InputError: sympy is not installed.
    """
    needs("sympy", "sympy")
    return isolated(compute, seconds)


def compute(source: str) -> str:
    """As `algebra`, here and now, without its limits. Raises ValueError, with what is wrong."""
    sympy = library("sympy")

    lines = [line for line in source.splitlines() if line.strip()]
    if not lines:
        raise ValueError("there is no expression")
    trees = [EXPRESSION.read(line) for line in lines]
    if trees[-1][0] == "=":
        raise ValueError("the last line must be the expression that is asked for")
    if any(tree[0] != "=" for tree in trees[:-1]):
        raise ValueError("every line but the last must be an equation")
    *equations, asked = [_value(tree) for tree in trees]
    equations = [equation for equation in equations if equation != 0]
    if not equations:
        values = {sympy.simplify(asked)}
    else:
        solutions = sympy.solve(equations, dict=True)
        if not solutions:
            raise ValueError("the equations have no real solution")
        values = {sympy.simplify(asked.subs(solution)) for solution in solutions}
    for value in values:
        if value.free_symbols:
            loose = ", ".join(sorted(map(str, value.free_symbols)))
            raise ValueError(f"the equations leave {loose} open")
        if not value.is_finite:
            raise ValueError("it has no finite value")
    return ", ".join(_shown(v, "." in source) for v in sorted(values, key=float))


def _value(tree: Tree) -> Any:
    """In sympy's form; built from the tree, since sympy's own reader evaluates its text."""
    sympy = library("sympy")

    match tree:
        case ("number", digits):
            return sympy.Rational(digits)
        case ("name", str(name)):
            return sympy.Symbol(name, real=True)
        case ("call", "sqrt", inner):
            return sympy.sqrt(_value(inner))
        case ("call", "abs", inner):
            return sympy.Abs(_value(inner))
        case ("call", str(name), *arguments):
            raise ValueError(f"there is no function {name} of {len(arguments)}")
        case ("-", inner):
            return -_value(inner)
        case ("+", inner):
            return _value(inner)
    operator, left, right = tree[0], _value(tree[1]), _value(tree[2])
    if operator in ("/", "%") and right.is_zero:
        raise ValueError("division by zero")
    if operator in ("^", "**"):
        return left**right
    return _OPERATORS[operator](left, right)


_OPERATORS: dict[str, Any] = {
    "=": lambda a, b: a - b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "%": lambda a, b: a % b,
}


def _shown(value: Any, decimals: bool) -> str:
    """A decimal where decimals were given and it is one; else as exact as it is."""
    if decimals and value.is_Rational and not value.is_Integer:
        shifted = value * 10**30
        if shifted.is_Integer:
            whole = str(abs(shifted)).rjust(31, "0")
            return f"{'-' if value < 0 else ''}{whole[:-30]}.{whole[-30:].rstrip('0')}"
    return str(value)

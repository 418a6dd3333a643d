"""Does a conclusion follow? First-order logic, decided by z3."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from anabranch.tools.isolated import slots
from anabranch.tools.results import Result, Solver, failure, library, needs, outcome, too_long
from anabranch.tools.syntax import Notation, Tree

STEPS = 1_000_000
"""Most steps of z3 for one question (its `rlimit`): the same verdict however slow the machine."""

FORMULA = Notation(
    binary={"<->": (1, 2), "->": (3, 3), "|": (5, 6), "&": (7, 8)},
    prefix={"-": 9},
    binders=("all", "exists"),
)
"""`-`, `&`, `|`, `->`, `<->`, from tight to loose; `all x.` and `exists x.` reach as far as they
can. Names that are not bound are constants; a predicate without arguments is a proposition."""

_GRAMMAR = r"""
formula: ("all " | "exists ") TERM ". " formula | conditional
conditional: either ((" -> " | " <-> ") either)?
either: both (" | " both)*
both: factor (" & " factor)*
factor: "-" factor | "(" formula ")" | atom
atom: PREDICATE ("(" TERM (", " TERM)* ")")?
"""
_NAME = "/[A-Za-z][A-Za-z0-9_]{0,30}/"


def grammar(predicates: Sequence[str] = (), terms: Sequence[str] = ()) -> str:
    """What a model may write, in Lark's syntax: one formula that `prover` reads.

    Args:
        predicates, terms: the only names there are, variables among the terms; empty: any.
    """
    named = {"PREDICATE": predicates, "TERM": terms}
    names = (f"{k}: {' | '.join(map(json.dumps, v)) or _NAME}\n" for k, v in named.items())
    return f"start: formula{_GRAMMAR}{''.join(names)}"


def prover() -> Solver:
    """A solver of premises and, on the last line, a conclusion: one formula a line.

    The value is "true" when the conclusion follows, "false" when its negation does, else "unknown".
    Premises that contradict each other, and questions that cannot be decided, are errors.

    It runs on a thread: formulas come to z3 from our own reader, and z3's steps are counted, so a
    process of its own would protect from nothing.

    Raises:
        InputError: z3-solver is not installed.
    """
    needs("z3", "z3-solver")

    async def solve(source: str) -> Result:
        if complaint := too_long(source):
            return complaint
        async with slots():
            try:
                return outcome(await asyncio.to_thread(decide, source))
            except ValueError as error:
                return failure(str(error))

    return solve


def decide(source: str) -> str:
    """As `prover`, here and now. Raises ValueError, with what is wrong."""
    lines = [FORMULA.read(line) for line in source.splitlines() if line.strip()]
    if not lines:
        raise ValueError("there is no formula")
    theory = _Theory()
    *premises, conclusion = [theory.formula(line, {}) for line in lines]
    z3 = theory.z3
    follows = theory.check([*premises, z3.Not(conclusion)])
    refuted = theory.check([*premises, conclusion])
    if follows == refuted == z3.unsat:
        raise ValueError("the premises contradict each other")
    if z3.unsat in (follows, refuted):
        return "true" if follows == z3.unsat else "false"
    if z3.unknown in (follows, refuted):
        raise ValueError("it cannot be decided whether the conclusion follows")
    return "unknown"


class _Theory:
    """The names of some formulas, each with one meaning in all of them."""

    def __init__(self) -> None:
        self.z3 = library("z3")
        self.context = self.z3.Context()  # of its own: threads must not share one
        self.things = self.z3.DeclareSort("Thing", self.context)
        self.predicates: dict[str, tuple[int, Any]] = {}

    def check(self, claims: Sequence[Any]) -> Any:
        """Whether they can all hold, as far as the steps reach."""
        solver = self.z3.Solver(ctx=self.context)
        solver.set("rlimit", STEPS)
        solver.add(*claims)
        return solver.check()

    def formula(self, tree: Tree, bound: dict[str, Any]) -> Any:
        """In z3's form."""
        match tree:
            case ("-", inner):
                return self.z3.Not(self.formula(inner, bound))
            case ("all" | "exists" as word, str(name), inner):
                thing = self.z3.FreshConst(self.things, name)
                body = self.formula(inner, {**bound, name: thing})
                return (self.z3.ForAll if word == "all" else self.z3.Exists)([thing], body)
            case ("name", str(name)):
                return self.predicate(name, [])
            case ("call", str(name), *arguments):
                return self.predicate(name, [self.thing(a, bound) for a in arguments])
            case (operator, left, right):
                sides = self.formula(left, bound), self.formula(right, bound)
                return _CONNECT[operator](self.z3, *sides)
        raise AssertionError(tree)

    def predicate(self, name: str, things: list[Any]) -> Any:
        sorts = [self.things] * len(things)
        made = self.z3.Function(f"predicate {name}", *sorts, self.z3.BoolSort(self.context))
        arity, predicate = self.predicates.setdefault(name, (len(things), made))
        if arity != len(things):
            raise ValueError(f"{name} has {arity} arguments in one place, {len(things)} in another")
        return predicate(*things)

    def thing(self, tree: Tree, bound: dict[str, Any]) -> Any:
        if tree[0] != "name":
            raise ValueError("an argument must be a name")
        return bound[tree[1]] if tree[1] in bound else self.z3.Const(tree[1], self.things)


_CONNECT: dict[str, Any] = {
    "&": lambda z3, a, b: z3.And(a, b),
    "|": lambda z3, a, b: z3.Or(a, b),
    "->": lambda z3, a, b: z3.Implies(a, b),
    "<->": lambda z3, a, b: a == b,
}

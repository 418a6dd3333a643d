"""Constraints in SMT-LIB, by z3."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from anabranch.tools.isolated import isolated
from anabranch.tools.results import Solver, library, needs

STEPS = 1_000_000
"""Most steps of z3 (its `rlimit`)."""

ANSWER = "answer"
"""The constant whose value is asked for."""

# Of z3's commands, some read and write files. Only these get through to it.
_KEPT = {"assert"} | {
    f"{verb}-{thing}"
    for verb in ("declare", "define")
    for thing in ("const", "fun", "sort", "datatype", "datatypes")
}
_IGNORED = {"check-sat", "get-model", "get-value", "set-logic", "set-info", "set-option", "exit"}
_TOKEN = re.compile(r'\s+|;[^\n]*|([()]|"(?:[^"]|"")*"|\|[^|\\]*\||[^\s()";|]+)')


def smt(*, seconds: float = 10.0) -> Solver:
    """A solver of declarations and assertions.

    The value is that of the constant `answer`, if one is declared, else "sat" or "unsat".

    Raises:
        InputError: z3-solver is not installed.
    """
    needs("z3", "z3-solver")
    return isolated(satisfy, seconds)


def satisfy(source: str) -> str:
    """As `smt`, here and now, without its limits. Raises ValueError, with what is wrong."""
    z3 = library("z3")

    text = "\n".join(_commands(source))
    try:
        claims = z3.parse_smt2_string(text)
    except z3.Z3Exception as error:
        fault = error.value
        told = fault.decode("utf-8", "replace") if isinstance(fault, bytes) else str(fault)
        raise ValueError(told) from None
    solver = z3.Solver()
    solver.set("rlimit", STEPS)
    solver.add(claims)
    verdict = solver.check()
    if verdict == z3.unknown:
        raise ValueError("it could not be decided whether the constraints can hold")
    asked = re.search(rf"\(\s*(?:declare-const|declare-fun)\s+{ANSWER}\s", text)
    if asked is None:
        return str(verdict)
    if verdict == z3.unsat:
        raise ValueError("no value satisfies all constraints")
    model = solver.model()
    found = [model[name] for name in model.decls() if name.name() == ANSWER]
    if not found:
        raise ValueError(f"nothing is said of the constant {ANSWER}")
    return _shown(found[0])


def _shown(value: Any) -> str:
    z3 = library("z3")

    if z3.is_string_value(value):
        return str(value.as_string())
    return str(value).lower() if z3.is_bool(value) else str(value)


def _commands(source: str) -> Iterator[str]:
    """The commands that are kept, each written anew from its tokens."""
    for command in _lists(source):
        word = command[1] if len(command) > 2 else ""
        if word in _KEPT:
            yield " ".join(command)
        elif word not in _IGNORED:
            raise ValueError(f"there is no command {word[:40]!r} here")


def _lists(source: str) -> Iterator[list[str]]:
    """The outermost lists, as flat tokens with their parentheses."""
    depth, position = 0, 0
    tokens: list[str] = []
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise ValueError(f"cannot read {source[position : position + 20]!r}")
        position = match.end()
        token = match[1]
        if token is None:
            continue
        tokens.append(token)
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0 or (depth == 0 and token != ")"):
            raise ValueError(f"unexpected {token[:20]!r} outside of a command")
        if depth == 0:
            yield tokens
            tokens = []
    if depth:
        raise ValueError("a parenthesis is not closed")

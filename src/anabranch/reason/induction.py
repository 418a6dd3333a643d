"""Rules found in examples: a program must give every example's output before its own counts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from anabranch.program.types import Problem
from anabranch.tools.python import python
from anabranch.tools.results import Result, Solver, outcome

FUNCTION = (
    "Write a Python function f that gives each output for its input. "
    "Reply with the code alone, in one ```python block."
)

MAX_PAIRS = 64
MAX_TERM = 200
_ARROW = re.compile(r"\s*(?:->|=>|→)\s*")
_PART = re.compile(r"[;\n]")
_MARK = "=> "

_HARNESS = """
for given, wanted, text in {pairs}:
    got = f(given)
    assert got == wanted or str(got) == text, f"f({{given!r}}) is {{got!r}}, not {{text}}"
print()
print("{mark}" + str(f({query})))
"""


def examples(problem: Problem) -> tuple[list[tuple[str, str]], str] | None:
    """What a problem shows, and what it asks for.

    Examples are written `input -> output`, one a line or with semicolons between them; the last
    one lacks its output, or has a question mark there.

    Returns:
        The pairs and the last input, as they are written, or None when the problem is not like
        that.
    """
    shown: list[tuple[str, str]] = []
    for part in _PART.split(problem.text):
        sides = _ARROW.split(part.strip(), maxsplit=1)
        if len(sides) == 2 and sides[0] and max(map(len, sides)) <= MAX_TERM:
            shown.append((sides[0].rpartition(": ")[2], sides[1]))
    if len(shown) < 2 or len(shown) > MAX_PAIRS:
        return None
    *pairs, (asked, open_) = shown
    return (pairs, asked) if not open_.strip("?. ") and all(o for _, o in pairs) else None


def inducer(pairs: Sequence[tuple[str, str]], asked: str) -> Solver:
    """A solver of functions `f`: its value for what is asked, if it is right for every pair.

    Inputs and outputs are what JSON takes them for, else texts.
    """
    run = python()
    shown = [(_value(given), _value(wanted), wanted.strip("\"'")) for given, wanted in pairs]
    harness = _HARNESS.format(pairs=shown, query=repr(_value(asked)), mark=_MARK)

    async def solve(source: str) -> Result:
        result = await run(f"{source}\n{harness}")
        if result.value is None:
            return result
        found = result.value.rpartition(_MARK)[2]
        return outcome(found)

    return solve


def _value(text: str) -> object:
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text.strip("\"'")

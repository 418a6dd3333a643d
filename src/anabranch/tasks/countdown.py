"""Numbers to be put together to another one."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Annotated

from anabranch.program.answers import MAX_READ
from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import calculate

_STEP = re.compile(r"(\d{1,9}) ?([-+*/×÷]) ?(\d{1,9}) ?= ?(\d{1,9})(?!\d)")


@task(
    "countdown",
    paper="Gandhi et al. 2024, Stream of Search: Learning to search in language",
    summary="Put so many numbers together, each once, to a target, with + - * /.",
    difficulty="numbers",
    counts="numbers to be put together",
)
def countdown(*, numbers: Annotated[int, Range(2, 8)] = 3) -> Make:
    """Any expression counts that uses each number exactly once and gives the target exactly."""

    def make(rng: random.Random) -> Posed:
        while True:
            given = [rng.randint(2, 25) for _ in range(numbers)]
            steps: list[str] = []
            pool = [(n, str(n)) for n in given]
            while len(pool) > 1:
                (a, left), (b, right) = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
                results = {"+": a + b, "*": a * b, "-": a - b, "/": a // b if a % b == 0 else 0}
                sign = rng.choice([s for s, r in results.items() if 0 < r < 1000] or ["+"])
                steps.append(f"{a} {sign} {b} = {results[sign]}")
                pool.append((results[sign], f"({left} {sign} {right})"))
            target, expression = pool[0]
            if target not in given and target < 1000:
                break
        text = (
            f"Use each of the numbers {', '.join(map(str, given))} exactly once, with + - * / and "
            f"parentheses, to make {target}. "
            f"Give the expression without an equals sign, for example: (2 + 3) * 4."
        )
        return Posed(
            Problem(text, kind="exact"),
            expression[1:-1],
            tuple(steps),
            grade=lambda answer: float(_makes(answer, given, target)),
            follow=lambda said: _follow(said, given, target),
        )

    return make


def _makes(answer: str, given: list[int], target: int) -> bool:
    """Whether an expression, or either side of an equation, is a solution."""
    for side in answer.split("=")[:2]:
        found = calculate(side)
        if found and found[0] == target and sorted(found[1]) == sorted(given):
            return True
    return False


def _follow(text: str, given: list[int], target: int) -> list[bool]:
    """A step is right if it is true, takes what is there, and the last one gives the target."""
    pool, found = Counter(given), []
    for left, sign, right, result in _STEP.findall(text[-MAX_READ:]):
        taken = Counter([int(left), int(right)])
        value = calculate(f"{left} {sign} {right}")
        there = taken <= pool and value is not None and value[0] == int(result)
        if there:
            pool = pool - taken + Counter([int(result)])
        found.append(there and (pool.total() > 1 or pool[target] == 1))
    return found

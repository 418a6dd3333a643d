"""Calculations of many operations, each on the result of the one before."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import calculated


@task(
    "chain",
    paper="Nye et al. 2021, Show your work: Scratchpads for intermediate computation",
    summary="((7 + 5) * 3 - 12) / 2 and the like, with so many operations.",
    difficulty="operations",
    counts="operations, one after the other",
)
def chain(*, operations: Annotated[int, Range(1, 40)] = 4) -> Make:
    """Every intermediate result is a whole number from 1 to 999."""

    def make(rng: random.Random) -> Posed:
        value = rng.randint(2, 20)
        text, values, steps = f"{value}", list[int](), list[str]()
        for _ in range(operations):
            sign, other, result = rng.choice(_next(value, rng))
            # A sum must be closed before it is multiplied or divided.
            closed = f"({text})" if sign in "*/" and values else text
            text = f"{closed} {sign} {other}"
            steps.append(f"{value} {sign} {other} = {result}")
            values.append(value := result)
        problem = Problem(f"What is {text}?", kind="number")
        return Posed(problem, str(value), tuple(steps), follow=calculated(values))

    return make


def _next(value: int, rng: random.Random) -> list[tuple[str, int, int]]:
    """What may be done with a value: sign, other number, result."""
    n = rng.randint(2, 20)
    found = [("+", n, value + n)] if value + n < 1000 else []
    if value > n:
        found.append(("-", n, value - n))
    found += [("*", k, value * k) for k in (rng.randint(2, 6),) if value * k < 1000]
    divisors = [k for k in range(2, 10) if value % k == 0 and value > k]
    if divisors:
        k = rng.choice(divisors)
        found.append(("/", k, value // k))
    return found

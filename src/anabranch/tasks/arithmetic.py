"""Sums and products in two steps."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import calculated


@task(
    "arithmetic",
    paper="Gao et al. 2022, PAL: Program-aided language models, section 4.1 (GSM-hard)",
    summary="(a + b) * c - d and the like, in numbers of so many digits.",
    difficulty="digits",
    counts="digits of the numbers",
)
def arithmetic(*, digits: Annotated[int, Range(1, 9)] = 2) -> Make:
    """Large enough to go wrong in the head, small enough to be written out."""

    def make(rng: random.Random) -> Posed:
        low, high = 10 ** (digits - 1), 10**digits - 1
        a, b, d = (rng.randint(low, high) for _ in range(3))
        c, sign = rng.randint(2, 9), rng.choice("+-")
        value = (a + b) * c + (d if sign == "+" else -d)
        text = f"What is ({a} + {b}) * {c} {sign} {d}?"
        steps = (
            f"{a} + {b} = {a + b}",
            f"{a + b} * {c} = {(a + b) * c}",
            f"{(a + b) * c} {sign} {d} = {value}",
        )
        follow = calculated([a + b, (a + b) * c, value])
        return Posed(Problem(text, kind="number"), str(value), steps, follow=follow)

    return make

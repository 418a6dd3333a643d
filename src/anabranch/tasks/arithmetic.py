"""Sums and products in two steps."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task


@task(
    "arithmetic",
    paper="Gao et al. 2022, PAL: Program-aided language models, section 4.1 (GSM-hard)",
    summary="(a + b) * c - d and the like, in numbers of so many digits.",
)
def arithmetic(*, digits: Annotated[int, Range(1, 9)] = 2) -> Make:
    """Large enough to go wrong in the head, small enough to be written out."""

    def make(rng: random.Random) -> Posed:
        low, high = 10 ** (digits - 1), 10**digits - 1
        a, b, d = (rng.randint(low, high) for _ in range(3))
        c, sign = rng.randint(2, 9), rng.choice("+-")
        value = (a + b) * c + (d if sign == "+" else -d)
        text = f"What is ({a} + {b}) * {c} {sign} {d}?"
        return Posed(Problem(text, kind="number"), str(value))

    return make

"""Linear equations with one unknown."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import calculated


@task(
    "equations",
    paper="Hendrycks et al. 2021, Measuring mathematical problem solving (its prealgebra)",
    summary="a x + b = c x + d, with a whole number as solution.",
    difficulty="digits",
    counts="digits of the numbers",
    added=("digits",),
)
def equations(*, digits: Annotated[int, Range(1, 6)] = 1) -> Make:
    """The unknown stands on both sides."""

    scale = 10 ** (digits - 1)

    def make(rng: random.Random) -> Posed:
        x, c = rng.randint(-9 * scale, 12 * scale), rng.randint(1, 6 * scale)
        a = c + rng.randint(1, 8 * scale)
        b = rng.randint(-20 * scale, 20 * scale)
        d = a * x + b - c * x
        left, right = f"{a}x {b:+d}", f"{c}x {d:+d}"
        text = f"Solve for x: {left} = {right}".replace("+", "+ ").replace("-", "- ")
        steps = (
            f"{a} - {c} = {a - c}",
            f"{d} {'-' if b >= 0 else '+'} {abs(b)} = {d - b}",
            f"{d - b} / {a - c} = {x}",
        )
        follow = calculated([a - c, d - b, x])
        return Posed(Problem(text, kind="number"), str(x), steps, follow=follow)

    return make

"""Linear equations with one unknown."""

from __future__ import annotations

import random

from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task


@task(
    "equations",
    paper="Hendrycks et al. 2021, Measuring mathematical problem solving (its prealgebra)",
    summary="a x + b = c x + d, with a whole number as solution.",
)
def equations() -> Make:
    """The unknown stands on both sides."""

    def make(rng: random.Random) -> Posed:
        x, c = rng.randint(-9, 12), rng.randint(1, 6)
        a = c + rng.randint(1, 8)
        b = rng.randint(-20, 20)
        d = a * x + b - c * x
        left, right = f"{a}x {b:+d}", f"{c}x {d:+d}"
        text = f"Solve for x: {left} = {right}".replace("+", "+ ").replace("-", "- ")
        return Posed(Problem(text, kind="number"), str(x))

    return make

"""Word problems of two steps."""

from __future__ import annotations

import random

from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task

_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana")
_THINGS = ("apples", "pencils", "stamps", "marbles", "cards", "shells", "coins", "books")


@task(
    "words",
    paper="Cobbe et al. 2021, Training verifiers to solve math word problems (GSM8K), section 2",
    summary="Everyday stories with two operations, from templates.",
)
def words() -> Make:
    """Four stories: boxes and gifts, shares, prices, and growth by a factor."""

    def make(rng: random.Random) -> Posed:
        name, other = rng.sample(_NAMES, 2)
        thing = rng.choice(_THINGS)
        a, b = rng.randint(3, 12), rng.randint(4, 15)
        kind = rng.randrange(4)
        if kind == 0:
            c = rng.randint(2, a * b - 1)
            text = (
                f"{name} has {a} boxes with {b} {thing} each and gives {c} {thing} to {other}. "
                f"How many {thing} does {name} have left?"
            )
            value = a * b - c
        elif kind == 1:
            c = rng.randint(1, a * b - 1)
            text = (
                f"{name} has {a * b - c} {thing} and finds "
                f"{c} more. They are shared equally among {a} friends. "
                f"How many {thing} does each friend get?"
            )
            value = b
        elif kind == 2:
            c = rng.randint(2, 9)
            text = (
                f"{name} buys {a} {thing} for {b} dollars each and a bag for {c} dollars. "
                "How many dollars does it cost in all?"
            )
            value = a * b + c
        else:
            c = rng.randint(1, 30)
            text = (
                f"{name} has {a} times as many {thing} as {other}, who has {b}. Then {name} "
                f"buys {c} more. How many {thing} does {name} have now?"
            )
            value = a * b + c
        return Posed(Problem(text, kind="number"), str(value))

    return make

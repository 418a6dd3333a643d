"""Word problems."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import calculated

_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana")
_THINGS = ("apples", "pencils", "stamps", "marbles", "cards", "shells", "coins", "books")


@task(
    "words",
    paper="Cobbe et al. 2021, Training verifiers to solve math word problems (GSM8K), section 2",
    summary="Everyday stories with two operations or more, from templates.",
    difficulty="operations",
    counts="operations, one after the other",
    added=("operations",),
)
def words(*, operations: Annotated[int, Range(2, 12)] = 2) -> Make:
    """Four stories: boxes and gifts, shares, prices, and growth by a factor."""

    def make(rng: random.Random) -> Posed:
        name, other = rng.sample(_NAMES, 2)
        thing = rng.choice(_THINGS)
        a, b = rng.randint(3, 12), rng.randint(4, 15)
        kind = rng.randrange(4)
        owner, spends = name, False
        if kind == 0:
            c = rng.randint(2, a * b - 1)
            story = f"{name} has {a} boxes with {b} {thing} each and gives {c} {thing} to {other}."
            asked = f"How many {thing} does {name} have left?"
            steps = [(f"{a} * {b}", a * b), (f"{a * b} - {c}", a * b - c)]
        elif kind == 1:
            c = rng.randint(1, a * b - 1)
            story = (
                f"{name} has {a * b - c} {thing} and finds "
                f"{c} more. They are shared equally among {a} friends."
            )
            asked = f"How many {thing} does each friend {'get' if operations == 2 else 'have now'}?"
            owner = "Each friend"
            steps = [(f"{a * b - c} + {c}", a * b), (f"{a * b} / {a}", b)]
        elif kind == 2:
            c = rng.randint(2, 9)
            story = f"{name} buys {a} {thing} for {b} dollars each and a bag for {c} dollars."
            asked = "How many dollars does it cost in all?"
            spends = True
            steps = [(f"{a} * {b}", a * b), (f"{a * b} + {c}", a * b + c)]
        else:
            c = rng.randint(1, 30)
            story = (
                f"{name} has {a} times as many {thing} as {other}, who has {b}. Then {name} "
                f"buys {c} more."
            )
            asked = f"How many {thing} does {name} have now?"
            steps = [(f"{a} * {b}", a * b), (f"{a * b} + {c}", a * b + c)]
        while len(steps) < operations:
            value, c = steps[-1][1], rng.randint(2, 20)
            loses = value > c and not spends and rng.random() < 0.5
            if spends:
                story += f" {name} also pays {c} dollars for a gift."
            else:
                story += f" {owner} {'then loses' if loses else 'then finds'} {c} {thing}."
            steps.append((f"{value} {'-' if loses else '+'} {c}", value + (-c if loses else c)))
        lines = tuple(f"{left} = {right}" for left, right in steps)
        follow = calculated([right for _, right in steps])
        problem = Problem(f"{story} {asked}", kind="number")
        return Posed(problem, str(steps[-1][1]), lines, follow=follow)

    return make

"""Procedures on words, one operation after the other."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import numbered

WORDS = (
    *("river", "stone", "garden", "window", "pencil", "bridge"),
    *("market", "forest", "candle", "silver", "planet", "bottle"),
)
OPERATIONS: list[tuple[str, Callable[[str], str]]] = [
    ("write it backwards", lambda w: w[::-1]),
    ("remove its first letter", lambda w: w[1:]),
    ("remove its last letter", lambda w: w[:-1]),
    ("remove all vowels (a, e, i, o, u)", lambda w: "".join(c for c in w if c not in "aeiou")),
    ("write it twice in a row", lambda w: w + w),
    ("move its first letter to the end", lambda w: w[1:] + w[0]),
]


@task(
    "strings",
    paper="Fujisawa et al. 2024, ProcBench: Benchmark for multi-step reasoning, section 3",
    summary="So many operations on the letters of a word.",
    difficulty="operations",
    counts="operations, one after the other",
    added=("operations",),
)
def strings(*, operations: Annotated[int, Range(2, 6)] = 2) -> Make:
    """The steps are given, so only carrying them out can go wrong."""

    def make(rng: random.Random) -> Posed:
        word = rng.choice(WORDS)
        chosen = rng.sample(OPERATIONS, operations)
        states: list[str] = []
        for _, do in chosen:
            states.append(do(states[-1] if states else word))
        first, *others = (name for name, _ in chosen)
        orders = " ".join([f"First {first}.", *(f"Then {name}." for name in others)])
        text = f'Take the word "{word}". {orders} What word do you get?'
        steps = tuple(f"Step {i}: {state}" for i, state in enumerate(states, 1))
        follow = numbered(states)
        return Posed(Problem(text, kind="text"), states[-1], steps, follow=follow)

    return make

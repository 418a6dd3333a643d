"""Procedures on words, one operation after the other."""

from __future__ import annotations

import random
from collections.abc import Callable

from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task

_WORDS = (
    *("river", "stone", "garden", "window", "pencil", "bridge"),
    *("market", "forest", "candle", "silver", "planet", "bottle"),
)
_OPERATIONS: list[tuple[str, Callable[[str], str]]] = [
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
    summary="Two operations on the letters of a word.",
)
def strings() -> Make:
    """The steps are given, so only carrying them out can go wrong."""

    def make(rng: random.Random) -> Posed:
        word = rng.choice(_WORDS)
        (first, one), (second, two) = rng.sample(_OPERATIONS, 2)
        text = f'Take the word "{word}". First {first}. Then {second}. What word do you get?'
        return Posed(Problem(text, kind="text"), two(one(word)))

    return make

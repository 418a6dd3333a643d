"""Facts to be found in a long text."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task

_CITIES = (
    *("Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Paris", "Tokyo", "Delhi", "Accra", "Turin"),
    *("Sofia", "Dakar", "Perth", "Leeds", "Osaka", "Basel", "Porto", "Miami", "Minsk", "Tunis"),
)
_WHO = ("The baker", "A neighbour", "The old captain", "My aunt", "The teacher", "A young pilot")
_DOES = ("walked along", "painted", "looked for", "spoke about", "wrote to", "waited near")
_WHAT = ("the quiet harbour", "a wooden bridge", "the market", "an empty garden", "the long road")
_WHEN = ("before sunrise", "on a rainy evening", "all summer", "without a word", "once more")


@task(
    "needles",
    paper="Hsieh et al. 2024, RULER: What is the real context size of your long-context language "
    "models?, section 3 (multi-key, multi-query)",
    summary="The numbers of some cities, hidden among others in a text of so many words.",
    difficulty="words",
    counts="words of the text, or some more",
)
def needles(
    *,
    words: Annotated[int, Range(20, 100_000)] = 300,
    needles: Annotated[int, Range(1, 8)] = 1,
    others: Annotated[int, Range(0, 12)] = 2,
) -> Make:
    """`others` cities have numbers that nobody asks for."""

    def make(rng: random.Random) -> Posed:
        cities = rng.sample(_CITIES, needles + others)
        numbers = rng.sample(range(1000, 10_000), len(cities))
        hidden = [f"The number of {c} is {n}." for c, n in zip(cities, numbers, strict=True)]
        told, length = list[str](), 6 * len(hidden)
        while length < words:
            told.append(" ".join(map(rng.choice, (_WHO, _DOES, _WHAT, _WHEN))) + ".")
            length += len(told[-1].split())
        for fact in hidden:
            told.insert(rng.randint(0, len(told)), fact)
        asked = cities[:needles]
        if needles == 1:
            text = f"What is the number of {asked[0]} in the text?"
        else:
            text = (
                f"What are the numbers of {', '.join(asked)} in the text? Give them in this order, "
                "separated by commas."
            )
        problem = Problem(text, kind="number" if needles == 1 else "exact", context=" ".join(told))
        answer = ", ".join(map(str, numbers[:needles]))
        steps = tuple(hidden[:needles])
        return Posed(problem, answer, steps)

    return make

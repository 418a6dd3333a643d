"""Knights, who always tell the truth, and knaves, who always lie."""

from __future__ import annotations

import itertools
import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.clues import Clue, left_by
from anabranch.tasks.ordering import NAMES
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import plain

World = tuple[bool, ...]
"""Whether each is a knight."""


@task(
    "knights",
    paper="Xie et al. 2024, On memorization of large language models in logical reasoning",
    summary="So many people, each a knight or a knave, say things of each other: who is what?",
    difficulty="people",
    counts="people, each with one statement",
)
def knights(*, people: Annotated[int, Range(2, 8)] = 3) -> Make:
    """What they say leaves one solution. The answer names all knights."""
    worlds: list[World] = list(itertools.product((True, False), repeat=people))

    def make(rng: random.Random) -> Posed:
        names = rng.sample(NAMES, people)
        while True:
            said = [rng.choice(_statements(i, names)) for i in range(people)]
            # A statement is true if, and only if, a knight makes it.
            clues: list[Clue[World]] = [
                (text, lambda w, i=i, holds=holds: holds(w) == w[i])
                for i, (text, holds) in enumerate(said)
            ]
            left = left_by(worlds, clues)
            if len(left) == 1 and any(left[0]):
                break
        answer = ", ".join(sorted(n for n, knight in zip(names, left[0], strict=True) if knight))
        text = (
            "Knights always tell the truth, and knaves always lie. "
            f"Each of {', '.join(names)} is a knight or a knave. "
            + " ".join(f'{name} says: "{text}"' for name, (text, _) in zip(names, said, strict=True))
            + " Name all knights, separated by commas."
        )
        return Posed(
            Problem(text, kind="exact"),
            answer,
            grade=lambda given: float(_names(given) == _names(answer)),
        )

    return make


def _names(text: str) -> list[str]:
    return sorted(word for word in plain(text).casefold().split() if word != "and")


def _statements(me: int, names: list[str]) -> list[Clue[World]]:
    found: list[Clue[World]] = []
    others = [i for i in range(len(names)) if i != me]
    for i in others:
        found += [
            (f"{names[i]} is a knight.", lambda w, i=i: w[i]),
            (f"{names[i]} is a knave.", lambda w, i=i: not w[i]),
            (f"{names[i]} and I are of the same kind.", lambda w, i=i: w[i] == w[me]),
            (f"{names[i]} or I am a knave.", lambda w, i=i: not (w[i] and w[me])),
        ]
    for i, j in itertools.combinations(others, 2):
        one, two = names[i], names[j]
        found += [
            (f"{one} and {two} are both knaves.", lambda w, i=i, j=j: not w[i] and not w[j]),
            (f"At least one of {one} and {two} is a knight.", lambda w, i=i, j=j: w[i] or w[j]),
            (f"If {one} is a knight, so is {two}.", lambda w, i=i, j=j: not w[i] or w[j]),
        ]
    return found

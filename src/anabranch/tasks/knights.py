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
            left = left_by(worlds, [_said(i, clue) for i, clue in enumerate(said)])
            if len(left) == 1 and any(left[0]):
                break
        answer = ", ".join(sorted(n for n, knight in zip(names, left[0], strict=True) if knight))
        speeches = [f'{n} says: "{s}"' for n, (s, _) in zip(names, said, strict=True)]
        text = (
            "Knights always tell the truth, and knaves always lie. "
            f"Each of {', '.join(names)} is a knight or a knave. "
            f"{' '.join(speeches)} Name all knights, separated by commas."
        )
        return Posed(
            Problem(text, kind="exact"),
            answer,
            grade=lambda given: float(_names(given) == _names(answer)),
        )

    return make


def _names(text: str) -> list[str]:
    return sorted(word for word in plain(text).casefold().split() if word != "and")


def _said(who: int, clue: Clue[World]) -> Clue[World]:
    """A statement is true if, and only if, a knight makes it."""
    text, holds = clue
    return text, lambda w: holds(w) == w[who]


def _statements(me: int, names: list[str]) -> list[Clue[World]]:
    others = [i for i in range(len(names)) if i != me]
    found = [clue for i in others for clue in _of_one(i, me, names)]
    return found + [c for i, j in itertools.combinations(others, 2) for c in _of_two(i, j, names)]


def _of_one(i: int, me: int, names: list[str]) -> list[Clue[World]]:
    return [
        (f"{names[i]} is a knight.", lambda w: w[i]),
        (f"{names[i]} is a knave.", lambda w: not w[i]),
        (f"{names[i]} and I are of the same kind.", lambda w: w[i] == w[me]),
        (f"{names[i]} or I am a knave.", lambda w: not (w[i] and w[me])),
    ]


def _of_two(i: int, j: int, names: list[str]) -> list[Clue[World]]:
    one, two = names[i], names[j]
    return [
        (f"{one} and {two} are both knaves.", lambda w: not w[i] and not w[j]),
        (f"At least one of {one} and {two} is a knight.", lambda w: w[i] or w[j]),
        (f"If {one} is a knight, so is {two}.", lambda w: not w[i] or w[j]),
    ]

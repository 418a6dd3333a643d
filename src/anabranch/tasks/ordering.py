"""Who stands where in a row."""

from __future__ import annotations

import itertools
import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.clues import Clue, sufficient
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import plain

World = tuple[int, ...]
"""Who stands at each place, from the left."""

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")


@task(
    "ordering",
    paper="Srivastava et al. 2022, Beyond the imitation game (BIG-bench): logical deduction",
    summary="So many people in a row, from clues about who is left of whom.",
    difficulty="people",
    counts="people in the row",
)
def ordering(*, people: Annotated[int, Range(3, 7)] = 3) -> Make:
    """One order fits the clues, and no clue can be left out."""
    worlds = list[World](itertools.permutations(range(people)))

    def make(rng: random.Random) -> Posed:
        names = rng.sample(NAMES, people)
        chosen = None
        while chosen is None:
            order = rng.choice(worlds)
            chosen = sufficient(worlds, [c for c in _clues(names) if c[1](order)], rng)
        answer = ", ".join(names[who] for who in order)
        text = (
            f"{', '.join(sorted(names))} stand in a row. {' '.join(said for said, _ in chosen)} "
            "Name all of them from left to right, separated by commas."
        )
        return Posed(
            Problem(text, kind="exact"),
            answer,
            grade=lambda said: float(plain(said).casefold() == plain(answer).casefold()),
        )

    return make


def _clues(names: list[str]) -> list[Clue[World]]:
    pairs = itertools.permutations(range(len(names)), 2)
    found = [clue for a, b in pairs for clue in _of_two(a, b, names)]
    return found + [clue for a in range(len(names)) for clue in _of_one(a, names)]


def _of_two(a: int, b: int, names: list[str]) -> list[Clue[World]]:
    one, two = names[a], names[b]
    return [
        (f"{one} is somewhere left of {two}.", lambda w: w.index(a) < w.index(b)),
        (f"{one} is directly left of {two}.", lambda w: w.index(a) + 1 == w.index(b)),
        (f"{one} is not next to {two}.", lambda w: abs(w.index(a) - w.index(b)) > 1),
    ]


def _of_one(a: int, names: list[str]) -> list[Clue[World]]:
    return [
        (f"{names[a]} is at one end of the row.", lambda w: a in (w[0], w[-1])),
        (f"{names[a]} is not at an end of the row.", lambda w: a not in (w[0], w[-1])),
    ]

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
    worlds = list(itertools.permutations(range(people)))

    def make(rng: random.Random) -> Posed:
        names = rng.sample(NAMES, people)
        chosen = None
        while chosen is None:
            order = rng.choice(worlds)  # order[p]: who stands at place p
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


def _clues(names: list[str]) -> list[Clue[tuple[int, ...]]]:
    found: list[Clue[tuple[int, ...]]] = []
    for a, b in itertools.permutations(range(len(names)), 2):
        one, two = names[a], names[b]
        found += [
            (f"{one} is somewhere left of {two}.", lambda w, a=a, b=b: w.index(a) < w.index(b)),
            (
                f"{one} is directly left of {two}.",
                lambda w, a=a, b=b: w.index(a) + 1 == w.index(b),
            ),
            (f"{one} is not next to {two}.", lambda w, a=a, b=b: abs(w.index(a) - w.index(b)) > 1),
        ]
    for a, one in enumerate(names):
        found += [
            (f"{one} is at one end of the row.", lambda w, a=a: a in (w[0], w[-1])),
            (f"{one} is not at an end of the row.", lambda w, a=a: a not in (w[0], w[-1])),
        ]
    return found

"""Who owns the fish?"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.clues import Clue, sufficient
from anabranch.tasks.ordering import NAMES
from anabranch.tasks.registry import Make, Posed, task

World = tuple[tuple[int, ...], ...]
"""Per kind of thing, the house of each."""

Thing = tuple[str, int, int]
"""How it is called, its kind, and its place in the lists of that kind."""

_PETS = ("cat", "dog", "fish", "parrot", "rabbit", "horse")
_DRINKS = ("tea", "milk", "coffee", "water", "juice", "cocoa")


@task(
    "zebra",
    paper="Lin et al. 2025, ZebraLogic: On the scaling limits of LLMs for logical reasoning",
    summary="So many houses with people, pets and drinks: who owns the fish?",
    difficulty="houses",
    counts="houses in the street",
)
def zebra(*, houses: Annotated[int, Range(2, 4)] = 3) -> Make:
    """The clues leave one way to fill all houses, and none of them can be left out."""
    rows = list(itertools.permutations(range(houses)))
    worlds: list[World] = list(itertools.product(rows, repeat=3))

    def make(rng: random.Random) -> Posed:
        names, pets, drinks = (rng.sample(kind, houses) for kind in (NAMES, _PETS, _DRINKS))
        things = [
            [(name, 0, i) for i, name in enumerate(names)],
            [(f"the owner of the {pet}", 1, i) for i, pet in enumerate(pets)],
            [(f"the drinker of {drink}", 2, i) for i, drink in enumerate(drinks)],
        ]
        chosen = None
        while chosen is None:
            world = rng.choice(worlds)
            asked = rng.randrange(houses)
            owner = names[world[0].index(world[1][asked])]
            told = f"{owner} is the owner of the {pets[asked]}."
            true = [c for c in _clues(things) if c[1](world) and c[0] != told]
            chosen = sufficient(worlds, true, rng)
        text = (
            f"There are {houses} houses in a row, numbered from 1 to {houses} from left to right. "
            f"In each lives one of {', '.join(sorted(names))}, each with another pet "
            f"({', '.join(sorted(pets))}) and another drink ({', '.join(sorted(drinks))}). "
            f"{' '.join(said for said, _ in chosen)} Who owns the {pets[asked]}? Give the name."
        )
        return Posed(Problem(text, kind="text"), owner)

    return make


def _clues(things: list[list[Thing]]) -> list[Clue[World]]:
    found: list[Clue[World]] = []
    for one in itertools.chain(*things):
        said, kind, i = one
        begin = said[0].upper() + said[1:]
        found += [
            (f"{begin} lives in house {h + 1}.", _in(kind, i, h)) for h in range(len(things[0]))
        ]
        for other in itertools.chain(*things):
            if other == one:
                continue
            if kind < other[1]:
                found.append((f"{begin} is {other[0]}.", _where(0, 0, one, other)))
            found.append((f"{begin} lives directly left of {other[0]}.", _where(1, 1, one, other)))
            found.append((f"{begin} lives somewhere left of {other[0]}.", _where(1, 9, one, other)))
    return found


def _in(kind: int, i: int, house: int) -> Callable[[World], bool]:
    return lambda world: world[kind][i] == house


def _where(low: int, high: int, one: Thing, two: Thing) -> Callable[[World], bool]:
    """Whether one lives so many houses left of the other."""
    (_, k, i), (_, m, j) = one, two
    return lambda world: low <= world[m][j] - world[k][i] <= high

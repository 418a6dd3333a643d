"""Crossing a river where some must not outnumber others."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.errors import InputError
from anabranch.program.registry import Range
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.search import Puzzle, distances, hard

State = tuple[int, int, bool]
"""How many of both are on the left bank, and whether the boat is."""

_SIDES = (
    *(("missionary", "missionaries", "cannibal", "cannibals"), ("hen", "hens", "fox", "foxes")),
    *(("guard", "guards", "thief", "thieves"), ("sheep", "sheep", "wolf", "wolves")),
    *(("knight", "knights", "dragon", "dragons"), ("mouse", "mice", "cat", "cats")),
)


@task(
    "river",
    paper="Amarel 1968, On representations of problems of reasoning about actions; "
    "Shojaee et al. 2025, The illusion of thinking, section 3",
    summary="Missionaries and cannibals, so many of each: who crosses the river when?",
    difficulty="pairs",
    counts="missionaries, and as many cannibals",
)
def river(*, pairs: Annotated[int, Range(2, 5)] = 2, boat: Annotated[int, Range(2, 4)] = 3) -> Make:
    """`boat` is how many it holds. From a position more than half as far away as any; the known
    puzzle, `river(pairs=3, boat=2)`, takes eleven crossings. Two seats are too few from four on."""
    if boat == 2 and pairs > 3:
        raise InputError("a boat for two is too small", got=pairs, allowed="pairs up to 3")

    def moves(state: State) -> dict[str, State]:
        m, c, left = state
        found = {}
        for i in range(boat + 1):
            for j in range(boat + 1 - i):
                after = (m - i, c - j, False) if left else (m + i, c + j, True)
                if i + j and (i >= j or i == 0) and _safe(after, pairs):
                    found["M" * i + "C" * j] = after
        return found

    starts = hard(distances((pairs, pairs, True), (0, 0, False), moves))

    def make(rng: random.Random) -> Posed:
        one, many, bad, worse = rng.choice(_SIDES)
        m, c, left = start = rng.choice(starts)
        text = (
            f"{pairs} {many} and {pairs} {worse} cross a river from the left bank to the right, "
            f"in a boat that holds {boat} and never goes empty. Nowhere may there be more {worse} "
            f"than {many} while there is a {one}, also in the boat. Now on the left bank: "
            f"{many} {m}, {worse} {c}; on the right bank: {many} {pairs - m}, {worse} {pairs - c}; "
            f"the boat is on the {'left' if left else 'right'}. Bring all to the right bank. "
            f"Write each crossing with a letter M for every {one} and C for every {bad} in the "
            "boat, and separate the crossings by commas. "
            f"Example: MC, M is a {one} and a {bad} crossing, then a {one} crossing back."
        )
        return Puzzle(start, (0, 0, False), moves, r"\b[MC]{1,9}\b").pose(text)

    return make


def _safe(state: State, pairs: int) -> bool:
    m, c, _ = state
    if not (0 <= m <= pairs and 0 <= c <= pairs):
        return False
    return m in (0, c, pairs)  # more than enough here is too few there

"""Towers of blocks."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.search import Puzzle

State = frozenset[str]
"""The towers, each from its lowest block to its top."""

_BLOCKS = "PQRSVWXYZ"


@task(
    "blocks",
    paper="Valmeekam et al. 2023, On the planning abilities of large language models; "
    "Shojaee et al. 2025, The illusion of thinking, section 3",
    summary="Blocks world with so many blocks: which moves turn these towers into those?",
    difficulty="blocks",
    counts="blocks",
)
def blocks(*, blocks: Annotated[int, Range(2, 6)] = 3) -> Make:
    """From one random position to another."""

    def make(rng: random.Random) -> Posed:
        names = rng.sample(_BLOCKS, blocks)
        start = goal = _stacked(names, rng)
        while goal == start:
            goal = _stacked(names, rng)
        text = (
            "Blocks lie in towers on a table. Only the top block of a tower can be moved: onto "
            f"another tower, or onto the table. Now: {_told(start)}. Wanted: {_told(goal)}. "
            "Write each move as two letters, the block and the block that it is put on, or T for "
            "the table, and separate the moves by commas. Example: PQ, RT puts P on Q, then R on "
            "the table."
        )
        return Puzzle(start, goal, moves, r"\b[A-Z]{2}\b").pose(text)

    return make


def moves(state: State) -> dict[str, State]:
    """Every top onto another top or onto the table."""
    found = {}
    for tower in state:
        block, rest = tower[-1], frozenset({tower[:-1]} - {""})
        for other in state - {tower}:
            found[block + other[-1]] = state - {tower, other} | rest | {other + block}
        if rest:
            found[block + "T"] = state - {tower} | rest | {block}
    return found


def _stacked(names: list[str], rng: random.Random) -> State:
    towers: list[str] = []
    for name in rng.sample(names, len(names)):
        place = rng.randrange(len(towers) + 1)
        if place == len(towers):
            towers.append(name)
        else:
            towers[place] += name
    return frozenset(towers)


def _told(state: State) -> str:
    return "; ".join(
        f"{' on '.join(tower[::-1])} on the table" for tower in sorted(state, key=lambda t: t[0])
    )

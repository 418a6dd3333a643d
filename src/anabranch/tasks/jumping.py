"""Checkers that change sides by sliding and jumping."""

from __future__ import annotations

import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.search import Puzzle, distances, hard

_COLOURS = "BGKPRWY"


@task(
    "jumping",
    paper="Shojaee et al. 2025, The illusion of thinking, section 3",
    summary="Checker jumping, so many on each side: which moves let them change sides?",
    difficulty="checkers",
    counts="checkers of each colour",
)
def jumping(*, checkers: Annotated[int, Range(1, 5)] = 2) -> Make:
    """From a position on the way, in its first half; (checkers + 1)^2 - 1 moves from the first."""
    whole, goal = (f"{a * checkers}_{b * checkers}" for a, b in ("><", "<>"))
    starts = hard(distances(whole, goal, moves))

    def make(rng: random.Random) -> Posed:
        start = rng.choice(starts)
        right, left = rng.sample(_COLOURS, 2)
        now, wanted = (" ".join(s).replace(">", right).replace("<", left) for s in (start, goal))
        text = (
            f"Checkers lie in a row of {len(start)} places, numbered from 1 at the left; _ is the "
            f"empty one: {now}. A checker {right} moves only to the right, a checker {left} only "
            "to the left: to the next place if that is empty, or over one checker of the other "
            f"colour into an empty place right behind it. Reach {wanted}. Write each move as the "
            "number of the place where the moving checker lies, and separate the moves by commas. "
            "Example: 2, 4."
        )
        return Puzzle(start, goal, moves, r"\d{1,3}").pose(text)

    return make


def moves(state: str) -> dict[str, str]:
    """Slides and jumps, by the place that a checker leaves, counted from 1."""
    found, empty = {}, state.index("_")
    for place, checker in enumerate(state):
        way = empty - place if checker == ">" else place - empty
        jumps = way == 2 and state[(place + empty) // 2] not in (checker, "_")
        if checker != "_" and (way == 1 or jumps):
            row = list(state)
            row[place], row[empty] = "_", checker
            found[str(place + 1)] = "".join(row)
    return found

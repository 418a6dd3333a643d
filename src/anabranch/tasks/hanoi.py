"""The Tower of Hanoi, from any legal position."""

from __future__ import annotations

import itertools
import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.search import Puzzle, distances, hard

State = tuple[int, ...]
"""The peg of each disk, the smallest first."""

_PEGS = "ABC"


@task(
    "hanoi",
    paper="Shojaee et al. 2025, The illusion of thinking, section 3",
    summary="Tower of Hanoi with so many disks: which moves bring all to one peg?",
    difficulty="disks",
    counts="disks",
)
def hanoi(*, disks: Annotated[int, Range(2, 8)] = 3) -> Make:
    """From a position more than half as far away as any; 2^disks - 1 moves at most."""
    starts = {goal: hard(distances((goal,) * disks, (goal,) * disks, moves)) for goal in range(3)}

    def make(rng: random.Random) -> Posed:
        goal = rng.randrange(3)
        start = rng.choice(starts[goal])
        pegs = [
            f"{peg}: {', '.join(str(d + 1) for d in range(disks) if start[d] == i) or 'empty'}"
            for i, peg in enumerate(_PEGS)
        ]
        text = (
            f"There are three pegs with {disks} disks, 1 the smallest, here from top to bottom. "
            f"{'; '.join(pegs)}. Only the top disk of a peg can be moved, and never onto a smaller "
            f"one. Bring all disks to peg {_PEGS[goal]}. Write each move as two letters, from and "
            "to, and separate the moves by commas. Example: AC, BA moves the top disk of A to C, "
            "then that of B to A."
        )
        return Puzzle(start, (goal,) * disks, moves, r"\b[A-Z]{2}\b").pose(text)

    return make


def moves(state: State) -> dict[str, State]:
    """What may be moved: the smallest disk of a peg, onto a peg without a smaller one."""
    tops = [next((d for d, peg in enumerate(state) if peg == p), len(state)) for p in range(3)]
    return {
        _PEGS[a] + _PEGS[b]: (*state[: tops[a]], b, *state[tops[a] + 1 :])
        for a, b in itertools.permutations(range(3), 2)
        if tops[a] < tops[b]
    }

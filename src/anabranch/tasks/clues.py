"""Clues that leave one world, which puzzles share. Uniqueness is by enumeration."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

World = TypeVar("World")
Clue = tuple[str, Callable[[World], bool]]
"""What is said, and in which worlds it is true."""


def left_by(worlds: Sequence[World], clues: Sequence[Clue[World]]) -> list[World]:
    """The worlds in which all clues are true."""
    return [world for world in worlds if all(holds(world) for _, holds in clues)]


def sufficient(
    worlds: Sequence[World], clues: Sequence[Clue[World]], rng: random.Random
) -> list[Clue[World]] | None:
    """Some of these clues that leave one world, none of them idle; None if all leave several."""
    left, chosen = list(worlds), list[Clue[World]]()
    for clue in rng.sample(clues, len(clues)):
        kept = left_by(left, [clue])
        if len(kept) < len(left):
            left = kept
            chosen.append(clue)
    if len(left) != 1:
        return None
    fits = {clue: {i for i, world in enumerate(worlds) if clue[1](world)} for clue in chosen}
    for clue in list(chosen):
        others = [other for other in chosen if other is not clue]
        if others and len(set.intersection(*map(fits.__getitem__, others))) == 1:
            chosen = others
    return chosen

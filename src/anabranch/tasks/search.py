"""Puzzles that are solved by moves: simulated, and solved by search."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from anabranch.program.answers import MAX_EXACT, stated
from anabranch.program.types import Problem
from anabranch.tasks.registry import Posed

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Puzzle(Generic[S]):
    """Where one begins, where one must come to, and how.

    Attributes:
        moves: from a state to those that one move leads to, by the name of the move.
        name: a regular expression for anything that is meant as a move.
    """

    start: S
    goal: S
    moves: Callable[[S], Mapping[str, S]]
    name: str

    def run(self, written: str) -> tuple[list[bool], bool]:
        """Which of the moves in a text are possible, up to the first that is not.

        Returns:
            That, and whether they are all possible and lead to the goal.
        """
        state, found = self.start, list[bool]()
        for move in re.findall(self.name, written[:MAX_EXACT].upper()):
            moves = self.moves(state)
            found.append(move in moves)
            if move not in moves:
                return found, False
            state = moves[move]
        return found, state == self.goal

    def pose(self, text: str) -> Posed:
        """The problem. Every list of moves counts that leads to the goal, also a long one."""
        path = shortest(self)
        assert path is not None, "a puzzle without a solution"
        return Posed(
            Problem(text, kind="exact"),
            ", ".join(path),
            tuple(f"Step {i}: {move}" for i, move in enumerate(path, 1)),
            grade=lambda answer: float(self.run(answer)[1]),
            follow=lambda said: self.run(next(stated(said, MAX_EXACT), ""))[0],
        )


def shortest(puzzle: Puzzle[S]) -> list[str] | None:
    """The moves of a shortest solution, the first of them by name; None if there is none."""
    came: dict[S, tuple[S, str] | None] = {puzzle.start: None}
    edge = [puzzle.start]
    while edge and puzzle.goal not in came:
        further = []
        for state in edge:
            for move, after in sorted(puzzle.moves(state).items()):
                if after not in came:
                    came[after] = (state, move)
                    further.append(after)
        edge = further
    if puzzle.goal not in came:
        return None
    path, at = list[str](), came[puzzle.goal]
    while at is not None:
        path.append(at[1])
        at = came[at[0]]
    return path[::-1]


def distances(start: S, goal: S, moves: Callable[[S], Mapping[str, S]]) -> dict[S, int]:
    """For each state that can be reached from one and leads to the goal: moves to the goal."""
    seen, todo = {start}, [start]
    before: dict[S, list[S]] = {}
    while todo:
        state = todo.pop()
        for after in moves(state).values():
            before.setdefault(after, []).append(state)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    far, edge = {goal: 0}, [goal]
    while edge:
        nearer = {
            b: far[state] + 1 for state in edge for b in before.get(state, ()) if b not in far
        }
        far |= nearer
        edge = list(nearer)
    return far


def hard(far: Mapping[S, int]) -> list[S]:
    """The states that are farther from the goal than half of the farthest, always in one order."""
    most = max(far.values())
    return sorted((s for s, d in far.items() if 2 * d > most), key=repr)

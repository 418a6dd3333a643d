"""Every task by name. A task is a file in this package whose factory carries `@task`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from anabranch.errors import InputError
from anabranch.program.answers import normalise
from anabranch.program.registry import Entry, Named, Parameter, Registry
from anabranch.program.types import Problem

Follow = Callable[[str], Sequence[bool]]
"""The steps that are found in a text, in order: whether each is right."""


@dataclass(frozen=True)
class Posed:
    """A problem, its answer, and what somebody who never errs would write.

    Attributes:
        problem: its `check` becomes this record's.
        answer: the right answer, or one of them, in the form that is asked for.
        steps: the reference solution, a step a line, up to the statement of the answer.
        grade: the score of an answer, from 0 to 1; None: 1 for what means the same as `answer`.
        follow: checks the steps of a text; None: nobody can tell.
        habit: the answer of somebody who answers the problem that this one only looks like.
    """

    problem: Problem
    answer: str
    steps: tuple[str, ...] = ()
    grade: Callable[[str], float] | None = field(default=None, compare=False, repr=False)
    follow: Follow | None = field(default=None, compare=False, repr=False)
    habit: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", replace(self.problem, check=self.check))

    @property
    def reference(self) -> str:
        """A solution that is right: the steps, and the answer stated as strategies ask for it."""
        if self.problem.kind == "whole":
            return self.answer
        return "\n".join((*self.steps, f"The answer is {self.answer}."))

    def score(self, answer: str) -> float:
        """How right an answer is, from 0 to 1; mostly one or the other."""
        if self.grade is not None:
            return min(max(float(self.grade(answer)), 0.0), 1.0)
        return float(self._same(answer, self.answer))

    def check(self, answer: str) -> bool:
        """Whether an answer is entirely right."""
        return self.score(answer) == 1

    def by_habit(self, answer: str) -> bool:
        """Whether an answer is that to the problem which this one only looks like."""
        return self.habit is not None and self._same(answer, self.habit)

    def prefix(self, text: str) -> float | None:
        """Prefix accuracy of a solution's text: its right steps before the first wrong one.

        As a share of the steps that it has or those of the reference, whichever are more
        (Fujisawa et al. 2024, ProcBench, section 4); 1 if neither
        has any. None where steps cannot be checked.
        """
        if self.follow is None:
            return None
        found = list(self.follow(text))
        right = found.index(False) if False in found else len(found)
        needed = max(len(found), len(self.steps))
        return right / needed if needed else 1.0

    def _same(self, answer: str, right: str) -> bool:
        return normalise(answer, self.problem) == normalise(right, self.problem)


Make = Callable[[random.Random], Posed]
"""One problem from random numbers."""


@dataclass(frozen=True)
class Source:
    """A task whose problems have numbers, such as the lines of a file.

    Attributes:
        pose: from a seed and a place to the problem.
        count: how many there are for a seed; None: as many as one likes.
    """

    pose: Callable[[int, int], Posed]
    count: int | None = None


_TASKS = Registry("task", "anabranch.tasks")


def task(
    name: str,
    *,
    paper: str,
    summary: str,
    difficulty: str = "",
    counts: str = "",
    added: tuple[str, ...] = (),
) -> Callable[[Callable[..., Make | Source]], object]:
    """Register a factory of tasks.

    Args:
        difficulty: the parameter that makes problems harder as it grows; "" if there is none.
        counts: what that parameter counts.
        added: parameters that are younger than the task: at their defaults they leave the problems
            as they were without them.
    """
    return _TASKS.register(
        name, paper=paper, summary=summary, difficulty=difficulty, counts=counts, added=added
    )


def tasks() -> list[Entry]:
    """Every task, by name."""
    return _TASKS.all()


def parse(text: str) -> Named:
    """A task such as `arithmetic(digits=3)` with its parameters. Raises InputError."""
    return _TASKS.parse(text)


def difficulty(entry: Entry) -> Parameter | None:
    """The parameter that makes a task harder as it grows, with its range; None if none does.

    `parse(text).change(**{difficulty.name: 5})` is the task at another difficulty.
    """
    return entry.parameters.get(entry.extra["difficulty"])


def problems(text: str, count: int, seed: int = 0) -> list[Posed]:
    """The first `count` problems of a task such as `arithmetic(digits=3)`.

    A problem depends on the task, the seed and its place alone.

    Raises:
        InputError: there is no such task, or it has not so many problems.
    """
    named = parse(text)
    made: Make | Source = named.make()
    if isinstance(made, Source):
        if made.count is not None and count > made.count:
            allowed = f"up to {made.count}"
            raise InputError(f"{named} has not so many problems", got=count, allowed=allowed)
        return [made.pose(seed, i) for i in range(count)]
    known = _seeded(named)
    return [made(random.Random(f"{known} {seed} {i}")) for i in range(count)]


def _seeded(named: Named) -> Named:
    """What the random numbers of a task depend on."""
    young = named.entry.extra["added"]
    values: Mapping[str, object] = {
        name: value
        for name, value in named.values.items()
        if name not in young or value != named.entry.parameters[name].default
    }
    return Named(named.entry, MappingProxyType(dict(values)))

"""Every task by name. A task is a file in this package whose factory carries `@task`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from anabranch.program.answers import normalise
from anabranch.program.registry import Entry, Registry
from anabranch.program.types import Problem


@dataclass(frozen=True)
class Posed:
    """A problem and its answer."""

    problem: Problem
    answer: str

    def check(self, answer: str) -> bool:
        """Whether an answer means the right one."""
        return normalise(answer, self.problem) == normalise(self.answer, self.problem)


Make = Callable[[random.Random], Posed]
"""One problem from random numbers."""

_TASKS = Registry("task", "anabranch.tasks")


def task(name: str, *, paper: str, summary: str) -> Callable[[Callable[..., Make]], object]:
    """Register a factory of tasks."""
    return _TASKS.register(name, paper=paper, summary=summary)


def tasks() -> list[Entry]:
    """Every task, by name."""
    return _TASKS.all()


def problems(text: str, count: int, seed: int = 0, *, examples: int = 0) -> list[Posed]:
    """The first `count` problems of a task such as `arithmetic(digits=3)`.

    A problem depends on the task, the seed and its place alone.

    Args:
        examples: how many others each problem has as its `examples`, the same for all, and made
            from random numbers of their own.

    Raises:
        InputError: no such task.
    """
    named = _TASKS.parse(text)
    make: Make = named.make()
    posed = [make(random.Random(f"{named} {seed} {i}")) for i in range(count)]
    others = (make(random.Random(f"{named} {seed} example {i}")) for i in range(examples))
    bank = tuple((other.problem, other.answer) for other in others)
    return [replace(one, problem=replace(one.problem, examples=bank)) for one in posed]

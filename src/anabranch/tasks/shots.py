"""Another task's problems, each with solved ones beside it."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import Annotated, Any

from anabranch.program.registry import Part, Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, Source, task

OTHERS = 2**31
"""Added to a seed, gives one that no problems are made from."""

Other = Annotated[Any, Part("task")]


@task(
    "shots",
    paper="Brown et al. 2020, Language models are few-shot learners, section 2",
    summary="Any task, with n solved problems to learn from: `shots(task=words, n=8)`.",
)
def shots(*, task: Other = "arithmetic", n: Annotated[int, Range(1, 64)] = 8) -> Source:
    """The solved ones are the same for all problems of a seed, and none of them: of a file, its
    last lines. Strategies that take examples, such as medprompt, choose among them; others leave
    them unread.
    """
    source = task if isinstance(task, Source) else _numbered(task)
    count = None if source.count is None else max(0, source.count - n)

    @functools.cache
    def solved(seed: int) -> tuple[tuple[Problem, str], ...]:
        first, seed = (0, seed + OTHERS) if count is None else (count, seed)
        bank = [source.pose(seed, first + k) for k in range(n)]
        return tuple((posed.problem, posed.answer) for posed in bank)

    def pose(seed: int, place: int) -> Posed:
        posed = source.pose(seed, place)
        return replace(posed, problem=replace(posed.problem, examples=solved(seed)))

    return Source(pose, count)


def _numbered(make: Make) -> Source:
    return Source(lambda seed, place: make(random.Random(f"{seed} {place}")))

"""A thought is worth what its steps are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated

from anabranch.errors import InputError
from anabranch.program.registry import OneOf
from anabranch.program.types import Mark, Problem, Thought
from anabranch.verify import registry
from anabranch.verify.aggregates import AGGREGATES
from anabranch.verify.asking import before, place, step_ends, unasked
from anabranch.verify.registry import UNKNOWN, Judge, JudgedBy, Steps, boundary, judge


@judge(
    "process",
    paper="Lightman et al. 2023, Let's verify step by step, section 2.6 and appendix F",
    summary="Every step is rated where it ends; the mean, product, least or last of the ratings.",
)
def process(
    *,
    judge: JudgedBy = "self_rating",
    aggregate: Annotated[str, OneOf(AGGREGATES)] = "product",
    step: Steps = "line",
) -> Judge:
    """Every step is rated once, also where several thoughts share it.

    The judge is shown the text up to the end of a step, without its likelihood: likelihood itself
    rates only the last. Departure: a judge by prompt, where the paper trains one.
    """
    if not judge.partial:
        raise InputError(
            "process needs a judge of unfinished thoughts",
            got=judge.name,
            fix="take one that can, such as self_rating",
        )

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        known = thoughts[0].branch.run.ratings
        steps: list[list[Mark]] = []
        new: dict[Mark, Thought] = {}
        with ExitStack() as stack:
            for thought in thoughts:
                branch = thought.branch
                if not branch.live:
                    unasked(branch, "the thought was dropped")
                    steps.append([])
                    continue
                places = [place(branch, end) for end in step_ends(thought, boundary(step))[:-1]]
                steps.append(places)
                others = before(thought)
                for where in places:
                    if (judge.name, where) not in known and where not in new:
                        prefix = branch.fork(at=where)
                        stack.callback(prefix.drop, "process")
                        new[where] = Thought(prefix, thought, text=prefix.text[others:])
            rated = await registry.rate(judge, problem, list(new.values()))
            known.update(((judge.name, w), r) for w, r in zip(new, rated, strict=True))
        last = await registry.rate(judge, problem, thoughts)
        return [
            AGGREGATES[aggregate]([*(known[judge.name, w] for w in places), tip])
            if thought.branch.live
            else UNKNOWN
            for thought, places, tip in zip(thoughts, steps, last, strict=True)
        ]

    return Judge(rate)

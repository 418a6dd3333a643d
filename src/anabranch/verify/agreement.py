"""How many others came to the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.program.types import Problem, Thought
from anabranch.verify.registry import UNKNOWN, Judge, judge


@judge(
    "agreement",
    paper="Wang et al. 2022, Self-consistency improves chain of thought reasoning, section 2",
    summary="The share of the other finished thoughts that have the same answer.",
)
def agreement() -> Judge:
    """Others are the finished thoughts of the run and those rated along with it, as they are when
    it is rated. Without any, nothing is known; a thought without an answer is worth 0."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        known = finished(thoughts)
        ratings = []
        for thought in thoughts:
            others = [t for t in known if t is not thought]
            same = sum(t.answer == thought.answer for t in others)
            if thought.answer is None:
                ratings.append(0.0)
            else:
                ratings.append(same / len(others) if others else UNKNOWN)
        return ratings

    return Judge(rate, partial=False)


def finished(thoughts: Sequence[Thought]) -> list[Thought]:
    """These thoughts and the other candidates of their run: all that have an answer, each once."""
    everyone = {id(t): t for t in [*thoughts[0].branch.run.thoughts, *thoughts]}
    return [t for t in everyone.values() if t.done and t.answer is not None]

"""The problem's own check."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.program.types import Problem, Thought
from anabranch.verify.registry import UNKNOWN, Judge, judge


@judge(
    "checker",
    paper="Cobbe et al. 2021, Training verifiers to solve math word problems, section 4 (labels)",
    summary="1 if the problem's own check accepts the answer, 0 if not; for problems with a check.",
)
def checker() -> Judge:
    """`Problem.check`, given the answer, or the text where none could be read. A check that fails
    on an answer does not accept it; a problem without one leaves all thoughts unknown."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        run, check = thoughts[0].branch.run, problem.check
        if check is None:
            run.remark(f"the problem has no check of its own; rated {UNKNOWN:g}")
            return [UNKNOWN] * len(thoughts)
        ratings = []
        for thought in thoughts:
            try:
                right = bool(check(thought.text if thought.answer is None else thought.answer))
            except Exception as error:  # anybody's code, on a model's text
                run.remark(f"the problem's check failed: {type(error).__name__}; not accepted")
                right = False
            ratings.append(float(right))
        return ratings

    return Judge(rate, partial=False)

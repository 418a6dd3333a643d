"""What is said of solutions, and the solutions that the model writes thereupon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anabranch.program.types import Problem, Thought
from anabranch.reason.prompts import ending
from anabranch.reason.turns import answer_turn, remark_on
from anabranch.verify.registry import Judge, rate

OWN = "self_rating(of='whole', prior='none')"
"""The judge where none is named: the model's own probability that its solution is right."""

WHAT_FAILS = "Which line is the first that is wrong, and why? Reply in one or two sentences."


async def approval(judge: Judge, problem: Problem, draft: Thought) -> float:
    """What a judge says of a draft, which is added to its scores.

    A revision is rated by itself, without the drafts before it. One without an end gets 0 from a
    judge who rates finished thoughts only.
    """
    rating = 0.0
    if draft.done or judge.partial:
        alone, before = draft, draft.parent
        if before is not None:
            logp, tokens = draft.logp - before.logp, draft.tokens - before.tokens
            alone = replace(draft, logp=logp, tokens=tokens)
        (rating,) = await rate(judge, problem, [alone])
    draft.scores = (*draft.scores, rating)
    return rating


async def complaint_of(
    judge: Judge, problem: Problem, thought: Thought, threshold: float, limit: int
) -> str | None:
    """The model's complaint of at most `limit` tokens; None if the judge rates the thought above
    the threshold."""
    if await approval(judge, problem, thought) > threshold:
        return None
    return await remark_on(thought.branch, WHAT_FAILS, limit)


async def revised(
    problem: Problem, thought: Thought, complaint: str, limit: int, **sampling: Any
) -> Thought | None:
    """A solution written anew with a complaint in mind."""
    asked = f"A check of that says: {complaint}\nWrite the whole solution again, corrected."
    return await answer_turn(problem, thought, f"{asked} {ending(problem)}", limit, **sampling)

"""What the model says of its own solutions, and the solutions it writes thereupon."""

from __future__ import annotations

from typing import Any

from anabranch.program.types import Problem, Thought
from anabranch.reason.prompts import ending
from anabranch.reason.turns import YES, answer_turn, remark_on, verdict

IS_RIGHT = "Check every line of that. Is it all right, the result included? Reply Yes or No."
WHAT_FAILS = "Which line is the first that is wrong, and why? Reply in one or two sentences."


async def approval(thought: Thought, question: str = IS_RIGHT) -> float:
    """The model's own probability that a thought is right; 0.5 when the budget ends."""
    return (await verdict(thought.branch, question))[YES]


async def complaint_of(thought: Thought, threshold: float, limit: int) -> str | None:
    """The model's complaint of at most `limit` tokens; None above the threshold of approval."""
    if await approval(thought) > threshold:
        return None
    return await remark_on(thought.branch, WHAT_FAILS, limit)


async def revised(
    problem: Problem, thought: Thought, complaint: str, limit: int, **sampling: Any
) -> Thought | None:
    """A solution written anew with a complaint in mind."""
    asked = f"A check of that says: {complaint}\nWrite the whole solution again, corrected."
    return await answer_turn(problem, thought, f"{asked} {ending(problem)}", limit, **sampling)

"""Adaptive prompting: a solution that fails its check is asked for again, with more guidance."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason import kernels
from anabranch.reason.criticism import OWN, approval
from anabranch.reason.folds import latest
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.reason.registry import JudgedBy, MaxTokens, Share, Temperature, strategy
from anabranch.reason.turns import begin, reply

RUNGS = (
    "Be brief.",
    STEPS,
    "Split this into smaller questions, answer one after the other, then the whole.",
    "Write down what is given and what is asked. Solve it line by line. Check every line in a "
    "second way, and correct it where the two differ.",
)


@strategy(
    "adaptive_ladder",
    paper="Kamesh R 2024, Think beyond size: adaptive prompting for more effective reasoning",
    summary="Prompts of rising guidance, from brief to self-correcting, until a solution passes.",
    cost="1 solution and a rating a rung, at most 4 rungs",
    use="When most problems are easy and a judge can tell which are not.",
    fold=latest,
)
def adaptive_ladder(
    *,
    judge: JudgedBy = OWN,
    threshold: Share = 0.5,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Solve, check, and on failure climb a rung: brief, by steps, by parts, with self-correction.

    Departures: by default the check is a choice between two words; each rung starts anew,
    without the failed attempts.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        rungs = iter(RUNGS)

        async def climb() -> Thought | None:
            rung = next(rungs)
            text = f"{stated_question(problem)}\n\n{rung} {ending(problem)}"
            branch = begin(root, problem, text)
            if branch is None:
                return None
            return await reply(problem, branch, max_tokens, temperature=temperature)

        async def criticise(draft: Thought) -> str | None:
            return None if await approval(judge, problem, draft) > threshold else "not right"

        async def revise(draft: Thought, complaint: str) -> Thought | None:
            return await climb()

        draft = await climb()
        if draft is None:
            return await sample(problem, root, 1, max_tokens, temperature=temperature)
        return await kernels.refine(draft, criticise, revise, rounds=len(RUNGS) - 1)

    return run

"""Votes that weigh what a judge gives them."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason import folds
from anabranch.reason.kernels import judge_steps, sample
from anabranch.reason.registry import JudgedBy, MaxTokens, Samples, Temperature, TopP, strategy


@strategy(
    "weighted",
    paper="Li et al. 2023, Making language models better reasoners with step-aware verifier, 3.2",
    summary="n sampled chains of thought; every vote weighs what a judge gives it.",
    cost="n solutions, each rated",
    use="Instead of vote, with a judge of whole solutions.",
    fold=folds.weighted,
)
def weighted(
    *,
    n: Samples = 8,
    judge: JudgedBy = "likelihood",
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Best-of-n that adds up what agrees. Only finished thoughts are rated, and so have a vote."""

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        sampling = {"temperature": temperature, "top_p": top_p}
        thoughts = await sample(problem, root, n, max_tokens, **sampling)
        await judge_steps(judge, problem, [thought for thought in thoughts if thought.done])
        return thoughts

    return run

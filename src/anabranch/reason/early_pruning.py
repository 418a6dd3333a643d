"""Many thoughts begin; those that look worst are given up on the way."""

from __future__ import annotations

from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import by_rating, rating
from anabranch.reason.kernels import judge_steps, population, sampler
from anabranch.reason.registry import (
    Aggregated,
    JudgedBy,
    MaxTokens,
    Range,
    Rounds,
    Samples,
    Steps,
    Temperature,
    boundary,
    needs_partial,
    strategy,
)


@strategy(
    "early_pruning",
    paper="Sun et al. 2024, Fast best-of-N decoding via speculative rejection, section 4",
    summary="n thoughts start; every step, those below a quantile of the ratings are given up.",
    cost="n solutions begun, a few finished",
    use="Instead of best or weighted with n of 16 and more.",
    fold=by_rating,
)
def early_pruning(
    *,
    n: Samples = 16,
    quantile: Annotated[float, Range(0, 1)] = 0.2,
    least: Samples = 2,
    judge: JudgedBy = "likelihood",
    aggregate: Aggregated = "mean",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 0.8,
) -> Strategy:
    """Speculative rejection: best of n without paying for the ends of what began badly.

    Departures: it looks after every step, not when memory is full; `least` thoughts always go on;
    a path is worth the mean of its steps' ratings by default.
    """
    needs_partial("early_pruning", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def select(thoughts: list[Thought]) -> list[Thought]:
            await judge_steps(judge, problem, thoughts)
            order = sorted(thoughts, key=lambda t: -rating(t, aggregate))
            return order[: max(least, len(order) - int(quantile * len(order)))]

        return await population(
            [Thought(branch) for branch in root.fork(n)],
            sampler(problem, temperature=temperature, until=boundary(step)),
            select,
            limit=step_tokens,
            rounds=rounds,
        )

    return run

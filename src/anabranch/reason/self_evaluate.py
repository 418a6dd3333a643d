"""Adaptive compute by self-evaluation: a model says early which thoughts to give up."""

from __future__ import annotations

import math
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import by_rating, rating
from anabranch.reason.kernels import judge_steps, population, sampler
from anabranch.reason.registry import (
    JudgedBy,
    MaxTokens,
    Range,
    Samples,
    Share,
    Temperature,
    needs_partial,
    strategy,
)


@strategy(
    "self_evaluate",
    paper="Manvi et al. 2024, Adaptive inference-time compute: LLMs can predict if they can do "
    "better, even mid-generation, sections 3 and 4",
    summary="Of n beginnings the model prunes most, and finishes the rest until one satisfies it.",
    cost="n beginnings, few finished",
    use="Models that can tell a bad beginning.",
    fold=by_rating,
)
def self_evaluate(
    *,
    n: Samples = 8,
    at: MaxTokens = 64,
    keep: Annotated[float, Range(0, 1, low_open=True)] = 0.25,
    judge: JudgedBy = "start_over",
    threshold: Share = 0.8,
    temperature: Temperature = 0.8,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """After `at` tokens, the share `keep` of the beginnings goes on, by default those that starting
    over would least improve; they are finished best first, until one is rated at `threshold` or
    higher.

    Departures: the paper trains the model to predict whether to start over; here it is asked, and
    what it says is uncalibrated. All samples have one temperature. A rating is the mean of those of
    the beginning and the end.
    """
    needs_partial("self_evaluate", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        advance = sampler(problem, temperature=temperature)

        async def prune(thoughts: list[Thought]) -> list[Thought]:
            if len(thoughts) == 1:
                return thoughts
            await judge_steps(judge, problem, thoughts)
            ranked = sorted(thoughts, key=lambda thought: -rating(thought))
            return ranked[: math.ceil(keep * n)]

        start = [Thought(branch) for branch in root.fork(n)]
        kept = await population(start, advance, prune, limit=at)
        finished: list[Thought] = []
        for thought in kept:
            if not thought.done:
                if max_tokens > at:
                    await population([thought], advance, limit=max_tokens - at)
                await judge_steps(judge, problem, [thought])
            finished.append(thought)
            if rating(thought) >= threshold or budget.over:
                break
        return finished

    return run

"""Depth-first search over partial thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import by_rating, rating
from anabranch.reason.kernels import grow, judge_steps, sampler
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
    "dfs",
    paper="Yao et al. 2023, Tree of thoughts: deliberate problem solving, algorithm 2",
    summary="The best rated continuation first, back to the next best where all look bad.",
    cost="as few as depth x fanout steps, more with every way back",
    use="Puzzles where a dead end shows soon.",
    fold=by_rating,
)
def dfs(
    *,
    fanout: Samples = 4,
    judge: JudgedBy = "likelihood",
    threshold: Annotated[float, Range(0, 1)] = 0.5,
    aggregate: Aggregated = "mean",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 64,
    temperature: Temperature = 0.8,
) -> Strategy:
    """Depth first: what is rated below `threshold` is not gone on with; ends at the first answer.

    Departures: the threshold is on the path's mean rating by default, which noise moves less than
    the last; when every leaf is below the threshold, the newest goes on rather than none;
    continuations that say the same are merged.
    """
    needs_partial("dfs", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        start = Thought(root.fork())

        async def rate(thoughts: Sequence[Thought]) -> None:
            await judge_steps(judge, problem, thoughts)

        def pick(leaves: list[Thought]) -> Thought | None:
            good = [t for t in leaves if t is start or rating(t, aggregate) >= threshold]
            siblings = [leaf for leaf in good if leaf.parent is good[-1].parent]
            return max(siblings, key=lambda t: rating(t, aggregate), default=None)

        return await grow(
            start,
            sampler(problem, temperature=temperature, until=boundary(step)),
            rate,
            pick,
            accept=lambda leaf: True,
            limit=step_tokens,
            fanout=fanout,
            rounds=rounds,
        )

    return run

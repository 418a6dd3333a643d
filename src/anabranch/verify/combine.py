"""Judges made of judges: when to ask which, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem, Thought
from anabranch.verify import registry
from anabranch.verify.registry import Judge, JudgedBy, judge

Share = Annotated[float, Range(0, 1)]
Times = Annotated[int, Range(1, 64)]


@judge(
    "cascade",
    paper="Viola and Jones 2001, Rapid object detection using a boosted cascade of simple features",
    summary="The first judge; where it is unsure (between low and high), the second instead.",
)
def cascade(
    *,
    first: JudgedBy = "likelihood",
    second: JudgedBy = "self_rating",
    low: Share = 0.2,
    high: Share = 0.8,
) -> Judge:
    """Both limits count as sure, so `low=0, high=1` asks the second about all but the certain."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        ratings = await registry.rate(first, problem, thoughts)
        unsure = [i for i, rating in enumerate(ratings) if low < rating < high]
        again = await registry.rate(second, problem, [thoughts[i] for i in unsure])
        for i, rating in zip(unsure, again, strict=True):
            ratings[i] = rating
        return ratings

    return Judge(rate, partial=first.partial and second.partial)


@judge(
    "stage",
    paper="Ye et al. 2025, Llasa: scaling train-time and inference-time compute for speech "
    "synthesis",
    summary="A judge of the process until a share of the budget is spent, then one of the outcome.",
)
def stage(
    *, process: JudgedBy = "self_rating", outcome: JudgedBy = "agreement", at: Share = 0.8
) -> Judge:
    """Finished thoughts are the outcome's at any time; unfinished ones only if it rates such.

    Departure: the share is of the token budget, not of a fixed length; without a limit, all
    unfinished thoughts are the process judge's.
    """

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        budget = thoughts[0].branch.run.budget
        late = budget.tokens is not None and budget.spent_tokens >= at * budget.tokens
        first = [t for t in thoughts if not (t.done or (late and outcome.partial))]
        last = [t for t in thoughts if t.done or (late and outcome.partial)]
        ratings = [
            *zip(first, await registry.rate(process, problem, first), strict=True),
            *zip(last, await registry.rate(outcome, problem, last), strict=True),
        ]
        of = {id(thought): rating for thought, rating in ratings}
        return [of[id(thought)] for thought in thoughts]

    return Judge(rate, partial=process.partial)


@judge(
    "repeat",
    paper="Lightman et al. 2023, Let's verify step by step; averaging of verdicts: Zhang et al. "
    "2024, Generative verifiers",
    summary="The mean of k ratings by a judge that draws at random.",
)
def repeat(*, judge: JudgedBy = "verdict", k: Times = 4) -> Judge:
    """Every rating is asked for anew, so this is worth its price for rollout and verdict only."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        return [sum(r) / k for r in await _ratings(judge, problem, thoughts, k)]

    return Judge(rate, partial=judge.partial)


@judge(
    "flex",
    paper="Zhong et al. 2025, Solve-Detect-Verify: inference-time scaling with flexible generative "
    "verifier (FlexiVe)",
    summary="k fast verdicts; where they disagree, one slow rating instead.",
)
def flex(
    *,
    fast: JudgedBy = "verdict",
    slow: JudgedBy = "verdict(think=256)",
    k: Times = 4,
    agree: Annotated[float, Range(0.5, 1)] = 0.75,
) -> Judge:
    """A rating of at least 0.5 is a verdict for the thought. When at least the share `agree` of the
    fast verdicts are the same, their mean is the rating.

    Departure: prompts instead of a verifier trained to be brief or to think.
    """

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        quick = await _ratings(fast, problem, thoughts, k)
        means = [sum(ratings) / k for ratings in quick]
        ayes = [sum(rating >= 0.5 for rating in ratings) for ratings in quick]
        unsure = [i for i, yes in enumerate(ayes) if max(yes, k - yes) < agree * k]
        again = await registry.rate(slow, problem, [thoughts[i] for i in unsure])
        for i, rating in zip(unsure, again, strict=True):
            means[i] = rating
        return means

    return Judge(rate, partial=fast.partial and slow.partial)


async def _ratings(
    judge: Judge, problem: Problem, thoughts: Sequence[Thought], k: int
) -> list[list[float]]:
    """k ratings of each thought, asked one after the other so that the same seed draws the same."""
    rounds = [await registry.ask(judge, problem, thoughts) for _ in range(k)]
    return [list(ratings) for ratings in zip(*rounds, strict=True)]

"""The model, only more decided: its distribution over texts to a power."""

from __future__ import annotations

from typing import Annotated, Any

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.kernels import population, sampler
from anabranch.reason.registry import MaxTokens, Range, Rounds, Samples, strategy
from anabranch.reason.resample import by_share, resampling


@strategy(
    "sharpen",
    paper="Karan and Du 2025, Reasoning with sampling: your base model is smarter than you think",
    summary="n thoughts from the model's distribution over texts to the power alpha.",
    cost="n texts, each word in two rows of the batch",
    use="Models whose likelihood means more than their judgement.",
    fold=by_share,
)
def sharpen(
    *,
    n: Samples = 16,
    alpha: Annotated[float, Range(1, 16)] = 2.0,
    ess: Annotated[float, Range(0, 1)] = 0.5,
    step_tokens: MaxTokens = 16,
    rounds: Rounds = 64,
) -> Strategy:
    """The power target p(text)^alpha, not the low temperature that sharpens token by token.

    A low temperature likes a likely token however unlikely all that can follow; the weights of
    `extend(blend={branch: alpha})` say how much can.

    Departures: particles instead of Markov chain Monte Carlo.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def advance(thought: Thought, limit: int) -> None:
            blend: Any = {thought.branch: alpha}
            await sampler(problem, blend=blend)(thought, limit)

        return await population(
            [Thought(branch) for branch in root.fork(n)],
            advance,
            resampling(ess),
            limit=step_tokens,
            rounds=rounds,
        )

    return run

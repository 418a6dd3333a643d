"""A particle filter over reasoning steps."""

from __future__ import annotations

from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.kernels import population, sampler
from anabranch.reason.registry import (
    JudgedBy,
    MaxTokens,
    OneOf,
    Range,
    Rounds,
    Samples,
    Steps,
    Temperature,
    boundary,
    needs_partial,
    strategy,
)
from anabranch.reason.resample import POTENTIALS, by_share, judged, resampling


@strategy(
    "particles",
    paper="Puri et al. 2025, A probabilistic inference approach to inference-time scaling, sec. 3",
    summary="n thoughts, resampled after every step in proportion to what a judge gives them.",
    cost="n steps a level, each rated",
    use="With a judge of steps that is no more than a hint: the spread is kept.",
    fold=by_share,
)
def particles(
    *,
    n: Samples = 16,
    judge: JudgedBy = "likelihood",
    potential: Annotated[str, OneOf(POTENTIALS)] = "odds",
    ess: Annotated[float, Range(0, 1)] = 1.0,
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 1.0,
) -> Strategy:
    """Towards the posterior that weighs each text by the model and by every step's potential.

    Departures: resampling is systematic, and with `ess` below 1 only when the effective number of
    particles falls below that share; a finished particle keeps its weight instead of being weighed
    anew every round, which would favour short texts; the answer is the posterior's mode, not the
    last rating's best; another temperature than 1 is corrected for by the weights.
    """
    needs_partial("particles", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        return await population(
            [Thought(branch) for branch in root.fork(n)],
            sampler(problem, temperature=temperature, until=boundary(step)),
            resampling(ess, judged(judge, problem, potential)),
            limit=step_tokens,
            rounds=rounds,
        )

    return run

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
from anabranch.reason.resample import (
    POTENTIALS,
    Particle,
    by_share,
    judged,
    moving,
    remembering,
    resampling,
)


@strategy(
    "particles",
    paper="Puri et al. 2025, A probabilistic inference approach to inference-time scaling, sec. 3",
    summary="n thoughts, resampled after every step in proportion to what a judge gives them.",
    cost="n steps a level, each rated; a move about half of what came before it",
    use="With a judge of steps that is no more than a hint: the spread is kept.",
    fold=by_share,
)
def particles(
    *,
    n: Samples = 16,
    judge: JudgedBy = "likelihood",
    potential: Annotated[str, OneOf(POTENTIALS)] = "odds",
    ess: Annotated[float, Range(0, 1)] = 1.0,
    moves: Annotated[int, Range(0, 64)] = 0,
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 1.0,
) -> Strategy:
    """Towards the posterior that weighs each text by the model and by every step's potential.

    Resampling leaves copies; `moves` lets all particles take a stretch of their steps again after
    it, and keeps what comes of that by Metropolis and Hastings's rule (resample-move: Gilks and
    Berzuini 2001, Following a moving target, section 3). Few particles with moves come nearer to
    the posterior; a move costs about half of what the particles have cost so far.

    Departures: resampling is systematic, and with `ess` below 1 only when the effective number of
    particles falls below that share; a finished particle keeps its weight instead of being weighed
    anew every round, which would favour short texts; the answer is the posterior's mode, not the
    last rating's best; another temperature than 1 is corrected for by the weights.
    """
    needs_partial("particles", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        advance, weigh = remembering(
            sampler(problem, temperature=temperature, until=boundary(step)),
            judged(judge, problem, potential),
        )
        move = moving(root, advance, weigh, times=moves, limit=step_tokens) if moves else None
        return await population(
            [Particle(branch) for branch in root.fork(n)],
            advance,
            resampling(ess, weigh, move=move),
            limit=step_tokens,
            rounds=rounds,
        )

    return run

"""Beam search over steps: the best few partial thoughts go on."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import rating, weighted
from anabranch.reason.kernels import judge_steps, population, sampler
from anabranch.reason.registry import (
    Aggregated,
    JudgedBy,
    MaxTokens,
    Rounds,
    Samples,
    Steps,
    Temperature,
    boundary,
    needs_partial,
    strategy,
)


@strategy(
    "beam",
    paper="Xie et al. 2023, Self-evaluation guided beam search for reasoning, section 3",
    summary="Every step, the `width` best rated thoughts are kept, each tried `fanout` ways.",
    cost="width x fanout steps a level, each rated",
    use="With a judge of steps that beats chance: see anabranch judge-report.",
    fold=weighted,
)
def beam(
    *,
    width: Samples = 4,
    fanout: Samples = 4,
    judge: JudgedBy = "likelihood",
    aggregate: Aggregated = "mean",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 0.8,
) -> Strategy:
    """Step-level beam search. With a judge of values it is SBS(width, fanout) of AlphaMath.

    Thoughts that say the same count as one, else copies of one prefix fill the beam.

    Departures: the beam is cut to the best instead of sampled with a temperature of its own; a path
    is worth the mean of its steps' ratings by default.
    """
    needs_partial("beam", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def select(thoughts: list[Thought]) -> list[Thought]:
            await judge_steps(judge, problem, thoughts)
            best: dict[tuple[str, bool], Thought] = {}
            for thought in sorted(thoughts, key=lambda t: -rating(t, aggregate)):
                best.setdefault((thought.text, thought.done), thought)
            return list(best.values())[:width]

        return await population(
            [Thought(branch) for branch in root.fork(width)],
            sampler(problem, temperature=temperature, until=boundary(step)),
            select,
            limit=step_tokens,
            rounds=rounds,
            fanout=fanout,
        )

    return run

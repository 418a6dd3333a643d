"""Diverse verifier tree search: beam search in subtrees that do not compete."""

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
    "dvts",
    paper="Beeching, Tunstall and Rush 2024, Scaling test-time compute with open models",
    summary="`groups` trees grow apart; each keeps the best rated of `fanout` steps.",
    cost="groups x fanout steps a level, each rated",
    use="Instead of beam at large budgets, where one beam loses variety.",
    fold=weighted,
)
def dvts(
    *,
    groups: Samples = 4,
    fanout: Samples = 4,
    judge: JudgedBy = "likelihood",
    aggregate: Aggregated = "last",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 24,
    temperature: Temperature = 0.8,
) -> Strategy:
    """Independent subtrees, greedy by the judge within each; the finished paths vote by rating.

    Siblings share their path but for the last step, so its rating alone is compared by default, as
    in the paper.
    """
    needs_partial("dvts", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def select(thoughts: list[Thought]) -> list[Thought]:
            await judge_steps(judge, problem, thoughts)
            best: dict[int, Thought] = {}
            for thought in sorted(thoughts, key=lambda t: -rating(t, aggregate)):
                best.setdefault(id(_first(thought)), thought)
            return list(best.values())

        return await population(
            [Thought(branch) for branch in root.fork(groups)],
            sampler(problem, temperature=temperature, until=boundary(step)),
            select,
            limit=step_tokens,
            rounds=rounds,
            fanout=fanout,
        )

    return run


def _first(thought: Thought) -> Thought:
    """Where its subtree began."""
    while thought.parent is not None:
        thought = thought.parent
    return thought

"""A* over partial thoughts: always the leaf whose path promises to be the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import by_cost, estimate, hope
from anabranch.reason.kernels import grow, judge_steps, sampler
from anabranch.reason.registry import (
    JudgedBy,
    MaxTokens,
    OneOf,
    Rounds,
    Samples,
    Steps,
    Temperature,
    boundary,
    needs_partial,
    strategy,
)

COSTS: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "accumulated": ("h after it", lambda before, after: after),
    "rise": ("max(0, h after it - h before it)", lambda before, after: max(0.0, after - before)),
    "consistent": (
        "max(0, h before it - h after it)",
        lambda before, after: max(0.0, before - after),
    ),
}
"""What a step adds to g: said, and done."""


@strategy(
    "astar",
    paper="Chatziveroglou 2025, A*-decoding: token-efficient inference scaling",
    summary="A queue of partial thoughts; the one that promises the cheapest path goes on.",
    cost="fanout steps a round; the fewest tokens of all searches where ratings are good",
    use="With a judge of steps that can be trusted and a tight budget.",
    fold=by_cost,
)
def astar(
    *,
    fanout: Samples = 4,
    judge: JudgedBy = "likelihood",
    cost: Annotated[str, OneOf(COSTS)] = "accumulated",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 64,
    queue: Samples = 256,
    temperature: Temperature = 0.8,
) -> Strategy:
    """Best-first search by f = g + h with h = 1 - rating; ends when a finished thought is popped.

    What a step adds to g decides how well this does, and the paper's rule could not be made out, so
    there are three. "accumulated" adds h of the new state: a path is worth the sum of its
    ratings' shortfalls. "rise" adds what h went up by. "consistent" adds what h went down by, which
    is what makes h consistent, and f hardly tells states apart. The answer's strategy names the
    rule, and its notes quote it.

    Departures: continuations that say the same are merged before they are rated.
    """
    needs_partial("astar", judge)
    rule, add = COSTS[cost]

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def rate(thoughts: Sequence[Thought]) -> None:
            before = [hope(thought) for thought in thoughts]
            await judge_steps(judge, problem, thoughts)
            for thought, h in zip(thoughts, before, strict=True):
                thought.cost += add(h, hope(thought))

        def keep(leaves: list[Thought]) -> list[Thought]:
            waiting = sorted((leaf for leaf in leaves if not leaf.done), key=estimate)
            return [*(leaf for leaf in leaves if leaf.done), *waiting[:queue]]

        root.run.remark(f"path cost: every step adds {rule}, where h = 1 - rating")
        return await grow(
            Thought(root.fork()),
            sampler(problem, temperature=temperature, until=boundary(step)),
            rate,
            lambda leaves: min(leaves, key=estimate),
            accept=lambda leaf: True,
            limit=step_tokens,
            fanout=fanout,
            rounds=rounds,
            keep=keep,
        )

    return run

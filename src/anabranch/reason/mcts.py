"""Monte Carlo tree search over reasoning steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

Bonus = Callable[[Thought, Thought], float]
"""What a parent's child is worth trying for, beside its value."""


def puct(weight: float) -> Bonus:
    """weight * prior * sqrt(visits of the parent) / (1 + visits)."""
    return lambda parent, child: (
        weight * child.prior * math.sqrt(parent.visits) / (1 + child.visits)
    )


def uct(weight: float) -> Bonus:
    """weight * sqrt(ln(visits of the parent) / visits)."""
    return lambda parent, child: weight * math.sqrt(math.log(parent.visits) / child.visits)


class Tree:
    """Visits and values of a tree of thoughts."""

    def __init__(self, root: Thought, bonus: Bonus) -> None:
        self.root, self._bonus = root, bonus
        self._children: dict[int, list[Thought]] = {}

    def descend(self, leaves: list[Thought]) -> Thought:
        """From the root to a leaf: the child that is worth most on average, with its bonus."""
        node = self.root
        while children := self._children.get(id(node)):
            worth = [t.total / t.visits + self._bonus(node, t) for t in children]
            node = children[worth.index(max(worth))]
        return node

    def backup(self, leaf: Thought, children: list[Thought]) -> None:
        """Tell a leaf and its ancestors what its children are worth on average, by their priors.

        Each child has been given one visit of its own by then.
        """
        if children:
            self._children[id(leaf)] = children
            value = sum(child.prior * child.total for child in children)
        else:
            value = leaf.total / leaf.visits
        node: Thought | None = leaf
        while node is not None:
            node.visits, node.total = node.visits + 1, node.total + value
            node = node.parent


@strategy(
    "mcts",
    paper="Chen et al. 2024, AlphaMath almost zero: process supervision without process, section 3",
    summary="Monte Carlo tree search: steps that promise much and were tried little come next.",
    cost="rounds x fanout steps, each rated",
    use="With a judge of steps and a budget of many steps; stop it at any time.",
    fold=by_rating,
)
def mcts(
    *,
    fanout: Samples = 4,
    judge: JudgedBy = "likelihood",
    c_puct: Annotated[float, Range(0, 100)] = 1.25,
    aggregate: Aggregated = "mean",
    step: Steps = "line",
    step_tokens: MaxTokens = 96,
    rounds: Rounds = 64,
    temperature: Temperature = 0.8,
) -> Strategy:
    """MCTS with PUCT. A thought is worth its rating over the whole path, and so is an answer.

    By the last rating alone, more rounds find what fools the judge.

    Departures: no trained policy or value head; the prior of a step is the share of the sampled
    continuations that coincide in it; a leaf's children are rated when it is expanded, so that what
    is backed up is their mean; ratings are in [0, 1], not [-1, 1].
    """
    needs_partial("mcts", judge)

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        start = Thought(root.fork())
        tree = Tree(start, puct(c_puct))

        async def rate(thoughts: Sequence[Thought]) -> None:
            await judge_steps(judge, problem, thoughts)
            for thought in thoughts:
                thought.visits, thought.total = 1, rating(thought, aggregate)

        return await grow(
            start,
            sampler(problem, temperature=temperature, until=boundary(step)),
            rate,
            tree.descend,
            backup=tree.backup,
            limit=step_tokens,
            fanout=fanout,
            rounds=rounds,
        )

    return run

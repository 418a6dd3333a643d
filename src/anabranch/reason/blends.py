"""Thoughts that several prompts write together, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anabranch.program.branch import Branch
from anabranch.program.types import Problem, Thought
from anabranch.reason.kernels import population, sampler


async def sample_blend(
    problem: Problem,
    roots: Sequence[tuple[Branch, float]],
    n: int,
    limit: int,
    **sampling: Any,
) -> list[Thought]:
    """`n` thoughts below the first root, each drawn from the product of all roots' distributions.

    Args:
        roots: prompts of one problem, each with its exponent.
        limit: most tokens of a thought; each costs as many as there are roots.
        sampling: as in `Branch.extend`.
    """
    (leader, weight), *others = roots
    thoughts = [Thought(branch) for branch in leader.fork(n)]
    companions = {t.branch.id: {root.fork(): w for root, w in others} for t in thoughts}

    async def advance(thought: Thought, share: int) -> None:
        blend: Any = {thought.branch: weight, **companions[thought.branch.id]}
        write = sampler(problem, blend=blend, **sampling)
        await write(thought, max(1, share // len(roots)))

    return await population(thoughts, advance, limit=limit * len(roots))

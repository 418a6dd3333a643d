"""What becomes of a thought: finish it several times and judge the ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

from anabranch.program.answers import extract
from anabranch.program.branch import Branch
from anabranch.program.derived import forks
from anabranch.program.registry import Range
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify import registry
from anabranch.verify.registry import UNKNOWN, Judge, JudgedBy, Steps, boundary, judge

BUDGET_SHARE = 0.5
"""Most of what is left of a budget that one round of ratings spends: the search needs the rest."""


@judge(
    "rollout",
    paper="Wang et al. 2023, Math-Shepherd, section 3.2 (soft estimation); without known answers, "
    "agreement instead",
    summary="The thought is finished, or goes on, n times; the mean rating of where that leads.",
)
def rollout(
    *,
    n: Annotated[int, Range(1, 64)] = 4,
    judge: JudgedBy = "agreement",
    max_tokens: Annotated[int, Range(1, 1 << 20)] = 256,
    steps: Annotated[int, Range(0, 1024)] = 0,
    step: Steps = "line",
    temperature: Annotated[float, Range(0, 10)] = 0.8,
) -> Judge:
    """All rollouts of all thoughts run at once; their ends are judged together.

    A finished thought is its own end. An end without an answer counts 0 with a judge of finished
    thoughts only; one that the budget cut short counts nothing, and a thought without any end is
    unknown. With `judge=checker` this is the paper's soft estimate; with agreement an end is worth
    the share of all other ends that agree with it.

    Args:
        max_tokens: of one rollout.
        steps: how many each goes on for; 0: to its end. Short ones are lookahead (Snell et al.
            2024, section 5.2), and need a judge of unfinished thoughts.
    """
    until = boundary(step) if steps else None

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        going = [t for t in thoughts if not t.done and t.branch.live]
        limit = _limit(going, n, max_tokens)
        ends: dict[int, list[Thought]] = {id(t): [t] if t.done else [] for t in thoughts}
        with ExitStack() as stack:
            if limit:
                tries = [
                    (thought, fork)
                    for thought in going
                    for fork in stack.enter_context(forks(thought.branch, n, "rollout"))
                ]
                done = await together(
                    _go_on(problem, thought, fork, limit, max(1, steps), until, temperature)
                    for thought, fork in tries
                )
                for (thought, _), end in zip(tries, done, strict=True):
                    ends[id(thought)] += [end] if end is not None else []
            every = [end for found in ends.values() for end in found]
            rated = [end for end in every if end.done or judge.partial]
            values = dict(
                zip(map(id, rated), await registry.rate(judge, problem, rated), strict=True)
            )
        return [
            sum(values.get(id(end), 0.0) for end in found) / len(found) if found else UNKNOWN
            for found in (ends[id(thought)] for thought in thoughts)
        ]

    return Judge(rate)


def _limit(going: Sequence[Thought], n: int, max_tokens: int) -> int:
    """Tokens of each rollout; 0 when the budget has none for all of them."""
    if not going:
        return 0
    run = going[0].branch.run
    left = run.budget.left_tokens
    if left != math.inf:
        max_tokens = min(max_tokens, int(left * BUDGET_SHARE) // (n * len(going)))
    if max_tokens < 1 or run.budget.over:
        run.remark("the budget left nothing for rollouts; rated without them")
        return 0
    return max_tokens


async def _go_on(
    problem: Problem,
    thought: Thought,
    fork: Branch,
    limit: int,
    steps: int,
    until: str | None,
    temperature: float,
) -> Thought | None:
    """Where a thought came to on a fork; None when the budget cut it short."""
    begun = len(fork.tokens)
    logp = logw = 0.0
    for _ in range(steps):
        step = await fork.extend(limit, until=until, temperature=temperature)
        logp, logw, limit = logp + step.logp, logw + step.logw, limit - len(step.tokens)
        if step.stop != "until" or limit < 1:
            break
    ended = step.stop == "end"
    answer = extract(fork.text, problem, done=ended)
    if step.stop == "budget" and answer is None:
        return None
    return replace(
        thought,
        branch=fork,
        parent=thought,
        answer=answer,
        done=ended or answer is not None,
        text=fork.text,
        logp=thought.logp + logp,
        logw=thought.logw + logw,
        tokens=thought.tokens + len(fork.tokens) - begun,
    )

"""The simulated solver and its judge (`anabranch.bench.simulated`) on one problem, many times."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from anabranch.bench import simulated
from anabranch.program.registry import Named
from anabranch.program.types import Answer, Problem
from anabranch.reason.registry import parse
from anabranch.verify.aggregates import AGGREGATES
from anabranch.verify.registry import Judge

TRUTH = "1" * 8
RIGHT, SIGNAL = 0.7, 1.25


def prepared(strategy: str, judge: Judge) -> Named:
    """A strategy with a judge of ours and steps of one token, where it has such parameters."""
    return simulated.prepared(parse(strategy), judge)


@functools.cache
def solve_many(strategy: str, count: int, tokens: int | None = None) -> list[Answer]:
    """Answers to as many problems, which differ in their seeds only, each within a budget."""
    problem = Problem(f"{TRUTH}?", kind="number")

    async def program(lm: simulated.Simulated) -> list[Answer]:
        return await asyncio.gather(
            *(lm.think(problem, strategy, budget=tokens, seed=seed) for seed in range(count))
        )

    with simulated.simulated(right=RIGHT, signal=SIGNAL) as lm:
        return lm.run(program(lm))


def right(answers: Sequence[Answer]) -> list[bool]:
    """Which answers are right."""
    return [answer.answer == TRUTH for answer in answers]


def best_rated(answers: Sequence[Answer], aggregate: str) -> list[bool]:
    """Whether the best rated of each answer's candidates is right."""

    def worth(seed: int, text: str) -> float:
        ratings = [simulated.seen(seed, text[: i + 1], TRUTH, SIGNAL) for i in range(len(text))]
        return AGGREGATES[aggregate](ratings)

    best = [max((c.text for c in a.candidates), key=lambda t: worth(a.seed, t)) for a in answers]
    return [text == TRUTH for text in best]

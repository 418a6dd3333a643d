"""A solver that errs and a judge that is not sure: what search is worth can be known beforehand.

The model takes eight steps of one digit, each right with probability 0.7 whatever came before, so a
single thought is right with probability 0.058. The judge sees the truth through noise: it is right
about a prefix but for a unit normal of its own, the same whenever that prefix is rated.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from anabranch.program.registry import Named
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem, Thought
from anabranch.reason.registry import parse
from anabranch.reason.solve import think
from anabranch.verify.registry import Judge
from tests.scripted import ask, scripted

STEPS = 8
RIGHT = 0.7
TRUTH = "1" * STEPS
SIGNAL = 1.25
WRONG = "2345"
"""How far right and wrong prefixes lie from the judge's zero, in units of its noise."""


def solver(prompt: str, reply: str) -> Mapping[str, float]:
    """Eight digits, then the end."""
    if len(reply) >= STEPS:
        return {"": 1.0}
    return {"1": RIGHT, **dict.fromkeys(WRONG, (1 - RIGHT) / len(WRONG))}


def noise(seed: int, prefix: str) -> float:
    """A unit normal that belongs to a prefix."""
    return NormalDist().inv_cdf((zlib.crc32(f"{seed}:{prefix}".encode()) + 0.5) / 2**32)


async def _rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
    def one(thought: Thought) -> float:
        signal = SIGNAL if TRUTH.startswith(thought.text) else -SIGNAL
        seen = signal + noise(thought.branch.run.seed, thought.text)
        return 1 / (1 + math.exp(-2 * seen))

    return [one(thought) for thought in thoughts]


JUDGE = Judge(_rate, name="noisy")


def prepared(strategy: str) -> Named:
    """A strategy with the noisy judge and steps of one digit, where it has such parameters."""
    named = parse(strategy)
    ours = {"judge": JUDGE, "step_tokens": 1, "temperature": 1.0}
    return Named(named.entry, {k: ours.get(k, v) for k, v in named.values.items()})


def solve_many(strategy: str, count: int, first: int = 0) -> list[Answer]:
    """Answers to as many problems, which differ in their seeds only."""
    named = prepared(strategy)
    engine = scripted(solver, pages=8192)

    async def one(seed: int) -> Answer:
        problem = Problem("How many?", kind="number")
        run = Run(seed=seed)
        return await think(
            problem, lambda p, run: ask(engine, p.text, run), named, run, model="noisy"
        )

    async def program() -> list[Answer]:
        return await asyncio.gather(*(one(first + i) for i in range(count)))

    return asyncio.run(program())


def accuracy(answers: Sequence[Answer]) -> float:
    """Share of the answers that are right."""
    return sum(answer.answer == TRUTH for answer in answers) / len(answers)

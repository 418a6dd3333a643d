"""A solver that errs and a judge that is not sure: what search is worth can be known beforehand.

The model takes eight steps of one digit, each right with probability 0.7 whatever came before, so a
single thought is right with probability 0.058. The judge sees the truth through noise: it is right
about a prefix but for a unit normal of its own, the same whenever that prefix is rated.
"""

from __future__ import annotations

import asyncio
import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from anabranch.engine.core import EngineCore
from anabranch.program.budget import Budget
from anabranch.program.engine import Engine
from anabranch.program.registry import Named
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem, Thought
from anabranch.reason.registry import parse
from anabranch.reason.solve import think
from anabranch.verify.aggregates import AGGREGATES
from anabranch.verify.registry import Judge
from tests.scripted import ChatTokenizer, ScriptedDecoder, ask

STEPS = 8
RIGHT = 0.7
TRUTH = "1" * STEPS
WRONG = "2345"
SIGNAL = 1.25
"""How far right and wrong prefixes lie from the judge's zero, in units of its noise."""


def solver(prompt: str, reply: str) -> Mapping[str, float]:
    """Eight digits, then the end."""
    if len(reply) >= STEPS:
        return {"": 1.0}
    return {"1": RIGHT, **dict.fromkeys(WRONG, (1 - RIGHT) / len(WRONG))}


def noise(seed: int, prefix: str) -> float:
    """A unit normal that belongs to a prefix."""
    return NormalDist().inv_cdf((zlib.crc32(f"{seed}:{prefix}".encode()) + 0.5) / 2**32)


def seen(seed: int, prefix: str) -> float:
    """What the judge makes of a prefix, in [0, 1]."""
    signal = SIGNAL if TRUTH.startswith(prefix) else -SIGNAL
    return 1 / (1 + math.exp(-2 * (signal + noise(seed, prefix))))


async def _rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
    return [seen(thought.branch.run.seed, thought.text) for thought in thoughts]


JUDGE = Judge(_rate, name="noisy")


def prepared(strategy: str, judge: Judge = JUDGE) -> Named:
    """A strategy with a judge of ours and steps of one token, where it has such parameters."""
    named = parse(strategy)
    ours = {"judge": judge, "step_tokens": 1, "temperature": 1.0}
    return Named(named.entry, {k: ours.get(k, v) for k, v in named.values.items()})


@functools.cache
def solve_many(strategy: str, count: int, tokens: int | None = None) -> list[Answer]:
    """Answers to as many problems, which differ in their seeds only, each within a budget."""
    named = prepared(strategy)
    # All problems take part in every pass.
    decoder: Any = ScriptedDecoder(solver, max_rows=1 << 14)
    engine = Engine(EngineCore(decoder, pages=8192), ChatTokenizer())  # type: ignore[arg-type]

    async def one(seed: int) -> Answer:
        problem = Problem("How many?", kind="number")
        run = Run(seed=seed, budget=Budget(tokens))
        return await think(
            problem, lambda p, run: ask(engine, p.text, run), named, run, model="noisy"
        )

    async def program() -> list[Answer]:
        return await asyncio.gather(*(one(seed) for seed in range(count)))

    return asyncio.run(program())


def right(answers: Sequence[Answer]) -> list[bool]:
    """Which answers are right."""
    return [answer.answer == TRUTH for answer in answers]


def best_rated(answers: Sequence[Answer], aggregate: str) -> list[bool]:
    """Whether the best rated of each answer's candidates is right."""

    def worth(seed: int, text: str) -> float:
        ratings = [seen(seed, text[: i + 1]) for i in range(len(text))]
        return AGGREGATES[aggregate](ratings)

    best = [max((c.text for c in a.candidates), key=lambda t: worth(a.seed, t)) for a in answers]
    return [text == TRUTH for text in best]

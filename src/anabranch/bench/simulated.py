"""A solver that errs and a judge that is not sure: what search is worth can be known beforehand.

The solver copies the first number of a problem (task `copy`) digit by digit. Each digit is right
with one probability whatever came before, so a single thought of eight digits is right with 0.7^8 =
0.058. The judge sees the truth through noise: it is right about a prefix but for a unit normal of
its own, the same whenever that prefix is rated.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Annotated, Any

from anabranch.bench.scripted import Rule, scripted_engine
from anabranch.lm import LM
from anabranch.program.branch import Branch
from anabranch.program.registry import Named, Range, Registry
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem, Thought
from anabranch.reason.registry import parse
from anabranch.verify.registry import Judge

WRONG = 4
"""How many wrong digits there are for each right one, equally likely."""

# All problems take part in every pass.
_ROWS, _PAGES = 1 << 14, 8192


class Simulated(LM):
    """A loaded "model" around solver and judge.

    Whatever judge a strategy names, this one's own is asked, and steps are single digits drawn at
    temperature 1.

    Args:
        name: as it could be typed again.
        right: probability of each digit.
        signal: how far right and wrong prefixes lie from the judge's zero, in units of its noise.
    """

    def __init__(self, name: str, right: float, signal: float) -> None:
        engine = scripted_engine(solver(right), pages=_PAGES, max_rows=_ROWS)
        super().__init__(engine, name, hashlib.sha256(name.encode()).hexdigest())
        self.judge = noisy(signal)

    async def think(
        self, problem: str | Problem, strategy: str | Named = "vote", **options: Any
    ) -> Answer:
        """As `LM.think`, with the strategy as `prepared`."""
        named = parse(strategy) if isinstance(strategy, str) else strategy
        answer = await super().think(problem, prepared(named, self.judge), **options)
        return replace(answer, strategy=str(named))

    def _root(self, problem: Problem, run: Run) -> Branch:
        return self.engine.open([{"role": "user", "content": problem.text}], seed=run.seed, run=run)


SIMULATED = Registry("simulated model", "anabranch.bench")


@SIMULATED.register(
    "simulated",
    paper="none: a control, whose accuracy can be worked out",
    summary="copies numbers digit by digit and errs, with a judge that is not sure",
)
def simulated(
    *,
    right: Annotated[float, Range(0, 1)] = 0.7,
    signal: Annotated[float, Range(0, 100)] = 1.25,
) -> Simulated:
    """For problems of the task `copy`."""
    return Simulated(f"simulated({right=!r}, {signal=!r})", right, signal)


def prepared(strategy: Named, judge: Judge) -> Named:
    """A strategy with this judge and steps of one token, where it has such parameters."""
    ours = {"judge": judge, "step_tokens": 1, "temperature": 1.0}
    return Named(strategy.entry, {k: ours.get(k, v) for k, v in strategy.values.items()})


def solver(right: float) -> Rule:
    """Copies the first number of the prompt, then ends."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        truth = number(prompt)
        if len(reply) >= len(truth):
            return {"": 1.0}
        digit = truth[len(reply)]
        wrong = {str((int(digit) + k) % 10): (1 - right) / WRONG for k in range(1, WRONG + 1)}
        return {digit: right, **wrong}

    return rule


def noisy(signal: float) -> Judge:
    """What is seen of a prefix: the truth, `signal` above or below zero, and its noise."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        truth = number(problem.text)
        return [seen(t.branch.run.seed, t.text, truth, signal) for t in thoughts]

    return Judge(rate, name="noisy")


def seen(seed: int, prefix: str, truth: str, signal: float) -> float:
    """What the judge makes of a prefix, in [0, 1]."""
    mean = signal if truth.startswith(prefix) else -signal
    return 1 / (1 + math.exp(-2 * (mean + _noise(seed, prefix))))


@functools.lru_cache(1 << 12)
def number(text: str) -> str:
    """The digits of the first number in a text."""
    found = re.search(r"[0-9]+", text)
    return found[0] if found else ""


def _noise(seed: int, prefix: str) -> float:
    """A unit normal that belongs to a prefix."""
    return NormalDist().inv_cdf((zlib.crc32(f"{seed}:{prefix}".encode()) + 0.5) / 2**32)

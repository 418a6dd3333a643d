"""Histories of branching programs as data, and all that is seen while one is played.

The laws of the engine are tried on random ones: by `anabranch doctor --determinism`, and by tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anabranch.backends.philox import derive
from anabranch.program.branch import Branch
from anabranch.program.engine import Engine, Prompt
from anabranch.program.run import Run
from anabranch.program.types import Mark, Next, Step

# Some of each way to grow, look and forget; a size decides how far, or by which sampling.
OPERATIONS = ("extend", "extend", "extend", "fork", "force", "back", "peek", "drop", "open")

SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.2},
    {"until": re.compile("[a-z]"), "keep": False, "top_p": 0.95, "bias": {7: 2.0, 101: 4.0}},
)

Operation = tuple[str, int, int]
"""What to do, to which branch (modulo the number of those alive), and a size from 1."""

Program = Sequence[Sequence[Operation]]
"""Rounds of operations; those of one round are asked for together."""

Gather = Callable[[Sequence[Awaitable[Any]]], Awaitable[list[Any]]]
"""How several operations are awaited; results in the order given."""


async def in_turn(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """One after the other."""
    return [await call for call in calls]


async def together(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """All at once."""
    return await asyncio.gather(*calls)


async def shuffled(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """All at once, begun in another order."""
    order = sorted(range(len(calls)), key=lambda i: derive(len(calls), i))
    results = dict(zip(order, await together([calls[i] for i in order]), strict=True))
    return [results[i] for i in range(len(calls))]


@dataclass
class Played:
    """What a program saw, in an order of its own, and the paths of the branches it kept.

    Attributes:
        results: per operation its branch, the position from which on it ran, and what it gave.
        paths: tokens by branch.
    """

    results: list[tuple[str, int, Step | Next]] = field(default_factory=list)
    paths: dict[str, list[int]] = field(default_factory=dict)


async def play(
    engine: Engine,
    program: Program,
    seed: int,
    prompt: Prompt,
    gather: Gather = together,
) -> Played:
    """Run a program on three forks of a prompt; `gather` runs the operations of a round."""
    played, run = Played(), Run(seed=seed)
    live = engine.open(prompt, seed=seed, run=run).fork(3)
    for operations in program:
        calls: dict[Branch, tuple[int, Awaitable[Step | Next]]] = {}
        for what, who, size in operations:
            branch = live[who % len(live)]
            position = branch.mark.position
            if what == "fork":
                live += branch.fork(1 + size % 3)
            elif what == "back":
                live.append(branch.fork(at=Mark(branch.id, max(1, position - size * size))))
            elif what == "open":
                live.append(engine.open(branch.tokens, seed=size, run=run))
            elif branch not in calls and what != "drop":
                calls[branch] = position, _call(branch, what, size)
            elif branch not in calls and len(live) > 1:
                live.remove(branch)
                branch.drop()
        results = await gather([call for _, call in calls.values()])
        for branch, result in zip(calls, results, strict=True):
            played.results.append((branch.id, calls[branch][0], result))
    played.paths = {branch.id: branch.tokens for branch in live}
    run.drop_all()
    return played


def _call(branch: Branch, what: str, size: int) -> Awaitable[Step | Next]:
    if what == "extend":
        return branch.extend(3 * size, **SAMPLINGS[size % len(SAMPLINGS)])
    if what == "force":
        return branch.force([97 + k * size % 26 for k in range(size)])
    return branch.peek(1 + size, hidden=True)


class Fact(NamedTuple):
    """Something seen, to the bit, and where."""

    where: str
    what: str


def facts(name: str, played: Played) -> Iterator[Fact]:
    """Every token, log-probability, entropy and hidden state that a program of that name saw."""
    for branch, position, result in played.results:
        at = f"{name}, branch {branch}, position"
        if isinstance(result, Next):
            logps = " ".join(map(float.hex, result.logps))
            state = hashlib.sha256(result.hidden.astype("<f4").tobytes()).hexdigest()
            seen = f"{result.tokens}, logps {logps}, entropy {result.entropy.hex()}, state {state}"
            yield Fact(f"{at} {position}", seen)
            continue
        for token, logp, entropy in zip(result.tokens, result.logps, result.entropies, strict=True):
            seen = f"token {token}, logp {logp.hex()}, entropy {entropy.hex()}"
            yield Fact(f"{at} {position}", seen)
            position += 1
        yield Fact(f"{at} {position}", f"stop {result.stop}, logq {result.logq.hex()}")

"""The bitwise law, tried on this machine: what a branch says depends on nothing but the branch.

Random programs over small synthetic models run plainly first, one branch at a time on one thread,
then in every way that must make no difference. All must give the same tokens and the same bits of
every log-probability, entropy and hidden state; and their digest must be that of every machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from anabranch.backends.native import NativeBackend
from anabranch.backends.philox import philox
from anabranch.engine.core import EngineCore
from anabranch.machine import cores
from anabranch.models.decoder import Decoder
from anabranch.models.synthetic import SYNTHETIC, Synthetic
from anabranch.program.engine import Engine
from anabranch.program.play import (
    OPERATIONS,
    Fact,
    Gather,
    Played,
    Program,
    facts,
    in_turn,
    play,
    shuffled,
    together,
)

if TYPE_CHECKING:
    from anabranch.models.tokenizer import Tokenizer

EXPECTED = "9f5715ff2ec5cddbf43214e233ae05a9e804737ce2b629d6b5f9e232f86cc188"
"""Digest of the plain run. It changes with the arithmetic of a pass and with what is run here."""


def difference(expected: Sequence[Fact], got: Sequence[Fact]) -> str:
    """The first fact that differs, in words; nothing if none does."""
    end = Fact("the end", "nothing")
    for want, have in itertools.zip_longest(expected, got, fillvalue=end):
        if want != have:
            place = "" if want.where == have.where else f" at {have.where}"
            return f"{want.where}: expected {want.what}; got {have.what}{place}"
    return ""


@dataclass(frozen=True)
class Condition:
    """A way to run programs that must make no difference to them."""

    name: str
    detail: str
    isa: str
    threads: int = 1
    gather: Gather = together
    rows: int = 128
    pages: int = 1024
    times: int = 1


def conditions() -> list[Condition]:
    """The plain run, then all others that this machine can do."""
    best, *others = cast("list[str]", NativeBackend(1).features()["available"])
    return [
        Condition("plain", f"one branch at a time, on one thread, {best}", best, gather=in_turn),
        Condition("together", "all branches of all programs at once", best),
        Condition("shuffled", "the same in another order", best, gather=shuffled),
        Condition("chunks", "at most 5 rows in a pass", best, rows=5),
        Condition("memory", "pages for one long branch only", best, pages=34),
        Condition("cache", "again, from a warm cache", best, times=2),
        *(
            Condition(f"threads {count}", f"on {count} threads", best, threads=count)
            for count in sorted({2, 3, cores()} - {1})
        ),
        *(Condition(isa, f"kernels for {isa}", isa) for isa in others),
    ]


class _Bytes:
    """What the engine asks of a tokenizer: a token is a byte, and 256 ends a text."""

    ends = frozenset({256})

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


def observe(condition: Condition, model: Synthetic) -> tuple[list[Fact], int]:
    """All that the programs see, and how many nodes of the token tree were preempted."""
    backend = NativeBackend(condition.threads, condition.isa)
    core = EngineCore(Decoder(model, backend, max_rows=condition.rows), pages=condition.pages)
    engine = Engine(core, cast("Tokenizer", _Bytes()))

    async def run() -> list[Played]:
        plays = [play(engine, *case, condition.gather) for case in cases()]
        return await condition.gather(plays)

    try:
        for _ in range(condition.times):
            played = asyncio.run(run())
    finally:
        engine.close()
    numbered = enumerate(played)
    found = [f for i, one in numbered for f in facts(f"{model.name}, program {i}", one)]
    return found, core.stats.preempted_nodes


def cases(count: int = 16, rounds: int = 8) -> Iterator[tuple[Program, int, list[int]]]:
    """Programs with their seeds and prompts, which share beginnings of different lengths."""
    words = (word for i in itertools.count() for word in philox(2026, (i, 0, 0, 0)))
    common = [next(words) % 1000 for _ in range(300)]
    for seed in range(count):
        program = [
            [
                (OPERATIONS[next(words) % len(OPERATIONS)], next(words), 1 + next(words) % 9)
                for _ in range(6)
            ]
            for _ in range(rounds)
        ]
        yield program, seed, [*common[: 300 - 18 * seed], seed]


@dataclass(frozen=True)
class Finding:
    """What became of one condition; `fault` is empty where all is well."""

    name: str
    detail: str
    fault: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


def examine() -> Iterator[Finding]:
    """Try every condition, then compare the digest with every other machine's."""
    plain: list[Fact] = []
    agree = True
    for condition in conditions():
        seen = [observe(condition, model) for model in SYNTHETIC]
        found = [fact for some, _ in seen for fact in some]
        plain = plain or found
        fault, preempted = difference(plain, found), sum(count for _, count in seen)
        agree &= not fault
        detail = condition.detail + f": {preempted} nodes preempted" * bool(preempted)
        yield Finding(condition.name, detail, fault, {"preempted_nodes": preempted})
    digest = hashlib.sha256("\n".join(map(": ".join, plain)).encode()).hexdigest()
    fault = "" if digest == EXPECTED else f"expected {EXPECTED}"
    if fault and agree:
        fault += (
            "; this machine agrees with itself but not with others: look for compiler flags that "
            "change arithmetic (-ffast-math, -ffp-contract) in CFLAGS and CXXFLAGS"
        )
    yield Finding("digest", digest, fault, {"digest": digest, "expected": EXPECTED})

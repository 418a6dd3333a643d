"""Engines over the toy model for tests: any backend, any number of pages, a byte tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from anabranch.backends.base import Backend
from anabranch.engine.core import EngineCore
from anabranch.engine.scheduler import Policy
from anabranch.models.decoder import Decoder
from anabranch.program.engine import Engine
from tests.toy import toy

T = TypeVar("T")


class ByteTokenizer:
    """Token id = byte; 256 ends a turn, the ids above are unused."""

    vocab_size = 300
    ends = frozenset({256})

    def encode(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True) -> list[int]:
        return self.encode("\n".join(f"{m['role']}: {m['content']}" for m in messages))


@lru_cache
def backend(name: str, threads: int = 1, isa: str | None = None) -> Backend:
    """A backend by name, built once."""
    if name == "native":
        from anabranch.backends.native import NativeBackend

        return NativeBackend(threads, isa)
    from anabranch.backends.reference import ReferenceBackend

    return ReferenceBackend()


@lru_cache
def decoder(family: str, name: str, threads: int, max_rows: int, isa: str | None = None) -> Decoder:
    """A packed toy model, built once: decoders hold no state between passes."""
    return Decoder(toy(family), backend(name, threads, isa), max_rows=max_rows)


def make_engine(
    family: str = "llama",
    name: str = "reference",
    *,
    pages: int = 256,
    max_rows: int = 64,
    threads: int = 1,
    isa: str | None = None,
    policy: Policy | None = None,
) -> Engine:
    """A fresh engine with an empty tree."""
    core = EngineCore(decoder(family, name, threads, max_rows, isa), pages=pages, policy=policy)
    return Engine(core, ByteTokenizer())  # type: ignore[arg-type]


def run(engine: Engine, program: Coroutine[Any, Any, T]) -> T:
    """Run a program to its end, then recount every page, pin and link."""
    try:
        return asyncio.run(program)
    finally:
        engine.core.tree.check()
        assert not engine.core.requests

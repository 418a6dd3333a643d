"""A model that says what a test wants: a rule instead of weights, under the real engine.

Everything above the model is the product's own: tree, scheduler, sampler, branches. The rule sees
the prompt and the reply so far and gives the continuations it might take, with their weights; the
distribution of the next byte follows from them exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from anabranch.backends.base import F32, I32, PAGE_SLOTS, Batch
from anabranch.backends.reference import ReferenceBackend
from anabranch.engine.core import EngineCore
from anabranch.lm import LM
from anabranch.program.branch import Branch
from anabranch.program.engine import Engine
from anabranch.program.run import Run
from tests.toy import LLAMA

END, USER, ASSISTANT, SYSTEM = 256, 257, 258, 259
SPECIAL = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
FLOOR = 1e-9
"""Probability of every byte that no continuation starts with."""

Rule = Callable[[str, str], Mapping[str, float]]
"""Prompt and reply so far to continuations with weights; an empty one ends the reply."""


def replies(table: Mapping[str, float]) -> Rule:
    """Whole replies with their probabilities, whatever the prompt. Off the script, the end."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        going = {text[len(reply) :]: p for text, p in table.items() if text.startswith(reply)}
        return going or {"": 1.0}

    return rule


class ChatTokenizer:
    """Token id = byte; ids above are turn markers, which text never becomes."""

    vocab_size = 260
    ends = frozenset({END})

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True) -> list[int]:
        turns = [[SPECIAL[m["role"]], *self.encode(m["content"]), END, 10] for m in messages]
        return [token for turn in turns for token in turn] + [ASSISTANT] * generate


class ScriptedDecoder:
    """What `EngineCore` asks of a decoder. Its KV cache holds the token ids themselves."""

    def __init__(self, rule: Rule, max_rows: int = 64) -> None:
        self.rule, self.max_rows = rule, max_rows
        self.config = replace(LLAMA, vocab=260, context=1 << 16)
        self.rows = 0
        self.backend = SimpleNamespace(copy_page=self._copy_page, draw=ReferenceBackend().draw)

    def cache(self, pages: int) -> I32:
        return np.zeros((pages, PAGE_SLOTS), np.int32)

    def run(self, batch: Batch, cache: I32) -> list[I32]:
        self.rows += len(batch.tokens)
        stored = batch.slots >= 0
        cache.reshape(-1)[batch.slots[stored]] = batch.tokens[stored]
        paths = []
        for i in range(len(batch.row_starts) - 1):
            table = batch.tables[batch.table_starts[i] : batch.table_starts[i + 1]]
            path = cache[table].reshape(-1)
            for row in range(batch.row_starts[i], batch.row_starts[i + 1]):
                paths.append(path[: batch.positions[row] + 1].copy())
        return paths

    def logits(self, hidden: list[I32], rows: I32) -> F32:
        return np.stack([self._distribution(hidden[row]) for row in rows])

    def normed(self, hidden: list[I32], rows: I32) -> F32:
        return np.stack([np.bincount(hidden[row], minlength=260) for row in rows]).astype("f4")

    def _distribution(self, path: I32) -> F32:
        turns = np.flatnonzero(path == ASSISTANT)
        cut = turns[-1] + 1 if len(turns) else 0
        text = ChatTokenizer().decode
        weights = np.full(260, FLOOR)
        for continuation, weight in self.rule(text(path[:cut]), text(path[cut:])).items():
            weights[continuation.encode()[0] if continuation else END] += weight
        return np.log(weights / weights.sum()).astype(np.float32)

    def _copy_page(self, cache: I32, source: int, target: int) -> None:
        cache[target] = cache[source]


def ask(engine: Engine, text: str, run: Run) -> Branch:
    """A root that waits for the reply to a question."""
    return engine.open([{"role": "user", "content": text}], seed=run.seed, run=run)


def scripted(rule: Rule | Mapping[str, float], *, pages: int = 512) -> Engine:
    """An engine whose model follows a rule, or a table of whole replies."""
    decoder: Any = ScriptedDecoder(replies(rule) if isinstance(rule, Mapping) else rule)
    return Engine(EngineCore(decoder, pages=pages), ChatTokenizer())  # type: ignore[arg-type]


def scripted_lm(rule: Rule | Mapping[str, float]) -> LM:
    """A loaded "model" around it."""
    return LM(scripted(rule), "scripted", f"{zlib.crc32(repr(rule).encode()):08x}")

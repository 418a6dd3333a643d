"""A model that follows a rule instead of weights, under the real engine.

Everything above the model is the product's own: tree, scheduler, sampler, branches. The rule sees
the prompt and the reply so far and gives the continuations it might take, with their weights; the
distribution of the next byte follows from them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from anabranch.backends.base import F32, I32, PAGE_SLOTS, Batch
from anabranch.engine.core import EngineCore
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec
from anabranch.program.engine import Engine

END, USER, ASSISTANT, SYSTEM = 256, 257, 258, 259
SPECIAL = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
FLOOR = 1e-9
"""Probability of every byte that no continuation starts with."""

Rule = Callable[[str, str], Mapping[str, float]]
"""Prompt and reply so far to continuations with weights; an empty one ends the reply."""

# Only vocabulary and context are looked at.
_CONFIG = ModelConfig(
    architecture="scripted",
    hidden=64,
    ffn=96,
    heads=4,
    kv_heads=2,
    dim=16,
    vocab=260,
    context=1 << 16,
    eps=1e-5,
    layers=(LayerSpec(), LayerSpec()),
    ropes=(RopeSpec(10_000.0),),
    tied=True,
)


class ChatTokenizer:
    """Token id = byte; ids above are turn markers, which text never becomes."""

    vocab_size = 260
    bos = None
    ends = frozenset({END})

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """The text's bytes."""
        return list(text.encode())

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens, markers left out, or if `special` as `<256>`."""
        texts = (
            f"<{token}>".encode() if special and token >= 256 else self.token_bytes(token)
            for token in tokens
        )
        return b"".join(texts).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """A token's byte, or nothing for a marker."""
        return bytes([token]) if token < 256 else b""

    def prompt(self, text: str) -> list[int]:
        """Plain text as a prompt."""
        return self.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True) -> list[int]:
        """Turns between markers, and the marker that asks for a reply."""
        turns = [[SPECIAL[m["role"]], *self.encode(m["content"]), END, 10] for m in messages]
        return [token for turn in turns for token in turn] + [ASSISTANT] * generate


class ScriptedDecoder:
    """What `EngineCore` asks of a decoder. Its KV cache holds the token ids themselves."""

    def __init__(self, rule: Rule, max_rows: int = 64) -> None:
        self.rule, self.max_rows = rule, max_rows
        self.config = _CONFIG
        self.rows = 0
        # Imported late, as every backend: naming the simulated solver needs none.
        from anabranch.backends.reference import ReferenceBackend

        self.backend = SimpleNamespace(copy_page=self._copy_page, draw=ReferenceBackend().draw)

    def cache(self, pages: int) -> I32:
        """Room for the tokens of so many pages."""
        return np.zeros((pages, PAGE_SLOTS), np.int32)

    def run(self, batch: Batch, cache: I32) -> list[I32]:
        """For each row the tokens up to it, its "hidden state"."""
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
        """Log-probabilities of the next byte, by the rule."""
        return np.stack([self._distribution(hidden[row]) for row in rows])

    def normed(self, hidden: list[I32], rows: I32) -> F32:
        """How often each token occurs."""
        return np.stack([np.bincount(hidden[row], minlength=260) for row in rows]).astype("f4")

    def _distribution(self, path: I32) -> F32:
        turns = np.flatnonzero(path == ASSISTANT)
        cut = turns[-1] + 1 if len(turns) else 0
        text = ChatTokenizer().decode
        weights = np.full(260, FLOOR)
        for continuation, weight in self.rule(text(path[:cut]), text(path[cut:])).items():
            weights[continuation.encode()[0] if continuation else END] += weight
        logits: F32 = np.log(weights / weights.sum()).astype(np.float32)
        return logits

    def _copy_page(self, cache: I32, source: int, target: int) -> None:
        cache[target] = cache[source]


def scripted_engine(rule: Rule, *, pages: int = 512, max_rows: int = 64) -> Engine:
    """An engine whose model follows a rule."""
    decoder: Any = ScriptedDecoder(rule, max_rows)
    tokenizer: Any = ChatTokenizer()
    return Engine(EngineCore(decoder, pages=pages), tokenizer)

"""Tiny random models, held in memory: every feature of the decoder without a file.

The same seed and configuration give the same weights, and a weight depends only on its name and
shape, so two toys that differ in one feature share everything else.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anabranch.backends.base import F32, PAGE_SLOTS, Batch, Quantized, Weight
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec

LLAMA = ModelConfig(
    architecture="llama",
    hidden=64,
    ffn=96,
    heads=4,
    kv_heads=2,
    dim=16,
    vocab=300,
    context=4096,
    eps=1e-5,
    layers=(LayerSpec(), LayerSpec()),
    ropes=(RopeSpec(10_000.0),),
    tied=True,
)

FAMILIES: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "llama3": replace(
        LLAMA, tied=False, ropes=(RopeSpec(500_000.0, divisors=(1, 1, 1, 1, 1.5, 2.5, 8, 8)),)
    ),
    "qwen2": replace(LLAMA, architecture="qwen2", tied=False, qkv_bias=True),
    "qwen3": replace(LLAMA, architecture="qwen3", qk_norm=True),
    "gemma3": replace(
        LLAMA,
        architecture="gemma3",
        kv_heads=1,
        layers=(LayerSpec(window=20, rope=0), LayerSpec(window=5, rope=0), LayerSpec(rope=1)),
        ropes=(RopeSpec(10_000.0), RopeSpec(1_000_000.0, factor=8.0)),
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embedding_scale=8.0,
        attention_scale=0.3,
    ),
}
"""One description per family of features; together they use every field of `ModelConfig`."""

# (bits, group, has an offset) per kind of weight: every internal form occurs; q, k and v differ.
_FORMS: dict[str, tuple[Literal[4, 8], Literal[16, 32], bool]] = {
    "v": (8, 32, False),
    "down": (8, 16, False),
    "embed": (8, 32, False),
    "output": (8, 32, True),
}


def random_weight(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    bits: Literal[4, 8] = 4,
    group: Literal[16, 32] = 32,
    has_offset: bool = True,
    gain: float = 1.0,
) -> Quantized:
    """Random integers and scales, `(outputs, inputs)`; entries deviate by `gain / √inputs`."""
    outputs, inputs = shape
    low, high = (0, 15) if bits == 4 else (-127, 127)
    spread = (high - low) / 12**0.5
    scale = gain * inputs**-0.5 / spread * rng.uniform(0.5, 1.5, (outputs, inputs // group))
    offset = -scale * (low + high + rng.uniform(-1, 1, scale.shape)) / 2
    return Quantized(
        q=rng.integers(low, high + 1, shape, dtype=np.uint8 if bits == 4 else np.int8),
        scale=scale.astype(np.float32),
        offset=offset.astype(np.float32) if has_offset else None,
        bits=bits,
        group=group,
    )


@dataclass(frozen=True)
class ToyFile:
    """A `ModelFile` without a file."""

    config: ModelConfig
    seed: int = 0
    path: Path = Path("toy.gguf")
    name: str = "toy"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.config, self.seed)).encode()).hexdigest()

    def weight(self, name: str) -> Weight:
        shape = self.config.weight_shapes()[name]
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        kind = name.rpartition(".")[2]
        if len(shape) == 1:
            return _vector(rng, shape, kind)
        bits, group, has_offset = _FORMS.get(kind, (4, 32, True))
        # Logits of standard deviation near 2: neither flat nor decided.
        gain = 2.0 if kind in ("embed", "output") else 1.0
        return random_weight(rng, shape, bits, group, has_offset, gain)


def toy(family: str = "llama", seed: int = 0, **changes: Any) -> ToyFile:
    """A toy of one of `FAMILIES`, with any `ModelConfig` fields replaced."""
    return ToyFile(replace(FAMILIES[family], **changes), seed)


@dataclass(frozen=True)
class Span:
    """Tokens of a path from position `start`, the path's page table, and whether to store them."""

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    store: bool = True

    @property
    def positions(self) -> list[int]:
        return list(range(self.start, self.start + len(self.tokens)))

    @property
    def slots(self) -> list[int]:
        if not self.store:
            return [-1] * len(self.tokens)
        return [self.table[p // PAGE_SLOTS] * PAGE_SLOTS + p % PAGE_SLOTS for p in self.positions]


def batch_of(*spans: Span) -> Batch:
    """A batch with one sequence per span."""

    def joined(lists: list[Sequence[int]]) -> Any:
        return np.array([x for one in lists for x in one], np.int32)

    def starts(lists: list[Sequence[int]]) -> Any:
        return np.cumsum([0, *map(len, lists)], dtype=np.int32)

    tokens, tables = [s.tokens for s in spans], [s.table for s in spans]
    return Batch(
        tokens=joined(tokens),
        positions=joined([s.positions for s in spans]),
        slots=joined([s.slots for s in spans]),
        row_starts=starts(tokens),
        tables=joined(tables),
        table_starts=starts(tables),
    )


def _vector(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> F32:
    if kind.endswith("norm"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.5, shape).astype(np.float32)

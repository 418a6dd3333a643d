"""Small models without a file, the same on every machine, for checks that must not need a download.

Together they have every internal form of weights, both activations, and every optional part of a
layer. Their text means nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anabranch.backends.base import F32, Quantized, Weight
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec

# Bits, group, whether there is an offset, and bits that the integers really need, per kind of
# matrix; others are float32 at first.
_FORMS: dict[str, tuple[Literal[4, 8], Literal[16, 32], bool, int]] = {
    "q": (4, 32, True, 4),
    "k": (8, 32, False, 5),
    "v": (8, 32, True, 5),
    "o": (8, 16, False, 8),
    "gate": (4, 32, True, 4),
    "up": (8, 32, False, 6),
    "down": (8, 16, False, 6),
    "embed": (8, 32, True, 8),
}


@dataclass(frozen=True)
class Synthetic:
    """A `ModelFile` whose weights are hashes of their names."""

    config: ModelConfig
    path: Path = Path("synthetic")

    @property
    def name(self) -> str:
        return f"synthetic {self.config.architecture}"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.config).encode()).hexdigest()

    def weight(self, name: str) -> Weight:
        shape = self.config.weight_shapes()[name]
        kind = name.rpartition(".")[2]
        noise = self._noise(name, shape)
        if len(shape) == 1:
            low, width = (0.5, 1.0) if kind.endswith("norm") else (-1.0, 2.0)
            vector: F32 = (low + width * noise / 256).astype(np.float32)
            return vector
        # Logits deviate by about 2: neither flat nor decided.
        spread = (4 if kind in ("embed", "output") else 2) / math.sqrt(shape[1])
        if kind not in _FORMS:
            matrix: F32 = ((noise / 128 - 1) * spread).astype(np.float32)
            return matrix
        bits, group, has_offset, used = _FORMS[kind]
        fine = self._noise(f"scale of {name}", (shape[0], shape[1] // group))
        scale = ((0.5 + fine / 256) * spread / 2 ** (used - 1)).astype(np.float32)
        unsigned = bits == 4 or (has_offset and used < 8)
        q = noise % 2**used - (0 if unsigned else 2 ** (used - 1))
        return Quantized(
            q=q.astype(np.uint8 if bits == 4 else np.int8),
            scale=scale,
            offset=scale * np.float32(0.5 - 2 ** (used - 1) if unsigned else 2.5)
            if has_offset
            else None,
            bits=bits,
            group=group,
        )

    def _noise(self, name: str, shape: tuple[int, ...]) -> Any:
        """Random bytes of a shape, as integers."""
        hashed = hashlib.shake_128(f"{self.name} {name}".encode()).digest(math.prod(shape))
        return np.frombuffer(hashed, np.uint8).reshape(shape).astype(np.int16)


# Sizes leave rests: of a tile of outputs, of a page's lanes, of a block of logits or of groups.
SYNTHETIC = (
    Synthetic(
        ModelConfig(
            architecture="llama",
            hidden=96,
            ffn=1056,
            heads=4,
            kv_heads=2,
            dim=24,
            vocab=1100,
            context=4096,
            eps=1e-5,
            layers=(LayerSpec(), LayerSpec()),
            ropes=(RopeSpec(500_000.0, divisors=(1.0,) * 6 + (1.5, 2.5) + (8.0,) * 4),),
            qkv_bias=True,
        )
    ),
    Synthetic(
        ModelConfig(
            architecture="gemma3",
            hidden=128,
            ffn=96,
            heads=4,
            kv_heads=1,
            dim=40,
            vocab=1100,
            context=4096,
            eps=1e-6,
            layers=(LayerSpec(window=20), LayerSpec(window=270), LayerSpec(rope=1)),
            ropes=(RopeSpec(10_000.0), RopeSpec(1_000_000.0, factor=8.0)),
            activation="gelu_tanh",
            qk_norm=True,
            post_norms=True,
            tied=True,
            embedding_scale=8.0,
            attention_scale=0.3,
        )
    ),
)

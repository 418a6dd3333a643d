"""What a decoder needs to know about a model, independent of file format and architecture name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anabranch.backends.base import Activation, CacheShape, Weight


@dataclass(frozen=True)
class RopeSpec:
    """One family of rotary frequencies: `base ** (-2j / dim) / factor / divisors[j]` for pair j.

    Attributes:
        base: the frequency base.
        factor: linear position scaling (Gemma 3's global layers above 1B use 8).
        divisors: `[dim // 2]` per-pair divisors (Llama 3's long-context scaling), or None.
    """

    base: float
    factor: float = 1.0
    divisors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class LayerSpec:
    """What differs from layer to layer.

    Attributes:
        window: positions a row sees, itself included; 0: all.
        rope: index into `ModelConfig.ropes`.
    """

    window: int = 0
    rope: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The one decoder's description of a model: sizes, and which optional parts it has.

    A layer computes, with the parts in brackets optional:

        h += [post_attn_norm](o · attend([q_norm] q, [k_norm] k, v))   on attn_norm(h)
        h += [post_ffn_norm](down · (act(gate) * up))                  on ffn_norm(h)
    """

    architecture: str
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    dim: int
    vocab: int
    context: int
    eps: float
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    activation: Activation = "silu"
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    tied: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # 0: dim ** -0.5

    @property
    def cache_shape(self) -> CacheShape:
        """What one KV slot costs, in float32."""
        return CacheShape(len(self.layers), self.kv_heads, self.dim)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name and shape of every weight the decoder will ask for.

        Matrices are `(outputs, inputs)`. Rotary pairs are (j, j + dim/2): files that interleave
        them are reordered by their reader. Norm weights multiply as they are: files that store
        `weight - 1` are corrected by their reader.
        """
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        shapes: dict[str, tuple[int, ...]] = {
            "embed": (self.vocab, self.hidden),
            "final_norm": (self.hidden,),
        }
        if not self.tied:
            shapes["output"] = (self.vocab, self.hidden)
        for i in range(len(self.layers)):
            layer: dict[str, tuple[int, ...]] = {
                "attn_norm": (self.hidden,),
                "q": (queries, self.hidden),
                "k": (keys, self.hidden),
                "v": (keys, self.hidden),
                "o": (self.hidden, queries),
                "ffn_norm": (self.hidden,),
                "gate": (self.ffn, self.hidden),
                "up": (self.ffn, self.hidden),
                "down": (self.hidden, self.ffn),
            }
            if self.qkv_bias:
                layer |= {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
            if self.qk_norm:
                layer |= {"q_norm": (self.dim,), "k_norm": (self.dim,)}
            if self.post_norms:
                layer |= {"post_attn_norm": (self.hidden,), "post_ffn_norm": (self.hidden,)}
            shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
        return shapes


class ModelFile(Protocol):
    """A model on disk, opened and checked, with nothing large read yet.

    Attributes:
        path: the GGUF file or the safetensors folder.
        name: what the model calls itself, or the file's stem.
        config: its description.
        fingerprint: hex digest that changes when the weights change (size, header, sampled data).
    """

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def fingerprint(self) -> str: ...

    def weight(self, name: str) -> Weight:
        """One weight by canonical name (`ModelConfig.weight_shapes`), quantized if it is a matrix.

        Vectors (norms, biases) are always float32. Raises FileFormatError.
        """
        ...

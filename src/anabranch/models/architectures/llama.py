"""Llama: Llama 2 and 3, Mistral, SmolLM2 and the many models of their shape.

Source: Touvron et al. 2023, https://arxiv.org/abs/2307.09288; Jiang et al. 2023 (Mistral),
https://arxiv.org/abs/2310.06825.
"""

from __future__ import annotations

from dataclasses import replace

from anabranch.models.architectures.base import Architecture, describe, window
from anabranch.models.architectures.fields import Fields
from anabranch.models.config import LayerSpec, ModelConfig


def _describe(fields: Fields) -> ModelConfig:
    """Mistral 7B 0.1 slides in every layer; later ones say null.

    Llama 3's scaling comes as `rope_scaling` from Hugging Face, and in GGUF files as the divisors
    themselves, in a tensor.
    """
    layer = LayerSpec(window(fields) if "sliding_window" in fields else 0)
    config = describe(fields, "llama", layers=lambda _: layer)
    if "rope_divisors" not in fields:
        return config
    (rope,) = config.ropes
    divisors = fields.numbers("rope_divisors", config.dim // 2)
    return replace(config, ropes=(replace(rope, divisors=divisors),))


LLAMA = Architecture(
    gguf="llama",
    hf={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
    describe=_describe,
    interleaved=True,
)

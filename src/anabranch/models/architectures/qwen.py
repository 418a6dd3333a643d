"""Qwen2 and Qwen3: Llama with biases on q, k and v; or with norms on queries and keys instead.

Source: Yang et al. 2024, https://arxiv.org/abs/2407.10671; Yang et al. 2025,
https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from typing import Any

from anabranch.models.architectures.base import (
    Architecture,
    describe,
    layer_kinds,
    window,
)
from anabranch.models.architectures.fields import Fields
from anabranch.models.config import LayerSpec, ModelConfig


def _describe(fields: Fields, name: str, **features: Any) -> ModelConfig:
    """Windows only where `use_sliding_window` asks for them, from layer `max_window_layers` up."""
    if not fields.flag("use_sliding_window", False):
        return describe(fields, name, **features)
    first = fields.size("max_window_layers", 28, least=0)
    sliding, size = layer_kinds(fields, lambda layer: layer >= first), window(fields)
    return describe(fields, name, layers=lambda i: LayerSpec(size if sliding[i] else 0), **features)


QWEN2 = Architecture(
    gguf="qwen2",
    hf={"qwen2": "Qwen2ForCausalLM"},
    describe=lambda fields: _describe(fields, "qwen2", qkv_bias=True),
)

QWEN3 = Architecture(
    gguf="qwen3",
    hf={"qwen3": "Qwen3ForCausalLM"},
    describe=lambda fields: _describe(fields, "qwen3", qk_norm=True),
    defaults={"head_dim": 128},
)

"""Gemma 3, text: sliding layers with a global one among every six, each kind with its own rope.

Source: Gemma Team 2025, https://arxiv.org/abs/2503.19786. Embeddings are scaled by sqrt(hidden) in
float32, as Hugging Face does for float32 weights and llama.cpp always; for bfloat16 weights Hugging
Face rounds the factor to bfloat16 (sqrt(640): 25.25 instead of 25.298), from which we depart.
"""

from __future__ import annotations

import math

from anabranch.models.architectures.base import (
    Architecture,
    describe,
    layer_kinds,
    rope,
    scaled_rope,
    window,
)
from anabranch.models.architectures.fields import Fields
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec


def _describe(fields: Fields) -> ModelConfig:
    fields.absent("use_bidirectional_attention")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    dim, every = fields.size("head_dim"), fields.size("sliding_window_pattern", 6)
    sliding, size = layer_kinds(fields, lambda layer: (layer + 1) % every != 0), window(fields)
    # GGUF does not record it. 27B, known by its layers, alone divides by hidden / heads.
    divisor = hidden / heads if fields.size("num_hidden_layers") == 62 else dim
    return describe(
        fields,
        "gemma3",
        layers=lambda i: LayerSpec(size, rope=0) if sliding[i] else LayerSpec(rope=1),
        ropes=_ropes(fields, dim),
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embedding_scale=math.sqrt(hidden),
        attention_scale=1 / math.sqrt(fields.number("query_pre_attn_scalar", divisor)),
    )


def _ropes(fields: Fields, dim: int) -> tuple[RopeSpec, RopeSpec]:
    """Of sliding layers, never scaled unless a file says so layer by layer, and of global ones."""
    local = fields.number("rope_local_base_freq", 10_000.0)
    by_kind = fields.group("rope_parameters")
    if "full_attention" not in by_kind:
        return RopeSpec(local), rope(fields, dim, 1_000_000.0)
    return (
        scaled_rope(by_kind.group("sliding_attention"), dim, local, fields),
        scaled_rope(by_kind.group("full_attention"), dim, 1_000_000.0, fields),
    )


GEMMA3 = Architecture(
    gguf="gemma3",
    hf={"gemma3_text": "Gemma3ForCausalLM", "gemma3": "Gemma3ForConditionalGeneration"},
    describe=_describe,
    # What the published 4B, 12B and 27B leave out of their text_config.
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    },
    hf_names={
        "post_attn_norm": "post_attention_layernorm.weight",
        "ffn_norm": "pre_feedforward_layernorm.weight",
        "post_ffn_norm": "post_feedforward_layernorm.weight",
    },
    hf_prefixes={
        "model.language_model.": "model.",
        "language_model.": "",
        "model.vision_tower.": None,
        "vision_tower.": None,
        "model.multi_modal_projector.": None,
        "multi_modal_projector.": None,
    },
    norm_shift=1.0,
)

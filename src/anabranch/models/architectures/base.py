"""What families share: weight names, sizes, layers and rotary scaling.

Whatever a header says that would change the computation and is not known here is refused, never
ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anabranch.backends.base import Activation
from anabranch.models.architectures.fields import Fields
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec
from anabranch.models.rope import power

_GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "output": "output.weight",
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
}

_HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "output": "lm_head.weight",
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}

_REFUSED = (
    "quantization_config",
    "num_experts",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)
"""Fields of relatives that compute something else."""


@dataclass(frozen=True)
class Architecture:
    """What sets one family apart.

    Attributes:
        gguf: its `general.architecture` in GGUF files.
        hf: its `model_type` in config.json, to the class among `architectures` that writes text.
        describe: header fields to the decoder's description.
        defaults: fields that real config.json files leave out.
        hf_names: canonical weight names whose Hugging Face names are not the usual ones.
        hf_prefixes: beginnings of Hugging Face weight names to replace, the first that matches;
            None drops the weight (another modality's).
        interleaved: its GGUF files hold rotary pairs of q and k as neighbours, (2j, 2j + 1).
        norm_shift: what Hugging Face files leave out of norm weights (GGUF has it added).
    """

    gguf: str
    hf: Mapping[str, str]
    describe: Callable[[Fields], ModelConfig]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hf_names: Mapping[str, str] = field(default_factory=dict)
    hf_prefixes: Mapping[str, str | None] = field(default_factory=dict)
    interleaved: bool = False
    norm_shift: float = 0.0

    def gguf_name(self, canonical: str) -> str:
        """A weight's name in GGUF files."""
        layer, name = _split(canonical)
        return (f"blk.{layer}." if layer else "") + _GGUF_NAMES[name]

    def hf_name(self, canonical: str) -> str:
        """A weight's name in Hugging Face files, prefixes replaced."""
        layer, name = _split(canonical)
        tail = self.hf_names.get(name) or _HF_NAMES[name]
        return (f"model.layers.{layer}." if layer else "") + tail

    def without_prefix(self, stored: str) -> str | None:
        """A Hugging Face weight's name with its prefix replaced; None if it is not ours."""
        for prefix, replacement in self.hf_prefixes.items():
            if stored.startswith(prefix):
                return None if replacement is None else replacement + stored[len(prefix) :]
        # Early Llama files keep the rotary frequencies, which follow from the header.
        return None if stored.endswith(".rotary_emb.inv_freq") else stored


def describe(
    fields: Fields,
    architecture: str,
    *,
    layers: Callable[[int], LayerSpec] = lambda layer: LayerSpec(),
    ropes: tuple[RopeSpec, ...] | None = None,
    activation: Activation = "silu",
    **features: Any,
) -> ModelConfig:
    """The description every family starts from.

    Args:
        layers: what is particular to each layer, by its index.
        ropes: None reads the one that `rope` finds.
        features: further `ModelConfig` fields.

    Raises:
        FileFormatError: a size is missing or absurd.
        UnsupportedError: the header asks for what the decoder does not do.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", heads)
    if "head_dim" not in fields and hidden % heads:
        raise fields.fault("num_attention_heads", heads, f"divisors of {hidden}")
    dim = fields.size("head_dim", hidden // heads)
    if heads % kv_heads:
        raise fields.fault("num_key_value_heads", kv_heads, f"divisors of {heads}")
    if dim % 2:
        raise fields.fault("head_dim", dim, "even numbers")
    for name in ("value_dim", "rotary_dim"):
        if (other := fields.size(name, dim)) != dim:
            raise fields.unsupported(name, other, f"head_dim, {dim}")
    _check_activation(fields, activation)
    fields.absent(*_REFUSED)
    return ModelConfig(
        architecture=architecture,
        hidden=hidden,
        ffn=fields.size("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        vocab=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings"),
        eps=fields.number("rms_norm_eps"),
        layers=tuple(layers(i) for i in range(fields.size("num_hidden_layers"))),
        ropes=(rope(fields, dim),) if ropes is None else ropes,
        activation=activation,
        tied=fields.flag("tie_word_embeddings", False),
        **features,
    )


def window(fields: Fields) -> int:
    """The sliding window in positions, the row's own included; 0 if it covers the context."""
    size = fields.size("sliding_window")
    return 0 if size >= fields.size("max_position_embeddings") else size


def layer_kinds(fields: Fields, is_sliding: Callable[[int], bool]) -> list[bool]:
    """Which layers slide: `layer_types` where a file has it, else by rule."""
    count = fields.size("num_hidden_layers")
    kinds = fields.texts("layer_types")
    if not kinds:
        return [is_sliding(i) for i in range(count)]
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise fields.unsupported("layer_types", kind, "sliding_attention, full_attention")
    if len(kinds) != count:
        raise fields.fault("layer_types", f"{len(kinds)} kinds", f"{count}, one per layer")
    return [kind == "sliding_attention" for kind in kinds]


def rope(fields: Fields, dim: int, base: float = 10_000.0) -> RopeSpec:
    """Rotary frequencies from `rope_theta` and `rope_scaling`, or `rope_parameters` that hold both.

    Args:
        base: where the file names none.
    """
    scaling = fields.group("rope_scaling", "rope_parameters")
    return scaled_rope(scaling, dim, fields.number("rope_theta", base), fields)


def scaled_rope(scaling: Fields, dim: int, base: float, fields: Fields) -> RopeSpec:
    """Rotary frequencies with one object of scaling parameters.

    Args:
        scaling: `rope_type` (or `type`) and its parameters, perhaps a `rope_theta` of its own.
        base: where `scaling` has none.
    """
    base = scaling.number("rope_theta", base)
    for source in (scaling, fields):
        if (part := source.number("partial_rotary_factor", 1.0)) != 1.0:
            raise source.unsupported("partial_rotary_factor", part, "1.0")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind in ("default", "none"):
        return RopeSpec(base)
    if kind == "linear":
        return RopeSpec(base, factor=scaling.number("factor", 1.0))
    if kind == "llama3":
        old = fields.size("max_position_embeddings")
        return RopeSpec(base, divisors=_llama3_divisors(scaling, dim, base, old))
    raise scaling.unsupported("rope_type", kind, "default, linear, llama3")


def _llama3_divisors(scaling: Fields, dim: int, base: float, context: int) -> tuple[float, ...]:
    """Llama 3.1's scaling: long waves divided by `factor`, short ones kept, a ramp between them.

    As in transformers' `modeling_rope_utils._compute_llama3_parameters`.
    """
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    old = scaling.number("original_max_position_embeddings", context)
    if low >= high:
        raise scaling.fault("low_freq_factor", low, f"below high_freq_factor, {high}")
    divisors = []
    for j in range(dim // 2):
        wavelength = 2 * math.pi * power(base, 2 * j, dim)
        kept = min(max((old / wavelength - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def _check_activation(fields: Fields, activation: Activation) -> None:
    known = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}[activation]
    for name in ("hidden_act", "hidden_activation"):
        if (value := fields.text(name, known[0])) not in known:
            raise fields.unsupported(name, value, known[0])


def _split(canonical: str) -> tuple[str, str]:
    """Layer number, or nothing, and the name within it."""
    head, _, name = canonical.rpartition(".")
    return head.removeprefix("layers."), name

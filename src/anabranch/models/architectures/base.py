"""What families share: fields read with their ranges checked, weight names, rotary scaling.

Fields go by their Hugging Face names; `GGUF_FIELDS` says what GGUF calls them. Whatever a header
says that would change the computation and is not known here is refused, never ignored.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anabranch.backends.base import Activation
from anabranch.errors import FileFormatError, UnsupportedError
from anabranch.models.config import LayerSpec, ModelConfig, RopeSpec

T = TypeVar("T")

GGUF_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "value_dim": "attention.value_length",
    "rotary_dim": "rope.dimension_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Field by its Hugging Face name, to its key in GGUF metadata without the architecture's name.

`value_dim` and `rotary_dim` exist only there.
"""

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

_MOST = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 27,
}
"""Largest value believed, some four times the largest in use."""


class Fields:
    """One model's header fields, read by Hugging Face name, with type and range checked.

    A field that is absent or null takes the default; without one, it raises FileFormatError.
    """

    def __init__(
        self, path: Path, values: Mapping[str, Any], labels: Mapping[str, str] | None = None
    ) -> None:
        """Wrap a header.

        Args:
            path: the file, for messages.
            values: by Hugging Face name.
            labels: what the file itself calls a field, where it differs, for messages.
        """
        self.path, self._values, self._labels = path, values, labels or {}

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number, up to what `_MOST` believes."""
        value = self._get(name, default)
        most = _MOST.get(name, 1 << 31)
        if type(value) is not int or not least <= value <= most:
            raise self.fault(name, value, f"whole numbers from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self._get(name, default)
        if not _is_positive(value):
            raise self.fault(name, value, "finite numbers above 0")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of finite numbers above zero."""
        values = self._typed(name, None, list, "a list")
        if len(values) != count or not all(map(_is_positive, values)):
            raise self.fault(name, values, f"{count} finite numbers above 0")
        return tuple(map(float, values))

    def text(self, name: str, default: str) -> str:
        return self._typed(name, default, str, "a string")

    def flag(self, name: str, default: bool) -> bool:
        return self._typed(name, default, bool, "true or false")

    def group(self, *names: str) -> Fields:
        """The first of several nested objects that is there; empty if none is."""
        for name in names:
            if (value := self._typed(name, {}, dict, "an object")) != {}:
                return Fields(self.path, value, {key: f"{name}.{key}" for key in value})
        return Fields(self.path, {})

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty if absent."""
        values = self._typed(name, [], list, "a list")
        if not all(isinstance(value, str) for value in values):
            raise self.fault(name, values, "a list of strings")
        return values

    def absent(self, *names: str) -> None:
        """Raise UnsupportedError if any of these fields is set to more than nothing."""
        for name in names:
            value = self._get(name, 0)
            if not isinstance(value, (int, float)) or value != 0:
                raise self.unsupported(name, value)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def fault(self, name: str, value: object, allowed: str) -> FileFormatError:
        shown = reprlib.repr(value)
        return FileFormatError(self.path, f"{self._label(name)} is {shown} (allowed: {allowed})")

    def unsupported(self, name: str, value: object, allowed: str = "") -> UnsupportedError:
        what = f"{self._label(name)} is {reprlib.repr(value)}, which this version cannot run"
        return UnsupportedError(f"{self.path}: {what}", allowed=allowed)

    def _get(self, name: str, default: object) -> Any:
        value = self._values.get(name)
        if value is not None:
            return value
        if default is None:
            raise FileFormatError(self.path, f"{self._label(name)} is missing")
        return default

    def _typed(self, name: str, default: object, kind: type[T], allowed: str) -> T:
        value = self._get(name, default)
        if not isinstance(value, kind):
            raise self.fault(name, value, allowed)
        return value

    def _label(self, name: str) -> str:
        return self._labels.get(name, name)


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
    fields.absent("quantization_config", "attn_logit_softcapping", "final_logit_softcapping")
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
        wavelength = 2 * math.pi * base ** (2 * j / dim)
        kept = min(max((old / wavelength - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def _check_activation(fields: Fields, activation: Activation) -> None:
    known = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}[activation]
    for name in ("hidden_act", "hidden_activation"):
        if (value := fields.text(name, known[0])) not in known:
            raise fields.unsupported(name, value, known[0])


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30  # type: ignore[operator]


def _split(canonical: str) -> tuple[str, str]:
    """Layer number, or nothing, and the name within it."""
    head, _, name = canonical.rpartition(".")
    return head.removeprefix("layers."), name

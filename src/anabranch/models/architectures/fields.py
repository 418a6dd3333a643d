"""Header fields of a model file, read by one set of names with their types and ranges checked.

Fields go by their Hugging Face names; `GGUF_FIELDS` says what GGUF calls them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from anabranch.errors import FileFormatError, UnsupportedError

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
    "attention_scale": "attention.scale",
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "logit_scale": "logit_scale",
    "num_experts": "expert_count",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Field by its Hugging Face name, to its key in GGUF metadata without the architecture's name.

`value_dim`, `rotary_dim` and the scales exist only there.
"""

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
"""Largest value believed, several times the largest in use."""


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


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30  # type: ignore[operator]

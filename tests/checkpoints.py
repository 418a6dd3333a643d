"""Toy models written to disk as their makers' converters would: GGUF files and safetensors folders.

GGUF files are written with the `gguf` package and folders with `safetensors`, which share no code
with our readers.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

from anabranch.backends.base import F32, Quantized
from anabranch.errors import FileFormatError, UnsupportedError
from anabranch.models.architectures import ARCHITECTURES
from anabranch.models.architectures.base import Architecture
from anabranch.models.config import ModelConfig
from anabranch.models.files import open_model
from tests.toy import ToyFile

TYPES = gguf.GGMLQuantizationType

# The format of each kind of matrix in the GGUF files written here; the rest are Q4_0.
_STORED = {
    "embed": TYPES.Q8_0,
    "output": TYPES.F16,
    "v": TYPES.Q5_0,
    "o": TYPES.Q5_1,
    "down": TYPES.Q4_1,
    "up": TYPES.BF16,
}


def family_of(config: ModelConfig) -> Architecture:
    return next(family for family in ARCHITECTURES if family.gguf == config.architecture)


def dense(toy: ToyFile, name: str) -> F32:
    weight = toy.weight(name)
    return weight.dequantize() if isinstance(weight, Quantized) else weight


def write_gguf(path: Path, toy: ToyFile, **metadata: Any) -> dict[str, F32]:
    """Write a toy.

    Args:
        metadata: header values to change, by key with `__` for dots; None leaves one out.

    Returns:
        Each weight as the file holds it, dequantized, in canonical order of rows.
    """
    config, family = toy.config, family_of(toy.config)
    writer = gguf.GGUFWriter(path, config.architecture)
    header = _gguf_header(config) | {key.replace("__", "."): v for key, v in metadata.items()}
    for key, value in header.items():
        if value is not None:
            writer.add_key_value(key, value, _value_type(value), _element_type(value))
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(config.vocab)])
    expected = {}
    for name, shape in config.weight_shapes().items():
        kind = name.rpartition(".")[2]
        heads = {"q": config.heads, "k": config.kv_heads}.get(kind, 0)
        weight = dense(toy, name)
        if heads and family.interleaved:
            weight = _interleave(weight, heads)
        stored_as = _STORED.get(kind, TYPES.Q4_0) if len(shape) == 2 else TYPES.F32
        raw = quantize(weight, stored_as)
        writer.add_tensor(family.gguf_name(name), raw, raw_dtype=stored_as)
        weight = dequantize(raw, stored_as)
        expected[name] = _half_split(weight, heads) if heads and family.interleaved else weight
    if divisors := config.ropes[0].divisors:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def write_folder(folder: Path, toy: ToyFile, shards: int = 1, **changes: Any) -> dict[str, F32]:
    """Write a toy as `config.json` and float32 safetensors.

    Args:
        changes: values of `config.json` to change; None leaves one out.

    Returns:
        Each weight.
    """
    config, family = toy.config, family_of(toy.config)
    folder.mkdir(exist_ok=True)
    header = _hf_header(config) | changes
    kept = {key: value for key, value in header.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    weights = {name: dense(toy, name) for name in config.weight_shapes()}
    stored = {
        family.hf_name(name): weight - np.float32(family.norm_shift if "norm" in name else 0)
        for name, weight in weights.items()
    }
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return weights
    placed = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(stored)
    }
    for shard in set(placed.values()):
        save_file({name: stored[name] for name in stored if placed[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def _gguf_header(config: ModelConfig) -> dict[str, Any]:
    rope = config.ropes[-1]
    values: dict[str, Any] = {
        "embedding_length": config.hidden,
        "feed_forward_length": config.ffn,
        "block_count": len(config.layers),
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.dim,
        "attention.value_length": config.dim,
        "attention.layer_norm_rms_epsilon": config.eps,
        "context_length": config.context,
        "rope.freq_base": rope.base,
    }
    if rope.factor != 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.factor}
    if config.architecture == "gemma3":
        values["attention.sliding_window"] = config.layers[0].window
    return {"general.name": "Toy"} | {f"{config.architecture}.{k}": v for k, v in values.items()}


def _hf_header(config: ModelConfig) -> dict[str, Any]:
    model_type, writer = next(iter(family_of(config).hf.items()))
    rope = config.ropes[-1]
    header: dict[str, Any] = {
        "architectures": [writer],
        "model_type": model_type,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.dim,
        "rms_norm_eps": config.eps,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "rope_theta": rope.base,
        "rope_scaling": {"rope_type": "linear", "factor": rope.factor} if rope.factor > 1 else None,
        "tie_word_embeddings": config.tied,
    }
    if config.architecture == "gemma3":
        header["hidden_activation"] = "gelu_pytorch_tanh"
        header["sliding_window"] = config.layers[0].window
    return header


def _interleave(weight: F32, heads: int) -> F32:
    """Rotary pairs from (j, j + dim/2) to (2j, 2j + 1), as llama.cpp's converter permutes them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _half_split(weight: F32, heads: int) -> F32:
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _value_type(value: object) -> gguf.GGUFValueType:
    return gguf.GGUFValueType.get_type(value)


def _element_type(value: object) -> gguf.GGUFValueType | None:
    return gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None


def opens_or_says_why(path: Path, most: int = 20 << 20) -> None:
    """Open a model and read all of it. Only the two typed errors may come, naming its path.

    Args:
        most: bytes that Python and numpy may allocate at once.
    """
    said = str(path)
    tracemalloc.start()
    try:
        model = open_model(path)
        for name in model.config.weight_shapes():
            model.weight(name)
    except (FileFormatError, UnsupportedError) as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in said
    assert len(said) < 5000
    assert peak < most

"""Model files by path: one door for GGUF files and safetensors folders.

`open_model` reads headers only. Everything the decoder will ask for is known to be there, in the
right shape and in a format that can be read, before the first weight is touched.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from mmap import mmap
from os.path import isdir, isfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from anabranch.backends.base import Blocks, Weight
from anabranch.errors import FileFormatError, InputError, UnsupportedError
from anabranch.models.architectures import ARCHITECTURES
from anabranch.models.architectures.base import Architecture
from anabranch.models.architectures.fields import GGUF_FIELDS, Fields
from anabranch.models.config import ModelConfig
from anabranch.models.gguf import GgufFile, read_gguf
from anabranch.models.quants import FORMATS, float32, is_float, quantized, whole_blocks
from anabranch.models.safetensors import CONFIG, read_folder, read_json
from anabranch.models.tensors import Tensor, let_go, map_file

Dtype = Literal["quantized", "stored", "float32"]

_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class StoredModel:
    """A `ModelFile`: weights by canonical name, converted when asked for.

    Attributes:
        path: the GGUF file or the safetensors folder.
        name: what a GGUF file calls its model, or the stem of the path.
        config: its description.
        fingerprint: SHA-256 of headers, sizes and 64 blocks of 4 KiB per file, as hex.
        metadata: the GGUF header's values, or `config.json`.
        dtype: "quantized" gives matrices in the internal forms, "stored" as the file's blocks where
            their rows are whole ones, "float32" as numbers.
        tensors: by canonical name.
        files: what they lie in.
        interleaved: rows of q and k come as rotary neighbours, and are sorted apart.
        norm_shift: added to norm weights.
    """

    path: Path
    name: str
    config: ModelConfig
    fingerprint: str
    metadata: Mapping[str, object]
    dtype: Dtype
    tensors: Mapping[str, Tensor]
    files: Sequence[mmap]
    interleaved: bool = False
    norm_shift: float = 0.0

    @property
    def packed_bytes(self) -> int:
        """Estimated memory of all weights once loaded."""
        return sum(_packed_bytes(tensor, self.dtype) for tensor in self.tensors.values())

    def weight(self, name: str) -> Weight:
        """One weight by canonical name; vectors are always float32. Raises FileFormatError.

        What was read for earlier weights leaves memory.
        """
        for file in self.files:
            let_go(file)
        tensor, tail = self.tensors[name], name.rpartition(".")[2]
        if self.interleaved and tail in ("q", "k"):
            tensor = tensor.rows(_half_split(tensor.shape[0], self.config.dim))
        if self.dtype == "quantized" and len(tensor.shape) == 2:
            return quantized(tensor)
        if self.dtype == "stored" and len(tensor.shape) == 2 and whole_blocks(tensor):
            return Blocks(tensor.format, tensor.shape, tensor.data, tensor.mapped)
        values = float32(tensor)
        return values + np.float32(self.norm_shift) if tail.endswith("norm") else values


def open_model(path: Path, dtype: Dtype = "quantized") -> StoredModel:
    """Open a GGUF file, or a folder with `config.json` and safetensors, by what is there.

    Raises:
        InputError: no model at this path.
        FileFormatError: a file is truncated, corrupt, hostile or incomplete.
        UnsupportedError: a valid model that this version cannot run.
    """
    if isfile(path / CONFIG):
        return _open_folder(path, dtype)
    if isfile(path) and path.suffix != ".safetensors":
        return _open_gguf(path, dtype)
    failed, fix = "there is no model at this path", ""
    if isfile(path):
        failed, fix = "one safetensors file is not a model", "name the folder that holds it"
    elif isdir(path):
        files = sorted(file.name for file in path.glob("*.gguf"))
        failed = "this folder has no config.json"
        fix = f"name one of the files in it: {_some(files)}" if files else ""
    allowed = "a .gguf file, or a folder with config.json and model.safetensors"
    raise InputError(failed, got=str(path), allowed=allowed, fix=fix)


def _open_gguf(path: Path, dtype: Dtype) -> StoredModel:
    file = read_gguf(path)
    name = file.metadata.get("general.architecture")
    family = _family(path, name, {family.gguf: family for family in ARCHITECTURES})
    config = family.describe(_gguf_fields(file, family.gguf))
    stored = dict(file.tensors)
    if any(rope.divisors for rope in config.ropes):
        stored.pop(_FREQS, None)  # it is in the description now
    title = file.metadata.get("general.name")
    return StoredModel(
        path=path,
        name=title if isinstance(title, str) and title else path.stem,
        config=config,
        fingerprint=_fingerprint([(file.data, file.header_bytes)]),
        metadata=file.metadata,
        dtype=dtype,
        tensors=_bind(path, config, stored, family.gguf_name),
        files=[file.data],
        interleaved=family.interleaved,
    )


def _open_folder(folder: Path, dtype: Dtype) -> StoredModel:
    header, config_data = read_json(folder / CONFIG), map_file(folder / CONFIG)
    family = _hf_family(folder / CONFIG, header)
    files = read_folder(folder)
    stored: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if plain := family.without_prefix(name):
                stored[plain] = tensor
    values = {**family.defaults, "tie_word_embeddings": "lm_head.weight" not in stored, **header}
    if isinstance(text := header.get("text_config"), dict):
        values |= text
    config = family.describe(Fields(folder / CONFIG, values))
    if config.tied:
        stored.pop("lm_head.weight", None)
    parts = [(config_data, len(config_data)), *((file.data, file.header_bytes) for file in files)]
    return StoredModel(
        path=folder,
        name=folder.resolve().name,
        config=config,
        fingerprint=_fingerprint(parts),
        metadata=header,
        dtype=dtype,
        tensors=_bind(folder, config, stored, family.hf_name),
        files=[file.data for file in files],
        norm_shift=family.norm_shift,
    )


def _gguf_fields(file: GgufFile, name: str) -> Fields:
    """A GGUF header's values under their Hugging Face names."""
    metadata, tensors = file.metadata, file.tensors
    labels = {field: f"{name}.{key}" for field, key in GGUF_FIELDS.items()}
    values = {field: metadata.get(key) for field, key in labels.items()}
    factor = metadata.get(f"{name}.rope.scaling.factor", metadata.get(f"{name}.rope.scale_linear"))
    kind = metadata.get(f"{name}.rope.scaling.type", "none" if factor is None else "linear")
    values["rope_scaling"] = {"rope_type": kind, "factor": factor}
    values["tie_word_embeddings"] = "output.weight" not in tensors
    freqs = tensors.get(_FREQS)
    if freqs and is_float(freqs.format) and freqs.data.nbytes <= 1 << 12:
        values["rope_divisors"] = float32(freqs).ravel().tolist()
        labels["rope_divisors"] = _FREQS
    if embed := tensors.get("token_embd.weight"):
        values["vocab_size"] = embed.shape[0]
        tokens = metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and len(tokens) != embed.shape[0]:
            raise FileFormatError(
                file.path, f"{len(tokens)} tokens, but {embed.name} has {embed.shape[0]} rows"
            )
    return Fields(file.path, values, labels)


def _hf_family(path: Path, header: Mapping[str, object]) -> Architecture:
    """The family of a `config.json`, by `model_type`, if its class among `architectures` fits."""
    kind = header.get("model_type")
    family = _family(path, kind, {name: family for family in ARCHITECTURES for name in family.hf})
    writer = family.hf[str(kind)]
    classes = header.get("architectures", [writer])
    if not isinstance(classes, list) or writer not in classes:
        raise _unknown(path, classes, [writer])
    return family


def _family(path: Path, name: object, known: Mapping[str, Architecture]) -> Architecture:
    if not isinstance(name, str) or name not in known:
        raise _unknown(path, name, known)
    return known[name]


def _unknown(path: Path, name: object, known: Iterable[str]) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: this version does not run the architecture {reprlib.repr(name)}",
        allowed=", ".join(sorted(known)),
    )


def _bind(
    path: Path,
    config: ModelConfig,
    stored: Mapping[str, Tensor],
    stored_name: Callable[[str], str],
) -> dict[str, Tensor]:
    """Each weight of the description to its tensor: all there, none left over, all readable."""
    names = {canonical: stored_name(canonical) for canonical in config.weight_shapes()}
    if extra := sorted(stored.keys() - names.values()):
        raise UnsupportedError(
            f"{path}: {len(extra)} tensors are no part of {config.architecture} as this version "
            f"knows it: {_some(extra)}"
        )
    if missing := [name for name in names.values() if name not in stored]:
        raise FileFormatError(
            path, f"{len(missing)} of {len(names)} tensors are missing: {_some(missing)}"
        )
    shapes = config.weight_shapes()
    tensors = {canonical: stored[name] for canonical, name in names.items()}
    for canonical, tensor in tensors.items():
        _check_tensor(tensor, shapes[canonical])
    return tensors


def _check_tensor(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise FileFormatError(
            tensor.path,
            f"tensor {tensor.name!r} has shape {list(tensor.shape)}, expected {list(shape)}",
        )
    readable = is_float(tensor.format) if len(shape) == 1 else tensor.format in FORMATS
    if not readable:
        raise UnsupportedError(
            f"{tensor.path}: tensor {tensor.name!r} is stored as {tensor.format}",
            allowed="F32, F16, BF16" if len(shape) == 1 else ", ".join(FORMATS),
        )


def _packed_bytes(tensor: Tensor, dtype: Dtype) -> int:
    form, inputs = FORMATS[tensor.format], tensor.shape[-1]
    plain = dtype == "float32" or len(tensor.shape) == 1 or inputs % form.group
    return int(prod(tensor.shape) * (4 if plain else form.packed_bits / 8))


def _half_split(rows: int, dim: int) -> npt.NDArray[np.intp]:
    """Order that brings each head's rotary pairs from (2j, 2j + 1) to (j, j + dim/2)."""
    order = np.arange(rows).reshape(-1, dim // 2, 2).swapaxes(1, 2)
    return order.reshape(-1)


def _fingerprint(parts: Iterable[tuple[mmap, int]]) -> str:
    """Digest of files given as their bytes and the length of their headers."""
    digest = hashlib.sha256()
    for data, header_bytes in parts:
        digest.update(data[:header_bytes])
        digest.update(len(data).to_bytes(8, "little"))
        last = max(len(data) - 4096, 0)
        for i in range(64):
            at = i * last // 63
            digest.update(data[at : at + 4096])
    return digest.hexdigest()


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few of several names."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")

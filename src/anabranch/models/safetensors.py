"""Safetensors folders: `config.json`, and weights in one file or in shards with an index.

Format: https://github.com/huggingface/safetensors#format: 8 bytes of length, a JSON header, then
the tensors' bytes without gaps. Headers are JSON from strangers, so their size is capped before
they are parsed: 4 MiB, some twenty times what the largest dense models need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import mmap
from pathlib import Path

import numpy as np

from anabranch.errors import FileFormatError
from anabranch.models.tensors import Tensor, map_file

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_JSON_LIMIT = 4 << 20
_NAME_LIMIT = 1024
"""Most characters of a tensor's name."""

_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes per number. Only F32, F16 and BF16 can be weights; the rest may lie beside them."""


@dataclass(frozen=True)
class SafetensorsFile:
    """One file, its header parsed.

    Attributes:
        data: the whole file.
        header_bytes: where the tensors begin.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    data: mmap
    header_bytes: int


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises FileFormatError."""
    return _json_object(path, map_file(path), 0)


def read_folder(folder: Path) -> list[SafetensorsFile]:
    """Parse the headers of all of a folder's weight files.

    Raises:
        FileFormatError: a file is missing, truncated, corrupt or hostile, or disagrees with the
            index.
    """
    if (folder / SINGLE).is_file():
        return [read_safetensors(folder / SINGLE)]
    index = folder / INDEX
    if not index.is_file():
        raise FileFormatError(folder, f"has neither {SINGLE} nor {INDEX}")
    placed = _weight_map(index)
    missing = [name for name in sorted(set(placed.values())) if not (folder / name).is_file()]
    if missing:
        raise FileFormatError(index, f"{len(missing)} shards are missing: {', '.join(missing[:3])}")
    files = [read_safetensors(folder / name) for name in sorted(set(placed.values()))]
    found: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in found:
                raise FileFormatError(file.path, f"tensor {name!r} is also in {found[name]}")
            found[name] = file.path.name
    for name, shard in placed.items():
        if found.get(name) != shard:
            raise FileFormatError(index, f"tensor {name!r} is not in {shard}")
    return files


def read_safetensors(path: Path) -> SafetensorsFile:
    """Parse one file's header. Raises FileFormatError."""
    data = map_file(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise FileFormatError(path, f"header of {length} bytes in a file of {len(data)}")
    header = _json_object(path, data, 8, 8 + length)
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        shape, dtype, start, stop = _entry(path, name, entry)
        if not 0 <= start <= stop <= len(data) - 8 - length:
            raise FileFormatError(
                path, f"tensor {name!r} ends past the file's end: truncated or corrupt"
            )
        view = np.frombuffer(data, np.uint8, stop - start, 8 + length + start)
        tensors[name] = Tensor(path, name, shape, dtype, view, mapped=True)
        spans.append((start, stop, name))
    _check_tiling(path, spans, len(data) - 8 - length)
    return SafetensorsFile(path, tensors, data, 8 + length)


def _entry(path: Path, name: str, entry: object) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, dtype and byte range of a header entry, consistent with each other."""
    if len(name) > _NAME_LIMIT:
        raise FileFormatError(path, f"a tensor's name has {len(name)} characters")
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (
        fields.get("dtype"),
        _sizes(fields, "shape"),
        _sizes(fields, "data_offsets"),
    )
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise FileFormatError(path, f"tensor {name!r} has a malformed description")
    if dtype not in _BYTES:
        raise FileFormatError(path, f"tensor {name!r} has unknown dtype {dtype!r:.40}")
    start, stop = span
    if stop - start != prod(shape) * _BYTES[dtype]:
        raise FileFormatError(
            path, f"tensor {name!r}: {stop - start} bytes do not hold {dtype} {shape}"
        )
    return tuple(shape), dtype, start, stop


def _sizes(fields: Mapping[str, object], key: str) -> list[int] | None:
    """A list of a few whole numbers; None if it is anything else."""
    value = fields.get(key)
    if not isinstance(value, list) or len(value) > 8:
        return None
    return value if all(type(size) is int and 0 <= size < 1 << 48 for size in value) else None


def _check_tiling(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """Tensors fill the data without gap or overlap, as the format demands."""
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            what = "overlaps the one before it" if start < end else "follows a gap"
            raise FileFormatError(path, f"tensor {name!r} {what}")
        end = stop
    if end != size:
        raise FileFormatError(path, f"{size - end} bytes after the last tensor")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name; shards are plain names of files in the same folder."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise FileFormatError(index, "has no weight_map")
    for shard in placed.values():
        plain = isinstance(shard, str) and shard.endswith(".safetensors")
        if not plain or set(shard) & set("/\\:\0"):
            raise FileFormatError(
                index, f"names a shard {shard!r:.80} that is not a plain file name"
            )
    return placed


def _json_object(path: Path, data: mmap, start: int, stop: int | None = None) -> dict[str, object]:
    """The JSON object in `data[start:stop]`; no key may occur twice."""
    stop = len(data) if stop is None else stop
    if stop - start > _JSON_LIMIT:
        raise FileFormatError(
            path, f"JSON of {stop - start} bytes (allowed: {_JSON_LIMIT >> 20} MiB)"
        )
    try:
        value = json.loads(data[start:stop].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(path, "not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a key occurs twice")
    return unique

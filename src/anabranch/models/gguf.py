"""GGUF files, versions 2 and 3: header parsed and checked, tensors left in the mapped file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count, length and offset is
checked as a Python integer against the bytes that are left before anything is made of it, and the
header must end within 16 MiB (twice the largest vocabulary's), so a hostile file costs no more than
parsing that.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from mmap import mmap
from pathlib import Path
from reprlib import repr

import numpy as np

from anabranch.errors import FileFormatError, UnsupportedError
from anabranch.models.quants import FORMATS, byte_size
from anabranch.models.tensors import Tensor, map_file

MAGIC = b"GGUF"

_HEADER_LIMIT = 16 << 20
_ENTRY_LIMIT = 1 << 16
"""Most metadata entries, and most tensors."""

_NAME_LIMIT = 1024
"""Most bytes of a key or a tensor's name."""

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Value types that are numbers, as numpy names them."""

_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""Tensor types by number, so that one this version does not read is refused by its name."""

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GgufFile:
    """A parsed header.

    Attributes:
        metadata: numbers, strings, lists of strings, and read-only numpy arrays for lists of
            numbers.
        tensors: by name.
        data: the whole file.
        header_bytes: where the header ends.
    """

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    data: mmap
    header_bytes: int


def read_gguf(path: Path) -> GgufFile:
    """Parse a GGUF file's header.

    Raises:
        FileFormatError: it is truncated, corrupt or hostile.
        UnsupportedError: another version or byte order, a tensor type that is not read, or one
            piece of a split file.
    """
    data = map_file(path)
    cursor = _Cursor(path, data)
    tensor_count, entry_count = _preamble(cursor)
    metadata: dict[str, object] = {}
    for _ in range(entry_count):
        key = cursor.name("metadata key")
        if key in metadata:
            raise cursor.fault(f"metadata key {key!r} occurs twice")
        cursor.reading = f"metadata value {key!r}"
        metadata[key] = cursor.value()
    pieces = metadata.get("split.count")
    if isinstance(pieces, int) and pieces > 1:
        raise UnsupportedError(
            f"{path}: this is one of {pieces} pieces of a split model",
            fix="join them with llama-gguf-split --merge",
        )
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    header_bytes = cursor.at
    tensors = _place(cursor, infos, _alignment(cursor, metadata))
    return GgufFile(path, metadata, tensors, data, header_bytes)


class _Cursor:
    """Reads the header forwards, never past its end.

    Attributes:
        at: offset of the next byte.
        reading: what is being read, for messages.
    """

    def __init__(self, path: Path, data: mmap) -> None:
        self.path, self.data, self.at = path, data, 0
        self.end = min(len(data), _HEADER_LIMIT)
        self.reading = "the header"

    def fault(self, what: str) -> FileFormatError:
        return FileFormatError(self.path, what)

    def ended(self) -> FileFormatError:
        limit = f"the {_HEADER_LIMIT >> 20} MiB that a header may have"
        where = limit if self.end == _HEADER_LIMIT else f"a file of {self.end} bytes"
        return self.fault(f"{self.reading} goes beyond {where}: truncated or corrupt")

    def need(self, count: int) -> None:
        """Raise unless `count` bytes are left."""
        if count > self.end - self.at:
            raise self.ended()

    def number(self, kind: str) -> int | float | bool:
        """One number of a numpy type."""
        dtype = np.dtype(kind)
        self.need(dtype.itemsize)
        array = np.frombuffer(self.data, dtype, 1, self.at)
        self.at += dtype.itemsize
        if kind == "?":
            self._check_bools(array)
        number: int | float | bool = array[0].item()
        return number

    def count(self, kind: str) -> int:
        return int(self.number(kind))

    def name(self, what: str) -> str:
        """A key or a tensor's name."""
        self.reading = what
        self.need(8)
        (length,) = _LENGTH.unpack_from(self.data, self.at)
        if not 0 < length <= _NAME_LIMIT:
            raise self.fault(f"{what} of {length} bytes (allowed: 1 to {_NAME_LIMIT})")
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """`count` strings, each a length and its UTF-8."""
        self.need(8 * count)
        data, at, end, unpack = self.data, self.at, self.end, _LENGTH.unpack_from
        texts = []
        for _ in range(count):
            start = at + 8
            if start > end or (at := start + unpack(data, at)[0]) > end:
                raise self.ended()
            texts.append(data[start:at])
        self.at = at
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise self.fault(f"{self.reading} is not valid UTF-8") from error

    def value(self) -> object:
        """A typed metadata value."""
        kind = self.count("<u4")
        if kind == _STRING:
            return self.strings(1)[0]
        if kind == _ARRAY:
            return self._array()
        return self.number(self._number_type(kind))

    def _array(self) -> object:
        """Elements of one type. Arrays of arrays are refused: no writer makes them."""
        kind, count = self.count("<u4"), self.count("<u8")
        if kind == _STRING:
            return self.strings(count)
        if kind == _ARRAY:
            raise self.fault(f"{self.reading} is an array of arrays")
        dtype = np.dtype(self._number_type(kind))
        self.need(count * dtype.itemsize)
        array = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * dtype.itemsize
        if kind == _BOOL:
            self._check_bools(array)
        return array

    def _number_type(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise self.fault(f"{self.reading} has unknown type {kind}")
        return _NUMBERS[kind]

    def _check_bools(self, array: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        if (array.view(np.uint8) > 1).any():
            raise self.fault(f"{self.reading} has a bool that is neither 0 nor 1")


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    """Magic and version checked; how many tensors and metadata entries follow."""
    if cursor.data[:4] != MAGIC:
        raise cursor.fault(f"not a GGUF file: begins with {cursor.data[:4]!r}")
    cursor.at = 4
    version = cursor.count("<u4")
    if version not in (2, 3):
        big_endian = version in (2 << 24, 3 << 24)
        what = "big-endian" if big_endian else f"GGUF version {version}"
        raise UnsupportedError(f"{cursor.path}: {what}", allowed="versions 2 and 3, little-endian")
    counts = cursor.count("<u8"), cursor.count("<u8")
    for count, what in zip(counts, ("tensors", "metadata entries"), strict=True):
        if count > _ENTRY_LIMIT:
            raise cursor.fault(f"claims {count} {what} (allowed: up to {_ENTRY_LIMIT})")
    return counts


def _alignment(cursor: _Cursor, metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in [1 << i for i in range(3, 17)]:
        raise cursor.fault(
            f"general.alignment is {repr(alignment)} (allowed: powers of 2 from 8 to 65536)"
        )
    return alignment


@dataclass(frozen=True)
class _TensorInfo:
    """A tensor as the header describes it; `offset` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int


def _tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.name("tensor name")
    cursor.reading = f"the description of tensor {name!r}"
    rank = cursor.count("<u4")
    if not 1 <= rank <= 4:
        raise cursor.fault(f"tensor {name!r} has {rank} dimensions (allowed: 1 to 4)")
    # The file lists the fastest axis first.
    shape = tuple(reversed([cursor.count("<u8") for _ in range(rank)]))
    number, offset = cursor.count("<u4"), cursor.count("<u8")
    kind = _TYPES.get(number, f"type {number}")
    if kind not in FORMATS:
        raise UnsupportedError(
            f"{cursor.path}: tensor {name!r} is stored as {kind}", allowed=", ".join(FORMATS)
        )
    if 0 in shape or prod(shape) > 1 << 48:
        raise cursor.fault(f"tensor {name!r} has the impossible shape {list(shape)}")
    nbytes = byte_size(kind, shape)
    if nbytes is None:
        raise cursor.fault(f"tensor {name!r}: rows of {shape[-1]} are not whole {kind} blocks")
    return _TensorInfo(name, shape, kind, offset, nbytes)


def _place(cursor: _Cursor, infos: list[_TensorInfo], alignment: int) -> dict[str, Tensor]:
    """Check where tensors lie, and view them there."""
    base = -(-cursor.at // alignment) * alignment
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Tensor] = {}
    for info in infos:
        name, start = info.name, base + info.offset
        if name in tensors:
            raise cursor.fault(f"tensor {name!r} occurs twice")
        if info.offset % alignment:
            raise cursor.fault(f"tensor {name!r} is not aligned to {alignment} bytes")
        if start + info.nbytes > len(cursor.data):
            raise cursor.fault(
                f"tensor {name!r} ends at byte {start + info.nbytes}, the file at "
                f"{len(cursor.data)}: it is truncated or its header is corrupt"
            )
        data = np.frombuffer(cursor.data, np.uint8, info.nbytes, start)
        tensors[name] = Tensor(cursor.path, name, info.shape, info.format, data, mapped=True)
        spans.append((start, start + info.nbytes, name))
    spans.sort()
    for (_, stop, name), (start, _, following) in pairwise(spans):
        if start < stop:
            raise cursor.fault(f"tensors {name!r} and {following!r} overlap")
    return tensors

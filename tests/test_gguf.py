"""The GGUF reader: what the `gguf` package writes, and what nobody should.

Whatever bytes a file holds, it opens or raises one of two typed errors that name it, without
allocating more than a few times its size.
"""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import FileFormatError, UnsupportedError
from anabranch.models.files import open_model
from anabranch.models.gguf import read_gguf
from tests.checkpoints import opens_or_says_why, write_gguf
from tests.toy import toy

VALUES: dict[str, tuple[str, Any]] = {
    "a.u8": ("UINT8", 255),
    "a.i8": ("INT8", -128),
    "a.u16": ("UINT16", 65535),
    "a.i16": ("INT16", -32768),
    "a.u32": ("UINT32", 2**32 - 1),
    "a.i32": ("INT32", -(2**31)),
    "a.u64": ("UINT64", 2**64 - 1),
    "a.i64": ("INT64", -(2**63)),
    "a.f32": ("FLOAT32", 0.5),
    "a.f64": ("FLOAT64", 0.1),
    "a.yes": ("BOOL", True),
    "a.text": ("STRING", "naïve ☃"),
    "a.empty": ("STRING", ""),
}


def write(path: Path) -> dict[str, np.ndarray]:
    """A file with every type of value and a few tensors; the tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in VALUES.items():
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    writer.add_array("a.texts", ["", "a", "ß" * 100])
    writer.add_array("a.floats", [0.25, -1.5])
    writer.add_array("a.bools", [True, False])
    tensors = {
        "one": np.arange(5, dtype=np.float32),
        "two": np.arange(6, dtype=np.float16).reshape(3, 2),
        "four": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_the_gguf_package_writes(version: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = write(path)
    data = bytearray(path.read_bytes())
    data[4] = version
    path.write_bytes(data)
    file = read_gguf(path)
    for key, (_, value) in VALUES.items():
        assert file.metadata[key] == value
        assert type(file.metadata[key]) is type(value)
    assert file.metadata["a.texts"] == ["", "a", "ß" * 100]
    np.testing.assert_array_equal(file.metadata["a.floats"], [0.25, -1.5])
    np.testing.assert_array_equal(file.metadata["a.bools"], [True, False])
    assert file.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = file.tensors[name]
        assert read.shape == tensor.shape
        assert read.format == {"f": "F32", "e": "F16"}[tensor.dtype.char]
        assert read.data.tobytes() == tensor.tobytes()
        assert not read.data.flags.writeable


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def info(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def header(
    *entries: bytes,
    infos: tuple[bytes, ...] = (),
    version: int = 3,
    tensors: int | None = None,
    count: int | None = None,
) -> bytes:
    """A header; `tensors` and `count` say something else than the truth."""
    counts = (
        len(infos) if tensors is None else tensors,
        len(entries) if count is None else count,
    )
    return struct.pack("<4sIQQ", b"GGUF", version, *counts) + b"".join(entries + infos)


def padded(head: bytes, data: bytes = b"") -> bytes:
    return head + bytes(-len(head) % 32) + data


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


HUGE = 2**64 - 1
WORD = struct.pack("<I", 1)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "magic": (b"GGML" + bytes(100), "not a GGUF file: begins with b'GGML'"),
    "short": (b"GGUF\3\0\0\0", "the header goes beyond a file of 8 bytes"),
    "tensor count": (header(tensors=HUGE), "claims 18446744073709551615 tensors"),
    "entry count": (header(count=HUGE), "claims 18446744073709551615 metadata"),
    "entries missing": (header(count=3), "metadata key goes beyond"),
    "tensors missing": (header(tensors=3), "tensor name goes beyond"),
    "long key": (header(string(b"k")[:-1].replace(b"\1", b"\xff\xff")), "key of 65535 bytes"),
    "empty key": (header(entry(b"", 4, WORD)), "key of 0 bytes"),
    "key is not text": (header(entry(b"\xff", 4, WORD)), "metadata key is not valid UTF-8"),
    "key twice": (header(entry(b"k", 4, WORD), entry(b"k", 4, WORD)), "'k' occurs twice"),
    "value type": (header(entry(b"k", 13, WORD)), "'k' has unknown type 13"),
    "element type": (header(entry(b"k", 9, array(99, 1))), "'k' has unknown type 99"),
    "nested": (header(entry(b"k", 9, array(9, 1, array(9, 1)))), "'k' is an array of arrays"),
    "bool": (header(entry(b"k", 7, b"\2")), "'k' has a bool"),
    "bools": (header(entry(b"k", 9, array(7, 2, b"\1\2"))), "'k' has a bool"),
    "string length": (header(entry(b"k", 8, b"\xff" * 8)), "metadata value 'k' goes beyond"),
    "strings": (header(entry(b"k", 9, array(8, HUGE))), "metadata value 'k' goes beyond"),
    "strings end": (
        header(entry(b"k", 9, array(8, 2, bytes(8) + b"\5" + bytes(7)))),
        "goes beyond",
    ),
    "numbers": (header(entry(b"k", 9, array(12, HUGE))), "metadata value 'k' goes beyond"),
    "no dimension": (header(infos=(info(b"t", []),)), "'t' has 0 dimensions"),
    "five dimensions": (header(infos=(info(b"t", [1] * 5),)), "'t' has 5 dimensions"),
    "dimension 0": (header(infos=(info(b"t", [4, 0]),)), "'t' has the impossible shape"),
    "overflow": (header(infos=(info(b"t", [2**32, 2**32]),)), "'t' has the impossible shape"),
    "dimension": (header(infos=(info(b"t", [HUGE]),)), "'t' has the impossible shape"),
    "block": (header(infos=(info(b"t", [33], kind=2),)), "rows of 33 are not whole Q4_0"),
    "past the end": (padded(header(infos=(info(b"t", [9]),)), bytes(35)), "truncated"),
    "offset": (padded(header(infos=(info(b"t", [8], 0, HUGE - 31),)), bytes(32)), "truncated"),
    "unaligned": (padded(header(infos=(info(b"t", [8], 0, 8),)), bytes(64)), "not aligned"),
    "overlap": (
        padded(header(infos=(info(b"s", [9], 0, 0), info(b"t", [8], 0, 32))), bytes(64)),
        "'s' and 't' overlap",
    ),
    "name twice": (
        padded(header(infos=(info(b"t", [8], 0, 0), info(b"t", [8], 0, 32))), bytes(64)),
        "'t' occurs twice",
    ),
    **{
        f"alignment {value}": (
            header(entry(b"general.alignment", 4, struct.pack("<I", value))),
            f"general.alignment is {value} ",
        )
        for value in (0, 1, 33, 2**31)
    },
    "alignment of text": (header(entry(b"general.alignment", 8, string(b"32"))), "is '32' "),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str, tmp_path: Path) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(version=1), "GGUF version 1; allowed: versions 2 and 3"),
        (header(version=4), "GGUF version 4"),
        (header(version=3 << 24), "big-endian"),
        (header(infos=(info(b"t", [256], kind=10),)), "'t' is stored as Q2_K; allowed: F32"),
        (header(infos=(info(b"t", [256], kind=99),)), "'t' is stored as type 99"),
        (header(entry(b"split.count", 2, b"\3\0")), "one of 3 pieces"),
    ],
)
def test_what_this_version_does_not_read(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(padded(data))
    with pytest.raises(UnsupportedError) as caught:
        read_gguf(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_header_longer_than_any(tmp_path: Path) -> None:
    """A sparse file whose list of strings goes on: refused before it is read to its end."""
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(header(entry(b"k", 9, array(8, 1 << 21))))
        file.truncate(1 << 30)
    with pytest.raises(FileFormatError, match="16 MiB that a header may have"):
        read_gguf(path)


def test_directory_and_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileFormatError, match="cannot be read"):
            read_gguf(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "toy.gguf"
    write_gguf(path, toy("llama3"))
    return path


@settings(max_examples=60)
@given(data=st.data())
def test_fuzz_bits(whole: Path, data: st.DataObject) -> None:
    """Flipped bits, mostly in the header."""
    content = bytearray(whole.read_bytes())
    end = read_gguf(whole).header_bytes if data.draw(st.integers(0, 9)) else len(content)
    for at in data.draw(st.lists(st.integers(0, end * 8 - 1), min_size=1, max_size=4)):
        content[at // 8] ^= 1 << at % 8
    path = whole.with_name("bits.gguf")
    path.write_bytes(content)
    opens_or_says_why(path)


@given(data=st.data())
def test_fuzz_truncation(whole: Path, data: st.DataObject) -> None:
    content = whole.read_bytes()
    end = data.draw(st.sampled_from([read_gguf(whole).header_bytes, len(content)]))
    path = whole.with_name("cut.gguf")
    path.write_bytes(content[: data.draw(st.integers(0, end - 1))])
    with pytest.raises(FileFormatError):
        open_model(path)


@settings(max_examples=60)
@given(
    value=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    width=st.sampled_from([4, 8]),
    where=st.floats(0, 1),
)
def test_fuzz_counts(whole: Path, value: int, width: int, where: float) -> None:
    """A number written over any place of the header: counts, lengths, types, offsets."""
    content = bytearray(whole.read_bytes())
    at = int(where * (read_gguf(whole).header_bytes - width))
    content[at : at + width] = (value & (256**width - 1)).to_bytes(width, "little")
    path = whole.with_name("counts.gguf")
    path.write_bytes(content)
    opens_or_says_why(path)

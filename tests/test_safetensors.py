"""The safetensors reader: what the `safetensors` package writes, and what nobody should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from anabranch.errors import FileFormatError
from anabranch.models.files import open_model
from anabranch.models.safetensors import read_folder, read_json, read_safetensors
from tests.checkpoints import opens_or_says_why, write_folder
from tests.toy import toy

DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "?"}


@given(
    shapes=st.lists(
        st.tuples(
            st.sampled_from([*DTYPES]),
            st.lists(st.integers(0, 4), max_size=4),
            st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        ),
        max_size=6,
        unique_by=lambda tensor: tensor[2],
    ),
    seed=st.integers(0, 2**32),
)
def test_reads_what_the_safetensors_package_writes(
    shapes: list[tuple[str, list[int], str]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.integers(0, 2, shape).astype(DTYPES[dtype]) for dtype, shape, name in shapes
    }
    save_file(tensors, path, metadata={"format": "np"})
    read = read_safetensors(path).tensors
    assert read.keys() == tensors.keys()
    for dtype, shape, name in shapes:
        assert (read[name].format, read[name].shape) == (dtype, tuple(shape))
        assert read[name].data.tobytes() == tensors[name].tobytes()


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), span: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


WORDS = bytes(8)
MALFORMED = "'t' has a malformed description"

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"\1\0\0", "header of 1 bytes in a file of 3"),
    "length": (packed({}, length=2**64 - 1), "header of 18446744073709551615 bytes"),
    "not JSON": (packed(b"{"), "not valid JSON"),
    "not text": (packed(b'{"\xff": 1}'), "not valid JSON"),
    "not an object": (packed([1]), "not a JSON object"),
    "deep": (packed(b"[" * 1_000_000), "not valid JSON"),
    "long number": (packed(b'{"t": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "key twice": (packed(b'{"t": 1, "t": 1}'), "a key occurs twice"),
    "name": (packed({"n" * 2000: entry()}, WORDS), "name has 2000 characters"),
    "not a description": (packed({"t": 1}), MALFORMED),
    "no description": (packed({"t": {}}), MALFORMED),
    "dtype": (packed({"t": entry(dtype=1)}, WORDS), MALFORMED),
    "shape": (packed({"t": entry(shape="2")}, WORDS), MALFORMED),
    "shape of floats": (packed({"t": entry(shape=[2.0])}, WORDS), MALFORMED),
    "shape of flags": (packed({"t": entry(shape=[True])}, WORDS), MALFORMED),
    "negative shape": (packed({"t": entry(shape=[-2, -1])}, WORDS), MALFORMED),
    "huge shape": (packed({"t": entry(shape=[2**62, 4])}, WORDS), MALFORMED),
    "many axes": (packed({"t": entry(shape=[1] * 9)}, WORDS), MALFORMED),
    "one offset": (packed({"t": entry(span=[0])}, WORDS), MALFORMED),
    "negative offset": (packed({"t": entry(span=[-8, 0])}, WORDS), MALFORMED),
    "unknown dtype": (packed({"t": entry(dtype="F4")}, WORDS), "unknown dtype 'F4'"),
    "size": (packed({"t": entry(shape=[3])}, WORDS), "8 bytes do not hold F32 [3]"),
    "backwards": (packed({"t": entry(span=[8, 0])}, WORDS), "-8 bytes do not hold"),
    "outside": (packed({"t": entry(span=[8, 16])}, WORDS), "truncated or corrupt"),
    "overlap": (packed({"s": entry(), "t": entry(span=[4, 12])}, bytes(12)), "'t' overlaps"),
    "gap": (packed({"t": entry(span=[4, 12])}, bytes(12)), "'t' follows a gap"),
    "rest": (packed({"t": entry()}, bytes(12)), "4 bytes after the last tensor"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        read_safetensors(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_header_longer_than_any(tmp_path: Path) -> None:
    """Refused before it is parsed."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(1 << 31)
    with pytest.raises(FileFormatError, match=r"JSON of 1073741824 bytes \(allowed: 4 MiB\)"):
        read_safetensors(path)


def index_of(folder: Path) -> dict[str, str]:
    placed: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    return placed


def write_index(folder: Path, placed: object) -> None:
    text = json.dumps({"weight_map": placed})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards(tmp_path: Path) -> None:
    write_folder(tmp_path, toy("llama"), shards=3)
    files = read_folder(tmp_path)
    assert len(files) == 3
    placed = {name: file.path.name for file in files for name in file.tensors}
    assert placed == index_of(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors", "x", "", 1, {}],
)
def test_shards_elsewhere_are_refused(shard: object, tmp_path: Path) -> None:
    write_folder(tmp_path, toy("llama"), shards=2)
    write_index(tmp_path, index_of(tmp_path) | {"more": shard})
    with pytest.raises(FileFormatError, match="not a plain file name"):
        read_folder(tmp_path)


def test_shards_and_index_that_disagree(tmp_path: Path) -> None:
    write_folder(tmp_path, toy("llama"), shards=2)
    placed, (first, second) = index_of(tmp_path), sorted(set(index_of(tmp_path).values()))

    def refused(message: str, placed: object) -> None:
        write_index(tmp_path, placed)
        with pytest.raises(FileFormatError, match=message):
            read_folder(tmp_path)

    refused("no weight_map", {})
    refused("no weight_map", [1])
    refused(
        "2 shards are missing: x.safetensors", placed | {"a": "x.safetensors", "b": "y.safetensors"}
    )
    name = next(name for name, shard in placed.items() if shard == first)
    refused(f"'{name}' is not in {second}", placed | {name: second})
    refused(f"'more' is not in {first}", placed | {"more": first})
    shutil.copy(tmp_path / first, tmp_path / second)
    refused(f"is also in {first}", placed)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"neither model\.safetensors nor"):
        read_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000])
def test_config_that_is_no_object(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"config\.json"):
        read_json(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "toy"
    write_folder(folder, toy("gemma3"))
    return folder


def spoiled(whole: Path, name: str, content: bytes) -> Path:
    """A copy of the folder with one file's content replaced."""
    folder = whole.with_name("spoiled")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


@settings(max_examples=80)
@given(data=st.data(), name=st.sampled_from(["config.json", "model.safetensors"]))
def test_fuzz_bits(whole: Path, data: st.DataObject, name: str) -> None:
    content = bytearray((whole / name).read_bytes())
    end = min(len(content), read_safetensors(whole / "model.safetensors").header_bytes)
    for at in data.draw(st.lists(st.integers(0, end * 8 - 1), min_size=1, max_size=3)):
        content[at // 8] ^= 1 << at % 8
    opens_or_says_why(spoiled(whole, name, bytes(content)))


@settings(max_examples=80)
@given(data=st.data())
def test_fuzz_headers_as_the_original_judges(whole: Path, data: st.DataObject) -> None:
    """Bytes of the header replaced by others of JSON: what the original refuses, so do we."""
    content = bytearray((whole / "model.safetensors").read_bytes())
    end = read_safetensors(whole / "model.safetensors").header_bytes
    for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=3)):
        content[at] = data.draw(st.sampled_from(b'0123456789[]{},:"-eF'))
    folder = spoiled(whole, "model.safetensors", bytes(content))
    opens_or_says_why(folder)
    path = folder / "model.safetensors"
    try:
        with safe_open(path, "np"):
            return
    except SafetensorError:
        pass
    with pytest.raises(FileFormatError):
        read_safetensors(path)


@settings(max_examples=30)
@given(data=st.data())
def test_fuzz_truncation(whole: Path, data: st.DataObject) -> None:
    content = (whole / "model.safetensors").read_bytes()
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(FileFormatError):
        open_model(spoiled(whole, "model.safetensors", cut))

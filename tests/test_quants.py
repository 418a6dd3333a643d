"""Weight formats against the `gguf` package's dequantization, exactly, and the rounding of floats.

Equality is exact because both sides multiply and add the same float32 numbers in the same order;
only the sign of a zero may differ (Q4_0 is q * scale - 8 * scale here).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from anabranch.backends.base import F32, U8, Blocks, Quantized, Weight
from anabranch.backends.native import NativeBackend
from anabranch.backends.reference import ReferenceBackend
from anabranch.errors import FileFormatError
from anabranch.models import quants
from anabranch.models.quants import FORMATS
from anabranch.models.tensors import Tensor

FLOATS = ("F32", "F16", "BF16")
BLOCKS = [name for name in FORMATS if name not in FLOATS]


def tensor(name: str, raw: U8, shape: tuple[int, ...]) -> Tensor:
    return Tensor(Path("model.gguf"), "blk.0.attn_q.weight", shape, name, raw)


def random_blocks(name: str, rng: np.random.Generator, rows: int, blocks: int) -> Tensor:
    """Random bytes in every field but the factors, which are finite half floats of any size."""
    record = FORMATS[name].record
    raw = rng.integers(0, 256, rows * blocks * record.itemsize, np.uint8)
    records = raw.view(record)
    for field in {"d", "dmin", "m"} & set(record.names or ()):
        bits = rng.integers(0, 1 << 16, len(records), np.uint16)
        factors = bits.view(np.float16)
        records[field] = np.where(np.isfinite(factors), factors, np.float16(0.5))
    return tensor(name, raw, (rows, blocks * FORMATS[name].block))


def floats(name: str, values: F32) -> Tensor:
    """Values stored as one of the float formats, rounded towards zero for BF16."""
    if name == "BF16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype(np.float16 if name == "F16" else np.float32)
    return tensor(name, stored.reshape(-1).view(np.uint8), values.shape)


@pytest.mark.parametrize("name", BLOCKS)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), blocks=st.integers(1, 4))
def test_blocks_mean_what_ggml_says(name: str, seed: int, rows: int, blocks: int) -> None:
    stored = random_blocks(name, np.random.default_rng(seed), rows, blocks)
    weight = quants.quantized(stored)
    assert isinstance(weight, Quantized)
    expected = dequantize(stored.data.reshape(rows, -1), GGMLQuantizationType[name])
    np.testing.assert_array_equal(weight.dequantize(), expected)
    np.testing.assert_array_equal(quants.float32(stored), expected)
    assert weight.q.dtype == (np.uint8 if weight.bits == 4 else np.int8)
    assert weight.bits == 8 or weight.q.max() <= 15


@pytest.mark.parametrize(
    ("name", "bits", "group", "has_offset"),
    [
        ("Q4_0", 4, 32, True),
        ("Q4_1", 4, 32, True),
        ("Q4_K", 4, 32, True),
        ("Q5_0", 8, 32, False),
        ("Q8_0", 8, 32, False),
        ("Q5_1", 8, 32, True),
        ("Q5_K", 8, 32, True),
        ("Q6_K", 8, 16, False),
    ],
)
def test_internal_forms(name: str, bits: int, group: int, has_offset: bool) -> None:
    stored = random_blocks(name, np.random.default_rng(0), 3, 2)
    weight = quants.quantized(stored)
    assert isinstance(weight, Quantized)
    assert (weight.bits, weight.group, weight.offset is not None) == (bits, group, has_offset)
    assert weight.shape == stored.shape
    assert weight.scale.shape == (3, stored.shape[1] // group)
    assert weight.scale.dtype == np.float32


@pytest.mark.parametrize("name", FORMATS)
def test_more_blocks_than_are_spread_at_once(name: str) -> None:
    """Cut into pieces, the same as each row alone."""
    rng, inputs = np.random.default_rng(1), 1 << 10
    rows = 2 * quants._AT_ONCE // inputs + 3
    if name in FLOATS:
        stored = floats(name, rng.normal(size=(rows, inputs)).astype(np.float32))
    else:
        stored = random_blocks(name, rng, rows, inputs // FORMATS[name].block)
    whole = quants.quantized(stored)
    assert isinstance(whole, Quantized)
    raw = stored.data.reshape(rows, -1)
    for row in (0, rows // 2 - 1, rows // 2, rows - 1):
        alone = quants.quantized(tensor(name, raw[row], (1, inputs)))
        assert isinstance(alone, Quantized)
        np.testing.assert_array_equal(whole.q[row], alone.q[0])
        np.testing.assert_array_equal(whole.scale[row], alone.scale[0])
        if whole.offset is not None and alone.offset is not None:
            np.testing.assert_array_equal(whole.offset[row], alone.offset[0])


@pytest.mark.parametrize("name", BLOCKS)
def test_sizes_are_ggmls(name: str) -> None:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert (FORMATS[name].block, FORMATS[name].record.itemsize) == (block, size)
    assert quants.byte_size(name, (7, 3 * block)) == 7 * 3 * size
    assert quants.byte_size(name, (7, 3 * block + 1)) is None


def test_sizes_of_floats() -> None:
    assert [quants.byte_size(name, (7, 5)) for name in FLOATS] == [140, 70, 70]
    assert [quants.byte_size(name, (5,)) for name in FLOATS] == [20, 10, 10]


@pytest.mark.parametrize("name", FLOATS)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 4), inputs=st.integers(1, 70))
def test_floats_are_read_exactly(name: str, seed: int, rows: int, inputs: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, inputs)).astype(np.float32)
    stored = floats(name, values)
    expected = {
        "F32": values,
        "F16": values.astype(np.float16).astype(np.float32),
        "BF16": (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
    }[name]
    np.testing.assert_array_equal(quants.float32(stored), expected)
    weight = quants.quantized(stored)
    if inputs % 32:  # padding a group is for the backend
        np.testing.assert_array_equal(weight, expected)
    else:
        assert isinstance(weight, Quantized)
        same = quants.quantize_w8(expected)
        np.testing.assert_array_equal(weight.q, same.q)
        np.testing.assert_array_equal(weight.scale, same.scale)


@given(
    seed=st.integers(0, 2**32),
    exponent=st.integers(-44, 36),
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
)
def test_rounding_to_w8(seed: int, exponent: int, rows: int, groups: int) -> None:
    """Each weight is within half a step, the largest of a group is ±127 steps."""
    values = np.random.default_rng(seed).normal(size=(rows, 32 * groups)) * 10.0**exponent
    matrix = values.astype(np.float32)
    weight = quants.quantize_w8(matrix)
    assert (weight.bits, weight.group, weight.offset) == (8, 32, None)
    assert weight.q.min() >= -127
    # float32 rounds the scale and the product: a few units in the last place, or of subnormals.
    half_step = np.repeat(weight.scale, 32, axis=1) * 0.5001 + 127 * 1.5e-45
    assert (abs(weight.dequantize() - matrix) <= half_step).all()
    if exponent > -36:
        assert (abs(weight.q.reshape(-1, 32)).max(axis=1) == 127).all()


def test_rounding_ties_and_zeros() -> None:
    matrix = np.zeros((2, 32), np.float32)
    matrix[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    weight = quants.quantize_w8(matrix)
    assert weight.q[0, :6].tolist() == [127, 0, 2, 2, 0, -2]
    assert weight.scale.tolist() == [[1.0], [0.0]]
    assert not weight.q[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    if name in FLOATS:
        values = np.zeros((2, 64), np.float32)
        values[1, 40] = bad
        spoiled = [floats(name, values), floats(name, values[:, 30:])]
    else:
        spoiled = []
        for field in {"d", "dmin", "m"} & set(FORMATS[name].record.names or ()):
            stored = random_blocks(name, np.random.default_rng(0), 2, 2)
            stored.data.view(FORMATS[name].record)[field][3] = bad
            spoiled.append(stored)
    for stored in spoiled:
        for read in (quants.quantized, quants.float32):
            with pytest.raises(FileFormatError, match=r"blk\.0\.attn_q\.weight.*not finite"):
                read(stored)


NATIVE = NativeBackend(2)


def native_rows(weight: Weight) -> F32:
    """What the native backend packed, dequantized."""
    packed = NATIVE.pack([weight])
    out = np.empty((packed.outputs, packed.inputs), np.float32)
    NATIVE.embed(packed, np.arange(packed.outputs, dtype=np.int32), 1.0, out)
    return out


def blocks(stored: Tensor) -> Blocks:
    outputs, inputs = stored.shape
    return Blocks(stored.format, (outputs, inputs), stored.data)


@pytest.mark.parametrize("name", FORMATS)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 40),
    count=st.integers(1, 4),
    exponent=st.integers(-44, 4),
)
def test_native_reads_blocks_alike(
    name: str, seed: int, rows: int, count: int, exponent: int
) -> None:
    """Spread in C++ or here, the same bits in as many bytes."""
    rng = np.random.default_rng(seed)
    if name in FLOATS:
        values = rng.normal(size=(rows, 32 * count)) * 10.0**exponent
        values[rng.random(values.shape) < 0.1] = 0
        values[0, :32] = np.arange(32) / 2 + 48  # ties, of a scale of 1/2
        values[0, 31] = 63.5
        stored = floats(name, values.astype(np.float32))
    else:
        stored = random_blocks(name, rng, rows, count)
    same = quants.quantized(stored)
    np.testing.assert_array_equal(
        native_rows(blocks(stored)).view(np.int32), native_rows(same).view(np.int32)
    )
    if name not in FLOATS:
        np.testing.assert_array_equal(native_rows(blocks(stored)), quants.float32(stored))
    assert NATIVE.pack([blocks(stored)]).nbytes == NATIVE.pack([same]).nbytes


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_native_refuses_what_is_not_finite(name: str, bad: float) -> None:
    if name in FLOATS:
        values = np.zeros((2, 64), np.float32)
        values[1, 40] = bad
        spoiled = [floats(name, values)]
    else:
        spoiled = []
        for field in {"d", "dmin", "m"} & set(FORMATS[name].record.names or ()):
            stored = random_blocks(name, np.random.default_rng(0), 2, 2)
            records = stored.data.view(FORMATS[name].record)
            if "scales" in (FORMATS[name].record.names or ()):
                records["scales"] = 1  # infinity times zero is refused too, as NaN
            records[field][3] = bad
            spoiled.append(stored)
    for stored in spoiled:
        with pytest.raises(ValueError, match="not finite"):
            NATIVE.pack([blocks(stored)])


BAD_BLOCKS = {
    "unknown format": Blocks("Q9_0", (2, 32), np.zeros(68, np.uint8)),
    "ragged": Blocks("Q8_0", (2, 33), np.zeros(68, np.uint8)),
    "too short": Blocks("Q8_0", (2, 32), np.zeros(67, np.uint8)),
    "too long": Blocks("Q8_0", (2, 32), np.zeros(69, np.uint8)),
    "nothing": Blocks("Q8_0", (0, 32), np.zeros(0, np.uint8)),
    "negative": Blocks("Q8_0", (-2, -32), np.zeros(68, np.uint8)),
    "overflow": Blocks("Q8_0", (1 << 62, 1 << 62), np.zeros(68, np.uint8)),
}


@pytest.mark.parametrize("given_blocks", BAD_BLOCKS.values(), ids=BAD_BLOCKS)
def test_native_refuses_blocks_that_do_not_fit(given_blocks: Blocks) -> None:
    with pytest.raises(ValueError, match="got"):
        NATIVE.pack([given_blocks])


def test_the_reference_says_how_to_open_a_file_for_it() -> None:
    with pytest.raises(ValueError, match="open it as float32"):
        ReferenceBackend().pack([Blocks("Q8_0", (1, 32), np.zeros(34, np.uint8))])


@pytest.mark.parametrize("name", BLOCKS)
def test_reordered_rows(name: str) -> None:
    """Exact in the integer form."""
    stored = random_blocks(name, np.random.default_rng(2), 6, 2)
    order = np.array([3, 1, 5, 0, 2, 4])
    before, after = quants.quantized(stored), quants.quantized(stored.rows(order))
    assert isinstance(before, Quantized)
    assert isinstance(after, Quantized)
    np.testing.assert_array_equal(after.q, before.q[order])
    np.testing.assert_array_equal(after.scale, before.scale[order])

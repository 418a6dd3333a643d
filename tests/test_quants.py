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

from anabranch.backends.base import F32, U8, Quantized
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

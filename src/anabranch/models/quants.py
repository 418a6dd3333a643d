"""Weight formats of model files: raw blocks to integers and scales, exactly as the file has them.

Block layouts are those of ggml (`ggml-common.h`, https://github.com/ggml-org/ggml). Each is given
as the record it is in memory and a function that spreads many such records at once. This is the
definition; `native/blocks.cpp` does the same, to the bit, for the native backend.

    file          internal form            q * scale + offset
    Q4_0          W4, groups of 32         offset = -8 * scale
    Q4_1, Q4_K    W4, groups of 32         offset from the file
    Q5_0, Q8_0    W8, groups of 32         no offset
    Q5_1, Q5_K    W8, groups of 32         offset from the file
    Q6_K          W8, groups of 16         no offset
    F32 F16 BF16  W8, groups of 32         no offset; rounded here: scale = max |x| / 127
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from anabranch.backends.base import F32, I8, U8, Quantized, Weight
from anabranch.errors import FileFormatError
from anabranch.models.tensors import Tensor

Blocks = npt.NDArray[Any]
"""`[blocks]` records of one format."""

Out = npt.NDArray[Any]
"""`[blocks, groups, ...]` to be written."""

_AT_ONCE = 1 << 18
"""Weights spread at once: few enough for temporaries to stay in the processor's cache."""


@dataclass(frozen=True)
class Format:
    """How one format's blocks are stored and what they become.

    Attributes:
        block: weights per block.
        record: a block in memory.
        unpack: writes `q[blocks, block]`, `scale[blocks, groups]` and, unless it is None, `offset`.
        packed_bits: of a weight as the native backend packs it, factors included.
        bits, group, has_offset: the internal form, as in `Quantized`.
    """

    block: int
    record: np.dtype[Any]
    unpack: Callable[[Blocks, Out, Out, Out], None]
    packed_bits: float
    bits: Literal[4, 8] = 8
    group: Literal[16, 32] = 32
    has_offset: bool = False


def is_float(name: str) -> bool:
    """Whether a format stores plain numbers, which vectors must be."""
    return name in _TO_FLOAT


def whole_blocks(tensor: Tensor) -> bool:
    """Whether a matrix's rows are whole blocks, also of the 32 that floats are rounded in."""
    return tensor.shape[-1] % FORMATS[tensor.format].block == 0


def byte_size(name: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor of a known format; None if its rows are not whole blocks."""
    if is_float(name):
        block, size = 1, np.dtype(_TO_FLOAT[name]).itemsize
    else:
        block, size = FORMATS[name].block, FORMATS[name].record.itemsize
    if shape[-1] % block:
        return None
    count = shape[-1] // block * size
    for length in shape[:-1]:
        count *= length
    return count


def quantized(tensor: Tensor) -> Weight:
    """A matrix in its internal form, W4 or W8.

    A float matrix whose inputs are not a multiple of 32 stays float32: padding a group belongs to
    the backend that packs it. Raises FileFormatError if a scale or weight is not finite.
    """
    form = FORMATS[tensor.format]
    outputs, inputs = tensor.shape
    if inputs % form.block:
        return float32(tensor)
    blocks = tensor.data.view(form.record)
    q: U8 | I8 = np.empty((len(blocks), form.block), np.int8)
    if form.bits == 4:
        q = q.view(np.uint8)
    scale = np.empty((len(blocks), form.block // form.group), np.float32)
    offset = np.empty_like(scale if form.has_offset else scale[:0])
    step = _AT_ONCE // form.block
    with np.errstate(all="ignore"):  # what is not finite is found below
        for i in range(0, len(blocks), step):
            part = slice(i, i + step)
            form.unpack(blocks[part], q[part], scale[part], offset[part])
    _check_finite(tensor, scale, offset)
    groups = inputs // form.group
    return Quantized(
        q.reshape(outputs, inputs),
        scale.reshape(outputs, groups),
        offset.reshape(outputs, groups) if form.has_offset else None,
        form.bits,
        form.group,
    )


def float32(tensor: Tensor) -> F32:
    """Any tensor as float32, exactly what the file's bytes stand for.

    Raises FileFormatError if a scale or weight is not finite.
    """
    if not is_float(tensor.format):
        weight = quantized(tensor)
        assert isinstance(weight, Quantized), "only float formats stay float32"
        return weight.dequantize()
    with np.errstate(all="ignore"):
        values = _numbers(tensor.data.view(_TO_FLOAT[tensor.format]))
    _check_finite(tensor, values)
    return values.reshape(tensor.shape)


def quantize_w8(matrix: F32) -> Quantized:
    """Round a float32 matrix to W8 in groups of 32: scale = max |x| / 127, nearest even.

    Args:
        matrix: `[outputs, inputs]`, finite, inputs a multiple of 32.
    """
    outputs, inputs = matrix.shape
    q = np.empty((outputs, inputs), np.int8)
    scale = np.empty((outputs, inputs // 32), np.float32)
    _round_w8(matrix.reshape(-1, 32), q.reshape(-1, 32), scale.reshape(-1, 1))
    return Quantized(q, scale, None, 8, 32)


def _check_finite(tensor: Tensor, *arrays: F32) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise FileFormatError(tensor.path, f"tensor {tensor.name!r} has values that are not finite")


def _round_w8(x: F32, q: Out, scale: Out) -> None:
    scale[:] = np.abs(x).max(1, keepdims=True) / np.float32(127)
    # A group of zeros, or so small that its scale is zero, is divided by 1 instead.
    levels = np.rint(x / np.where(scale == 0, np.float32(1), scale))
    # Only a subnormal scale, itself coarsely rounded, can lead past 127.
    q[:] = np.clip(levels, -127, 127, out=levels)


def _numbers(stored: npt.NDArray[Any]) -> F32:
    """float32 of stored numbers; 16-bit integers are bfloat16, the upper half of a float32."""
    if stored.dtype.kind == "u":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def _float_blocks(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _round_w8(_numbers(b["x"]), q, scale)


def _column(half: Blocks) -> F32:
    return half.astype(np.float32)[:, None]


def _nibbles(packed: Blocks, q: Out) -> None:
    """Low half bytes of each run of `packed[blocks, runs, n]`, then its high ones.

    Args:
        q: uint8 `[blocks, runs * 2 * n]`.
    """
    halves = q.reshape(len(q), packed.shape[1], 2, packed.shape[2])
    np.bitwise_and(packed, 15, out=halves[:, :, 0])
    np.right_shift(packed, 4, out=halves[:, :, 1])


def _q4_0(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _nibbles(b["qs"][:, None], q)
    scale[:] = _column(b["d"])
    np.multiply(scale, -8, out=offset)


def _q4_1(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _nibbles(b["qs"][:, None], q)
    scale[:], offset[:] = _column(b["d"]), _column(b["m"])


def _five_bits(b: Blocks, q: Out) -> None:
    """Weights 0 to 31 of each block: half bytes, and bit j of `qh` as the fifth of weight j."""
    _nibbles(b["qs"][:, None], q.view(np.uint8))
    fifth = np.unpackbits(np.ascontiguousarray(b["qh"]), axis=1, bitorder="little")
    q |= (fifth << 4).view(np.int8)


def _q5_0(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _five_bits(b, q)
    q -= 16
    scale[:] = _column(b["d"])


def _q5_1(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _five_bits(b, q)
    scale[:], offset[:] = _column(b["d"]), _column(b["m"])


def _q8_0(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    q[:], scale[:] = b["qs"], _column(b["d"])


def _six_bit_scales(b: Blocks, scale: Out, offset: Out) -> None:
    """Eight scales and eight minima of 6 bits in 12 bytes, times the block's two factors.

    Bytes 0-3: the first four scales, below two upper bits of the last four. Bytes 4-7: the minima
    likewise. Bytes 8-11: lower four bits of the last four, scales below minima.
    """
    first, second, third = np.split(b["scales"], 3, axis=1)
    low, high = third & 15, third >> 4
    scales = np.concatenate([first & 63, low | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, high | (second >> 6 << 4)], axis=1)
    np.multiply(_column(b["d"]), scales, out=scale)
    np.multiply(-_column(b["dmin"]), minima, out=offset)


def _q4_k(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _nibbles(b["qs"].reshape(-1, 4, 32), q)
    _six_bit_scales(b, scale, offset)


def _q5_k(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _nibbles(b["qs"].reshape(-1, 4, 32), q.view(np.uint8))
    groups, qh = q.reshape(-1, 8, 32), np.ascontiguousarray(b["qh"])
    for j in range(8):  # bit j of byte i belongs to weight i of group j
        groups[:, j] |= ((qh >> j & 1) << 4).view(np.int8)
    _six_bit_scales(b, scale, offset)


def _q6_k(b: Blocks, q: Out, scale: Out, offset: Out) -> None:
    _nibbles(b["ql"].reshape(-1, 2, 64), q.view(np.uint8))
    quarters = q.reshape(-1, 2, 4, 32)
    qh = np.ascontiguousarray(b["qh"]).reshape(-1, 2, 32)
    for j in range(4):  # bits 2j and 2j+1 of byte i belong to weight i of quarter j
        quarters[:, :, j] |= ((qh >> 2 * j & 3) << 4).view(np.int8)
    q -= 32
    np.multiply(_column(b["d"]), b["scales"], out=scale)


def _record(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_D, _M, _DMIN = ("d", "<f2"), ("m", "<f2"), ("dmin", "<f2")
_SCALES = ("scales", "u1", 12)

FORMATS: dict[str, Format] = {
    "F32": Format(32, _record(("x", "<f4", 32)), _float_blocks, 9),
    "F16": Format(32, _record(("x", "<f2", 32)), _float_blocks, 9),
    "BF16": Format(32, _record(("x", "<u2", 32)), _float_blocks, 9),
    "Q4_0": Format(32, _record(_D, ("qs", "u1", 16)), _q4_0, 4.5, bits=4, has_offset=True),
    "Q4_1": Format(32, _record(_D, _M, ("qs", "u1", 16)), _q4_1, 5, bits=4, has_offset=True),
    "Q5_0": Format(32, _record(_D, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0, 5.5),
    "Q5_1": Format(
        32, _record(_D, _M, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_1, 6, has_offset=True
    ),
    "Q8_0": Format(32, _record(_D, ("qs", "i1", 32)), _q8_0, 8.5),
    "Q4_K": Format(
        256, _record(_D, _DMIN, _SCALES, ("qs", "u1", 128)), _q4_k, 6, bits=4, has_offset=True
    ),
    "Q5_K": Format(
        256,
        _record(_D, _DMIN, _SCALES, ("qh", "u1", 32), ("qs", "u1", 128)),
        _q5_k,
        7,
        has_offset=True,
    ),
    "Q6_K": Format(
        256,
        _record(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D),
        _q6_k,
        8,
        group=16,
    ),
}
"""Every format that can be read, by ggml's name for it."""

_TO_FLOAT = {name: FORMATS[name].record["x"].base for name in ("F32", "F16", "BF16")}

"""The living definition of every backend operation: plain numpy, one idea per line, no speed.

Weights are dequantized to float32 when packed and activations are never quantized, so what other
backends lose shows as a difference from this one. Draws are decided in float64. Arguments are
checked as the native backend checks them; a wrong shape or range raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from anabranch.backends.base import (
    F32,
    I32,
    PAGE_SLOTS,
    Activation,
    Batch,
    Blocks,
    Cache,
    CacheShape,
    Drawn,
    Draws,
    Layer,
    Linear,
    Norm,
    Plan,
    Quantized,
    Rope,
    Stack,
    Weight,
    run_layers,
)
from anabranch.backends.philox import philox

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]
T = TypeVar("T")


class DenseLinear:
    """A stack of matrices as one float32 matrix `[outputs, inputs]`, with its bias or None."""

    def __init__(self, weight: F32, bias: F32 | None) -> None:
        self.weight, self.bias = weight, bias
        self.outputs, self.inputs = weight.shape
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)


class ArrayCache:
    """Keys and values, each `[pages, layers, kv_heads, slots, dim]`: float32, or bf16 as uint16."""

    def __init__(self, shape: CacheShape, pages: int) -> None:
        axes = (pages, shape.layers, shape.kv_heads, PAGE_SLOTS, shape.dim)
        rounded = shape.storage == "bf16"
        self.keys, self.values = np.zeros((2, *axes), np.uint16 if rounded else np.float32)
        self.encode = to_bf16 if rounded else np.asarray
        self.decode = from_bf16 if rounded else np.asarray
        self.pages = pages
        self.nbytes = self.keys.nbytes + self.values.nbytes


def to_bf16(x: F32) -> U16:
    """The upper halves of float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def from_bf16(x: U16) -> F32:
    """The float32 that a bf16 stands for."""
    return (x.astype(np.uint32) << 16).view(np.float32)


class CheckedBatch:
    """A batch that fits a cache of `pages` pages, ungrouped: each sequence is on its own."""

    def __init__(self, batch: Batch, pages: int) -> None:
        self.batch, self.pages, self.rows = batch, pages, len(batch.tokens)

    def sequences(self) -> Iterator[tuple[slice, I32]]:
        """Each sequence's rows and its page table."""
        rows, tables = self.batch.row_starts, self.batch.table_starts
        for i in range(len(rows) - 1):
            table = self.batch.tables[tables[i] : tables[i + 1]]
            yield slice(int(rows[i]), int(rows[i + 1])), table


@dataclass(frozen=True)
class LayerStack:
    """What `run_layers` wants to know of a model."""

    layers: tuple[Layer, ...]
    activation: Activation
    scale: float


class ReferenceBackend:
    """`Backend` in float32 numpy. The definition the others are tested against."""

    name = "reference"

    def pack(self, parts: Sequence[Weight], bias: F32 | None = None) -> DenseLinear:
        """Dequantize and stack."""
        _require(len(parts) > 0, "pack needs at least one matrix")
        dense = [_dense(part) for part in parts]
        inputs = dense[0].shape[1]
        for matrix in dense:
            _require(matrix.shape[1] == inputs, f"inputs differ: {matrix.shape[1]} and {inputs}")
        weight = np.concatenate(dense) if len(dense) > 1 else dense[0]
        if bias is not None:
            _floats("bias", bias, len(weight))
        return DenseLinear(weight, bias)

    def cache(self, shape: CacheShape, pages: int) -> ArrayCache:
        """Zeroed storage."""
        _require(min(shape.layers, shape.kv_heads, shape.dim) >= 1, f"empty cache shape {shape}")
        _require(pages >= 1, f"a cache needs at least 1 page, got {pages}")
        _require(shape.dim % 2 == 0, f"dim must be even, got {shape.dim}")
        return ArrayCache(shape, pages)

    def plan(self, batch: Batch, cache: Cache) -> CheckedBatch:
        """Check; group nothing."""
        _check_batch(batch, cache.pages)
        return CheckedBatch(batch, cache.pages)

    def embed(self, table: Linear, tokens: I32, scale: float, out: F32) -> None:
        """Look up and scale."""
        table = _own(table, DenseLinear)
        _integers("tokens", tokens, 0, table.outputs)
        _floats("out", out, len(tokens), table.inputs)
        out[:] = np.float32(scale) * table.weight[tokens]

    def linear(
        self,
        x: F32,
        weight: Linear,
        out: F32,
        *,
        norm: Norm | None = None,
        activation: Activation | None = None,
        post_norm: Norm | None = None,
        add: bool = False,
    ) -> None:
        """Norm, multiply, add the bias, activate, norm, add, in this order."""
        dense = _own(weight, DenseLinear)
        _require(not activation or dense.outputs % 2 == 0, "gate and up differ in outputs")
        _floats("x", x, -1, dense.inputs)
        _floats("out", out, len(x), dense.outputs // 2 if activation else dense.outputs)
        y = (_rms_norm(x, norm) if norm else x) @ dense.weight.T
        if dense.bias is not None:
            y += dense.bias
        if activation:
            gate, up = np.split(y, 2, axis=1)
            y = _activate(gate, activation) * up
        if post_norm:
            y = _rms_norm(y, post_norm)
        out[:] = out + y if add else y

    def rope_store(
        self,
        qkv: F32,
        cache: Cache,
        layer: int,
        plan: Plan,
        rope: Rope,
        q: F32,
        *,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> None:
        """Split into heads, norm, rotate, scatter into the slots."""
        cache, plan = _own(cache, ArrayCache), _own(plan, CheckedBatch)
        heads, kv_heads, dim = _heads(q, cache, layer, plan)
        _floats("qkv", qkv, plan.rows, (heads + 2 * kv_heads) * dim)
        _check_rope(rope, plan.batch.positions, dim)

        parts = qkv.reshape(plan.rows, heads + 2 * kv_heads, dim)
        queries, keys, values = np.split(parts, (heads, heads + kv_heads), axis=1)
        if q_norm:
            queries = _rms_norm(queries, q_norm)
        if k_norm:
            keys = _rms_norm(keys, k_norm)
        q[:] = _rotate(queries, rope, plan.batch.positions).reshape(q.shape)
        stored = plan.batch.slots >= 0
        page, slot = np.divmod(plan.batch.slots[stored], PAGE_SLOTS)
        keys = _rotate(keys, rope, plan.batch.positions)
        cache.keys[page, layer, :, slot] = cache.encode(keys[stored])
        cache.values[page, layer, :, slot] = cache.encode(values[stored])

    def attend(
        self,
        q: F32,
        cache: Cache,
        layer: int,
        plan: Plan,
        scale: float,
        out: F32,
        *,
        window: int = 0,
    ) -> None:
        """Softmax attention, sequence by sequence, over pages gathered into one array."""
        cache, plan = _own(cache, ArrayCache), _own(plan, CheckedBatch)
        heads, kv_heads, dim = _heads(q, cache, layer, plan)
        _floats("out", out, plan.rows, heads * dim)
        _require(window >= 0, f"window must not be negative, got {window}")
        for rows, table in plan.sequences():
            at = plan.batch.positions[rows]
            first = max(0, int(at[0]) - window + 1) if window else 0
            seen = np.arange(first, int(at[-1]) + 1)
            page, slot = table[seen // PAGE_SLOTS], seen % PAGE_SLOTS
            # [kv_heads, keys, dim]; queries of one group of heads share a key head.
            keys = cache.decode(cache.keys[page, layer, :, slot]).swapaxes(0, 1)
            values = cache.decode(cache.values[page, layer, :, slot]).swapaxes(0, 1)
            queries = q[rows].reshape(len(at), kv_heads, -1, dim).transpose(1, 2, 0, 3)
            hidden = seen > at[:, None]
            if window:
                hidden |= seen <= at[:, None] - window
            scores = np.float32(scale) * (queries @ keys[:, None].swapaxes(2, 3))
            weights = _softmax(np.where(hidden, np.float32(-np.inf), scores))
            attended = weights @ values[:, None]  # [kv_heads, group, rows, dim]
            out[rows] = attended.transpose(2, 0, 1, 3).reshape(len(at), heads * dim)

    def stack(self, layers: Sequence[Layer], activation: Activation, scale: float) -> LayerStack:
        """Keep the layers as they are."""
        return LayerStack(tuple(layers), activation, scale)

    def run(self, stack: Stack, h: F32, cache: Cache, plan: Plan, ropes: Sequence[Rope]) -> None:
        """Run layer by layer."""
        own = _own(stack, LayerStack)
        run_layers(self, own.layers, own.activation, own.scale, h, cache, plan, ropes)

    def copy_page(self, cache: Cache, source: int, target: int) -> None:
        """Copy keys and values."""
        cache = _own(cache, ArrayCache)
        for page in (source, target):
            _require(0 <= page < cache.pages, f"page {page} is outside [0, {cache.pages})")
        cache.keys[target] = cache.keys[source]
        cache.values[target] = cache.values[source]

    def draw(self, logits: F32, draws: Draws) -> Drawn:
        """One draw after the other, each from its own row and random number."""
        _check_draws(logits, draws)
        count = len(draws.row)
        drawn = Drawn(np.zeros(count, np.int32), *np.zeros((3, count), np.float32))
        for i, row in enumerate(draws.row):
            z = logits[row].astype(np.float64)
            model = _log_softmax(z, row)
            token, logq = int(draws.given[i]), 0.0
            if token < 0:
                token, logq = _draw(z, draws, i)
            drawn.token[i], drawn.logp[i], drawn.logq[i] = token, model[token], logq
            finite = model[model > -np.inf]
            drawn.entropy[i] = -np.sum(np.exp(finite) * finite)
        return drawn


def uniform(key: int, position: int) -> float:
    """The random number of a stream at a position, in (0, 1): 24 bits of the first Philox word."""
    return ((philox(key, (position, 0, 0, 0))[0] >> 8) + 0.5) / 2**24


def _rms_norm(x: F32, norm: Norm) -> F32:
    _floats("norm weight", norm.weight, x.shape[-1])
    mean = np.mean(x * x, axis=-1, keepdims=True)
    normed: F32 = x / np.sqrt(mean + np.float32(norm.eps)) * norm.weight
    return normed


def _activate(x: F32, activation: Activation) -> F32:
    if activation == "silu":
        shape: F32 = 0.5 * x  # sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow
    else:
        _require(activation == "gelu_tanh", f"unknown activation {activation!r}")
        shape = (2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)
    activated: F32 = 0.5 * x * (1 + np.tanh(shape))
    return activated


def _rotate(x: F32, rope: Rope, positions: I32) -> F32:
    """Rotate pairs (j, j + dim/2) of `x[rows, heads, dim]` by their row's angle."""
    cos, sin = rope.cos[positions, None], rope.sin[positions, None]
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _softmax(scores: F32) -> F32:
    weights: F32 = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _log_softmax(z: F64, row: int, temperature: float = 1.0) -> F64:
    top = z.max()
    if not np.isfinite(top):  # NaN, +inf, or nothing but -inf
        raise ValueError(f"logits row {row} has no finite maximum, but {top}")
    scaled: F64 = (z - top) / temperature
    scaled -= np.log(np.sum(np.exp(scaled)))
    return scaled


def _draw(z: F64, draws: Draws, i: int) -> tuple[int, float]:
    """Token and its log-probability under the edited, tempered and truncated distribution."""
    for e in range(draws.edit_starts[i], draws.edit_starts[i + 1]):
        token, scale = draws.edit_token[e], float(draws.edit_scale[e])
        z[token] = z[token] / scale if z[token] > 0 else z[token] * scale
        z[token] += draws.edit_shift[e]
    temperature = float(draws.temperature[i])
    p = np.exp(_log_softmax(z, draws.row[i], temperature or 1.0))
    if temperature == 0:
        return int(z.argmax()), 0.0
    order = _kept(p, int(draws.top_k[i]), float(draws.top_p[i]), float(draws.min_p[i]))
    mass = np.cumsum(p[order])
    u = uniform(int(draws.key[i]), int(draws.position[i])) * mass[-1]
    chosen = int(order[np.searchsorted(mass, u, side="right")])
    return chosen, float(np.log(p[chosen] / mass[-1]))


def _kept(p: F64, top_k: int, top_p: float, min_p: float) -> I64:
    """Tokens that survive truncation, likeliest first; all of them in id order if none is asked."""
    if not top_k and top_p == 1 and not min_p:
        return np.arange(len(p))
    order: I64 = np.argsort(-p, kind="stable")[: top_k or None]
    mass = np.cumsum(p[order])
    order = order[: 1 + np.searchsorted(mass[:-1], top_p * mass[-1])]
    likely: I64 = order[p[order] >= min_p * p[order[0]]]
    return likely


def _dense(part: Weight) -> F32:
    if isinstance(part, Blocks):
        raise ValueError("blocks of a file are not read here: open it as float32")
    if not isinstance(part, Quantized):
        _floats("weight", part, -1, -1)
        return part
    outputs, inputs = part.q.shape
    allowed = {(4, 32), (8, 32)} | ({(8, 16)} if part.offset is None else set())
    _require((part.bits, part.group) in allowed, f"no {part.bits} bits in groups of {part.group}")
    _require(inputs % part.group == 0, f"{inputs} inputs do not divide into {part.group}")
    _require(part.q.dtype == (np.uint8 if part.bits == 4 else np.int8), f"q is {part.q.dtype}")
    _require(part.bits == 8 or not part.q.size or part.q.max() <= 15, "q exceeds 4 bits")
    for name, factor in (("scale", part.scale), ("offset", part.offset)):
        if factor is not None:
            _floats(name, factor, outputs, inputs // part.group)
    return part.dequantize()


def _heads(q: F32, cache: ArrayCache, layer: int, plan: CheckedBatch) -> tuple[int, int, int]:
    """Check what attention operations share; `(heads, kv_heads, dim)`."""
    pages, layers, kv_heads, _, dim = cache.keys.shape
    _require(pages == plan.pages, f"planned for {plan.pages} pages, the cache has {pages}")
    _require(0 <= layer < layers, f"layer {layer} is outside [0, {layers})")
    _floats("q", q, plan.rows, -1)
    heads, rest = divmod(q.shape[1], dim)
    _require(rest == 0 and heads > 0, f"q has {q.shape[1]} columns, not heads of {dim}")
    _require(heads % kv_heads == 0, f"{heads} heads do not divide among {kv_heads} kv_heads")
    return heads, kv_heads, dim


def _check_rope(rope: Rope, positions: I32, dim: int) -> None:
    for name, table in (("cos", rope.cos), ("sin", rope.sin)):
        _floats(name, table, len(rope.cos), dim // 2)
    top = positions.max(initial=0)
    _require(top < len(rope.cos), f"position {top} is outside the rope table of {len(rope.cos)}")


def _check_batch(batch: Batch, pages: int) -> None:
    rows = len(batch.tokens)
    _integers("tokens", batch.tokens, 0)
    _integers("positions", batch.positions, 0, size=rows)
    _integers("slots", batch.slots, -1, pages * PAGE_SLOTS, size=rows)
    _integers("tables", batch.tables, 0, pages)
    _starts("row_starts", batch.row_starts, rows)
    _starts("table_starts", batch.table_starts, len(batch.tables), len(batch.row_starts))
    for rows_of, table in CheckedBatch(batch, pages).sequences():
        at, slots = batch.positions[rows_of], batch.slots[rows_of]
        _require(len(at) > 0, "a sequence has no rows")
        _require(bool(np.all(np.diff(at) == 1)), "positions of a sequence are not consecutive")
        held = len(table) * PAGE_SLOTS
        _require(at[-1] < held, f"position {at[-1]} is outside its page table of {held} slots")
        own = table[at // PAGE_SLOTS] * PAGE_SLOTS + at % PAGE_SLOTS
        _require(bool(np.all((slots == own) | (slots == -1))), "a slot is not its row's own")
    stored = batch.slots[batch.slots >= 0]
    _require(len(np.unique(stored)) == len(stored), "two rows store to the same slot")


def _check_draws(logits: F32, draws: Draws) -> None:
    _floats("logits", logits, -1, -1)
    rows, vocab = logits.shape
    count, edits = len(draws.row), len(draws.edit_token)
    _integers("row", draws.row, 0, rows)
    _integers("given", draws.given, -1, vocab, size=count)
    _require(draws.key.shape == (count,) and draws.key.dtype == np.uint64, "key is not [draws]")
    _integers("position", draws.position, 0, size=count)
    _integers("top_k", draws.top_k, 0, size=count)
    _within("temperature", draws.temperature, count, 0, np.inf)
    _within("top_p", draws.top_p, count, 0, 1)
    _within("min_p", draws.min_p, count, 0, 1)
    _starts("edit_starts", draws.edit_starts, edits, count + 1)
    _integers("edit_token", draws.edit_token, 0, vocab)
    _within("edit_scale", draws.edit_scale, edits, float(np.finfo(np.float32).tiny), np.inf)
    _floats("edit_shift", draws.edit_shift, edits)
    _require(bool(np.all(draws.edit_shift < np.inf)), "edit_shift must be less than infinity")


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise ValueError(fault)


def _own(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} was not made by the reference backend")
    return value


def _floats(name: str, x: F32, *axes: int) -> None:
    """Require float32 with the given axes; -1 admits any length."""
    fits = x.ndim == len(axes) and all(a in (-1, b) for a, b in zip(axes, x.shape, strict=True))
    if not fits or x.dtype != np.float32:
        want = "[" + ", ".join("any" if a < 0 else str(a) for a in axes) + "]"
        raise ValueError(f"{name} must be float32 {want}, got {x.dtype} {list(x.shape)}")


def _integers(name: str, x: I32, low: int, end: int | None = None, size: int = -1) -> None:
    """Require one axis of int32 in `[low, end)`."""
    if x.dtype != np.int32 or x.ndim != 1 or size not in (-1, len(x)):
        raise ValueError(f"{name} must be int32 [{size}], got {x.dtype} {list(x.shape)}")
    bad = x[(x < low) | (x >= end if end is not None else False)]
    _require(len(bad) == 0, f"{name} must be in [{low}, {end}), got {bad[:1]}")


def _within(name: str, x: F32, size: int, low: float, high: float) -> None:
    _floats(name, x, size)
    good = (x >= low) & (x <= high) & np.isfinite(x)
    _require(
        bool(np.all(good)), f"{name} must be in [{low}, {high}] and finite, got {x[~good][:1]}"
    )


def _starts(name: str, starts: I32, end: int, size: int = -1) -> None:
    """Require offsets: from 0, never falling, to `end`."""
    _integers(name, starts, 0, size=size)
    good = len(starts) > 0 and starts[0] == 0 and starts[-1] == end
    _require(bool(good and np.all(np.diff(starts) >= 0)), f"{name} must rise from 0 to {end}")

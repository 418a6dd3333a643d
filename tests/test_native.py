"""The C++ kernels: equal to the reference within a stated bound, the same bits in any company,
and no crash whatever they are given."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anabranch._native as _native
from anabranch.backends.base import (
    F32,
    I32,
    PAGE_SLOTS,
    Batch,
    Cache,
    CacheShape,
    Drawn,
    Draws,
    Norm,
    Quantized,
    Rope,
    Storage,
    Weight,
)
from anabranch.backends.native import NativeBackend
from anabranch.backends.philox import derive, philox
from anabranch.backends.reference import ReferenceBackend
from anabranch.errors import InputError
from tests.toy import random_weight

FORMS = [(4, 32, True), (4, 32, False), (8, 32, False), (8, 32, True), (8, 16, False)]
"""(bits, group, has an offset) of every internal form."""

REFERENCE = ReferenceBackend()
BACKENDS = [NativeBackend(2, isa) for isa in _native.Backend.isas()]
NATIVE, ALONE = BACKENDS[0], NativeBackend(1)

few = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def ints(*values: int) -> I32:
    return np.array(values, np.int32)


def equal_bits(a: F32, b: F32) -> bool:
    """Equal to the bit; any NaN equals any other, whose payloads no one promises."""
    return bool(np.all((a.view(np.int32) == b.view(np.int32)) | (np.isnan(a) & np.isnan(b))))


# --- random numbers ----------------------------------------------------------------------------

# Known answers for philox4x32-10 from the Random123 distribution (kat_vectors).
KNOWN = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0_A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN)
def test_philox_known_answers(
    key: int, counter: tuple[int, int, int, int], words: tuple[int, ...]
) -> None:
    assert philox(key, counter) == words
    assert _native.philox(key, *counter) == words


@few
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1))
def test_derived_keys(key: int, index: int, position: int) -> None:
    child = derive(key, index)
    assert 0 <= child < 2**64
    assert derive(key, index, position) == derive(child, position)
    assert child != derive(key, (index + 1) % 2**64)
    drawn = philox(key, (position, 0, 0, 0))
    assert child != drawn[0] | drawn[1] << 32


# --- linear ------------------------------------------------------------------------------------


def matrix(
    rng: np.random.Generator, outputs: int, inputs: int, form: tuple[Any, Any, bool]
) -> Quantized:
    """Random weights, now and then of fewer bits, with the extreme -128, with offsets that only
    centre them, and with scales that binary16 holds."""
    weight = random_weight(rng, (outputs, inputs), *form)
    if weight.bits == 8 and rng.random() < 0.3:
        weight.q[rng.random(weight.q.shape) < 0.1] = -128
    elif weight.bits == 8:
        bits = int(rng.integers(4, 9))
        low = 0 if weight.offset is not None and bits < 8 else -(2 ** (bits - 1))
        weight.q[:] = rng.integers(low, low + 2**bits, weight.q.shape)
    elif weight.offset is not None and rng.random() < 0.3:
        weight = replace(weight, offset=-8 * weight.scale)
    if rng.random() < 0.5:
        half = [None if a is None else a.astype(np.float16) for a in (weight.scale, weight.offset)]
        scale, offset = (None if a is None else a.astype(np.float32) for a in half)
        assert scale is not None
        weight = replace(weight, scale=scale, offset=offset)
    return weight


def rows_of(rng: np.random.Generator, rows: int, inputs: int) -> F32:
    x = rng.normal(size=(rows, inputs)) * 10.0 ** rng.uniform(-3, 3, (rows, 1))
    x[rng.random(x.shape) < 0.05] = 0
    x[rng.random(x.shape) < 0.01] *= 50  # outliers, kept apart from their groups
    return x.astype(np.float32)


def linear(
    backend: Any, x: F32, parts: list[Weight], bias: F32 | None = None, **options: Any
) -> F32:
    packed = backend.pack(parts, bias)
    columns = packed.outputs // 2 if options.get("activation") else packed.outputs
    out = np.full((len(x), columns), np.nan, np.float32)
    if options.get("add"):
        out[:] = np.linspace(-1, 1, out.size, dtype=np.float32).reshape(out.shape)
    backend.linear(x, packed, out, **options)
    return out


def in_groups(x: F32) -> F32:
    """`[rows, groups, 32]`, the last group filled up with zeros."""
    padded = np.zeros((len(x), -(-x.shape[1] // 32) * 32), np.float32)
    padded[:, : x.shape[1]] = x
    return padded.reshape(len(x), -1, 32)


def round_groups(groups: F32, top: F32) -> tuple[Any, F32]:
    """Groups as integers times `top / 127`, exactly; and those steps, `[rows, groups, 1]`."""
    inverse = np.divide(np.float32(127), top, where=top > 0, out=np.zeros_like(top))
    step: F32 = top / np.float32(127)
    return np.rint(groups * inverse).astype(np.float64) * step, step


def round_activations(x: F32) -> tuple[Any, F32]:
    """What the kernel makes of x, and half a step of its rounding, element by element.

    A group's step follows from its largest magnitude; from the next one where the largest costs
    over four times what an average group costs without its largest. Costs are squares.
    """
    groups = in_groups(x)
    sizes = np.sort(np.abs(groups), axis=2)
    first, second = sizes[:, :, -1:], np.maximum(sizes[:, :, -2:-1], sizes[:, :, -1:] / 64)
    costs = np.add.accumulate(second * second, axis=1)[:, -1:]  # one after the other, in float32
    apart = first * first - second * second > 4 * (costs / np.float32(groups.shape[1]))
    rounded, step = round_groups(groups, np.where(apart, second, first))
    half: F32 = np.broadcast_to(step * np.float32(0.5), groups.shape)
    inputs = x.shape[1]
    return rounded.reshape(len(x), -1)[:, :inputs], half.reshape(len(x), -1)[:, :inputs]


@few
@given(seeds, st.sampled_from(FORMS), st.sampled_from(BACKENDS))
def test_linear_is_exact_on_rounded_activations(
    seed: int, form: tuple[Any, Any, bool], backend: NativeBackend
) -> None:
    rng = np.random.default_rng(seed)
    rows, outputs = (int(n) for n in rng.integers(1, [12, 70]))
    inputs = form[1] * int(rng.integers(1, 9))
    weight, x = matrix(rng, outputs, inputs, form), rows_of(rng, rows, inputs)
    bias = rng.normal(size=outputs).astype(np.float32)
    rounded, _ = round_activations(x)
    exact = rounded @ weight.dequantize().T.astype(np.float64) + bias
    size = np.abs(rounded) @ np.abs(weight.dequantize()).T + np.abs(bias)
    if weight.offset is not None:  # scale * q and offset are summed apart and may cancel
        parts = np.abs(weight.scale) * 255 + np.abs(weight.offset)
        size += np.abs(rounded) @ np.repeat(parts, weight.group, axis=1).T
    assert np.all(np.abs(linear(backend, x, [weight], bias) - exact) <= 2e-6 * size)


@few
@given(seeds)
def test_linear_is_the_reference_but_for_rounding(seed: int) -> None:
    """Rounding an activation moves it by half a step at most, and the output by that times |w|."""
    rng = np.random.default_rng(seed)
    inputs = 32 * int(rng.integers(1, 9))
    parts: list[Weight] = [
        matrix(rng, int(rng.integers(1, 40)), inputs, FORMS[i])
        for i in rng.integers(0, len(FORMS), rng.integers(1, 4))
    ]
    x, norm = rows_of(rng, 5, inputs), Norm(rng.normal(size=inputs).astype(np.float32), 1e-5)
    want = linear(REFERENCE, x, parts, norm=norm)
    normed = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(1e-5)) * norm.weight
    _, half_step = round_activations(normed)
    weight = np.concatenate([REFERENCE.pack([p]).weight for p in parts])
    bound = half_step @ np.abs(weight).T
    got = linear(NATIVE, x, parts, norm=norm)
    assert np.all(np.abs(got - want) <= 1.001 * bound + 1e-4 * np.abs(want) + 1e-6)


@few
@given(seeds, st.integers(1, 70), st.integers(1, 130))
def test_float_weights_become_w8(seed: int, outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rows_of(rng, outputs, inputs), rows_of(rng, 3, inputs)
    rounded_x, step_x = round_activations(x)
    groups = in_groups(weight)
    whole, scale = round_groups(groups, np.abs(groups).max(axis=2, keepdims=True))
    rounded_w = whole.reshape(outputs, -1)[:, :inputs]
    step_w = np.repeat(scale[:, :, 0] / 2, 32, axis=1)[:, :inputs]
    got = linear(NATIVE, x, [weight])
    np.testing.assert_allclose(got, rounded_x @ rounded_w.T, rtol=1e-4, atol=1e-5 * abs(got).max())
    bound = step_x @ np.abs(weight).T + np.abs(x) @ step_w.T + step_x @ step_w.T
    assert np.all(np.abs(got - x @ weight.T) <= 1.001 * bound + 1e-6)


@few
@given(seeds, st.sampled_from(["silu", "gelu_tanh"]), st.sampled_from([8, 16, 21, 48]))
def test_activation_is_fused_exactly(seed: int, activation: str, half: int) -> None:
    rng = np.random.default_rng(seed)
    gate, up = matrix(rng, half, 64, FORMS[0]), matrix(rng, half, 64, FORMS[2])
    x = rows_of(rng, 7, 64)
    y = linear(NATIVE, x, [gate, up]).astype(np.float64)
    g, u = y[:, :half], y[:, half:]
    if activation == "silu":
        want = g / (1 + np.exp(np.minimum(-g, 700))) * u
    else:
        want = 0.5 * g * (1 + np.tanh((2 / np.pi) ** 0.5 * (g + 0.044715 * g**3))) * u
    got = linear(NATIVE, x, [gate, up], activation=activation)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6 * np.abs(u).max())
    if half % 16 == 0:
        both = replace(
            gate,
            q=np.concatenate([gate.q, gate.q]),
            scale=np.concatenate([gate.scale, gate.scale]),
            offset=np.concatenate([gate.offset, gate.offset]),
        )
        one = linear(NATIVE, x, [both], activation=activation)
        assert equal_bits(one, linear(NATIVE, x, [gate, gate], activation=activation))


@few
@given(seeds, st.integers(1, 50), st.booleans())
def test_post_norm_and_residual(seed: int, outputs: int, add: bool) -> None:
    rng = np.random.default_rng(seed)
    weight, x = matrix(rng, outputs, 96, FORMS[0]), rows_of(rng, 6, 96)
    norm = Norm(rng.normal(size=outputs).astype(np.float32), 1e-6)
    y = linear(NATIVE, x, [weight]).astype(np.float64)
    residual = np.linspace(-1, 1, y.size, dtype=np.float32).reshape(y.shape) if add else 0
    got = linear(NATIVE, x, [weight], add=add)
    np.testing.assert_allclose(got, residual + y, rtol=1e-6, atol=1e-7)
    normed = y / np.sqrt(np.mean(y * y, axis=1, keepdims=True) + 1e-6) * norm.weight
    got = linear(NATIVE, x, [weight], post_norm=norm, add=add)
    np.testing.assert_allclose(got, residual + normed, rtol=1e-5, atol=1e-6)


@settings(max_examples=50)
@given(
    seeds,
    st.sampled_from(FORMS),
    st.sampled_from([2, 5, 33, 70]),
    st.sampled_from([224, 224, 1056]),
    st.sampled_from(["silu", "gelu_tanh"]),
    st.booleans(),
)
def test_linear_bits_are_the_rows_own(
    seed: int, form: tuple[Any, Any, bool], rows: int, inputs: int, activation: str, normed: bool
) -> None:
    """Alone or among others, on one thread or two, on any instruction set."""
    rng = np.random.default_rng(seed)
    parts: list[Weight] = [matrix(rng, n, inputs, form) for n in (37, 37)]
    x = rows_of(rng, rows, inputs)
    options: dict[str, Any] = {"add": True, "activation": activation}
    if normed:
        norm, post = (Norm(rng.normal(size=n).astype(np.float32), 1e-5) for n in (inputs, 37))
        options |= {"norm": norm, "post_norm": post}
    together = [linear(backend, x, parts, **options) for backend in BACKENDS]
    packed = ALONE.pack(parts)
    start = np.linspace(-1, 1, rows * 37, dtype=np.float32).reshape(rows, 37)
    for r in {0, int(rng.integers(rows)), rows - 1}:
        out = start[r : r + 1].copy()
        ALONE.linear(x[r : r + 1], packed, out, **options)
        assert all(equal_bits(out[0], other[r]) for other in together)


def test_bad_rows_stay_alone() -> None:
    rng = np.random.default_rng(0)
    weight = matrix(rng, 20, 64, FORMS[0])
    x = rows_of(rng, 9, 64)
    clean = linear(NATIVE, x, [weight])
    bad = x.copy()
    bad[1, 3], bad[4, 60], bad[6, 0] = np.nan, np.inf, -np.inf
    got = [linear(backend, bad, [weight]) for backend in BACKENDS]
    spoilt = np.isin(np.arange(9), [1, 4, 6])
    for out in got:
        assert np.all(np.isnan(out[spoilt]))
        assert equal_bits(out[~spoilt], clean[~spoilt])


def test_extreme_magnitudes() -> None:
    weight = np.eye(32, dtype=np.float32)
    for size in (0.0, 1e-45, 1e-38, 1e-20, 1e20, 3e38):
        x = np.full((1, 32), size, np.float32)
        for backend in BACKENDS:
            got = linear(backend, x, [weight])
            np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: str(b.features()["isa"]))
def test_largest_integers_do_not_overflow(backend: NativeBackend) -> None:
    """All products at their largest: 16-bit partial sums come within a few percent of their end."""
    x = np.ones((9, 64), np.float32)  # enough rows for weights to be laid open
    x[1::2] = -1
    for bits, low, high, group, offset in (
        (4, 0, 15, 32, False),
        (8, -128, 127, 32, False),
        (8, -32, 31, 32, False),
        (8, -32, 31, 16, False),
        (8, -16, 15, 32, False),
        (8, 0, 31, 32, True),
        (8, -8, 7, 32, False),
    ):
        q = np.repeat([low, high, high], 64).reshape(3, 64)
        q[2, ::2] = low
        q = q.astype(np.uint8 if bits == 4 else np.int8)
        ones = np.ones((3, 64 // group), np.float32)
        weight = Quantized(q, ones, ones if offset else None, bits, group)  # type: ignore[arg-type]
        want = x @ weight.dequantize().T
        for rows in (1, 2, 9):
            got = linear(backend, x[:rows], [weight])
            np.testing.assert_allclose(got, want[:rows], rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "group", "offset", "bits"),
    [
        (-8, 7, 32, False, 4.5),
        (-16, 15, 32, False, 5.5),
        (-17, 15, 32, False, 6.5),
        (-32, 31, 32, False, 6.5),
        (-33, 31, 32, False, 8.5),
        (-32, 31, 16, False, 7),
        (-32, 32, 16, False, 9),
        (0, 31, 32, True, 6),
        (0, 32, 32, True, 9),
    ],
)
def test_integers_take_the_bits_they_need(
    low: int, high: int, group: Any, offset: bool, bits: float
) -> None:
    q = np.random.default_rng(0).integers(low, high + 1, (64, 64), np.int8)
    q[0, :2] = low, high
    scale = np.ones((64, 64 // group), np.float32)
    weight = Quantized(q, scale, scale if offset else None, 8, group)
    assert NATIVE.pack([weight]).nbytes == 64 * 64 * bits / 8


def test_no_rows() -> None:
    weight = matrix(np.random.default_rng(0), 20, 64, FORMS[0])
    assert linear(NATIVE, np.empty((0, 64), np.float32), [weight]).shape == (0, 20)


@few
@given(seeds, st.sampled_from(FORMS), st.integers(1, 50))
def test_embed_is_exact(seed: int, form: tuple[Any, Any, bool], vocab: int) -> None:
    rng = np.random.default_rng(seed)
    table = matrix(rng, vocab, 96, form)
    tokens = rng.integers(0, vocab, 9).astype(np.int32)
    for backend in BACKENDS:
        out = np.empty((9, 96), np.float32)
        backend.embed(backend.pack([table]), tokens, 3.7, out)
        assert np.array_equal(out, np.float32(3.7) * table.dequantize()[tokens])


# --- attention ---------------------------------------------------------------------------------


@dataclass
class Tree:
    """Random sequences that share prefixes: neighbours of a tree, as the engine would order them.

    Attributes:
        tables: page table of each sequence.
        lengths: positions of each sequence.
        rows: how many of its last positions are rows of the batch.
        keys, values: `[pages, slots, kv_heads * dim]`; slots no sequence holds are NaN.
    """

    shape: CacheShape
    heads: int
    pages: int
    tables: list[list[int]]
    lengths: list[int]
    rows: list[int]
    keys: F32
    values: F32

    @staticmethod
    def random(rng: np.random.Generator, most: int, storage: Storage = "f32") -> Tree:
        kv_heads, dim = int(rng.integers(1, 4)), int(rng.choice([2, 10, 16, 24, 64]))
        heads = kv_heads * int(rng.integers(1, 15))
        pages, tables = 0, list[list[int]]()
        lengths, rows = list[int](), list[int]()
        for _ in range(rng.integers(1, 7)):
            table: list[int] = []
            if tables:  # a prefix of sealed pages of an earlier path
                other = int(rng.integers(len(tables)))
                table = tables[other][: rng.integers(0, lengths[other] // PAGE_SLOTS + 1)]
            shared = len(table) * PAGE_SLOTS
            own = int(rng.integers(1, most))
            count = -(-(shared + own) // PAGE_SLOTS) - len(table)
            table = table + list(range(pages, pages + count))
            pages += count
            tables.append(table)
            lengths.append(shared + own)
            rows.append(int(rng.integers(1, own + 1)) if rng.random() < 0.5 else 1)
        order = sorted(range(len(tables)), key=lambda s: tables[s])
        keys, values = rng.normal(size=(2, pages, PAGE_SLOTS, kv_heads * dim)).astype(np.float32)
        used = np.zeros((pages, PAGE_SLOTS), bool)
        for table, length in zip(tables, lengths, strict=True):
            used[table] |= np.arange(len(table) * 16).reshape(-1, 16) < length
        keys[~used] = values[~used] = np.nan
        return Tree(
            CacheShape(2, kv_heads, dim, storage),
            heads,
            pages,
            [tables[s] for s in order],
            [lengths[s] for s in order],
            [rows[s] for s in order],
            keys,
            values,
        )

    def batch(self, sequences: list[tuple[int, int, int]], ids: I32) -> Batch:
        """Rows `[first, end)` of sequences, on pages renamed by `ids`; nothing to store."""
        positions = [np.arange(first, end) for _, first, end in sequences]
        tables = [ids[self.tables[s]] for s, _, _ in sequences]
        rows = np.concatenate(positions).astype(np.int32)
        return Batch(
            tokens=np.zeros(len(rows), np.int32),
            positions=rows,
            slots=np.full(len(rows), -1, np.int32),
            row_starts=ints(0, *np.cumsum([len(p) for p in positions])),
            tables=np.concatenate(tables).astype(np.int32),
            table_starts=ints(0, *np.cumsum([len(t) for t in tables])),
        )

    def fill(self, backend: Any, ids: I32) -> Cache:
        """A cache with all keys and values in it, stored page by page through `rope_store`."""
        cache: Cache = backend.cache(self.shape, self.pages)
        table = ids.astype(np.int32)
        at = np.arange(self.pages * PAGE_SLOTS, dtype=np.int32)
        slots = table[at // PAGE_SLOTS] * PAGE_SLOTS + at % PAGE_SLOTS
        batch = Batch(
            at * 0, at, slots.astype(np.int32), ints(0, len(at)), table, ints(0, len(table))
        )
        queries = np.zeros((len(at), self.heads * self.shape.dim), np.float32)
        flat = [a.reshape(len(at), -1) for a in (self.keys, self.values)]
        still = np.zeros((len(at), self.shape.dim // 2), np.float32)
        plan, rope = backend.plan(batch, cache), Rope(still + 1, still)
        for layer in range(self.shape.layers):
            backend.rope_store(
                np.concatenate([queries, *flat], axis=1), cache, layer, plan, rope, queries.copy()
            )
        return cache


def attend(
    backend: Any, tree: Tree, cache: Cache, ids: I32, q: dict[int, F32], window: int,
    sequences: list[tuple[int, int, int]], layer: int = 1,
) -> list[F32]:  # fmt: skip
    """Attention outputs of each of the sequences' rows; `q[s]` has all positions of sequence s."""
    batch = tree.batch(sequences, ids)
    queries = np.concatenate([q[s][first:end] for s, first, end in sequences])
    out = np.full_like(queries, np.nan)
    backend.attend(queries, cache, layer, backend.plan(batch, cache), 0.3, out, window=window)
    return np.split(out, batch.row_starts[1:-1])


@settings(max_examples=30)
@given(
    seeds,
    st.sampled_from([40, 40, 700]),
    st.sampled_from([0, 0, 1, 7, 16, 100, 300]),
    st.sampled_from(["f32", "bf16"]),
)
def test_attention_bits_are_the_rows_own(
    seed: int, most: int, window: int, storage: Storage
) -> None:
    """Over random trees: equal to the reference, whatever the company, sharing, chunks or pages."""
    rng = np.random.default_rng(seed)
    tree = Tree.random(rng, most, storage)
    ids = np.arange(tree.pages, dtype=np.int32)
    other = rng.permutation(ids)
    everyone = [(s, n - r, n) for s, (n, r) in enumerate(zip(tree.lengths, tree.rows, strict=True))]
    width = tree.heads * tree.shape.dim
    q = {s: rng.normal(size=(n, width)).astype(np.float32) for s, n in enumerate(tree.lengths)}

    cache = tree.fill(NATIVE, ids)
    got = attend(NATIVE, tree, cache, ids, q, window, everyone)
    want = attend(REFERENCE, tree, tree.fill(REFERENCE, ids), ids, q, window, everyone)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)

    shuffled = [everyone[i] for i in rng.permutation(len(everyone))]  # nothing shared any more
    for backend in (*BACKENDS, ALONE):
        moved = tree.fill(backend, other)
        together = attend(backend, tree, moved, other, q, window, shuffled)
        for (s, _, _), out in zip(shuffled, together, strict=True):
            assert equal_bits(out, got[s])
    for s, first, end in everyone:  # cut into two chunks, then the last row alone
        cut = int(rng.integers(first, end))
        chunks = [(s, a, b) for a, b in ((first, cut), (cut, end)) if a < b]
        split = [attend(ALONE, tree, cache, ids, q, window, [chunk])[0] for chunk in chunks]
        assert equal_bits(np.concatenate(split), got[s])
        assert equal_bits(
            attend(ALONE, tree, cache, ids, q, window, [(s, end - 1, end)])[0], got[s][-1:]
        )


@few
@given(seeds, st.sampled_from([40, 200]))
def test_plan_reads_shared_pages_together(seed: int, most: int) -> None:
    """Each row meets each of its pages once, in order; a page is met by all neighbours at once.

    So a key that branches share is read once for all of them.
    """
    rng = np.random.default_rng(seed)
    tree = Tree.random(rng, most)
    everyone = [(s, n - r, n) for s, (n, r) in enumerate(zip(tree.lengths, tree.rows, strict=True))]
    cache, ids = NATIVE.cache(tree.shape, tree.pages), np.arange(tree.pages, dtype=np.int32)
    works = NATIVE.plan(tree.batch(everyone, ids), cache).works
    starts = np.cumsum([0, *tree.rows])
    met: dict[tuple[int, int], int] = {}
    for s, table in enumerate(tree.tables):
        row, columns = int(starts[s]), []
        for begin, end, grid, count in works:
            if begin <= row < end:
                columns += list(range(grid, grid + count))
                assert row + tree.rows[s] <= end
                for c in range(grid, grid + count):
                    met.setdefault((c, table[c]), begin)
                    assert (
                        met[c, table[c]] == begin
                    )  # the tables are sorted: sharers are neighbours
        assert columns == list(range(-(-tree.lengths[s] // PAGE_SLOTS)))


@few
@given(
    seeds,
    st.sampled_from([2, 10, 32, 64]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["f32", "bf16"]),
)
def test_rope_store(seed: int, dim: int, q_normed: bool, k_normed: bool, storage: Storage) -> None:
    rng = np.random.default_rng(seed)
    kv_heads, heads, rows = 2, 4, int(rng.integers(1, 40))
    first = int(rng.integers(0, 50))
    positions = np.arange(first, first + rows, dtype=np.int32)
    table = rng.permutation(8)[: -(-(first + rows) // 16)].astype(np.int32)
    slots = table[positions // 16] * 16 + positions % 16
    slots[rng.random(rows) < 0.3] = -1
    batch = Batch(
        positions * 0, positions, slots.astype(np.int32), ints(0, rows), table, ints(0, len(table))
    )
    angles = rng.normal(size=(100, dim // 2)).astype(np.float32)
    rope = Rope(np.cos(angles), np.sin(angles))
    norms = [Norm(rng.normal(size=dim).astype(np.float32), 1e-6) for _ in range(2)]
    qkv = rng.normal(size=(rows, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    results = []
    backends: list[Any] = [*BACKENDS, ALONE, REFERENCE]
    for backend in backends:
        kept = backend.cache(CacheShape(2, kv_heads, dim, storage), 9)
        q, out = np.empty((2, rows, heads * dim), np.float32)
        plan = backend.plan(batch, kept)
        backend.rope_store(
            qkv, kept, 1, plan, rope, q,
            q_norm=norms[0] if q_normed else None, k_norm=norms[1] if k_normed else None,
        )  # fmt: skip
        for page in table[:2]:  # what was stored, seen through attention on copies of the pages
            backend.copy_page(kept, int(page), 8)
        swapped = np.where(table == table[min(1, len(table) - 1)], 8, table).astype(np.int32)
        plan = backend.plan(replace(batch, tables=swapped, slots=slots * 0 - 1), kept)
        backend.attend(q, kept, 1, plan, 0.5, out)
        results.append((q, out))
    for q, out in results[1:-1]:
        assert equal_bits(q, results[0][0])
        assert equal_bits(out, results[0][1])
    # A key on the brink of two bf16 values may fall to either side.
    loss = 2e-2 if storage == "bf16" else 1e-5
    for a, b, atol in zip(results[0], results[-1], (1e-5, loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("backend", [*BACKENDS, REFERENCE], ids=str)
def test_bf16_rounds_to_nearest_even(backend: Any) -> None:
    """What one position attends to is its own value, as it was stored."""
    eps = 2.0**-8
    value = [1, 1 + eps / 2, 1 + eps, 1 + 3 * eps, -1 - 3 * eps, 1 + 1.01 * eps, 2.0**127, 3.4e38]
    kept = [1, 1, 1, 1 + 4 * eps, -1 - 4 * eps, 1 + 2 * eps, 2.0**127, np.inf]
    cache = backend.cache(CacheShape(1, 1, 8, "bf16"), 1)
    zero = ints(0)
    plan = backend.plan(Batch(zero, zero, zero, ints(0, 1), zero, ints(0, 1)), cache)
    qkv = np.array([[0.0] * 16 + value], np.float32)
    q, out = np.empty((2, 1, 8), np.float32)
    still = np.ones((1, 4), np.float32)
    backend.rope_store(qkv, cache, 0, plan, Rope(still, 0 * still), q)
    backend.attend(q, cache, 0, plan, 1.0, out)
    assert equal_bits(out, np.array([kept], np.float32))


def test_long_contexts_merge_many_spans() -> None:
    """More spans than lanes, and more sums than are kept at a time: each row still has its bits."""
    rng, length, rows, heads, dim = np.random.default_rng(5), 4500, 420, 8, 64
    pages = -(-length // PAGE_SLOTS)
    keys, values = rng.normal(size=(2, pages, PAGE_SLOTS, dim)).astype(np.float32)
    tree = Tree(
        CacheShape(1, 1, dim), heads, pages, [list(range(pages))], [length], [rows], keys, values
    )
    ids = np.arange(pages, dtype=np.int32)
    cache, first = tree.fill(NATIVE, ids), length - rows
    q = {0: rng.normal(size=(length, heads * dim)).astype(np.float32)}
    [got] = attend(NATIVE, tree, cache, ids, q, 0, [(0, first, length)], layer=0)
    [want] = attend(
        REFERENCE, tree, tree.fill(REFERENCE, ids), ids, q, 0, [(0, length - 9, length)], layer=0
    )
    np.testing.assert_allclose(got[-9:], want, rtol=1e-4, atol=2e-5)
    for row in (first, first + 201, length - 1):
        [alone] = attend(ALONE, tree, cache, ids, q, 0, [(0, row, row + 1)], layer=0)
        assert equal_bits(alone, got[row - first : row - first + 1])


# --- drawing -----------------------------------------------------------------------------------


def random_draws(rng: np.random.Generator, count: int, rows: int, vocab: int) -> Draws:
    def some(values: Any, off: float) -> Any:
        return np.where(rng.random(count) < 0.5, off, values)

    edits = rng.integers(0, 4, count)
    total = int(edits.sum())
    shift = rng.normal(size=total).astype(np.float32)
    shift[rng.random(total) < 0.2] = -np.inf
    return Draws(
        row=rng.integers(0, rows, count).astype(np.int32),
        given=some(rng.integers(0, vocab, count), -1).astype(np.int32),
        key=rng.integers(0, 2**64, count, dtype=np.uint64),
        position=rng.integers(0, 2**31, count).astype(np.int32),
        temperature=(some(rng.uniform(0.1, 2.0, count), 0) + some(1, 0) * 0).astype(np.float32),
        top_k=some(rng.integers(1, 2 * vocab, count), 0).astype(np.int32),
        top_p=some(rng.uniform(0, 1, count), 1).astype(np.float32),
        min_p=some(rng.uniform(0, 0.3, count), 0).astype(np.float32),
        edit_starts=ints(0, *np.cumsum(edits)),
        edit_token=rng.integers(0, vocab, total).astype(np.int32),
        edit_scale=rng.uniform(0.5, 2.0, total).astype(np.float32),
        edit_shift=shift,
    )


def one_draw(draws: Draws, i: int) -> Draws:
    edits = slice(int(draws.edit_starts[i]), int(draws.edit_starts[i + 1]))
    values = {
        f.name: getattr(draws, f.name)[edits if f.name.startswith("edit_") else slice(i, i + 1)]
        for f in fields(Draws)
    }
    return Draws(**(values | {"edit_starts": ints(0, edits.stop - edits.start)}))


@few
@given(seeds, st.sampled_from([5, 16, 300, 3000]), st.floats(0.1, 8))
def test_draw_is_the_reference(seed: int, vocab: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(3, vocab)) * spread).astype(np.float32)
    draws = random_draws(rng, 20, 3, vocab)
    if vocab < 16:  # few tokens might all be banned
        draws.edit_shift[:] = 0
    want, got = REFERENCE.draw(logits, draws), NATIVE.draw(logits, draws)
    np.testing.assert_array_equal(got.token, want.token)
    for name in ("logp", "logq", "entropy"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-5, atol=2e-5)
    for backend in (*BACKENDS[1:], ALONE):
        other = backend.draw(logits, draws)
        assert all(equal_bits(getattr(got, f.name), getattr(other, f.name)) for f in fields(Drawn))
    for i in range(0, 20, 7):
        alone = ALONE.draw(logits, one_draw(draws, i))
        for f in fields(Drawn):
            assert equal_bits(getattr(alone, f.name), getattr(got, f.name)[i : i + 1])


def plain_draws(count: int, **changes: Any) -> Draws:
    def full(value: Any, kind: type) -> Any:
        return np.full(count, value, kind)

    draws = Draws(
        row=full(0, np.int32), given=full(-1, np.int32), key=full(7, np.uint64),
        position=np.arange(count, dtype=np.int32), temperature=full(1, np.float32),
        top_k=full(0, np.int32), top_p=full(1, np.float32), min_p=full(0, np.float32),
        edit_starts=np.zeros(count + 1, np.int32), edit_token=ints(),
        edit_scale=np.empty(0, np.float32), edit_shift=np.empty(0, np.float32),
    )  # fmt: skip
    return replace(draws, **changes)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    count = 20_000
    tokens = NATIVE.draw(logits, plain_draws(count)).token
    share = np.bincount(tokens, minlength=4) / count
    np.testing.assert_allclose(share, [0.1, 0.2, 0.3, 0.4], atol=0.015)  # over 4 deviations


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({"top_k": 2}, {1, 2}), ({"top_p": 0.45}, {1, 2}), ({"min_p": 0.9}, {1, 2, 4, 5})],
)
def test_ties_go_to_the_smaller_id(changes: dict[str, float], kept: set[int]) -> None:
    logits = np.array([[0.0, 3, 3, 1, 3, 3]], np.float32)
    draws = plain_draws(400)
    for name, value in changes.items():
        getattr(draws, name)[:] = value
    assert set(NATIVE.draw(logits, draws).token.tolist()) == kept
    draws.temperature[:] = 0
    assert set(NATIVE.draw(logits, draws).token.tolist()) == {1}


def test_banned_tokens_are_never_drawn() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 40)).astype(np.float32)
    logits[0, 10:] = -np.inf
    for changes in ({}, {"top_k": 30}, {"top_p": 0.999}, {"temperature": 50.0}):
        draws = plain_draws(300)
        for name, value in changes.items():
            getattr(draws, name)[:] = value
        drawn = NATIVE.draw(logits, draws)
        assert drawn.token.max() < 10
        assert np.all(np.isfinite([drawn.logp, drawn.logq, drawn.entropy]))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: str(b.features()["isa"]))
def test_logits_without_a_distribution(backend: NativeBackend, poison: float) -> None:
    logits = np.zeros((3, 50), np.float32)
    logits[1, 49] = poison
    logits[2] = -np.inf
    for row in (1, 2):
        with pytest.raises(ValueError, match=f"row {row}"):
            backend.draw(logits, plain_draws(2, row=ints(0, row)))
    assert np.all(backend.draw(logits, plain_draws(2)).logp < 0)


# --- what may go wrong -------------------------------------------------------------------------


@dataclass
class Scene:
    """Arguments that work, for breaking one at a time."""

    cache: Any
    plan: Any
    weight: Any
    batch: Batch
    x: F32
    qkv: F32
    q: F32
    out: F32
    rope: Rope


def cases(faults: dict[str, Any]) -> pytest.MarkDecorator:
    """Parametrize by fault, shown as the test's name."""
    return pytest.mark.parametrize("fault", list(faults.values()), ids=list(faults))


def scene() -> Scene:
    rng = np.random.default_rng(0)
    cache = NATIVE.cache(CacheShape(2, 2, 16), 4)
    batch = Batch(
        tokens=ints(1, 2, 3), positions=ints(15, 16, 0), slots=ints(63, 0, 16),
        row_starts=ints(0, 2, 3), tables=ints(3, 0, 1), table_starts=ints(0, 2, 3),
    )  # fmt: skip
    still = np.zeros((20, 8), np.float32)
    return Scene(
        cache=cache,
        plan=NATIVE.plan(batch, cache),
        weight=NATIVE.pack([matrix(rng, 24, 64, FORMS[0])]),
        batch=batch,
        x=rows_of(rng, 3, 64),
        qkv=rows_of(rng, 3, 8 * 16),
        q=np.zeros((3, 4 * 16), np.float32),
        out=np.zeros((3, 24), np.float32),
        rope=Rope(still, still),
    )


BAD_BATCHES: dict[str, dict[str, I32]] = {
    "negative page": {"tables": ints(3, -1, 1)},
    "page beyond the cache": {"tables": ints(3, 4, 1)},
    "negative position": {"positions": ints(-1, 0, 0), "slots": ints(-1, -1, -1)},
    "position beyond the table": {"positions": ints(31, 32, 0), "slots": ints(-1, -1, -1)},
    "gap in positions": {"positions": ints(15, 17, 0), "slots": ints(-1, -1, -1)},
    "slot below -1": {"slots": ints(-2, 0, 16)},
    "slot of another page": {"slots": ints(63, 0, 32)},
    "slot of another position": {"slots": ints(62, 0, 16)},
    "positions short": {"positions": ints(15, 16)},
    "slots short": {"slots": ints(63, 0)},
    "starts fall": {"row_starts": ints(0, 3, 2)},
    "starts beyond": {"row_starts": ints(0, 2, 4)},
    "starts late": {"row_starts": ints(1, 2, 3)},
    "no starts": {"row_starts": ints()},
    "empty sequence": {"row_starts": ints(0, 0, 3)},
    "table starts short": {"table_starts": ints(0, 2)},
    "table starts huge": {"table_starts": ints(0, 2**31 - 1, 3)},
    "table starts negative": {"table_starts": ints(0, -5, 3)},
    "slot twice": {
        "positions": ints(15, 16, 0),
        "slots": ints(63, 16, 16),
        "tables": ints(3, 1, 1),
    },
}


@cases(BAD_BATCHES)
def test_plan_refuses(fault: dict[str, I32]) -> None:
    s = scene()
    with pytest.raises(ValueError, match="plan: "):
        NATIVE.plan(replace(s.batch, **fault), s.cache)


def wrong_linear(**changes: Any) -> Callable[[Scene], None]:
    def call(s: Scene) -> None:
        arguments = {"x": s.x, "weight": s.weight, "out": s.out}
        NATIVE.linear(**(arguments | {k: v(s) for k, v in changes.items()}))

    return call


def wrong_attend(
    layer: int = 0, window: int = 0, pages: int = 4, columns: int = 64, rows: int = 3
) -> Callable[[Scene], None]:
    def call(s: Scene) -> None:
        q = s.q[:rows, :columns].copy()
        cache = s.cache if pages == 4 else NATIVE.cache(CacheShape(2, 2, 16), pages)
        NATIVE.attend(q, cache, layer, s.plan, 1.0, q.copy(), window=window)

    return call


def wrong_rope(cos: int = 20, sin: int = 20, columns: int = 128) -> Callable[[Scene], None]:
    def call(s: Scene) -> None:
        rope = Rope(s.rope.cos[:cos], s.rope.sin[:sin])
        NATIVE.rope_store(s.qkv[:, :columns].copy(), s.cache, 0, s.plan, rope, s.q)

    return call


def frozen(s: Scene) -> F32:
    s.out.flags.writeable = False
    return s.out


def short_norm(s: Scene) -> Norm:
    return Norm(np.ones(23, np.float32), 1e-5)


BAD_VALUES: dict[str, Callable[[Scene], None]] = {
    "x columns": wrong_linear(x=lambda s: s.x[:, :32].copy()),
    "out rows": wrong_linear(out=lambda s: s.out[:2]),
    "out columns": wrong_linear(out=lambda s: s.out[:, :8].copy()),
    "norm size": wrong_linear(norm=short_norm),
    "post norm size": wrong_linear(post_norm=short_norm),
    "gate inside a tile": wrong_linear(
        out=lambda s: s.out[:, :12].copy(), activation=lambda s: "silu"
    ),
    "window": wrong_attend(window=-1),
    "heads": wrong_attend(columns=48),
    "dim": wrong_attend(columns=40),
    "no heads": wrong_attend(columns=0),
    "rows of q": wrong_attend(rows=2),
    "plan of another cache": wrong_attend(pages=3),
    "rope tables differ": wrong_rope(sin=19),
    "qkv columns": wrong_rope(columns=112),
}
BAD_INDICES: dict[str, Callable[[Scene], None]] = {
    "layer": wrong_attend(layer=2),
    "negative layer": wrong_attend(layer=-1),
    "rope table short": wrong_rope(cos=16, sin=16),
    "token": lambda s: NATIVE.embed(s.weight, ints(24), 1.0, s.x[:1].copy()),
    "negative token": lambda s: NATIVE.embed(s.weight, ints(-1), 1.0, s.x[:1].copy()),
    "source page": lambda s: NATIVE.copy_page(s.cache, 4, 0),
    "target page": lambda s: NATIVE.copy_page(s.cache, 0, -1),
}
BAD_TYPES: dict[str, Callable[[Scene], None]] = {
    "dtype": wrong_linear(x=lambda s: s.x.astype(np.float64)),
    "byte order": wrong_linear(x=lambda s: s.x.astype(">f4")),
    "strides": wrong_linear(x=lambda s: np.repeat(s.x, 2, axis=1)[:, ::2]),
    "rank": wrong_linear(x=lambda s: s.x[0]),
    "read-only out": wrong_linear(out=frozen),
    "no array": wrong_linear(x=lambda s: [[1.0] * 64] * 3),
    "nothing": wrong_linear(x=lambda s: None),
    "weight of the reference": wrong_linear(
        weight=lambda s: REFERENCE.pack([np.ones((24, 64), np.float32)])
    ),
}


REFUSED = [
    *[(name, call, ValueError) for name, call in BAD_VALUES.items()],
    *[(name, call, IndexError) for name, call in BAD_INDICES.items()],
    *[(name, call, TypeError) for name, call in BAD_TYPES.items()],
]


@pytest.mark.parametrize(("call", "error"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_operations_refuse(call: Callable[[Scene], None], error: type[Exception]) -> None:
    s = scene()
    before = s.out.copy()
    with pytest.raises(error):
        call(s)
    assert equal_bits(s.out, before)


GOOD = matrix(np.random.default_rng(0), 8, 64, FORMS[1])
FINE = matrix(np.random.default_rng(0), 8, 64, FORMS[4])
SHORT = np.ones((8, 1), np.float32)
BAD_PARTS: dict[str, list[Any]] = {
    "no parts": [],
    "inputs differ": [GOOD, np.ones((8, 32), np.float32)],
    "five bits": [replace(GOOD, q=GOOD.q | 16)],
    "bits and dtype": [replace(GOOD, bits=8)],
    "scale shape": [replace(GOOD, scale=SHORT)],
    "offset shape": [replace(GOOD, offset=SHORT)],
    "fine with offset": [replace(FINE, offset=FINE.scale)],
    "fine with 4 bits": [replace(GOOD, group=16, scale=FINE.scale)],
    "group of 64": [replace(GOOD, group=64)],  # type: ignore[arg-type]
    "group of 0": [replace(GOOD, group=0)],  # type: ignore[arg-type]
    "ragged groups": [replace(GOOD, q=GOOD.q[:, :48].copy(), scale=SHORT)],
    "infinite scale": [replace(GOOD, scale=GOOD.scale * np.inf)],
    "NaN weight": [np.full((8, 64), np.nan, np.float32)],
    "no outputs": [np.ones((0, 64), np.float32)],
    "no inputs": [np.ones((8, 0), np.float32)],
}


@cases(BAD_PARTS)
def test_pack_refuses(fault: list[Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        NATIVE.pack(fault)


def test_pack_refuses_a_short_bias() -> None:
    with pytest.raises(ValueError, match="got 7, expected 8"):
        NATIVE.pack([GOOD], np.ones(7, np.float32))


BAD_DRAWS = [
    *[("row", 1), ("row", -1), ("given", 10), ("given", -2), ("position", -1), ("top_k", -1)],
    *[("temperature", -1), ("temperature", np.nan), ("temperature", np.inf), ("top_p", 1.1)],
    *[("top_p", np.nan), ("min_p", -0.1), ("edit_starts", 5), ("edit_starts", -1)],
]
BAD_EDITS = [("token", 10), ("token", -1), ("scale", 0), ("scale", np.nan), ("shift", np.nan)]


@pytest.mark.parametrize(("name", "value"), BAD_DRAWS)
def test_draw_refuses(name: str, value: float) -> None:
    draws = plain_draws(3)
    getattr(draws, name)[1] = value
    with pytest.raises(ValueError, match=name):
        NATIVE.draw(np.zeros((1, 10), np.float32), draws)


@pytest.mark.parametrize(("name", "value"), BAD_EDITS)
def test_draw_refuses_edits(name: str, value: float) -> None:
    draws = plain_draws(
        1, edit_starts=ints(0, 1), edit_token=ints(0), edit_scale=np.ones(1, np.float32),
        edit_shift=np.ones(1, np.float32),
    )  # fmt: skip
    getattr(draws, f"edit_{name}")[0] = value
    with pytest.raises(ValueError, match=name):
        NATIVE.draw(np.zeros((1, 10), np.float32), draws)


def test_unknown_isa_and_threads() -> None:
    with pytest.raises(InputError, match="portable"):
        NativeBackend(isa="mmx")
    with pytest.raises(InputError, match="threads"):
        NativeBackend(0)


@pytest.mark.parametrize("shape", [(0, 1, 16), (1, 0, 16), (1, 1, 0), (1, 1, 15), (1, 1, -2)])
def test_cache_refuses(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        NATIVE.cache(CacheShape(*shape), 4)
    with pytest.raises(ValueError, match="pages"):
        NATIVE.cache(CacheShape(1, 1, 16), 0)


def test_threads_may_share_a_backend() -> None:
    rng = np.random.default_rng(0)
    packed = NATIVE.pack([matrix(rng, 64, 256, FORMS[0])])
    x = rows_of(rng, 20, 256)
    want = linear(NATIVE, x, [np.eye(256, dtype=np.float32)])
    identity = NATIVE.pack([np.eye(256, dtype=np.float32)])
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            out = np.empty((20, 256), np.float32)
            NATIVE.linear(x, identity, out)
            NATIVE.linear(x, packed, np.empty((20, 64), np.float32))
            if not equal_bits(out, want):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_goes_on() -> None:
    """On one thread, to the same bits, and it ends cleanly."""
    script = """
import os, sys, warnings
import numpy as np
from anabranch.backends.native import NativeBackend
warnings.simplefilter("ignore")
backend = NativeBackend(4)
weight = backend.pack([np.eye(64, dtype=np.float32)])
x, a, b = np.random.default_rng(0).normal(size=(3, 50, 64)).astype(np.float32)
backend.linear(x, weight, a)
child = os.fork()
backend.linear(x, weight, b)
assert np.array_equal(a, b)
del backend
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=20).returncode == 0

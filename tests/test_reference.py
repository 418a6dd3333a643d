"""Each reference operation against its formula, written out once more with scalars and loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.backends.base import F32, PAGE_SLOTS, CacheShape, Draws, Norm, Quantized, Rope
from anabranch.backends.philox import philox
from anabranch.backends.reference import ReferenceBackend, uniform
from tests.toy import Span, batch_of, random_weight

BACKEND = ReferenceBackend()
RNG = np.random.default_rng


def floats(rng: np.random.Generator, *shape: int) -> F32:
    return rng.normal(size=shape).astype(np.float32)


# Weights


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 32), (8, 16)])
def test_packing_means_what_the_integers_say(bits: Any, group: Any) -> None:
    q = random_weight(RNG(0), (3, 64), bits, group, has_offset=group == 32)
    packed = BACKEND.pack([q], bias=np.array([1, 2, 3], np.float32))
    assert (packed.outputs, packed.inputs, packed.nbytes) == (3, 64, 3 * 64 * 4 + 3 * 4)
    for i in range(64):
        out = np.empty((1, 3), np.float32)
        BACKEND.linear(np.eye(64, dtype=np.float32)[i : i + 1], packed, out)
        for o in range(3):
            g = i // group
            offset = 0 if q.offset is None else float(q.offset[o, g])
            want = float(q.scale[o, g]) * int(q.q[o, i]) + offset + (o + 1)
            assert out[0, o] == pytest.approx(want, abs=1e-6)


def test_packing_stacks_parts_in_order() -> None:
    x = floats(RNG(1), 2, 64)
    four, eight = random_weight(RNG(2), (5, 64)), random_weight(RNG(3), (2, 64), bits=8)
    parts = [four, eight, floats(RNG(4), 3, 64)]
    out = np.empty((2, 10), np.float32)
    BACKEND.linear(x, BACKEND.pack(parts), out)
    dense = [p.dequantize() if isinstance(p, Quantized) else p for p in parts]
    np.testing.assert_allclose(out, np.hstack([x @ m.T for m in dense]), atol=1e-5)


def test_packing_refuses_what_no_form_holds() -> None:
    good = random_weight(RNG(0), (2, 64))
    for parts, bias, fault in [
        ([], None, "at least one"),
        ([good, random_weight(RNG(0), (2, 32))], None, "inputs differ"),
        ([replace(good, q=good.q + np.uint8(16))], None, "4 bits"),
        ([replace(good, q=good.q.astype(np.int8))], None, "int8"),
        ([replace(good, group=16)], None, "no 4 bits in groups of 16"),
        ([replace(good, bits=8, group=16)], None, "no 8 bits in groups of 16"),
        ([replace(good, q=good.q[:, :48])], None, "48 inputs"),
        ([replace(good, scale=good.scale[:, :1])], None, "scale"),
        ([replace(good, offset=good.scale[:1])], None, "offset"),
        ([np.zeros((2, 2))], None, "float32"),
        ([np.zeros(2, np.float32)], None, "float32"),
        ([good], np.zeros(3, np.float32), "bias"),
    ]:
        with pytest.raises(ValueError, match=fault):
            BACKEND.pack(parts, bias)


@given(tokens=st.lists(st.integers(0, 6), max_size=5))
def test_embed_looks_up_and_scales(tokens: list[int]) -> None:
    table = floats(RNG(0), 7, 3)
    out = np.empty((len(tokens), 3), np.float32)
    BACKEND.embed(BACKEND.pack([table]), np.array(tokens, np.int32), 2.0, out)
    np.testing.assert_array_equal(out, 2 * table[tokens])


# Linear and its neighbours


def rms(row: list[float], norm: Norm) -> list[float]:
    mean = sum(v * v for v in row) / len(row)
    scale = 1 / math.sqrt(mean + norm.eps)
    return [v * scale * float(w) for v, w in zip(row, norm.weight, strict=True)]


def act(v: float, activation: str) -> float:
    if activation == "silu":
        return v / (1 + math.exp(-v))
    return v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


@given(
    seed=st.integers(0, 99),
    rows=st.integers(0, 4),
    inputs=st.integers(1, 9),
    halves=st.integers(1, 5),
    activation=st.sampled_from([None, "silu", "gelu_tanh"]),
    flags=st.tuples(*[st.booleans()] * 4),
)
def test_linear_computes_its_formula(
    seed: int, rows: int, inputs: int, halves: int, activation: Any, flags: tuple[bool, ...]
) -> None:
    rng, (has_bias, has_norm, has_post, add) = RNG(seed), flags
    width = halves if activation else 2 * halves
    x, out = floats(rng, rows, inputs), floats(rng, rows, width)
    weight = floats(rng, 2 * halves, inputs)
    bias = floats(rng, 2 * halves) if has_bias else None
    norm = Norm(floats(rng, inputs), 1e-5) if has_norm else None
    post = Norm(floats(rng, width), 1e-2) if has_post else None
    want = []
    for row, old in zip(x.tolist(), out.tolist(), strict=True):
        row = rms(row, norm) if norm else row
        y = [sum(w * v for w, v in zip(ws, row, strict=True)) for ws in weight.tolist()]
        if bias is not None:
            y = [v + float(b) for v, b in zip(y, bias, strict=True)]
        if activation:
            y = [act(y[j], activation) * y[halves + j] for j in range(halves)]
        y = rms(y, post) if post else y
        want.append([o + v for o, v in zip(old, y, strict=True)] if add else y)
    packed = BACKEND.pack([weight], bias)
    BACKEND.linear(x, packed, out, norm=norm, activation=activation, post_norm=post, add=add)
    np.testing.assert_allclose(out, np.reshape(want, out.shape), rtol=1e-4, atol=1e-5)


def test_activations_do_not_overflow() -> None:
    x = np.array([[-1e4], [-100], [0], [100], [1e4]], np.float32)
    packed = BACKEND.pack([np.ones((2, 1), np.float32)])
    for activation in ("silu", "gelu_tanh"):
        out = np.empty((5, 1), np.float32)
        BACKEND.linear(x, packed, out, activation=activation)
        np.testing.assert_allclose(out, np.maximum(x, 0) * x, rtol=1e-6, atol=1e-6)


def test_linear_refuses_shapes_that_do_not_fit() -> None:
    packed = BACKEND.pack([np.ones((3, 2), np.float32)])
    x, out = np.ones((4, 2), np.float32), np.ones((4, 3), np.float32)
    for args, options, fault in [
        ((x[:, :1], out), {}, "x must be"),
        ((x, out[:3]), {}, "out must be"),
        ((x, out[:, :2]), {}, "out must be"),
        ((x.astype(np.float64), out), {}, "x must be"),
        ((x, out), {"activation": "silu"}, "gate and up"),
        ((x, out), {"norm": Norm(np.ones(3, np.float32), 1e-5)}, "norm weight"),
        ((x, out), {"post_norm": Norm(np.ones(2, np.float32), 1e-5)}, "norm weight"),
    ]:
        with pytest.raises(ValueError, match=fault):
            BACKEND.linear(args[0], packed, args[1], **options)


# Rotary embedding, storage and attention

SHAPE = CacheShape(layers=2, kv_heads=2, dim=4)
HEADS = 4


def rope(positions: int = 64) -> Rope:
    angles = np.outer(np.arange(positions), [1.0, 0.3])
    return Rope(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def rotated(head: np.ndarray, position: int) -> list[float]:
    """Two complex numbers made of components (0, 2) and (1, 3), turned by the position."""
    turned = [
        complex(head[j], head[j + 2]) * complex(math.cos(a), math.sin(a))
        for j, a in enumerate((position * 1.0, position * 0.3))
    ]
    return [z.real for z in turned] + [z.imag for z in turned]


@given(start=st.integers(0, 40), rows=st.integers(1, 20), normed=st.booleans())
def test_rope_store_norms_rotates_and_stores(start: int, rows: int, normed: bool) -> None:
    rng, cache = RNG(start), BACKEND.cache(SHAPE, 5)
    qkv, table = floats(rng, rows, (HEADS + 4) * 4), [3, 0, 4, 1]
    q, before = np.empty((rows, HEADS * 4), np.float32), qkv.copy()
    q_norm, k_norm = (Norm(floats(rng, 4), 1e-5) if normed else None for _ in range(2))
    batch = batch_of(Span([0] * rows, start, table))
    batch.slots[rows // 2] = -1
    plan = BACKEND.plan(batch, cache)
    BACKEND.rope_store(qkv, cache, 1, plan, rope(), q, q_norm=q_norm, k_norm=k_norm)

    np.testing.assert_array_equal(qkv, before)
    keys, values = np.zeros_like(cache.keys), np.zeros_like(cache.values)
    for r in range(rows):
        heads, position = qkv[r].reshape(-1, 4), start + r
        for h in range(HEADS):
            head = rms(heads[h].tolist(), q_norm) if q_norm else heads[h]
            np.testing.assert_allclose(q[r].reshape(-1, 4)[h], rotated(head, position), atol=1e-5)
        if r == rows // 2:
            continue
        page, slot = table[position // PAGE_SLOTS], position % PAGE_SLOTS
        for h in range(2):
            head = rms(heads[HEADS + h].tolist(), k_norm) if k_norm else heads[HEADS + h]
            keys[page, 1, h, slot] = rotated(head, position)
            values[page, 1, h, slot] = heads[HEADS + 2 + h]
    np.testing.assert_allclose(cache.keys, keys, atol=1e-5)
    np.testing.assert_array_equal(cache.values, values)


@given(
    seed=st.integers(0, 99),
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=3),
    window=st.sampled_from([0, 1, 3, 17]),
)
def test_attend_is_causal_softmax_over_the_page_table(
    seed: int, spans: list[tuple[int, int]], window: int
) -> None:
    """Tables share their first page; pages hold garbage wherever no row may look."""
    rng, cache = RNG(seed), BACKEND.cache(SHAPE, 8)
    cache.keys[:] = floats(rng, *cache.keys.shape)
    cache.values[:] = floats(rng, *cache.values.shape)
    tables = [[5, *rng.permutation(5).tolist()] for _ in spans]
    paths = list(zip(spans, tables, strict=True))
    read = [Span([0] * rows, start, table, store=False) for (start, rows), table in paths]
    plan = BACKEND.plan(batch_of(*read), cache)
    q = floats(rng, plan.rows, HEADS * 4)
    out = np.empty_like(q)
    BACKEND.attend(q, cache, 1, plan, 0.7, out, window=window)
    want = []
    for span in read:
        for position in span.positions:
            first = max(0, position - window + 1) if window else 0
            for h in range(HEADS):
                query = q[len(want) // HEADS].reshape(HEADS, 4)[h]
                total, mix = 0.0, np.zeros(4)
                for seen in range(first, position + 1):
                    at = span.table[seen // PAGE_SLOTS], 1, h // 2, seen % PAGE_SLOTS
                    weight = math.exp(0.7 * float(query @ cache.keys[at]))
                    total, mix = total + weight, mix + weight * cache.values[at]
                want.append(mix / total)
    np.testing.assert_allclose(out, np.reshape(want, out.shape), rtol=1e-4, atol=1e-5)


def test_attend_survives_large_scores() -> None:
    cache = BACKEND.cache(SHAPE, 1)
    cache.keys[:], cache.values[:] = 1e4, 1
    plan = BACKEND.plan(batch_of(Span([0] * 3, 0, [0], store=False)), cache)
    q = np.full((3, HEADS * 4), 1e4, np.float32)
    out = np.empty_like(q)
    BACKEND.attend(q, cache, 0, plan, 1.0, out)
    np.testing.assert_allclose(out, 1)


def test_copy_page_copies_all_layers_and_nothing_else() -> None:
    cache = BACKEND.cache(SHAPE, 4)
    cache.keys[:] = floats(RNG(0), *cache.keys.shape)
    cache.values[:] = floats(RNG(1), *cache.values.shape)
    keys, values = cache.keys.copy(), cache.values.copy()
    BACKEND.copy_page(cache, 1, 3)
    np.testing.assert_array_equal(cache.keys, keys[[0, 1, 2, 1]])
    np.testing.assert_array_equal(cache.values, values[[0, 1, 2, 1]])
    for source, target in [(-1, 0), (0, 4)]:
        with pytest.raises(ValueError, match="page"):
            BACKEND.copy_page(cache, source, target)


def test_a_cache_costs_what_its_shape_says() -> None:
    half = replace(SHAPE, storage="bf16")
    assert half.page_bytes * 2 == SHAPE.page_bytes
    for shape in (SHAPE, half):
        assert BACKEND.cache(shape, 3).nbytes == 3 * shape.page_bytes


def test_attention_operations_refuse_what_does_not_fit() -> None:
    cache = BACKEND.cache(SHAPE, 2)
    plan = BACKEND.plan(batch_of(Span([0, 0], 0, [0])), cache)
    q, qkv = np.zeros((2, 16), np.float32), np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="layer 2"):
        BACKEND.attend(q, cache, 2, plan, 1.0, q.copy())
    with pytest.raises(ValueError, match="window"):
        BACKEND.attend(q, cache, 0, plan, 1.0, q.copy(), window=-1)
    with pytest.raises(ValueError, match="heads"):
        BACKEND.attend(q[:, :12], cache, 0, plan, 1.0, q[:, :12].copy())
    with pytest.raises(ValueError, match="q has 15"):
        BACKEND.attend(q[:, :15], cache, 0, plan, 1.0, q[:, :15].copy())
    with pytest.raises(ValueError, match="pages"):
        BACKEND.attend(q, BACKEND.cache(SHAPE, 3), 0, plan, 1.0, q.copy())
    with pytest.raises(ValueError, match="qkv"):
        BACKEND.rope_store(qkv[:, :31], cache, 0, plan, rope(), q)
    with pytest.raises(ValueError, match="rope table of 1"):
        BACKEND.rope_store(qkv, cache, 0, plan, rope(1), q)


def test_plans_refuse_batches_outside_the_cache() -> None:
    good = batch_of(Span([1, 2], 15, [0, 1]), Span([3], 0, [2]))
    cache = BACKEND.cache(SHAPE, 3)
    assert BACKEND.plan(good, cache).rows == 3

    def ints(*values: int) -> Any:
        return np.array(values, np.int32)

    for change, fault in [
        ({"tokens": ints(1, 2, -3)}, "tokens"),
        ({"positions": ints(15, 16)}, "positions"),
        ({"positions": ints(15, 17, 0)}, "consecutive"),
        ({"positions": ints(15, 16, -1)}, "positions"),
        ({"positions": ints(31, 32, 0)}, "page table"),
        ({"positions": ints(14, 15, 0)}, "row's own"),
        ({"slots": ints(15, 17, 32)}, "row's own"),
        ({"slots": ints(15, 16, -2)}, "slots"),
        ({"slots": ints(15, 16, 48)}, "slots"),
        ({"tables": ints(0, 1, 3)}, "tables"),
        ({"tables": ints(0, -1, 2)}, "tables"),
        ({"row_starts": ints(0, 2)}, "row_starts"),
        ({"row_starts": ints(1, 2, 3)}, "row_starts"),
        ({"row_starts": ints(0, 3, 3)}, "consecutive|no rows"),
        ({"table_starts": ints(0, 3)}, "table_starts"),
        ({"table_starts": ints(0, 4, 3)}, "table_starts"),
        ({"tokens": np.array([1, 2, 3])}, "int32"),
        ({"tables": ints(1, 2, 2), "slots": ints(31, 32, 32)}, "same slot"),
    ]:
        with pytest.raises(ValueError, match=fault):
            BACKEND.plan(replace(good, **change), cache)


# Drawing


def draws(count: int = 1, **changes: Any) -> Draws:
    """Plain draws from row 0, one per position from 0."""
    columns: dict[str, tuple[Any, Any]] = {
        "row": (0, np.int32),
        "given": (-1, np.int32),
        "key": (2**63 + 7, np.uint64),
        "position": (range(count), np.int32),
        "temperature": (1, np.float32),
        "top_k": (0, np.int32),
        "top_p": (1, np.float32),
        "min_p": (0, np.float32),
    }
    for name, value in changes.items():
        if name in columns:
            columns[name] = value, columns[name][1]
    arrays = {
        name: np.broadcast_to(np.array(list(v) if isinstance(v, range) else v, kind), count).copy()
        for name, (v, kind) in columns.items()
    }
    edits = changes.get("edits", [[]] * count)
    flat = [edit for one in edits for edit in one]
    return Draws(
        **arrays,
        edit_starts=np.cumsum([0, *map(len, edits)], dtype=np.int32),
        edit_token=np.array([t for t, _, _ in flat], np.int32),
        edit_scale=np.array([s for _, s, _ in flat], np.float32),
        edit_shift=np.array([s for _, _, s in flat], np.float32),
    )


def brute(
    logits: list[float], u: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[int, float]:
    """Token and logq by loops over sorted lists."""
    if temperature == 0:
        return logits.index(max(logits)), 0.0
    top = max(logits)
    p = {i: math.exp((z - top) / temperature) for i, z in enumerate(logits)}

    def total() -> float:
        return sum(p.values())

    if top_k or top_p < 1 or min_p:
        order = sorted(p, key=lambda i: (-p[i], i))
        p = {i: p[i] for i in order[: top_k or len(order)]}
        whole, before, nucleus = total(), 0.0, {}
        for i, mass in p.items():
            if not nucleus or before < top_p * whole:
                nucleus[i] = mass
            before += mass
        largest = max(nucleus.values())
        p = {i: mass for i, mass in nucleus.items() if mass >= min_p * largest}
    whole, reached = total(), 0.0
    for i, mass in p.items():
        reached += mass
        if reached > u * whole:
            return i, math.log(mass / whole)
    raise AssertionError("u is below 1")


@given(
    # Quarters make ties common, and sums that no filter's bound can fall between by rounding.
    logits=st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=9),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([1.0, 0.83, 0.31, 0.0]),
    min_p=st.sampled_from([0.0, 0.13, 0.77]),
    position=st.integers(0, 2**31 - 1),
)
def test_draw_equals_loops_over_sorted_lists(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, position: int
) -> None:
    request = draws(
        position=position, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    drawn = BACKEND.draw(np.array([logits], np.float32), request)
    u = uniform(int(request.key[0]), position)
    token, logq = brute(
        logits, u, temperature, top_k, float(np.float32(top_p)), float(np.float32(min_p))
    )
    log_mass = math.log(sum(math.exp(z) for z in logits))
    assert drawn.token[0] == token
    assert drawn.logq[0] == pytest.approx(logq, abs=1e-5)
    assert drawn.logp[0] == pytest.approx(logits[token] - log_mass, abs=1e-5)
    entropy = -sum(math.exp(z - log_mass) * (z - log_mass) for z in logits)
    assert drawn.entropy[0] == pytest.approx(entropy, abs=1e-5)


def test_draws_occur_as_often_as_their_probability() -> None:
    logits = np.array([[0.0, 2.0, -1.0, 1.0]], np.float32)
    drawn = BACKEND.draw(logits, draws(4000))
    want = np.exp(logits[0]) / np.exp(logits[0]).sum()
    seen = np.bincount(drawn.token, minlength=4) / 4000
    np.testing.assert_allclose(seen, want, atol=4 * (0.25 / 4000) ** 0.5)
    np.testing.assert_allclose(drawn.logq, np.log(want)[drawn.token], atol=1e-6)


def test_edits_apply_in_order_on_raw_logits() -> None:
    """Scaling shrinks a positive logit and lowers a negative one; then the shift is added."""
    logits = np.array([[3.0, 2.5, -1.0]], np.float32)
    cases = [
        ([], 0),
        ([(0, 2.0, 0.0)], 1),  # 3 / 2
        ([(0, 2.0, 0.0), (1, 1.0, -1.5)], 0),
        ([(2, 2.0, 6.0)], 2),  # -1 * 2 + 6 = 4
        ([(2, 4.0, 6.0)], 0),  # -1 * 4 + 6 = 2
        ([(2, 1.0, 2.0), (2, 1.0, 2.1)], 2),  # the same token twice
        ([(0, 1.0, -np.inf), (1, 1.0, -np.inf)], 2),
    ]
    for edits, want in cases:
        drawn = BACKEND.draw(logits, draws(temperature=0, edits=[edits]))
        assert drawn.token[0] == want
        model = logits[0, want] - np.log(np.exp(logits[0]).sum())
        assert drawn.logp[0] == pytest.approx(model, abs=1e-6)  # the model knows of no edits


def test_given_tokens_are_scored_by_the_model() -> None:
    logits = np.array([[0.0, -np.inf], [1.0, 2.0]], np.float32)
    request = draws(3, row=[1, 0, 0], given=[0, 1, 0], temperature=0.5, edits=[[(0, 1, 9)], [], []])
    drawn = BACKEND.draw(logits, request)
    np.testing.assert_array_equal(drawn.token, [0, 1, 0])
    np.testing.assert_allclose(drawn.logp, [-math.log1p(math.e), -np.inf, 0.0], atol=1e-6)
    np.testing.assert_array_equal(drawn.logq, 0)
    assert drawn.entropy[1] == 0


def test_excluded_tokens_are_never_drawn() -> None:
    logits = np.array([[-np.inf, 0.0, -np.inf, 0.0, -np.inf]], np.float32)
    assert set(BACKEND.draw(logits, draws(200)).token) == {1, 3}


def test_the_random_number_is_the_streams_own() -> None:
    for key, position in [(0, 0), (2**64 - 1, 2**31 - 1), (5, 17)]:
        first = philox(key, (position, 0, 0, 0))[0]
        assert uniform(key, position) == (first // 256 + 0.5) / 2**24
        assert 0 < uniform(key, position) < 1


def test_rows_without_a_distribution_are_named() -> None:
    good, bad = [0.0, 1.0], [[np.nan, 0], [0, np.nan], [np.inf, 0], [-np.inf, -np.inf]]
    for row in bad:
        logits = np.array([good, row], np.float32)
        assert BACKEND.draw(logits, draws()).token[0] in (0, 1)
        for request in (draws(row=1), draws(row=1, temperature=0), draws(row=1, given=0)):
            with pytest.raises(ValueError, match="row 1"):
                BACKEND.draw(logits, request)
    nothing_left = [[(0, 1.0, -np.inf), (1, 1.0, -np.inf)]]
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="row 0"):
            BACKEND.draw(
                np.array([good], np.float32), draws(temperature=temperature, edits=nothing_left)
            )


def test_draws_outside_their_ranges_are_refused() -> None:
    logits = np.zeros((2, 3), np.float32)
    for changes in [
        {"row": 2},
        {"row": -1},
        {"given": 3},
        {"given": -2},
        {"position": -1},
        {"temperature": -0.1},
        {"temperature": np.nan},
        {"temperature": np.inf},
        {"top_k": -1},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": np.nan},
        {"min_p": 1.5},
        {"edits": [[(3, 1, 0)]]},
        {"edits": [[(0, 0, 0)]]},
        {"edits": [[(0, -1, 0)]]},
        {"edits": [[(0, 1, np.nan)]]},
        {"edits": [[(0, 1, np.inf)]]},
    ]:
        with pytest.raises(ValueError, match=next(iter(changes)).removesuffix("s")):
            BACKEND.draw(logits, draws(**changes))

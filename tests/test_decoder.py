"""The decoder against the textbook's equations, and the laws that every way of running it obeys.

The native backend is held to the same bits, the reference (whose matrix products may sum in
another order when rows are added) to rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.backends.base import F32, PAGE_SLOTS, Backend, Cache, run_layers
from anabranch.backends.native import NativeBackend
from anabranch.backends.reference import ReferenceBackend
from anabranch.models.config import LayerSpec, RopeSpec
from anabranch.models.decoder import Decoder
from anabranch.models.rope import RopeTable
from tests.toy import FAMILIES, LLAMA, Span, ToyFile, batch_of, toy

PAGES = 16
TOKENS = np.random.default_rng(1).integers(0, LLAMA.vocab, 70).tolist()

BACKENDS: dict[str, Callable[[], Backend]] = {
    "reference": ReferenceBackend,
    "native": NativeBackend,
}


@pytest.fixture(scope="module", params=[(b, f) for b in BACKENDS for f in FAMILIES], ids="-".join)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    backend, family = request.param
    return Decoder(toy(family), BACKENDS[backend]())


def logits(decoder: Decoder, cache: Cache, *spans: Span) -> F32:
    """Run spans as one batch; the logits of every row."""
    hidden = decoder.run(batch_of(*spans), cache)
    return decoder.logits(hidden, np.arange(len(hidden), dtype=np.int32)).copy()


def from_scratch(decoder: Decoder, tokens: list[int]) -> F32:
    pages = -(-len(tokens) // PAGE_SLOTS)
    return logits(decoder, decoder.cache(pages), Span(tokens, 0, range(pages)))


def check_same(decoder: Decoder, got: F32, want: F32) -> None:
    if decoder.backend.name == "native":
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, atol=1e-4)


# The equations


def textbook(file: ToyFile, tokens: list[int]) -> np.ndarray:
    """Logits of a whole sequence in float64, without cache, pages, stacking or fusion."""
    c = file.config

    def weight(name: str) -> np.ndarray:
        w = file.weight(name)
        return (w if isinstance(w, np.ndarray) else w.dequantize()).astype(np.float64)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps) * weight(name)

    def rotate(x: np.ndarray, spec: RopeSpec) -> np.ndarray:
        j = np.arange(c.dim // 2)
        frequency = spec.base ** (-2 * j / c.dim) / spec.factor / np.array(spec.divisors or 1)
        turn = np.exp(1j * np.arange(len(x))[:, None] * frequency)[:, None]
        z = (x[..., : c.dim // 2] + 1j * x[..., c.dim // 2 :]) * turn
        return np.concatenate([z.real, z.imag], -1)

    def act(x: np.ndarray) -> np.ndarray:
        if c.activation == "silu":
            return x / (1 + np.exp(-x))
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    h = weight("embed")[tokens] * c.embedding_scale
    at = np.arange(len(tokens))
    for i, layer in enumerate(c.layers):
        p, x = f"layers.{i}.", norm(h, f"layers.{i}.attn_norm")
        q, k, v = (x @ weight(p + name).T for name in "qkv")
        if c.qkv_bias:
            q, k, v = q + weight(p + "q_bias"), k + weight(p + "k_bias"), v + weight(p + "v_bias")
        q, k, v = (m.reshape(len(tokens), -1, c.dim) for m in (q, k, v))
        if c.qk_norm:
            q, k = norm(q, p + "q_norm"), norm(k, p + "k_norm")
        q, k = rotate(q, c.ropes[layer.rope]), rotate(k, c.ropes[layer.rope])
        seen = at <= at[:, None]
        if layer.window:
            seen &= at > at[:, None] - layer.window
        heads = []
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            scores = q[:, head] @ k[:, shared].T * (c.attention_scale or c.dim**-0.5)
            p_seen = np.where(seen, np.exp(scores), 0)
            heads.append(p_seen / p_seen.sum(1, keepdims=True) @ v[:, shared])
        y = np.concatenate(heads, 1) @ weight(p + "o").T
        h = h + (norm(y, p + "post_attn_norm") if c.post_norms else y)
        x = norm(h, p + "ffn_norm")
        y = (act(x @ weight(p + "gate").T) * (x @ weight(p + "up").T)) @ weight(p + "down").T
        h = h + (norm(y, p + "post_ffn_norm") if c.post_norms else y)
    return norm(h, "final_norm") @ weight("embed" if c.tied else "output").T


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_computes_the_textbook_equations(family: str) -> None:
    file = toy(family, seed=3)
    got = from_scratch(Decoder(file, ReferenceBackend()), TOKENS)
    np.testing.assert_allclose(got, textbook(file, TOKENS), atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_for_all_layers_is_one_operation_after_the_other(family: str) -> None:
    class OneByOne(NativeBackend):
        def stack(self, layers: Any, activation: Any, scale: float) -> Any:
            return layers, activation, scale

        def run(self, stack: Any, *args: Any) -> None:
            run_layers(self, *stack, *args)

    file = toy(family, seed=5)
    want = from_scratch(Decoder(file, OneByOne()), TOKENS)
    np.testing.assert_array_equal(from_scratch(Decoder(file, NativeBackend()), TOKENS), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_stays_near_the_reference(family: str) -> None:
    file = toy(family)
    got = from_scratch(Decoder(file, NativeBackend()), TOKENS)
    want = from_scratch(Decoder(file, ReferenceBackend()), TOKENS)
    assert np.abs(got - want).mean() < 0.03 * want.std()  # activations of 8 bits


# One path, however it is cut, forked or accompanied


@settings(max_examples=6)
@given(cuts=st.sets(st.integers(1, len(TOKENS) - 1), max_size=5))
def test_chunks_equal_the_whole(decoder: Decoder, cuts: set[int]) -> None:
    cache, table = decoder.cache(PAGES), [3, 0, 7, 1, 9]
    edges = [0, *sorted(cuts), len(TOKENS)]
    chunks = [logits(decoder, cache, Span(TOKENS[a:b], a, table)) for a, b in pairwise(edges)]
    check_same(decoder, np.concatenate(chunks), from_scratch(decoder, TOKENS))


def test_token_by_token_equals_the_whole(decoder: Decoder) -> None:
    cache, table = decoder.cache(PAGES), [5, 4, 3, 2, 1]
    steps = [logits(decoder, cache, Span([t], i, table)) for i, t in enumerate(TOKENS)]
    check_same(decoder, np.concatenate(steps), from_scratch(decoder, TOKENS))


@settings(max_examples=6)
@given(fork=st.integers(1, 40), data=st.data())
def test_forks_equal_computing_from_scratch(
    decoder: Decoder, fork: int, data: st.DataObject
) -> None:
    """Children share sealed pages, copy the open one, and are decoded together."""
    trunk, cache = TOKENS[:fork], decoder.cache(PAGES)
    logits(decoder, cache, Span(trunk, 0, [0, 1, 2]))
    tails = [data.draw(st.lists(st.integers(0, LLAMA.vocab - 1), min_size=1, max_size=9))] * 2
    tails[1] = [*reversed(tails[0]), 7]
    shared, spans = list(range(fork // PAGE_SLOTS)), []
    for child, tail in enumerate(tails):
        own = [4 + 2 * child, 5 + 2 * child]
        if fork % PAGE_SLOTS:
            decoder.backend.copy_page(cache, fork // PAGE_SLOTS, own[0])
        spans.append(Span(tail, fork, shared + own))
    got = logits(decoder, cache, *spans)
    want = [from_scratch(decoder, trunk + tail)[fork:] for tail in tails]
    check_same(decoder, got, np.concatenate(want))


def test_a_prefix_is_usable_in_the_pass_that_stores_it(decoder: Decoder) -> None:
    trunk, rest, other = TOKENS[:32], TOKENS[32:50], TOKENS[50:60]
    got = logits(
        decoder,
        decoder.cache(PAGES),
        Span(other, 32, [8, 9, 5]),
        Span(trunk, 0, [8, 9]),
        Span(rest, 32, [8, 9, 2, 4]),
    )
    want = from_scratch(decoder, trunk + other)[32:], from_scratch(decoder, trunk + rest)
    check_same(decoder, got, np.concatenate(want))


def test_company_and_order_change_nothing(decoder: Decoder) -> None:
    spans = [
        Span(TOKENS[:20], 0, [0, 1]),
        Span(TOKENS[20:21], 0, [2]),
        Span(TOKENS[30:63], 0, [6, 4, 5]),
    ]
    together = logits(decoder, decoder.cache(PAGES), *spans[::-1])
    alone = [from_scratch(decoder, list(span.tokens)) for span in spans[::-1]]
    check_same(decoder, together, np.concatenate(alone))


def test_a_row_can_be_looked_at_again_without_storing(decoder: Decoder) -> None:
    cache, table = decoder.cache(PAGES), [0, 1, 2, 3, 4]
    first = logits(decoder, cache, Span(TOKENS, 0, table))
    again = logits(decoder, cache, Span(TOKENS[40:42], 40, table, store=False))
    check_same(decoder, again, first[40:42])


def test_no_rows_are_fine(decoder: Decoder) -> None:
    assert logits(decoder, decoder.cache(1)).shape == (0, LLAMA.vocab)


# What the configuration promises


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_bound_what_a_row_sees(backend: str) -> None:
    """Two layers with windows of 5 and 3 reach back 4 + 2 positions, and do reach that far."""
    file = toy(layers=(LayerSpec(window=5), LayerSpec(window=3)))
    decoder = Decoder(file, BACKENDS[backend]())
    plain = from_scratch(decoder, TOKENS)
    changed = from_scratch(decoder, [*TOKENS[:20], TOKENS[20] ^ 1, *TOKENS[21:]])
    differs = np.flatnonzero((plain != changed).any(axis=1))
    np.testing.assert_array_equal(differs, np.arange(20, 27))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_models_pack_their_embedding_once(backend: str) -> None:
    tied, untied = (Decoder(toy(tied=tied), BACKENDS[backend]()) for tied in (True, False))
    assert tied.nbytes < untied.nbytes
    hidden = np.random.default_rng(0).normal(size=(3, LLAMA.hidden)).astype(np.float32)
    rows = np.arange(3, dtype=np.int32)
    assert np.abs(tied.logits(hidden, rows) - untied.logits(hidden, rows)).max() > 0.1


def test_normed_states_are_what_logits_are_read_from(decoder: Decoder) -> None:
    rows = np.array([4, 0, 4], np.int32)
    hidden = decoder.run(batch_of(Span(TOKENS[:6], 0, [0])), decoder.cache(1)).copy()
    file = ToyFile(decoder.config)
    output = file.weight("embed" if file.config.tied else "output")
    assert not isinstance(output, np.ndarray)
    want = decoder.normed(hidden, rows) @ output.dequantize().T
    got = decoder.logits(hidden, rows)
    assert np.abs(got - want).mean() < 0.02 * want.std()
    check_same(decoder, got[0], got[2])


def test_progress_counts_every_parameter() -> None:
    for family in FAMILIES:
        file, seen = toy(family), []
        Decoder(file, ReferenceBackend(), progress=lambda *at, seen=seen: seen.append(at))
        total = sum(np.prod(shape) for shape in file.config.weight_shapes().values())
        done = [done for done, _ in seen]
        assert {of for _, of in seen} == {total}
        assert done == sorted(set(done))
        assert done[-1] == total


@given(asked=st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_rope_tables_do_not_depend_on_how_they_grew(asked: list[int]) -> None:
    spec = RopeSpec(10_000.0, factor=2.0, divisors=(1, 1, 2, 4))
    table, direct = RopeTable(spec, 8), RopeTable(spec, 8).upto(3000)
    for positions in asked:
        rope = table.upto(positions)
        assert len(rope.cos) == len(rope.sin) >= positions
        angle = (positions - 1) * 10_000.0**-0.5 / 2 / 2  # of pair 2, whose divisor is 2
        assert rope.cos[positions - 1, 2] == np.float32(math.cos(angle))
        assert rope.sin[positions - 1, 2] == np.float32(math.sin(angle))
        np.testing.assert_array_equal(rope.cos, direct.cos[: len(rope.cos)])
        np.testing.assert_array_equal(rope.sin, direct.sin[: len(rope.sin)])


def test_batches_that_do_not_fit_are_refused() -> None:
    decoder = Decoder(toy(context=64), ReferenceBackend(), max_rows=40)
    cache, table = decoder.cache(8), range(8)
    for span, fault in [
        (Span(TOKENS[:41], 0, table), "41 rows"),
        (Span(TOKENS[:2], 63, table), "position 64"),
        (Span([LLAMA.vocab], 0, table), "tokens"),
        (Span([-1], 0, table), "tokens"),
        (Span([1], 0, [8]), "slots|tables"),
        (Span([1], 16, [0, -1]), "slots|tables"),
    ]:
        with pytest.raises(ValueError, match=fault):
            decoder.run(batch_of(span), cache)

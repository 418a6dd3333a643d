"""The operations a model is made of, and the arrays that cross into them.

A backend computes and never decides: it knows weights, pages and rows, not branches, requests or
strategies. `reference` (numpy, float32) is the living definition of every operation here;
`native` (C++) must equal it within the tolerance its tests state, and must give the same bits for a
row whatever other rows, threads or pages accompany it.

Axis names used throughout: `rows` (tokens of one pass), `inputs`/`outputs` (of a weight matrix),
`heads` (query heads), `kv_heads`, `dim` (of one head), `vocab`, `pages`, `slots` (16 per page).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

PAGE_SLOTS = 16
"""KV slots per page. Page i of a path holds its positions 16i to 16i+15: an absolute grid."""

Activation = Literal["silu", "gelu_tanh"]
Storage = Literal["f32", "bf16"]
"""How keys and values are kept: bf16 is rounded to nearest even when stored, and halves them."""

STORAGE_BYTES = {"f32": 4, "bf16": 2}


@dataclass(frozen=True)
class Quantized:
    """A weight matrix as integers: `scale[o, i//group] * q[o, i] + offset[o, i//group]`.

    The executable meaning of both internal forms, W4 and W8, before a backend packs them.

    Attributes:
        q: `[outputs, inputs]`; uint8 in 0..15 when `bits` is 4, int8 when `bits` is 8.
        scale: `[outputs, inputs // group]`, float32.
        offset: like `scale`, or None when the format is symmetric.
        bits: 4 or 8.
        group: inputs that share a scale: 32, or 16 (only with 8 bits and no offset).
    """

    q: U8 | I8
    scale: F32
    offset: F32 | None
    bits: Literal[4, 8]
    group: Literal[16, 32]

    @property
    def shape(self) -> tuple[int, int]:
        """`(outputs, inputs)`."""
        return self.q.shape[0], self.q.shape[1]

    def dequantize(self) -> F32:
        """The float32 matrix `[outputs, inputs]` that the integers stand for."""
        weight = self.q.reshape(len(self.q), -1, self.group) * self.scale[:, :, None]
        if self.offset is not None:
            weight += self.offset[:, :, None]
        return weight.reshape(self.q.shape)


@dataclass(frozen=True)
class Blocks:
    """A weight matrix in a model file's own blocks, for a backend that reads them itself.

    Attributes:
        format: ggml's name of it; `models/quants.py` defines what it means.
        shape: `(outputs, inputs)`, inputs in whole blocks.
        data: `[bytes]`.
        mapped: they lie in a file mapped read-only and shared, whose pages may be let go of.
    """

    format: str
    shape: tuple[int, int]
    data: U8
    mapped: bool = False


Weight = Quantized | Blocks | F32


class Linear(Protocol):
    """A packed weight matrix, owned by the backend that packed it. Immutable."""

    inputs: int
    outputs: int
    nbytes: int


class Cache(Protocol):
    """Keys and values of all layers, in pages of 16 slots. Owned by the backend that made it."""

    pages: int
    nbytes: int


@dataclass(frozen=True)
class CacheShape:
    """What one model needs per KV slot. Attention computes in float32 whatever the storage."""

    layers: int
    kv_heads: int
    dim: int
    storage: Storage = "f32"

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        numbers = self.layers * 2 * self.kv_heads * self.dim * PAGE_SLOTS
        return numbers * STORAGE_BYTES[self.storage]


@dataclass(frozen=True)
class Batch:
    """The rows of one pass, grouped into sequences: runs of consecutive positions of one path.

    The order of sequences is free for correctness; neighbours whose page tables share a prefix are
    attended together, each shared key read once.

    Attributes:
        tokens: `[rows]` token ids.
        positions: `[rows]` absolute positions, consecutive inside a sequence.
        slots: `[rows]` where to store the row's key and value, `page * 16 + position % 16`;
            -1: nowhere (they are already there).
        row_starts: `[sequences + 1]` first row of each sequence, then `rows`.
        tables: all sequences' page tables, concatenated: page ids by grid index from 0.
        table_starts: `[sequences + 1]` offsets into `tables`.
    """

    tokens: I32
    positions: I32
    slots: I32
    row_starts: I32
    tables: I32
    table_starts: I32


class Plan(Protocol):
    """A `Batch` made ready for one backend: checked, pages grouped by the rows that read them."""

    rows: int


@dataclass(frozen=True)
class Norm:
    """RMS norm applied to the input of a fused operation: `x / sqrt(mean(x²) + eps) * weight`."""

    weight: F32
    eps: float


@dataclass(frozen=True)
class Rope:
    """Rotary embedding by position: dimension j is paired with j + dim/2.

    Attributes:
        cos, sin: `[positions, dim // 2]`.
    """

    cos: F32
    sin: F32


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its packed weights, and how it attends. `run_layers` says in what order.

    Attributes:
        rope: index of its rotary table.
        window: positions that a row sees; 0: all before it.
    """

    attn_norm: Norm
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    o: Linear
    post_attn_norm: Norm | None
    ffn_norm: Norm
    gate_up: Linear
    down: Linear
    post_ffn_norm: Norm | None
    rope: int
    window: int


class Stack(Protocol):
    """All layers of a model, made ready to run by the backend that packed them. Immutable."""


@dataclass(frozen=True)
class Draws:
    """What to read off logits rows: tokens to draw, or the log-probability of given ones.

    All arrays have the axis `draws`. Order of operations on a row: edits, temperature, top-k,
    top-p, min-p. Ties break towards the smaller token id.

    Attributes:
        row: which logits row.
        given: token id to score instead of drawing one, or -1.
        key: stream key of the branch (`backends.philox`).
        position: absolute position being drawn; with `key`, it fixes the random number.
        temperature: 0 takes the most likely token.
        top_k: 0 keeps all. top_p: 1 keeps all. min_p: 0 keeps all.
        edit_starts: `[draws + 1]` ranges into the edit arrays.
        edit_token, edit_scale, edit_shift: per edit, the raw logit z becomes
            `(z / scale if z > 0 else z * scale) + shift`: repetition penalty is the scale; presence
            and frequency penalties and bias are the shift.
    """

    row: I32
    given: I32
    key: U64
    position: I32
    temperature: F32
    top_k: I32
    top_p: F32
    min_p: F32
    edit_starts: I32
    edit_token: I32
    edit_scale: F32
    edit_shift: F32


@dataclass(frozen=True)
class Drawn:
    """One entry per draw.

    Attributes:
        token: the token drawn (or given).
        logp: its log-probability under the model: temperature 1, no edits, nothing truncated; nats.
        logq: its log-probability under the distribution really drawn from; 0 for given tokens and
            at temperature 0.
        entropy: of the model's distribution, nats.
    """

    token: I32
    logp: F32
    logq: F32
    entropy: F32


class Backend(Protocol):
    """Operations of a model. Methods that take `out` write it and allocate nothing."""

    name: str

    def pack(self, parts: Sequence[Weight], bias: F32 | None = None) -> Linear:
        """Lay out matrices with the same `inputs` as one, outputs stacked in the given order.

        Args:
            parts: one or several weights (q, k and v; gate and up), of different bits if need be.
            bias: `[outputs]` of the stack.
        """
        ...

    def cache(self, shape: CacheShape, pages: int) -> Cache:
        """Zeroed storage for `pages` pages."""
        ...

    def plan(self, batch: Batch, cache: Cache) -> Plan:
        """Check a batch against the cache's bounds and group its pages. Raises ValueError."""
        ...

    def embed(self, table: Linear, tokens: I32, scale: float, out: F32) -> None:
        """`out[rows, hidden] = scale * table[tokens]`, dequantized exactly."""
        ...

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
        """`y = weight · norm(x) + bias`, with its neighbours fused.

        Args:
            x: `[rows, inputs]`.
            out: `[rows, outputs]`, or `[rows, outputs // 2]` with `activation`.
            norm: applied to x first.
            activation: the stack is gate then up; `y = activation(gate) * up`.
            post_norm: applied to y (Gemma), before `add`.
            add: `out += y` instead of `out = y`: the residual.
        """
        ...

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
        """Norm and rotate queries and keys by each row's position; store keys and values.

        Args:
            qkv: `[rows, (heads + 2 * kv_heads) * dim]`, untouched.
            q: `[rows, heads * dim]`, written.
        """
        ...

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
        """Causal attention of each row over its sequence's pages.

        A row at position p sees positions `max(0, p - window + 1)..p` (`window` 0: all from 0).

        Args:
            q: `[rows, heads * dim]`.
            out: `[rows, heads * dim]`.
        """
        ...

    def stack(self, layers: Sequence[Layer], activation: Activation, scale: float) -> Stack:
        """Make layers ready for `run`; `scale` is attention's."""
        ...

    def run(self, stack: Stack, h: F32, cache: Cache, plan: Plan, ropes: Sequence[Rope]) -> None:
        """All layers over `h[rows, hidden]`, in place: to the bit what `run_layers` does."""
        ...

    def copy_page(self, cache: Cache, source: int, target: int) -> None:
        """Copy one page of all layers."""
        ...

    def draw(self, logits: F32, draws: Draws) -> Drawn:
        """Draw or score tokens from `logits[rows, vocab]`."""
        ...


def run_layers(
    backend: Backend,
    layers: Sequence[Layer],
    activation: Activation,
    scale: float,
    h: F32,
    cache: Cache,
    plan: Plan,
    ropes: Sequence[Rope],
) -> None:
    """A pass over all layers, one operation after the other: the definition of `Backend.run`."""
    for i, layer in enumerate(layers):
        qkv, q, attended, ffn = (
            np.empty((len(h), columns), np.float32)
            for columns in (layer.qkv.outputs, layer.o.inputs, layer.o.inputs, layer.down.inputs)
        )
        backend.linear(h, layer.qkv, qkv, norm=layer.attn_norm)
        q_norm, k_norm = layer.q_norm, layer.k_norm
        backend.rope_store(qkv, cache, i, plan, ropes[layer.rope], q, q_norm=q_norm, k_norm=k_norm)
        backend.attend(q, cache, i, plan, scale, attended, window=layer.window)
        backend.linear(attended, layer.o, h, post_norm=layer.post_attn_norm, add=True)
        backend.linear(h, layer.gate_up, ffn, norm=layer.ffn_norm, activation=activation)
        backend.linear(ffn, layer.down, h, post_norm=layer.post_ffn_norm, add=True)

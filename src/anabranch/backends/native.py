"""The C++ backend: quantized weights and activations, the same bits for a row in any company.

A thin door to `anabranch._native`, whose operations check their arguments again, release the GIL,
and raise ValueError or IndexError naming what was wrong. Calls from several threads are safe and
run one after the other. A child made by `os.fork` may go on using a backend, on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

import anabranch._native as _native
from anabranch.backends.base import (
    F32,
    I32,
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
)
from anabranch.errors import InputError, ResourceError

_ACTIVATIONS = {
    None: _native.Activation.none,
    "silu": _native.Activation.silu,
    "gelu_tanh": _native.Activation.gelu_tanh,
}
_STORAGES = {"f32": _native.Storage.f32, "bf16": _native.Storage.bf16}


class NativeBackend:
    """`Backend` on the processor, with its own threads.

    Weights are W4 or W8 as given, float32 matrices become W8; activations are quantized to 8 bits
    per row and group of 32, with the largest of a group kept apart in 14 bits where it stands out,
    so results differ from the reference by that rounding.
    """

    name = "native"

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        """Start the threads.

        Args:
            threads: including the caller's; None: one per processor this process may use.
            isa: instruction set, `avx512`, `avx2` or `portable`; None: what the environment
                variable ANABRANCH_ISA says, else the best this processor has. All give the same
                bits.

        Raises:
            InputError: no such instruction set here, or threads outside 1 to 4096.
            ResourceError: the system refuses so many threads.
        """
        isa = isa if isa is not None else os.environ.get("ANABRANCH_ISA", "")
        try:
            self._ops = _native.Backend(_processors() if threads is None else threads, isa)
        except ValueError as error:
            raise InputError(str(error)) from None
        except RuntimeError as error:
            raise ResourceError("threads could not be started", got=threads) from error

    def features(self) -> dict[str, object]:
        """What runs here, for `anabranch doctor`."""
        isas = self._ops.isas()
        return {"isa": self._ops.isa, "available": isas, "threads": self._ops.threads}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds inside each operation since the start, for profiles."""
        return self._ops.seconds

    def pack(self, parts: Sequence[Weight], bias: F32 | None = None) -> _native.Linear:
        """Repack into tiles; float32 matrices as W8, symmetric, in groups of 32."""
        return self._ops.pack([_matrix(part) for part in parts], bias)

    def cache(self, shape: CacheShape, pages: int) -> _native.Cache:
        """Storage that takes memory only once it is written to. Raises ResourceError."""
        try:
            return _native.Cache(
                shape.layers, shape.kv_heads, shape.dim, pages, _STORAGES[shape.storage]
            )
        except MemoryError:
            size = pages * shape.page_bytes / 2**30
            raise ResourceError(
                "the key-value cache does not fit into memory",
                got=f"{pages} pages, {size:.1f} GiB",
                fix="ask for fewer pages",
            ) from None

    def plan(self, batch: Batch, cache: Cache) -> _native.Plan:
        """Check; group neighbours whose page tables share a prefix."""
        b = batch
        return _native.Plan(
            b.tokens, b.positions, b.slots, b.row_starts, b.tables, b.table_starts, cache
        )

    def embed(self, table: Linear, tokens: I32, scale: float, out: F32) -> None:
        """Look up and scale. Raises IndexError for an unknown token."""
        self._ops.embed(table, tokens, scale, out)

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
        """Norm and quantize rows, multiply tiles, finish them in registers.

        With `activation`, gate and up are two parts, or one whose half is a multiple of 16.
        """
        norm_weight, norm_eps = (norm.weight, norm.eps) if norm else (None, 0.0)
        post_weight, post_eps = (post_norm.weight, post_norm.eps) if post_norm else (None, 0.0)
        kind = _ACTIVATIONS[activation]
        self._ops.linear(x, weight, out, norm_weight, norm_eps, kind, post_weight, post_eps, add)

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
        """Norm, rotate and store, row by row."""
        q_weight, q_eps = (q_norm.weight, q_norm.eps) if q_norm else (None, 0.0)
        k_weight, k_eps = (k_norm.weight, k_norm.eps) if k_norm else (None, 0.0)
        self._ops.rope_store(
            qkv, cache, layer, plan, rope.cos, rope.sin, q, q_weight, q_eps, k_weight, k_eps
        )

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
        """Attend over spans of 256 positions, each read from memory once for all rows below it."""
        self._ops.attend(q, cache, layer, plan, scale, out, window)

    def stack(self, layers: Sequence[Layer], activation: Activation, scale: float) -> _native.Stack:
        """Gather what `run` needs of each layer."""
        stack = _native.Stack(_ACTIVATIONS[activation], scale)
        for layer in layers:
            stack.add(
                *(layer.qkv, layer.o, layer.gate_up, layer.down),
                *(_norm(layer.attn_norm), _maybe(layer.q_norm), _maybe(layer.k_norm)),
                *(_maybe(layer.post_attn_norm), _norm(layer.ffn_norm), _maybe(layer.post_ffn_norm)),
                *(layer.rope, layer.window),
            )
        return stack

    def run(self, stack: Stack, h: F32, cache: Cache, plan: Plan, ropes: Sequence[Rope]) -> None:
        """One call for the whole pass: `run_layers` at one branch spends a tenth of it calling."""
        self._ops.run(stack, h, cache, plan, [(rope.cos, rope.sin) for rope in ropes])

    def copy_page(self, cache: Cache, source: int, target: int) -> None:
        """Copy one page of all layers. Raises IndexError."""
        self._ops.copy_page(cache, source, target)

    def draw(self, logits: F32, draws: Draws) -> Drawn:
        """Draw or score; sums in a fixed order, so a draw does not depend on its companions."""
        count, d = len(draws.row), draws
        drawn = Drawn(np.empty(count, np.int32), *np.empty((3, count), np.float32))
        self._ops.draw(
            logits,
            *(d.row, d.given, d.key, d.position, d.temperature, d.top_k, d.top_p, d.min_p),
            *(d.edit_starts, d.edit_token, d.edit_scale, d.edit_shift),
            *(drawn.token, drawn.logp, drawn.logq, drawn.entropy),
        )
        return drawn


def _norm(norm: Norm) -> tuple[F32, float]:
    return norm.weight, norm.eps


def _maybe(norm: Norm | None) -> tuple[F32, float] | None:
    return _norm(norm) if norm else None


def _matrix(weight: Weight) -> _native.Matrix:
    if isinstance(weight, Quantized):
        w = weight
        return _native.Matrix(w.q, w.scale, w.offset, w.bits, w.group)
    if isinstance(weight, Blocks):
        return _native.Matrix(weight.format, weight.data, *weight.shape, weight.mapped)
    return _native.Matrix(weight)


def _processors() -> int:
    """Processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1

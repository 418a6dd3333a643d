"""The one decoder: every architecture's forward pass, driven by its `ModelConfig`.

Six backend calls per layer, on arrays allocated once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anabranch.backends.base import F32, I32, Backend, Batch, Cache, Linear, Norm, Rope
from anabranch.errors import FileFormatError
from anabranch.models.config import ModelFile, RopeSpec


@dataclass(frozen=True)
class _Layer:
    """The packed weights of one layer."""

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


class Decoder:
    """A model's weights, packed by a backend, and the pass over one batch.

    Everything that lasts longer than a pass (keys and values) lives in the cache it is given; all
    else it needs is allocated here, once, for `max_rows` (logits: for the most rows asked at once).
    One pass at a time.
    """

    def __init__(
        self,
        file: ModelFile,
        backend: Backend,
        *,
        max_rows: int = 256,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Pack all weights.

        Args:
            max_rows: most rows of a batch.
            progress: told after each packed weight how many parameters are done, of how many.
        """
        self.config, self.backend, self.max_rows = file.config, backend, max_rows
        config, packer = self.config, _Packer(file, backend, progress)
        self._embed = packer.matrix("embed")
        # Early as well: the largest matrices are packed while little else takes memory.
        self._output = self._embed if config.tied else packer.matrix("output")
        self._layers = [packer.layer(i) for i in range(len(config.layers))]
        self._final_norm = packer.norm("final_norm")
        self.nbytes = packer.nbytes
        """Bytes of packed matrices."""

        queries, keys = config.heads * config.dim, config.kv_heads * config.dim
        self._hidden = np.empty((max_rows, config.hidden), np.float32)
        self._qkv = np.empty((max_rows, queries + 2 * keys), np.float32)
        self._q = np.empty((max_rows, queries), np.float32)
        self._attended = np.empty((max_rows, queries), np.float32)
        self._ffn = np.empty((max_rows, config.ffn), np.float32)
        self._logits = np.empty((0, config.vocab), np.float32)
        self._ropes = [_RopeTable(spec, config.dim) for spec in config.ropes]
        self._scale = config.attention_scale or config.dim**-0.5

    def cache(self, pages: int) -> Cache:
        """Storage for this model's keys and values."""
        return self.backend.cache(self.config.cache_shape, pages)

    def run(self, batch: Batch, cache: Cache) -> F32:
        """Run a batch through all layers and store its keys and values.

        Returns:
            `[rows, hidden]`, before the final norm: a view valid until the next call.

        Raises:
            ValueError: the batch does not fit `max_rows`, the context, the vocabulary or the cache.
        """
        backend, rows = self.backend, len(batch.tokens)
        if rows > self.max_rows:
            raise ValueError(f"{rows} rows, but this decoder was made for {self.max_rows}")
        positions = int(batch.positions.max(initial=-1)) + 1
        if positions > self.config.context:
            raise ValueError(f"position {positions - 1} exceeds context {self.config.context}")
        plan = backend.plan(batch, cache)
        ropes = [table.upto(positions) for table in self._ropes]
        h, qkv, q = self._hidden[:rows], self._qkv[:rows], self._q[:rows]
        attended, ffn = self._attended[:rows], self._ffn[:rows]

        backend.embed(self._embed, batch.tokens, self.config.embedding_scale, h)
        for i, (spec, layer) in enumerate(zip(self.config.layers, self._layers, strict=True)):
            backend.linear(h, layer.qkv, qkv, norm=layer.attn_norm)
            rope, q_norm, k_norm = ropes[spec.rope], layer.q_norm, layer.k_norm
            backend.rope_store(qkv, cache, i, plan, rope, q, q_norm=q_norm, k_norm=k_norm)
            backend.attend(q, cache, i, plan, self._scale, attended, window=spec.window)
            backend.linear(attended, layer.o, h, post_norm=layer.post_attn_norm, add=True)
            activation = self.config.activation
            backend.linear(h, layer.gate_up, ffn, norm=layer.ffn_norm, activation=activation)
            backend.linear(ffn, layer.down, h, post_norm=layer.post_ffn_norm, add=True)
        return h

    def logits(self, hidden: F32, rows: I32) -> F32:
        """`[len(rows), vocab]`: final norm and output matrix, for the rows needed only.

        A view valid until the next call: fresh megabytes in each pass would cost their page faults.
        """
        if len(self._logits) < len(rows):
            self._logits = np.empty((len(rows), self.config.vocab), np.float32)
        out = self._logits[: len(rows)]
        self.backend.linear(hidden[rows], self._output, out, norm=self._final_norm)
        return out

    def normed(self, hidden: F32, rows: I32) -> F32:
        """`[len(rows), hidden]`: the final-normed states that logits are read from."""
        h, norm = hidden[rows], self._final_norm
        mean = np.mean(h * h, axis=1, keepdims=True)
        normed: F32 = h / np.sqrt(mean + np.float32(norm.eps)) * norm.weight
        return normed


class _Packer:
    """Reads weights by canonical name and packs them, counting parameters and bytes."""

    def __init__(
        self, file: ModelFile, backend: Backend, progress: Callable[[int, int], None] | None
    ) -> None:
        self.file, self.backend, self.progress = file, backend, progress
        self.sizes = {
            name: int(np.prod(shape)) for name, shape in file.config.weight_shapes().items()
        }
        self.done = self.nbytes = 0

    def layer(self, i: int) -> _Layer:
        config, at = self.file.config, f"layers.{i}."
        return _Layer(
            attn_norm=self.norm(at + "attn_norm"),
            qkv=self.matrix(at + "q", at + "k", at + "v", bias=config.qkv_bias),
            q_norm=self.norm(at + "q_norm") if config.qk_norm else None,
            k_norm=self.norm(at + "k_norm") if config.qk_norm else None,
            o=self.matrix(at + "o"),
            post_attn_norm=self.norm(at + "post_attn_norm") if config.post_norms else None,
            ffn_norm=self.norm(at + "ffn_norm"),
            gate_up=self.matrix(at + "gate", at + "up"),
            down=self.matrix(at + "down"),
            post_ffn_norm=self.norm(at + "post_ffn_norm") if config.post_norms else None,
        )

    def matrix(self, *names: str, bias: bool = False) -> Linear:
        biases = [self.vector(f"{name}_bias") for name in names] if bias else []
        parts = [self.file.weight(name) for name in names]
        try:
            packed = self.backend.pack(parts, np.concatenate(biases) if biases else None)
        except ValueError as error:
            raise FileFormatError(self.file.path, f"{', '.join(names)}: {error}") from error
        self.nbytes += packed.nbytes
        self._advance(*names)
        return packed

    def norm(self, name: str) -> Norm:
        return Norm(self.vector(name), self.file.config.eps)

    def vector(self, name: str) -> F32:
        vector = self.file.weight(name)
        assert isinstance(vector, np.ndarray), f"{name} is a vector, so its file gave float32"
        self._advance(name)
        return vector

    def _advance(self, *names: str) -> None:
        self.done += sum(self.sizes[name] for name in names)
        if self.progress:
            self.progress(self.done, sum(self.sizes.values()))


class _RopeTable:
    """Cosines and sines of one family of frequencies, for as many positions as were asked for.

    Grows by doubling, each block computed once in float64 and rounded once: the values do not
    depend on how it grew, and a long context costs nothing until it is used.
    """

    def __init__(self, spec: RopeSpec, dim: int, first: int = 512) -> None:
        divisors = np.array(spec.divisors or 1.0)
        pairs = np.arange(dim // 2)
        self.frequencies = spec.base ** (-2.0 * pairs / dim) / spec.factor / divisors
        self.rope = self._block(0, first)

    def upto(self, positions: int) -> Rope:
        """The table for positions 0 to `positions - 1`, or more."""
        while (size := len(self.rope.cos)) < positions:
            block = self._block(size, 2 * size)
            self.rope = Rope(
                np.concatenate([self.rope.cos, block.cos]),
                np.concatenate([self.rope.sin, block.sin]),
            )
        return self.rope

    def _block(self, start: int, stop: int) -> Rope:
        angles = np.outer(np.arange(start, stop), self.frequencies)
        return Rope(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))

"""The one decoder: every architecture's forward pass, driven by its `ModelConfig`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from anabranch.backends.base import F32, I32, Backend, Batch, Cache, Layer, Linear, Norm, Storage
from anabranch.errors import FileFormatError
from anabranch.models.config import ModelFile
from anabranch.models.rope import RopeTable


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
        kv: Storage = "f32",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Pack all weights.

        Args:
            max_rows: most rows of a batch.
            kv: how keys and values are stored.
            progress: told after each packed weight how many parameters are done, of how many.
        """
        self.config, self.backend, self.max_rows = file.config, backend, max_rows
        self._kv: Storage = kv
        config, packer = self.config, _Packer(file, backend, progress)
        self._embed = packer.matrix("embed")
        # Early as well: the largest matrices are packed while little else takes memory.
        self._output = self._embed if config.tied else packer.matrix("output")
        layers = [packer.layer(i) for i in range(len(config.layers))]
        scale = config.attention_scale or 1 / math.sqrt(config.dim)
        self._stack = backend.stack(layers, config.activation, scale)
        self._final_norm = packer.norm("final_norm")
        self.nbytes = packer.nbytes
        """Bytes of packed matrices."""
        self.pass_bytes = self.nbytes - (0 if config.tied else self._embed.nbytes)
        """Of these, bytes that a pass reads whole: an embedding is only looked up."""

        self._hidden = np.empty((max_rows, config.hidden), np.float32)
        self._logits = np.empty((0, config.vocab), np.float32)
        self._ropes = [RopeTable(spec, config.dim) for spec in config.ropes]

    def cache(self, pages: int) -> Cache:
        """Storage for this model's keys and values."""
        return self.backend.cache(replace(self.config.cache_shape, storage=self._kv), pages)

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
        h = self._hidden[:rows]
        backend.embed(self._embed, batch.tokens, self.config.embedding_scale, h)
        backend.run(self._stack, h, cache, plan, ropes)
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
        # Summed one after the other: the order in which np.sum adds is numpy's affair.
        squares = np.add.accumulate(h * h, axis=1, dtype=np.float64)[:, -1:]
        factor = 1 / np.sqrt(squares / h.shape[1] + norm.eps)
        normed: F32 = h * factor.astype(np.float32) * norm.weight
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

    def layer(self, i: int) -> Layer:
        config, at = self.file.config, f"layers.{i}."
        return Layer(
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
            rope=config.layers[i].rope,
            window=config.layers[i].window,
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

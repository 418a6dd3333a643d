"""llama.cpp through the low-level API of llama-cpp-python: batches, sequences, its own sampler.

Sequence copies share the cells of the prefix (one unified cache); a step is one `llama_decode` of
all branches and one C sampler call for each.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp as api
import numpy as np

from peers.protocol import serve

FLASH_BELOW = 16
"""Flash attention is faster here for prompts and few branches, and slower for many."""


class LlamaCpp:
    """A model file, and the context that the task at hand needs."""

    def __init__(self, model: str, threads: int) -> None:
        self._quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._quiet, None)
        self.threads = threads
        self._model = api.llama_model_load_from_file(
            model.encode(), api.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"cannot load {model}")
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._sampler = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(self._sampler, api.llama_sampler_init_dist(1))
        self._context: Any = None
        self._memory: Any = None
        self._batch: Any = None
        self._rows: dict[int, int] = {}
        self._shape = (0, 0)

    def about(self) -> dict[str, Any]:
        return {
            "version": f"llama-cpp-python {api.__version__}",
            "settings": "sequences share one cache, KV in f16, weights repacked where it can, "
            f"flash attention below {FLASH_BELOW} branches (faster there, slower above)",
        }

    # ---- tasks ---------------------------------------------------------------------------------

    def first(self, prompt: list[int]) -> dict[str, Any]:
        self._open(len(prompt) + 1, 1)
        began = time.perf_counter()
        self._prompt(prompt)
        self._draw([0])
        return {"seconds": time.perf_counter() - began}

    def decode(self, prompt: list[int], branches: int, steps: int) -> dict[str, Any]:
        self._open(len(prompt), branches, steps)
        self._prompt(prompt)
        self._fork(0, range(1, branches))
        rows = [0] * branches
        began = time.perf_counter()
        self._steps(rows, len(prompt), steps)
        return {"seconds": time.perf_counter() - began}

    def prune(self, prompt: list[int], steps: int, parents: list[list[int]]) -> dict[str, Any]:
        branches = len(parents[0])
        self._open(len(prompt), branches, steps * (len(parents) + 1))
        began = time.perf_counter()
        self._prompt(prompt)
        self._fork(0, range(1, branches))
        rows, position = [0] * branches, len(prompt)
        for parent in [*parents, None]:
            rows = self._steps(rows, position, steps)
            position += steps
            for child, source in enumerate(parent or ()):
                if source != child:
                    api.llama_memory_seq_rm(self._memory, child, -1, -1)
                    self._fork(source, [child])
            rows = parent or rows
        return {"seconds": time.perf_counter() - began}

    def document(
        self, document: list[int], questions: list[list[int]], branches: int, steps: int
    ) -> dict[str, Any]:
        many = len(questions) * branches
        self._open(len(document), many, steps + len(questions[0]))
        began = time.perf_counter()
        self._prompt(document)
        leaders = range(0, many, branches)
        self._fork(0, leaders[1:])
        tails = self._many(questions, leaders, len(document))
        for leader in leaders:
            self._fork(leader, range(leader + 1, leader + branches))
        rows = [tails[i // branches] for i in range(many)]
        self._steps(rows, len(document) + len(questions[0]), steps)
        return {"seconds": time.perf_counter() - began}

    def options(self, prompt: list[int], options: list[list[int]]) -> dict[str, Any]:
        count, length = len(options), len(options[0])
        self._open(len(prompt), count, length)
        began = time.perf_counter()
        self._prompt(prompt)
        first = self._logits([0])[0]
        scores = [float(log_softmax(first[None])[0, option[0]]) for option in options]
        self._fork(0, range(1, count))
        heads = [option[:-1] for option in options]
        self._many(heads, range(count), len(prompt), every=True)
        logp = log_softmax(self._logits(range(count * (length - 1))))
        logp = logp.reshape(count, length - 1, -1)
        for i, option in enumerate(options):
            scores[i] += float(sum(logp[i, k, token] for k, token in enumerate(option[1:])))
        return {"seconds": time.perf_counter() - began, "scores": scores}

    # ---- batches -------------------------------------------------------------------------------

    def _open(self, prefix: int, sequences: int, own: int = 0) -> None:
        """An empty context that holds `sequences` of `own` tokens under one prefix."""
        cells = prefix + own * sequences
        if self._context and (cells, sequences) == self._shape:
            api.llama_memory_clear(self._memory, False)
            return
        if self._context:
            api.llama_batch_free(self._batch)
            api.llama_free(self._context)
        self._shape = cells, sequences
        params = api.llama_context_default_params()
        params.n_ctx = cells + 64
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = int(sequences < FLASH_BELOW)
        params.kv_unified = True
        self._context = api.llama_init_from_model(self._model, params)
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(2048, 0, 1)

    def _run(self, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> None:
        """One `llama_decode` of these rows; `wanted` says whose logits are needed."""
        count, batch = len(tokens), self._batch
        batch.n_tokens = count
        for pointer, values in (
            (batch.token, tokens),
            (batch.pos, positions),
            (batch.logits, wanted),
            (batch.n_seq_id, np.ones(count)),
        ):
            np.ctypeslib.as_array(pointer, (count,))[:] = values
        for row, sequence in enumerate(sequences):
            batch.seq_id[row][0] = sequence
        code = api.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _prompt(self, prompt: list[int]) -> None:
        """A prompt into sequence 0; row 0 of the logits is then its last token's."""
        for start in range(0, len(prompt), 2048):
            part = prompt[start : start + 2048]
            wanted = np.zeros(len(part))
            wanted[-1] = start + len(part) == len(prompt)
            self._run(part, np.arange(start, start + len(part)), [0] * len(part), wanted)
        self._rows = {0: len(part) - 1}

    def _many(
        self, texts: list[list[int]], sequences: Any, start: int, every: bool = False
    ) -> list[int]:
        """Texts of one length in one batch, each into its sequence; rows of their last tokens."""
        length = len(texts[0])
        wanted = np.zeros((len(texts), length))
        wanted[:, 0 if every else -1 :] = 1
        self._run(
            np.ravel(texts),
            np.tile(np.arange(start, start + length), len(texts)),
            np.repeat(sequences, length),
            wanted.ravel(),
        )
        self._rows = {row: row for row in range(wanted.size)}
        return [(i + 1) * length - 1 for i in range(len(texts))]

    def _fork(self, source: int, targets: Any) -> None:
        for target in targets:
            api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def _draw(self, rows: list[int]) -> list[int]:
        context, sampler = self._context, self._sampler
        return [api.llama_sampler_sample(sampler, context, self._rows[row]) for row in rows]

    def _steps(self, rows: list[int], position: int, steps: int) -> list[int]:
        """Draw for every branch from its row of logits and run that, `steps` times."""
        count = len(rows)
        sequences, wanted = range(count), np.ones(count)
        for step in range(steps):
            tokens = self._draw(rows)
            self._run(tokens, np.full(count, position + step), sequences, wanted)
            rows = list(range(count))
            self._rows = {row: row for row in rows}
        api.llama_synchronize(self._context)
        return rows

    def _logits(self, rows: Any) -> Any:
        pointers = [api.llama_get_logits_ith(self._context, self._rows[row]) for row in rows]
        return np.stack([np.ctypeslib.as_array(pointer, (self._vocab,)) for pointer in pointers])


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


if __name__ == "__main__":
    serve(LlamaCpp)

"""OpenVINO GenAI: its continuous batching over its own GGUF reader, prefix caching on.

Steps are its own (`ContinuousBatchingPipeline.step`), so that a prompt and what follows it can be
told apart: the first step of a request reads the prompt and draws a token for each sequence. It has
no fork: whoever goes on from a path sends the path again, and its prefix cache finds it.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai

from peers.protocol import serve

ECHOED = 4
"""Options really scored: see `OpenVino.options`."""


class OpenVino:
    """A pipeline over a GGUF file."""

    def __init__(self, model: str, threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.max_num_batched_tokens = 4096
        scheduler.enable_prefix_caching = True
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipe = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", settings)
        self._ids = itertools.count()

    def about(self) -> dict[str, Any]:
        return {
            "version": f"openvino-genai {openvino_genai.__version__}",
            "settings": "continuous batching, prefix caching, its defaults for KV and precision",
        }

    def first(self, prompt: list[int]) -> dict[str, Any]:
        began = time.perf_counter()
        self._finish([self._add(prompt, 1, 1)])
        return {"seconds": time.perf_counter() - began}

    def decode(self, prompt: list[int], branches: int, steps: int) -> dict[str, Any]:
        handle = self._add(prompt, branches, steps + 1)
        self._pipe.step()
        began = time.perf_counter()
        self._finish([handle])
        return {"seconds": time.perf_counter() - began}

    def prune(self, prompt: list[int], steps: int, parents: list[list[int]]) -> dict[str, Any]:
        branches = len(parents[0])
        began = time.perf_counter()
        paths = [prompt + new for new in self._finish([self._add(prompt, branches, steps)])[0]]
        for parent in parents:
            survivors = sorted(set(parent))
            counts = [parent.count(source) for source in survivors]
            grown = self._finish(
                [
                    self._add(paths[s], count, steps)
                    for s, count in zip(survivors, counts, strict=True)
                ]
            )
            children = {s: iter(new) for s, new in zip(survivors, grown, strict=True)}
            paths = [paths[source] + next(children[source]) for source in parent]
        return {"seconds": time.perf_counter() - began}

    def document(
        self, document: list[int], questions: list[list[int]], branches: int, steps: int
    ) -> dict[str, Any]:
        began = time.perf_counter()
        self._finish([self._add(document, 1, 1)])  # else each question reads the document itself
        self._finish([self._add(document + question, branches, steps) for question in questions])
        return {"seconds": time.perf_counter() - began}

    def options(self, prompt: list[int], options: list[list[int]]) -> dict[str, Any]:
        """Log-probabilities of given tokens come only with `echo`, and `echo` re-reads the prompt.

        So every option costs the same, and a few tell the time of all.
        """
        asked = options[:ECHOED]
        began = time.perf_counter()
        handles = [self._add(prompt + option, 1, 1, echo=True, logprobs=1) for option in asked]
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        scores = [
            sum(handle.read_all()[0].generated_log_probs[:-1][-len(option) :])
            for handle, option in zip(handles, asked, strict=True)
        ]
        seconds = (time.perf_counter() - began) * len(options) / len(asked)
        return {"seconds": seconds, "scores": scores}

    def _add(self, prompt: list[int], sequences: int, tokens: int, **more: Any) -> Any:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=tokens,
            ignore_eos=True,
            do_sample=True,
            temperature=1.0,
            num_return_sequences=sequences,
            **more,
        )
        ids = openvino.Tensor(np.array([prompt], np.int64))
        return self._pipe.add_request(next(self._ids), ids, config)

    def _finish(self, handles: list[Any]) -> list[list[list[int]]]:
        """Step until all is done; the tokens of each sequence of each request."""
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        return [[list(out.generated_ids) for out in handle.read_all()] for handle in handles]


if __name__ == "__main__":
    serve(OpenVino)

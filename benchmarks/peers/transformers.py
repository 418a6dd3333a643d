"""Transformers on PyTorch for the CPU: the same GGUF file, read as float32 weights.

A prompt is read once; its cache is repeated for the branches, and each step is one forward pass of
all of them and one `torch.multinomial`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from peers.protocol import serve


class Transformers:
    """A model in float32, which is faster than bfloat16 where the processor lacks it."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        file = Path(model)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        ).eval()

    def about(self) -> dict[str, Any]:
        return {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "settings": "float32, scaled dot-product attention, dynamic cache",
        }

    @torch.inference_mode()
    def first(self, prompt: list[int]) -> dict[str, Any]:
        began = time.perf_counter()
        draw(self._prompt(prompt).logits)
        return {"seconds": time.perf_counter() - began}

    @torch.inference_mode()
    def decode(self, prompt: list[int], branches: int, steps: int) -> dict[str, Any]:
        out = self._prompt(prompt)
        cache, logits = out.past_key_values, out.logits.repeat(branches, 1, 1)
        cache.batch_repeat_interleave(branches)
        began = time.perf_counter()
        for _ in range(steps):
            logits = self._model(draw(logits), past_key_values=cache).logits
        return {"seconds": time.perf_counter() - began}

    def _prompt(self, prompt: list[int]) -> Any:
        return self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)


def draw(logits: Any) -> Any:
    """`[branches, 1]` tokens from the last row of each."""
    return torch.multinomial(torch.softmax(logits[:, -1], -1), 1)


if __name__ == "__main__":
    serve(Transformers)

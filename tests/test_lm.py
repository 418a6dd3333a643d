"""The door for scripts: loading, the sync operations, and what is refused before it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import anabranch
from anabranch import lm as door
from anabranch.errors import InputError, ResourceError
from anabranch.program.budget import Budget


@pytest.mark.model
def test_a_loaded_model_generates_chats_and_solves(model_path: Callable[[str], Path]) -> None:
    path = model_path("smollm2-135m")
    with anabranch.load(path, kv_memory=1 << 28) as lm:
        step = lm.generate("The capital of Italy is", max_tokens=8)
        assert "Rome" in step.text
        assert lm.generate("The capital of Italy is", max_tokens=8).tokens == step.tokens
        reply = lm.chat("Say hello.", max_tokens=12)
        assert reply.text
        answer = lm.solve("What is 2 + 2?", "vote(n=4, max_tokens=40)", seed=5)
        assert len(answer.candidates) == 4
        again = lm.solve("What is 2 + 2?", "vote(n=4, max_tokens=40)", seed=5)
        assert again.candidates == answer.candidates
        short = lm.solve("What is 2 + 2?", "vote(n=4)", budget=120, seed=5)
        assert short.usage.prompt_tokens + short.usage.sampled_tokens <= 120
        assert short.answer

        async def inside() -> str:
            return lm.generate("The capital of Italy is", max_tokens=8).text

        assert asyncio.run(inside()) == step.text
        with pytest.raises(InputError, match="given twice"):
            lm.solve("x", budget=Budget(9), seconds=3)


@pytest.mark.model
def test_keys_and_values_may_be_rounded(model_path: Callable[[str], Path]) -> None:
    path = model_path("smollm2-135m")
    with anabranch.load(path, kv_memory=1 << 28) as exact, \
            anabranch.load(path, kv="bf16", kv_memory=1 << 28) as rounded:  # fmt: skip
        assert rounded.fingerprint == exact.fingerprint + "+kv-bf16"
        steps = [lm.generate("The capital of Italy is", max_tokens=8) for lm in (exact, rounded)]
        assert "Rome" in steps[1].text
        assert steps[0].logps != steps[1].logps


@pytest.mark.model
def test_memory_is_checked_before_loading(
    model_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_path("smollm2-135m")
    monkeypatch.setattr(door, "Decoder", None)  # must not be reached
    with pytest.raises(InputError, match="kv_memory is too small"):
        anabranch.load(path, kv_memory=1000)
    monkeypatch.setattr(door, "available_memory", lambda: 1 << 26)
    with pytest.raises(ResourceError, match=r"0\.06 GiB available.*GiB of weights"):
        anabranch.load(path)


def test_unknown_names_are_refused_before_anything_is_fetched() -> None:
    with pytest.raises(InputError, match="did you mean native"):
        anabranch.load("smollm2-135m", backend="nativ")
    with pytest.raises(InputError, match="did you mean bf16"):
        anabranch.load("smollm2-135m", kv="b16")
    with pytest.raises(InputError, match="smollm2-135m"):
        anabranch.load("smollm2-13b", offline=True)

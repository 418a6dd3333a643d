"""Whole models: the reference against an independent implementation, the native backend against it.

`tests/golden/make_logits.py` made the files that stand for Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from anabranch.backends.base import F32, PAGE_SLOTS, Backend
from anabranch.backends.native import NativeBackend
from anabranch.backends.reference import ReferenceBackend
from anabranch.models.config import ModelFile
from anabranch.models.decoder import Decoder
from anabranch.models.files import open_model
from tests.toy import Span, batch_of

pytestmark = pytest.mark.model

GOLDEN = Path(__file__).parent / "golden"
CHUNK = 64
"""Rows of logits held at a time: a large vocabulary takes a megabyte per row."""


@dataclass(frozen=True)
class Subject:
    """One model: its golden data, and the reference's decoder after running all texts."""

    file: ModelFile
    golden: dict[str, np.ndarray]
    reference: Decoder
    states: F32


def run_texts(decoder: Decoder, golden: dict[str, np.ndarray]) -> F32:
    """All texts in one pass: hidden states `[rows, hidden]`."""
    spans, pages = [], 0
    for text in np.split(golden["tokens"], golden["text_starts"][1:-1]):
        table = range(pages, pages + -(-len(text) // PAGE_SLOTS))
        spans.append(Span(text.tolist(), 0, table))
        pages = table.stop
    return decoder.run(batch_of(*spans), decoder.cache(pages))


def decoder_for(file: ModelFile, backend: Backend, golden: dict[str, np.ndarray]) -> Decoder:
    return Decoder(file, backend, max_rows=len(golden["tokens"]))


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"])
def subject(request: pytest.FixtureRequest, model_path: Callable[[str], Path]) -> Subject:
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        golden = dict(arrays)
    file = open_model(model_path(request.param))
    reference = decoder_for(file, ReferenceBackend(), golden)
    return Subject(file, golden, reference, run_texts(reference, golden))


def logsumexp(logits: F32) -> F32:
    """Of each row, `[rows, 1]`."""
    top = logits.max(axis=1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def test_reference_agrees_with_transformers(subject: Subject) -> None:
    golden = subject.golden
    rows = golden["text_starts"][golden["text"]] + golden["position"]
    logits = subject.reference.logits(subject.states, rows.astype(np.int32))
    near = 1e-3 * golden["peak"]
    top = np.take_along_axis(logits, golden["top_tokens"], axis=1)
    assert np.all(np.abs(top - golden["top_logits"]).max(axis=1) <= near)
    np.testing.assert_array_equal(logits.argmax(axis=1), golden["top_tokens"][:, 0])
    # What the other thousands of tokens weigh together, and the extreme ones among them.
    assert np.all(np.abs(logsumexp(logits)[:, 0] - golden["logsumexp"]) <= near)
    assert np.all(np.abs(np.abs(logits).max(axis=1) - golden["peak"]) <= near)


def test_native_agrees_with_the_reference(subject: Subject) -> None:
    """Its activations have 8 bits: the same favourite, and nearly the same distribution."""
    native = decoder_for(subject.file, NativeBackend(), subject.golden)
    states = run_texts(native, subject.golden)
    same, divergence = [], []
    stride = 2 if native.config.vocab > 100_000 else 1  # large vocabularies take most of the time
    measured = np.arange(0, len(states), stride, dtype=np.int32)
    assert len(measured) >= 400
    for rows in np.array_split(measured, len(measured) // CHUNK):
        want = subject.reference.logits(subject.states, rows)
        got = native.logits(states, rows)
        same.append(want.argmax(axis=1) == got.argmax(axis=1))
        want -= logsumexp(want)
        got -= logsumexp(got)
        divergence.append(np.einsum("rv,rv->r", np.exp(want), want - got))
    assert np.concatenate(same).mean() >= 0.97
    assert np.concatenate(divergence).mean() <= 0.01

"""Embeddings over HTTP. The scripted model's "state" counts the tokens up to a place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tests.serving import Running, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving({"": 1.0}) as running:
        yield running


def vectors(server: Running, texts: Any, **options: Any) -> Any:
    """One row for each text."""
    told = server.client.embeddings.create(model="scripted", input=texts, **options)
    assert [each.index for each in told.data] == list(range(len(told.data)))
    return np.array([each.embedding for each in told.data])


def expected(text: str, pooling: str) -> Any:
    """What pooling makes of counts."""
    data = np.frombuffer(text.encode(), np.uint8)
    states = np.array([np.bincount(data[: i + 1], minlength=260) for i in range(len(data))])
    vector = states.mean(0) if pooling == "mean" else states[-1]
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_states_are_pooled_and_have_length_1(server: Running, pooling: str) -> None:
    texts = ["abcab", "b", "x" * 300 + "y" * 300]  # more places than are read at a time
    got = vectors(server, texts, extra_body={"anabranch": {"pooling": pooling}})
    want = np.array([expected(text, pooling) for text in texts])
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert not np.allclose(expected("abcab", "mean"), expected("abcab", "last"))


def test_forms_of_input_and_of_numbers(server: Running) -> None:
    one = vectors(server, "abc")  # the client asks for base64 by itself
    np.testing.assert_array_equal(one, vectors(server, "abc", encoding_format="float"))
    np.testing.assert_array_equal(one, vectors(server, [97, 98, 99]))
    np.testing.assert_array_equal(one, vectors(server, [[97, 98, 99]]))


def test_fewer_dimensions_are_brought_to_length_1_again(server: Running) -> None:
    full, cut = vectors(server, "!!#")[0], vectors(server, "!!#", dimensions=35)[0]
    assert len(cut) == 35
    np.testing.assert_allclose(cut, full[:35] / np.linalg.norm(full[:35]), rtol=1e-6)


def test_usage_counts_the_texts(server: Running) -> None:
    told = server.client.embeddings.create(model="scripted", input=["abc", "de"])
    assert told.usage.prompt_tokens == told.usage.total_tokens == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": []}, "1 to"),
        ({"input": ["a", ""]}, "empty"),
        ({"input": [[1, 99999]]}, "token id"),
        ({"dimensions": 65}, "64 dimensions"),
        ({"model": "scripted:vote-4"}, "strategies"),
        ({"extra_body": {"anabranch": {"pooling": "max"}}}, "pooling"),
        ({"input": ["x" * (1 << 16)]}, "does not fit"),
    ],
)
def test_what_cannot_be(server: Running, options: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        server.client.embeddings.create(**{"model": "scripted", "input": "a", **options})


def test_too_long_a_time_is_said() -> None:
    with (
        serving({"": 1.0}, seconds=0.01) as running,
        pytest.raises(openai.InternalServerError, match="longer than"),
    ):
        vectors(running, ["x" * 3000] * 20)

"""Schemas and patterns made to cost much: each is refused or served, soon, and none is a fault."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import Running, serving
from tests.test_serve import ASKED, TWO, ask

DEEP: Any = {}
for _ in range(200):
    DEEP = {"items": DEEP}
BOTH: Any = [{"anyOf": [{"minimum": i}, {"maximum": i}]} for i in range(18)]
WIDE: Any = [{"type": "object", "properties": {f"a{i}": {}}} for i in range(500)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(TWO) as running:
        yield running


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"json": DEEP}, 400),
        ({"json": {"anyOf": WIDE}}, 400),
        ({"json": {"$ref": "http://169.254.169.254/x"}}, 400),
        ({"json": {"allOf": BOTH}}, 400),
        ({"json": {"type": "number", "multipleOf": 1e-300}}, 400),
        ({"json": {"type": "string", "minLength": 10**9}}, 200),
        ({"json": {"type": "array", "minItems": 10**9}}, 200),
        ({"json": {"enum": [str(i) for i in range(20_000)]}}, 200),
        ({"regex": "(a{1000}){1000}"}, 400),
        ({"regex": "(?=a)b"}, 400),
        ({"regex": "(.*a){20}"}, 200),
        ({"choice": ["x" * 100_000]}, 200),
        ({"grammar": "start: start start | start"}, 200),
        ({"grammar": 'start: "a" | start start'}, 200),
    ],
)
def test_hostile_rules(server: Running, rule: dict[str, Any], status: int) -> None:
    began = time.monotonic()
    body = {"model": "scripted", "messages": ASKED, "max_tokens": 20, "structured_outputs": rule}
    got, told = ask(server, "/v1/chat/completions", body)
    assert (got, time.monotonic() - began < 10) == (status, True), told
    assert ask(server, "/health")[0] == 200

"""What operators see of a server: figures and logs."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from anabranch.serve.logs import JsonLines
from tests.serving import Running, serving

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
SECRET = "What is 2 + 2, asks the walrus?"
ASKED: Any = [{"role": "user", "content": SECRET}]
MODEL = {"model_name": "scripted"}


def endless(prompt: str, reply: str) -> Mapping[str, float]:
    """Never comes to an end."""
    return {"a": 0.5, "b": 0.5}


def figures(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of `/metrics`, by name and labels."""
    netloc = urlsplit(server.url).netloc
    with contextlib.closing(http.client.HTTPConnection(netloc, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = response.read().decode()
    return {
        (sample.name.removeprefix("anabranch_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("anabranch_")
    }


def figure(server: Running, name: str, **labels: str) -> float:
    """One of them; 0 for what was never counted."""
    return figures(server).get((name, frozenset(labels.items())), 0.0)


def test_counts_are_those_of_the_usage() -> None:
    with serving(TWO) as server:
        told = [
            server.client.chat.completions.create(messages=ASKED, **options)
            for options in (
                {"model": "scripted", "n": 3},
                {"model": "scripted:vote-4"},
                {"model": "scripted", "max_tokens": 2},
            )
        ]
        stream = server.client.completions.create(
            model="scripted", prompt="So the", max_tokens=5, stream=True
        )
        assert len(list(stream)) >= 5
        usages = [reply.usage for reply in told]
        prompt = sum(usage.prompt_tokens for usage in usages if usage) + len("So the")
        tokens = sum(usage.completion_tokens for usage in usages if usage) + 5
        seen = figures(server)

        def of(name: str, **labels: str) -> float:
            return seen[name, frozenset({**MODEL, **labels}.items())]

        assert of("prompt_tokens_total") == prompt
        assert of("generation_tokens_total") == tokens
        assert of("request_success_total", finished_reason="stop") == 3 + 1
        assert of("request_success_total", finished_reason="length") == 1 + 1
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
            assert of(f"{name}_count") == 4
            assert 0 < of(f"{name}_sum") < 10
        assert of("time_to_first_token_seconds_sum") < of("e2e_request_latency_seconds_sum")
        assert of("inter_token_latency_seconds_count") >= 4 + 1
        assert 0 < of("kv_cache_usage_perc") <= 1
        assert of("prefix_cache_queries_total") > of("prefix_cache_hits_total") > 0


def test_requests_that_run_and_wait_are_seen_while_they_do() -> None:
    with serving(endless, running=1) as server:
        holding = server.client.chat.completions.create(
            model="scripted", messages=ASKED, stream=True
        )
        next(iter(holding))
        assert figure(server, "num_requests_running") == 1
        assert figure(server, "num_requests_waiting") == 0
        assert figure(server, "prompt_tokens_total", **MODEL) > 0
        holding.close()
        server.until_idle()
        for _ in range(100):
            if figure(server, "request_success_total", finished_reason="abort", **MODEL):
                break
            time.sleep(0.01)
        assert figure(server, "request_success_total", finished_reason="abort", **MODEL) == 1
        assert figure(server, "num_requests_running") == 0


def test_who_leaves_and_what_fails_is_counted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(endless) as server:
        body = json.dumps({"model": "scripted", "messages": ASKED}).encode()
        netloc = urlsplit(server.url).netloc
        with contextlib.closing(http.client.HTTPConnection(netloc, timeout=10)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            while not server.lm.engine.core.requests:
                time.sleep(0.005)
        server.until_idle()

        def fail(*_: Any) -> None:
            raise RuntimeError

        monkeypatch.setattr(server.lm.engine.core, "compute", fail)
        with pytest.raises(openai.InternalServerError):
            server.client.chat.completions.create(model="scripted", messages=ASKED)
        for reason in ("abort", "error"):
            assert figure(server, "request_success_total", finished_reason=reason, **MODEL) == 1
        assert figure(server, "request_success_total", finished_reason="none", **MODEL) == 0


def test_names_that_clients_make_up_make_no_figures() -> None:
    with serving(TWO) as server:
        for name in ("walrus", "scripted:walrus"):
            with pytest.raises(openai.APIStatusError):
                server.client.chat.completions.create(model=name, messages=ASKED)
        assert not any("walrus" in str(key) for key in figures(server))
        assert not any(name == "request_success_total" for name, _ in figures(server))


# ---- logs ----------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was logged, as it would be written."""
    return [json.loads(JsonLines().format(record)) for record in caplog.records]


def test_a_request_is_a_line_without_a_word_of_what_was_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "anabranch")
    with serving(TWO) as server:
        reply = server.client.chat.completions.create(
            model="scripted:vote-4", messages=ASKED, extra_headers={"x-request-id": "mine-7"}
        )
        with pytest.raises(openai.NotFoundError):
            server.client.chat.completions.create(model="walrus", messages=ASKED)
        server.client.with_options(timeout=5).get("/../health", cast_to=object)
    found = [line for line in lines(caplog) if line["message"] == "request"]
    good, bad = found
    assert reply.usage is not None
    assert good["request_id"] == "mine-7"
    assert (good["status"], good["method"], good["route"]) == (200, "POST", "/v1/chat/completions")
    assert good["tokens"] == reply.usage.completion_tokens
    assert good["prompt_tokens"] == reply.usage.prompt_tokens
    assert (good["model"], good["finish"]) == ("scripted", "stop")
    assert good["strategy"].startswith("vote(n=4")
    assert 0 < good["first_seconds"] <= good["seconds"] < 10
    assert (bad["status"], bad["tokens"], bad["first_seconds"]) == (404, 0, None)
    assert "walrus" not in json.dumps(lines(caplog))


def test_a_fault_is_logged_where_it_was_and_without_what_it_says(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError(SECRET)

    with serving(TWO) as server:
        monkeypatch.setattr(server.lm.engine, "open", fail)
        with pytest.raises(openai.InternalServerError) as failed:
            server.client.chat.completions.create(model="scripted", messages=ASKED)
    assert failed.value.response.headers["x-request-id"].startswith("req-")
    (line,) = [line for line in lines(caplog) if line["level"] == "error"]
    assert line["error"] == "KeyError"
    assert any("fail" in place for place in line["at"])
    assert "walrus" not in json.dumps(lines(caplog))

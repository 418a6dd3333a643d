"""Spans for OpenTelemetry: one for each request, below it what its strategy took time for."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anabranch.errors import InputError
from anabranch.serve import spans as module
from anabranch.serve.app import create_app
from anabranch.serve.hub import Hub
from anabranch.serve.settings import Settings
from tests.serving import Running, serving

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
SECRET = "What is 2 + 2, asks the walrus?"
ASKED: Any = [{"role": "user", "content": SECRET}]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """Spans that were sent, once the server has ended; the newest last."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda endpoint: exporter)
    return lambda: sorted(exporter.get_finished_spans(), key=lambda span: span.end_time)


def ask(server: Running, **options: Any) -> Any:
    """A reply."""
    return server.client.chat.completions.create(
        **{"model": "scripted", "messages": ASKED, **options}
    )


def test_a_request_with_a_strategy(finished: Callable[[], list[Any]]) -> None:
    with serving(TWO, otlp_endpoint=ENDPOINT) as server:
        reply = ask(
            server,
            model="scripted:weighted-3",
            seed=7,
            extra_body={"anabranch": {"judge": "likelihood"}},
            extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "walk"},
        )
    *below, span = finished()
    assert (span.name, span.kind.name) == ("POST /v1/chat/completions", "SERVER")
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    told = dict(span.attributes)
    assert told.pop("anabranch.strategy").startswith("weighted(n=3")
    assert told.pop("anabranch.first_seconds") > 0
    assert told.pop("anabranch.confidence") == reply.anabranch["confidence"]
    usage = reply.usage
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "anabranch.request_id": "walk",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anabranch",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.prompt_tokens_details.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.completion_tokens_details.reasoning_tokens,
    }
    assert usage.completion_tokens_details.reasoning_tokens > 0
    assert sorted(child.name for child in below) == ["judge"] * 3 + ["step"] * 3
    for child in below:
        assert child.parent.span_id == span.context.span_id
        assert span.start_time <= child.start_time < child.end_time <= span.end_time
        assert child.attributes["anabranch.branch"] in ("0.0", "0.1", "0.2")
    judge = next(child for child in below if child.name == "judge")
    assert judge.attributes["anabranch.judge"] == "likelihood()"
    assert 0 <= judge.attributes["anabranch.rating"] <= 1
    everything = "".join(each.to_json() for each in [*below, span])
    assert "walrus" not in everything
    assert "the answer" not in everything.lower()


def test_plain_requests_refusals_and_those_who_may_not_ask(
    finished: Callable[[], list[Any]],
) -> None:
    with serving(TWO, otlp_endpoint=ENDPOINT) as server:
        for _ in range(2):
            usage = ask(server, seed=1, n=2).usage
        with pytest.raises(openai.NotFoundError):
            ask(server, model="walrus")
        urlopen(f"{server.url}/v1/models/scripted").close()
        for method, path in (("GET", f"/{'x' * 900}"), ("WALRUS", "/v1/models")):
            malformed = {"traceparent": "00-walrus"}
            with pytest.raises(HTTPError) as refused:
                urlopen(Request(server.url + path, method=method, headers=malformed))
            refused.value.close()
    spans = finished()
    assert [(span.name, span.attributes["http.response.status_code"]) for span in spans] == [
        ("POST /v1/chat/completions", 200),
        ("POST /v1/chat/completions", 200),
        ("POST /v1/chat/completions", 404),
        ("GET /v1/models/{name}", 200),
        ("GET", 404),
        ("_OTHER /v1/models", 405),
    ]
    first, second, missing, *_, lost, _ = spans
    cached = "gen_ai.usage.cache_read.input_tokens"
    assert first.attributes[cached] == 0
    assert second.attributes[cached] == usage.prompt_tokens_details.cached_tokens > 0
    assert "gen_ai.request.model" not in missing.attributes  # no model was asked
    assert len(lost.attributes["url.path"]) == module.MOST_PATH
    assert all(span.parent is None and span.status.is_ok is not False for span in spans)
    assert "walrus" not in "".join(span.to_json() for span in spans)


def test_a_request_that_goes_on_in_the_background_has_a_span_for_that(
    finished: Callable[[], list[Any]],
) -> None:
    with serving(TWO, otlp_endpoint=ENDPOINT) as server:
        responses = server.client.responses
        made = responses.create(model="scripted", input=SECRET, background=True)
        while responses.retrieve(made.id).status in ("queued", "in_progress"):
            time.sleep(0.01)
        server.until_idle()
    tokens = [span.attributes.get("gen_ai.usage.output_tokens") for span in finished()]
    assert len([count for count in tokens if count]) == 1


def test_children_are_bounded(
    finished: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CHILDREN", 5)
    with serving(TWO, otlp_endpoint=ENDPOINT) as server:
        ask(server, model="scripted:vote-16")
    *below, span = finished()
    assert len(below) == 5
    assert span.attributes["anabranch.spans_left_out"] == 11


def test_a_solvers_time_is_told(finished: Callable[[], list[Any]]) -> None:
    program = "```python\nprint(2 + 2)\n```"
    with serving({program: 1.0}, otlp_endpoint=ENDPOINT, code_tools=True) as server:
        ask(server, model="scripted:pal-1")
    solvers = [span for span in finished() if span.name == "solver"]
    assert solvers
    assert all(span.end_time > span.start_time for span in solvers)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An address, and what arrives there."""
    got: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("how", ["setting", "variable"])
def test_spans_reach_a_collector(
    collector: tuple[str, list[Any]], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = collector
    if how == "variable":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "walrus")
    with serving(TWO, **({"otlp_endpoint": f"{address}/"} if how == "setting" else {})) as server:
        ask(server)
    ((path, told),) = got
    assert path == "/v1/traces"
    (resource,) = told.resource_spans
    named = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert named["service.name"] == ("walrus" if how == "variable" else "anabranch")
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["POST /v1/chat/completions"]


def test_a_collector_that_is_not_there_holds_up_nothing() -> None:
    """`serving` fails where a server takes more than ten seconds to end."""
    with serving(TWO, otlp_endpoint=ENDPOINT) as server:
        for _ in range(3):
            assert ask(server).choices[0].message.content in TWO
        with urlopen(f"{server.url}/health") as response:
            assert json.load(response) == {"status": "ok"}


def test_what_cannot_be_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Settings(otlp_endpoint=ENDPOINT)
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", ENDPOINT)
        patched.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with pytest.raises(InputError, match="http/protobuf"):
            create_app(Settings(), Hub({}))
        patched.setenv("OTEL_TRACES_EXPORTER", "none")
        create_app(Settings(), Hub({}))
    monkeypatch.delitem(sys.modules, "anabranch.serve.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InputError, match=r"anabranch\[otel\]"):
        create_app(told, Hub({}))
    create_app(Settings(), Hub({}))

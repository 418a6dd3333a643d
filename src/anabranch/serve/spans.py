"""OpenTelemetry: a span for each request, and below it one for whatever its strategy took time for.

No text of prompts or replies is in them. Imported only where spans are wanted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from http import HTTPMethod
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from anabranch import __version__
from anabranch.errors import InputError

if TYPE_CHECKING:
    from anabranch.serve.calls import Call

MOST_CHILDREN = 1000
"""Spans below one request; what is beyond them is only counted."""

MOST_PATH = 200

LAST_SECONDS = 2.0
"""For what is left to be sent when the server ends."""

NAMES = {"extend": "step", "force": "given", "rate": "judge", "solve": "solver"}
"""What spans of a trace's events are called; others are called as the event is."""

TOLD = ("branch", "judge", "rating", "start", "end", "stop")
"""Fields of events that spans repeat. None of them has text of a prompt or a reply."""

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}

PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Spans:
    """Makes spans, and sends them from a thread of its own.

    A collector that does not answer holds up no request: spans are given up after a while.

    Args:
        endpoint: base address of an OTLP collector over HTTP; None: as OpenTelemetry's own
            variables say. These also set headers, sampling and the names of the resource.

    Raises:
        InputError: another protocol is asked for.
    """

    def __init__(self, endpoint: str | None) -> None:
        told = next((os.environ[name] for name in PROTOCOLS if name in os.environ), None)
        if endpoint is None and told not in (None, "http/protobuf"):
            raise InputError(
                "spans cannot be sent by this protocol",
                got=told,
                allowed="http/protobuf",
                fix="name the collector's HTTP address, usually port 4318",
            )
        named = OTELResourceDetector().detect().attributes
        own = {"service.name": "anabranch", "service.version": __version__}
        resource = Resource.create({**own, **named})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        address = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        self._exporter = trace_exporter.OTLPSpanExporter(endpoint=address)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("anabranch", __version__)
        self._parents = TraceContextTextMapPropagator()

    def begin(self, call: Call) -> RequestSpan | None:
        """A request's span, below its client's where that was told; checks of health have none."""
        if call.route == "/health":
            return None
        above = self._parents.extract(call.parents)
        span = self._tracer.start_span(_method(call) or "server", above, trace.SpanKind.SERVER)
        return RequestSpan(self._tracer, span)

    def close(self) -> None:
        """Send what is left, for as long as that may take."""
        timer = threading.Timer(LAST_SECONDS, self._exporter.shutdown)  # ends its repetitions
        timer.start()
        self._provider.shutdown()
        timer.cancel()


class RequestSpan:
    """The span of a request that is under way."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span
        self._below = trace.set_span_in_context(span)
        self._children = 0

    def note(self, event: str, **fields: object) -> None:
        """See `Log`: an event that took time is a span of its own, until now."""
        if event == "answer":
            _tell(self._span, {"anabranch.confidence": fields["confidence"]})
        took = fields.get("seconds")
        if not isinstance(took, float) or not self._span.is_recording():
            return
        self._children += 1
        if self._children > MOST_CHILDREN:
            return
        now = time.time_ns()
        child = self._tracer.start_span(
            NAMES.get(event, event), self._below, start_time=now - int(took * 1e9)
        )
        _tell(child, {f"anabranch.{name}": fields.get(name) for name in TOLD})
        child.end(now)

    def end(self, call: Call) -> None:
        """What is known of the request when it has ended."""
        method = _method(call)
        self._span.update_name(f"{method} {call.pattern}".strip() or "server")
        _tell(
            self._span,
            {
                "http.request.method": method or None,
                "http.route": call.pattern or None,
                "http.response.status_code": call.status,
                "url.path": call.route[:MOST_PATH] or None,
                "anabranch.request_id": call.id,
                "anabranch.key": call.account.name or None,
            },
        )
        if call.generated:
            _tell(
                self._span,
                {
                    "gen_ai.operation.name": OPERATIONS.get(call.pattern),
                    "gen_ai.provider.name": "anabranch",
                    "gen_ai.request.model": call.model,
                    "gen_ai.request.seed": call.seed,
                    "gen_ai.response.finish_reasons": list(call.finishes),
                    "gen_ai.usage.input_tokens": call.prompt_tokens,
                    "gen_ai.usage.output_tokens": call.tokens,
                    "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
                    "gen_ai.usage.reasoning.output_tokens": call.reasoning_tokens,
                    "anabranch.strategy": call.strategy,
                    "anabranch.first_seconds": call.first,
                    "anabranch.spans_left_out": max(0, self._children - MOST_CHILDREN) or None,
                },
            )
        if call.status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)
            self._span.set_attribute("error.type", str(call.status))
        self._span.end()


def _method(call: Call) -> str:
    """A request's, as the conventions want it: clients cannot make up names of spans."""
    known = not call.method or call.method in HTTPMethod.__members__
    return call.method if known else "_OTHER"


def _tell(span: trace.Span, attributes: Mapping[str, object]) -> None:
    """Set attributes, those that there are."""
    for name, value in attributes.items():
        if isinstance(value, str | int | float | list):
            span.set_attribute(name, value)

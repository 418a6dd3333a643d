"""The application: routes, errors, limits, and the life of the models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch import __version__
from anabranch.errors import InputError
from anabranch.serve import (
    batches,
    branches,
    chat,
    completions,
    embeddings,
    files,
    responses,
    service,
    views,
)
from anabranch.serve.admission import Admission, Terms
from anabranch.serve.batch import Batches, Means
from anabranch.serve.calls import Call
from anabranch.serve.errors import FAILURES, Refusal, add_handlers
from anabranch.serve.folder import Folders
from anabranch.serve.gate import Gate, tell_of_keys
from anabranch.serve.hub import Hub
from anabranch.serve.jobs import Jobs
from anabranch.serve.keys import DAY, Account, Keyring, keyring
from anabranch.serve.logs import log_call
from anabranch.serve.metrics import Metrics
from anabranch.serve.own import Own
from anabranch.serve.records import Records
from anabranch.serve.sessions import Sessions
from anabranch.serve.settings import Settings
from anabranch.serve.store import Store

if TYPE_CHECKING:
    from anabranch.serve.spans import Spans

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables: one of them is enough for spans."""


def create_app(settings: Settings, hub: Hub) -> FastAPI:
    """The application. Models are loaded while it answers already; `/health` says when.

    Raises:
        InputError: no keys though others than this machine could ask, a broken file of keys,
            spans that cannot be sent, or an address of records that cannot be understood.
    """
    metrics, stopping = Metrics(), asyncio.Event()
    records = None
    if settings.records is not None:
        records = Records(settings.records, settings.most_records, settings.traces)

    def on_end(call: Call) -> None:
        log_call(call)
        if records is not None and call.generated:
            records.add(call)

    spans = _spans(settings)
    new_call = functools.partial(
        Call,
        metrics=metrics,
        stopping=stopping,
        traced=settings.traces > 0,
        spans=spans,
        on_end=on_end,
    )
    keys = keyring(settings.keys, settings.host, share_cache=settings.share_cache)

    nobody = keys.open or Account()

    app = FastAPI(
        title="Anabranch",
        version=__version__,
        lifespan=functools.partial(_life, spans=spans, new_call=new_call),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=FAILURES,
    )
    admission = Admission(settings.running, settings.waiting)
    app.state.hub, app.state.settings, app.state.admission = hub, settings, admission
    app.state.keys, app.state.metrics, app.state.stopping = keys, metrics, stopping
    app.state.records = records
    metrics.watch(hub, admission)
    app.state.own = {
        name: Own(
            Store(settings.responses, settings.responses_bytes),
            Sessions(settings.sessions, settings.session_branches, settings.branches),
        )
        for name in keys.accounts
    }
    add_handlers(app)
    app.add_middleware(
        BodyLimit, most=settings.body_bytes, others={"/v1/files": settings.file_bytes}
    )
    for group in (
        chat,
        completions,
        responses,
        embeddings,
        files,
        batches,
        branches,
        service,
        views,
    ):
        app.include_router(group.routes)
    if keys.open is None:
        tell_of_keys(app.openapi())  # made once, and kept
    # The last one is the outermost.
    app.add_middleware(Gate, keys=keys, call=new_call, nobody=nobody)
    return app


@contextlib.asynccontextmanager
async def _life(
    app: FastAPI, spans: Spans | None, new_call: Callable[..., Call]
) -> AsyncGenerator[None]:
    """Begin what runs beside the requests; end it, in an order that loses nothing."""
    settings, hub = app.state.settings, app.state.hub
    keys, records = app.state.keys, app.state.records
    if records is not None:
        await asyncio.to_thread(_recall, records, keys)
    app.state.jobs = jobs = Jobs()
    folders = _folders(settings, keys)
    loading = asyncio.create_task(hub.load())
    lines = Terms(Admission(settings.batch_lines, None), settings.seconds)
    means = Means(hub, jobs, loading, lines, settings.batch_lines, new_call)
    for name, folder in folders.of.items() if folders else ():
        app.state.own[name].batches = Batches(folder, keys.accounts[name], means)
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await jobs.close()
        if folders is not None:
            folders.close()
        hub.close()
        if records is not None:
            await asyncio.to_thread(records.close)
        if spans is not None:
            await asyncio.to_thread(spans.close)


def _spans(settings: Settings) -> Spans | None:
    """Where spans go, if anywhere: OpenTelemetry is loaded only then.

    Raises:
        InputError: it is not installed, or told what it cannot do.
    """
    wanted = settings.otlp_endpoint or any(os.environ.get(name) for name in ENDPOINTS)
    if not wanted or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    try:
        from anabranch.serve.spans import Spans
    except ModuleNotFoundError as error:
        raise InputError(f"spans need {error.name}", fix="pip install 'anabranch[otel]'") from None
    return Spans(settings.otlp_endpoint)


def _folders(settings: Settings, keys: Keyring) -> Folders | None:
    if settings.folder is None:
        return None
    return Folders(settings.folder, keys.accounts, settings.files, settings.files_bytes)


def _recall(records: Records, keys: Keyring) -> None:
    """Begin with what keys have used today, before the server was started again."""
    records.open()
    used = records.used_since(time.time() // DAY * DAY)
    for name, account in keys.accounts.items():
        account.charge(used.get(name, 0), span=DAY)


class BodyLimit:
    """Refuses bodies over a limit, whatever their headers say.

    Args:
        most: bytes; `others` by path.
    """

    def __init__(self, app: ASGIApp, most: int, others: Mapping[str, int]) -> None:
        self.app, self.most, self.others = app, most, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.others.get(scope["path"], self.most)
        refusal = Refusal(413, f"the body is larger than {most} bytes", code="body_too_large")
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told[:20]) > most:
            await refusal.response()(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise refusal
            return message

        await self.app(scope, counted, send)

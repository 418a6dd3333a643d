"""The application: routes, errors, limits, and the life of the models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch import __version__
from anabranch.serve import chat, completions, service
from anabranch.serve.admission import Admission
from anabranch.serve.calls import Call, begin
from anabranch.serve.errors import Refusal, add_handlers
from anabranch.serve.gate import Gate
from anabranch.serve.hub import Hub
from anabranch.serve.keys import Account, keyring
from anabranch.serve.logs import log_call
from anabranch.serve.metrics import Metrics
from anabranch.serve.settings import Settings


def create_app(settings: Settings, hub: Hub) -> FastAPI:
    """The application. Models are loaded while it answers already; `/health` says when.

    Raises:
        InputError: no keys though others than this machine could ask, or a broken file of keys.
    """
    metrics, stopping = Metrics(), asyncio.Event()
    new_call = functools.partial(Call, metrics=metrics, stopping=stopping, on_end=log_call)
    keys = keyring(settings.keys, settings.host, share_cache=settings.share_cache)

    nobody = keys.open or Account()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        begin(new_call(nobody, "server"))  # whose what is done between requests is
        loading = asyncio.create_task(hub.load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            hub.close()

    app = FastAPI(
        title="Anabranch", version=__version__, lifespan=life, docs_url=None, redoc_url=None
    )
    admission = Admission(settings.running, settings.waiting)
    app.state.hub, app.state.settings, app.state.admission = hub, settings, admission
    app.state.keys, app.state.metrics, app.state.stopping = keys, metrics, stopping
    metrics.watch(hub, admission)
    add_handlers(app)
    app.add_middleware(BodyLimit, most=settings.body_bytes)
    for routes in (chat.routes, completions.routes, service.routes):
        app.include_router(routes)
    # The last one is the outermost.
    app.add_middleware(Gate, keys=keys, call=new_call, nobody=nobody)
    return app


class BodyLimit:
    """Refuses bodies over a limit, whatever their headers say."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = Refusal(413, f"the body is larger than {self.most} bytes", code="body_too_large")
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told[:20]) > self.most:
            await refusal.response()(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise refusal
            return message

        await self.app(scope, counted, send)

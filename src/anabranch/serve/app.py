"""The application: routes, errors, limits, and the life of the models."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch import __version__
from anabranch.serve import chat, completions, service
from anabranch.serve.admission import Admission
from anabranch.serve.errors import Refusal, add_handlers
from anabranch.serve.gate import Gate
from anabranch.serve.hub import Hub
from anabranch.serve.keys import keyring
from anabranch.serve.settings import Settings


def create_app(settings: Settings, hub: Hub) -> FastAPI:
    """The application. Models are loaded while it answers already; `/health` says when.

    Raises:
        InputError: no keys though others than this machine could ask, or a broken file of keys.
    """
    keys = keyring(settings.keys, settings.host, share_cache=settings.share_cache)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        app.state.admission = Admission(settings.running, settings.waiting)
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
    app.state.hub, app.state.settings = hub, settings
    add_handlers(app)
    app.add_middleware(BodyLimit, most=settings.body_bytes)
    for routes in (chat.routes, completions.routes, service.routes):
        app.include_router(routes)
    app.add_middleware(Gate, keys=keys, on_end=lambda call: None)  # the last is the outermost
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

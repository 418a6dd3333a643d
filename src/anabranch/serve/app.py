"""The application: routes, errors, limits, and the life of the models."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch import __version__
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
from anabranch.serve.admission import Admission
from anabranch.serve.batch import Batches
from anabranch.serve.errors import Refusal, add_handlers
from anabranch.serve.folder import Folder
from anabranch.serve.hub import Hub
from anabranch.serve.jobs import Jobs
from anabranch.serve.sessions import Sessions
from anabranch.serve.settings import Settings
from anabranch.serve.store import Store


def create_app(settings: Settings, hub: Hub) -> FastAPI:
    """The application. Models are loaded while it answers already; `/health` says when."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        app.state.admission = Admission(settings.running, settings.waiting)
        app.state.jobs = jobs = Jobs()
        folder = app.state.folder = _folder(settings)
        loading = asyncio.create_task(hub.load())
        app.state.batches = Batches(
            folder,
            hub,
            jobs,
            loading,
            side_by_side=settings.batch_lines,
            seconds=settings.seconds,
        )
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await jobs.close()
            if folder is not None:
                folder.close()
            hub.close()

    app = FastAPI(
        title="Anabranch", version=__version__, lifespan=life, docs_url=None, redoc_url=None
    )
    app.state.hub, app.state.settings = hub, settings
    app.state.sessions = Sessions(settings.sessions, settings.session_branches, settings.branches)
    app.state.store = Store(settings.responses, settings.responses_bytes)
    add_handlers(app)
    app.add_middleware(
        BodyLimit, most=settings.body_bytes, others={"/v1/files": settings.file_bytes}
    )
    # A page of somebody else's that gives its own name this machine's address is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
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
    return app


def _folder(settings: Settings) -> Folder | None:
    if settings.folder is None:
        return None
    return Folder(settings.folder, settings.files, settings.files_bytes)


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

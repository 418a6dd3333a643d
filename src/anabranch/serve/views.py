"""The page at `/`, and what it and other views read: strategies, judges, the engine's figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from anabranch.program.registry import Entry
from anabranch.reason.registry import strategies as all_strategies
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub, Served
from anabranch.serve.wire import shape
from anabranch.verify.registry import judges as all_judges

routes = APIRouter()

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # may be kept, and is asked for anew: an upgrade is seen at once
}
"""Only what this server itself sends may run, and nothing may be sent elsewhere."""


@routes.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return await part("index.html")


@routes.get("/page/{name}", include_in_schema=False)
async def part(name: str) -> FileResponse:
    """One of its files."""
    known = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES}
    if name not in known:
        raise Refusal(404, "the page has no file of this name")
    path = known[name]
    return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)


@routes.get("/v1/strategies", responses=shape("list", data="array"))
async def strategies(request: Request) -> dict[str, Any]:
    """Every strategy that is allowed here: parameters with defaults and limits, cost, paper."""
    return await _described(request, all_strategies)


@routes.get("/v1/judges", responses=shape("list", data="array"))
async def judges(request: Request) -> dict[str, Any]:
    """Every judge that strategies let thoughts be rated by, likewise."""
    return await _described(request, all_judges)


async def _described(request: Request, all_of: Callable[[], list[Entry]]) -> dict[str, Any]:
    hub: Hub = request.app.state.hub
    found = await asyncio.to_thread(all_of)
    return {"object": "list", "data": [each.describe() for each in found if hub.allows(each)]}


@routes.get(
    "/v1/engine", responses=shape(None, running="integer", waiting="integer", models="array")
)
async def engine(request: Request) -> dict[str, Any]:
    """What requests and engines are doing. Counts go up from the start: rates are differences."""
    hub: Hub = request.app.state.hub
    admission = request.app.state.admission
    return {
        "running": admission.running,
        "waiting": admission.waiting,
        "models": [_figures(served) for served in hub.models.values()],
    }


def _figures(served: Served) -> dict[str, Any]:
    """A model's counters: forward passes and rows in them, tokens that branches were moved over and
    how many of these the tree held already, KV pages, operations that wait for a pass."""
    core = served.lm.engine.core
    tree, pool = core.tree, core.tree.pool
    return {
        "model": served.name,
        **asdict(core.stats),
        "tokens": tree.appended,
        "cached_tokens": tree.held,
        "pages": len(pool),
        "used_pages": len(pool) - pool.free,
        "held_pages": tree.held_pages(),
        "branches": sum(root.pins for root in tree.roots.values()),
        "operations": len(core.requests),
    }

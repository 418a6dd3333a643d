"""`/v1/batches`: files full of requests, done when there is room."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from anabranch.serve.batch import ENDPOINTS, HOURS, shown
from anabranch.serve.errors import Refusal
from anabranch.serve.own import batches_of
from anabranch.serve.plain import new_id
from anabranch.serve.wire import PAGE, Body, Metadata, page, shape

routes = APIRouter()


class NewBatch(Body):
    """The body of a request."""

    input_file_id: Annotated[str, Field(max_length=100)]
    endpoint: Annotated[str, Field(max_length=100)]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


_SHAPE = shape("batch", id="string", endpoint="string", status="string", errors="object null",
               input_file_id="string", output_file_id="string null", error_file_id="string null",
               request_counts="object")  # fmt: skip


@routes.post("/v1/batches", responses=_SHAPE)
async def create(body: NewBatch, request: Request) -> dict[str, Any]:
    """Begin a batch."""
    batches = batches_of(request)
    if body.endpoint not in ENDPOINTS:
        raise Refusal(400, f"endpoint: allowed: {', '.join(ENDPOINTS)}", param="endpoint")
    batches.folder.record("file", body.input_file_id)
    batches.folder.check_room("batch")
    now = int(time.time())
    record = {
        "id": new_id("batch"),
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + int(HOURS),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
        "_output": new_id("file"),
        "_errors": new_id("file"),
    }
    return batches.add(record)


@routes.get("/v1/batches", responses=PAGE)
async def batches(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> dict[str, Any]:
    """All batches of this key, the newest first."""
    own = batches_of(request)
    found = await asyncio.to_thread(own.folder.records, "batch")
    listed = page([shown(record) for record in found], limit, True, after)
    listed["data"] = [own.find(each["id"]) for each in listed["data"]]
    return listed


@routes.get("/v1/batches/{name}", responses=_SHAPE)
async def batch(name: str, request: Request) -> dict[str, Any]:
    """One of them as it stands."""
    return batches_of(request).find(name)


@routes.post("/v1/batches/{name}/cancel", responses=_SHAPE)
async def cancel(name: str, request: Request) -> dict[str, Any]:
    """End one; what is done stays."""
    return batches_of(request).cancel(name)

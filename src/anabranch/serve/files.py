"""`/v1/files`: what batches read and write."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.datastructures import UploadFile

from anabranch.serve.errors import Refusal
from anabranch.serve.folder import about
from anabranch.serve.own import batches_of
from anabranch.serve.plain import new_id
from anabranch.serve.wire import DELETED, PAGE, page, shape

routes = APIRouter()


JSONL = "application/jsonl"
BINARY = {"type": "string", "format": "binary"}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": BINARY,
                        "purpose": {"const": "batch"},
                    },
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                }
            }
        },
    }
}
"""What `upload` reads. It is not declared to FastAPI, which would read it before the route can
bound the number of its parts."""


_SHAPE = shape("file", id="string", bytes="integer", created_at="integer", filename="string",
               purpose="string", status="string")  # fmt: skip


@routes.post("/v1/files", openapi_extra=FORM, responses=_SHAPE)
async def upload(request: Request) -> dict[str, Any]:
    """Take in a file of requests."""
    folder = batches_of(request).folder
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(400, "not a multipart form", param="file")
    async with request.form(max_files=1, max_fields=8) as form:
        file, purpose = form.get("file"), form.get("purpose")
        if unknown := sorted(set(form) - {"file", "purpose"}):
            raise Refusal(400, "unknown field of the form", param=unknown[0][:100])
        if not isinstance(file, UploadFile):
            raise Refusal(400, "the form has no file", param="file")
        if purpose != "batch":
            raise Refusal(400, "purpose: allowed: batch", param="purpose")
        folder.check_room("file", file.size or 0)
        name = new_id("file")
        try:
            await asyncio.to_thread(folder.take, name, file.file)
            record = about(folder, name, (file.filename or "file")[:200], "batch")
            await asyncio.to_thread(folder.write, record)
        except OSError:
            folder.remove(name)  # data without a record would take up room for ever
            raise
    return record


@routes.get("/v1/files", responses=PAGE)
async def files(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    purpose: str | None = None,
) -> dict[str, Any]:
    """All files of this key."""
    found = await asyncio.to_thread(batches_of(request).folder.records, "file")
    found = [record for record in found if purpose in (None, record["purpose"])]
    return page(found, limit, order == "desc", after)


@routes.get("/v1/files/{name}", responses=_SHAPE)
async def file(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    return batches_of(request).folder.record("file", name)


@routes.get(
    "/v1/files/{name}/content",
    response_class=Response,
    responses={200: {"content": {JSONL: {"schema": BINARY}}}},
)
async def content(name: str, request: Request) -> FileResponse:
    """What it holds."""
    folder = batches_of(request).folder
    folder.record("file", name)
    return FileResponse(folder.data(name), media_type=JSONL)


@routes.delete("/v1/files/{name}", responses=DELETED)
async def delete(name: str, request: Request) -> dict[str, Any]:
    """Delete it."""
    batches = batches_of(request)
    folder = batches.folder
    folder.record("file", name)
    if name in batches.reading:
        raise Refusal(409, "a batch is reading this file: cancel it first")
    folder.remove(name)
    return {"id": name, "object": "file", "deleted": True}

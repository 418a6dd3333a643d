"""Routes about the server itself: models, health, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParam
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field

from anabranch.serve.calls import current
from anabranch.serve.chat import Message, conversation
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub, Served
from anabranch.serve.records import Records, Trouble
from anabranch.serve.wire import Body, Name, shape

T = TypeVar("T")

NDJSON = "application/x-ndjson"

routes = APIRouter()


class Tokenize(Body):
    """Text, or a conversation, to be cut into tokens.

    Attributes:
        model: may be left out where one is served, as vLLM's clients do.
        add_special_tokens: text begins as a prompt does.
    """

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True


class Detokenize(Body):
    """Tokens to be put together; `model` as in `Tokenize`."""

    model: Name | None = None
    tokens: Annotated[list[int], Field(max_length=1 << 20)]


@routes.get("/health", responses=shape(None, status="string"))
async def health(request: Request) -> JSONResponse:
    """200 once every model answers."""
    hub: Hub = request.app.state.hub
    if hub.fault is not None:
        raise Refusal(503, "a model cannot be loaded; the log says why", code="failed")
    if not hub.ready:
        raise Refusal(503, "models are being loaded", code="loading", retry_after=2)
    records: Records | None = request.app.state.records
    told = {"status": "ok"}
    if records is not None and records.fault is not None:
        told["records"] = "cannot be written; the log says why"
    return JSONResponse(told)


@routes.get("/v1/records", responses=shape("list", data="array"))
async def records(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
) -> dict[str, Any]:
    """What this key has asked and used, the newest first; `before` an id: those that follow."""
    found = await _recorded(request, lambda kept, key: kept.of(key, limit, before))
    return {"object": "list", "data": found}


@routes.get(
    "/v1/records/{record}/trace",
    response_class=Response,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def trace(record: Annotated[int, PathParam(ge=1, le=2**62)], request: Request) -> Response:
    """The trace of one of them, as `anabranch trace` reads it."""
    text = await _recorded(request, lambda kept, key: kept.trace(key, record))
    if text is None:
        raise Refusal(404, "there is no trace of this record")
    return Response(text, media_type=NDJSON)


async def _recorded(request: Request, read: Callable[[Records, str], T]) -> T:
    """What the records say, read beside the event loop. Raises Refusal."""
    kept: Records | None = request.app.state.records
    if kept is None:
        raise Refusal(404, "this server keeps no records")
    try:
        return await asyncio.to_thread(read, kept, current().account.name)
    except Trouble:
        raise Refusal(503, "records cannot be read; the log says why", retry_after=5) from None


@routes.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    for account in request.app.state.keys.accounts.values():
        for call in account.calls:
            call.settle()
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


_MODEL = shape("model", id="string", created="integer", owned_by="string", max_model_len="integer",
               strategy="string null")  # fmt: skip


@routes.get("/v1/models", responses=shape("list", data="array"))
async def models(request: Request) -> dict[str, Any]:
    """Every name that a request may give as its model."""
    hub: Hub = request.app.state.hub
    return {"object": "list", "data": [_model(name, hub) for name, _ in hub.names()]}


@routes.get("/v1/models/{name}", responses=_MODEL)
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    return _model(name, request.app.state.hub)


@routes.post(
    "/tokenize", responses=shape(None, tokens="array", count="integer", max_model_len="integer")
)
async def tokenize(body: Tokenize, request: Request) -> dict[str, Any]:
    """The tokens that a prompt or a conversation is for the model."""
    served = _meant(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = await served.render(conversation(body.messages, None))
    elif body.add_special_tokens:
        tokens = served.lm.tokenizer.prompt(body.prompt or "")
    else:
        tokens = served.lm.engine.encode(body.prompt or "")
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": served.lm.engine.core.capacity,
    }


@routes.post("/detokenize", responses=shape(None, prompt="string"))
async def detokenize(body: Detokenize, request: Request) -> dict[str, str]:
    """The text of tokens, without special ones."""
    served = _meant(request, body.model)
    return {"prompt": served.lm.engine.text_of(served.lm.engine.encode(body.tokens))}


@routes.get("/tokenizer_info")
async def tokenizer_info(
    request: Request, model: Annotated[Name | None, Query()] = None
) -> dict[str, str | None]:
    """The texts of a tokenizer's marks, for clients that cut texts into tokens by `/tokenize`."""
    tokenizer = _meant(request, model).lm.tokenizer
    end, bos = min(tokenizer.ends, default=None), tokenizer.bos
    return {
        "eos_token": None if end is None else tokenizer.decode([end], special=True),
        "bos_token": None if bos is None else tokenizer.decode([bos], special=True),
    }


def _meant(request: Request, name: str | None) -> Served:
    """The model of a name, or the only one. Raises Refusal."""
    hub: Hub = request.app.state.hub
    served, _ = hub.find(hub.only if name is None else name)
    return served


def _model(name: str, hub: Hub) -> dict[str, Any]:
    served, strategy = hub.find(name)
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "anabranch",
        "max_model_len": served.lm.engine.core.capacity,
        "strategy": str(strategy) if strategy else None,
    }

"""Routes about the server itself: models, health, tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field

from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub
from anabranch.serve.wire import Body, Name

routes = APIRouter()


class Tokenize(Body):
    """Text, or a conversation, to be cut into tokens."""

    model: Name
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None


class Detokenize(Body):
    """Tokens to be put together."""

    model: Name
    tokens: Annotated[list[int], Field(max_length=1 << 20)]


@routes.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 once every model answers."""
    hub: Hub = request.app.state.hub
    if hub.fault is not None:
        raise Refusal(503, "a model cannot be loaded; the log says why", code="failed")
    if not hub.ready:
        raise Refusal(503, "models are being loaded", code="loading", retry_after=2)
    return JSONResponse({"status": "ok"})


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    for account in request.app.state.keys.accounts.values():
        for call in account.calls:
            call.settle()
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@routes.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """Every name that a request may give as its model."""
    hub: Hub = request.app.state.hub
    return {"object": "list", "data": [_model(name, hub) for name, _ in hub.names()]}


@routes.get("/v1/models/{name}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them."""
    return _model(name, request.app.state.hub)


@routes.post("/tokenize")
async def tokenize(body: Tokenize, request: Request) -> dict[str, Any]:
    """The tokens that a prompt or a conversation is for the model."""
    served, _ = request.app.state.hub.find(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = await served.render(body.messages)
    else:
        tokens = served.lm.tokenizer.prompt(body.prompt)
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": served.lm.engine.core.capacity,
    }


@routes.post("/detokenize")
async def detokenize(body: Detokenize, request: Request) -> dict[str, str]:
    """The text of tokens, without special ones."""
    served, _ = request.app.state.hub.find(body.model)
    return {"prompt": served.lm.engine.text_of(served.lm.engine.encode(body.tokens))}


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

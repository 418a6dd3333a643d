"""`/v1/embeddings`: hidden states of the served model, pooled."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from anabranch.program.derived import Pooling, embed
from anabranch.program.tasks import together
from anabranch.serve.admission import Terms
from anabranch.serve.calls import current, new_run
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub
from anabranch.serve.plain import prompts_of
from anabranch.serve.stream import unless_gone
from anabranch.serve.wire import Body, Name, Prompts, Turn, shape

routes = APIRouter()

SIDE_BY_SIDE = 32
"""Inputs of one request that are read at the same time."""


class EmbeddingOptions(Turn):
    """How states become one vector: the mean over all tokens, or the state after the last."""

    pooling: Pooling = "mean"


class Embeddings(Body):
    """The body of a request. With `dimensions`, vectors are cut and brought to length 1 again."""

    model: Name
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    user: str | None = None
    anabranch: EmbeddingOptions = EmbeddingOptions()


@routes.post(
    "/v1/embeddings", responses=shape("list", data="array", model="string", usage="object")
)
async def embeddings(body: Embeddings, request: Request) -> JSONResponse:
    """Vectors of texts."""
    work = whole(body, request.app.state.hub, Terms.of(request))
    return JSONResponse(await unless_gone(request, work))


async def whole(body: Embeddings, hub: Hub, terms: Terms) -> dict[str, Any]:
    """The response to a body. Raises Refusal, InputError, TimeoutError."""
    served, named = hub.find(body.model)
    if named is not None:
        raise Refusal(400, "strategies do not go with embeddings", param="model")
    hidden = served.lm.engine.core.decoder.config.hidden
    if body.dimensions is not None and body.dimensions > hidden:
        raise Refusal(400, f"this model's vectors have {hidden} dimensions", param="dimensions")
    prompts = prompts_of(body.input, served, "input")
    current().wants(body.anabranch)
    pooling = body.anabranch.pooling
    run = new_run()
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def vector(tokens: list[int]) -> str | list[float]:
        async with places:
            state = await embed(served.lm.engine, tokens, pooling=pooling, run=run)
        return _encoded(_unit(state[: body.dimensions]), body.encoding_format)

    async with terms.admission.place(), asyncio.timeout(terms.seconds):
        vectors = await together(vector(tokens) for tokens in prompts)
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": run.prompt_tokens, "total_tokens": run.prompt_tokens},
        "anabranch": {"pooling": pooling, "dimensions": hidden},
    }


def _unit(vector: Any) -> Any:
    """A vector of length 1; zero stays zero."""
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / (length or 1.0)).astype("<f4")


def _encoded(vector: Any, encoding: str | None) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers

"""`/v1/responses`: replies as items, kept to be asked for again and gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from fastapi.responses import Response as HTTPResponse
from pydantic import Field

from anabranch.serve import chat
from anabranch.serve.admission import Terms
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub
from anabranch.serve.items import (
    MOST_ITEMS,
    CallItem,
    Input,
    Item,
    MessageItem,
    items_of,
    listed,
    messages_of,
)
from anabranch.serve.own import own
from anabranch.serve.respond import Event, Kept, Response
from anabranch.serve.store import Store
from anabranch.serve.stream import events, first, unless_gone
from anabranch.serve.tools import MOST_TOOLS, Function, ToolName
from anabranch.serve.wire import (
    DELETED,
    PAGE,
    Body,
    Effort,
    Extension,
    Metadata,
    Name,
    Tokens,
    or_stream,
    page,
    shape,
)

routes = APIRouter()

LIKELY = "message.output_text.logprobs"


class FunctionTool(Function):
    """A function as a tool; here its fields stand beside its type."""

    type: Literal["function"]


class ChosenTool(Body):
    """The one tool that is to be called."""

    type: Literal["function"]
    name: ToolName


class Format(Body):
    """What form the text of a reply must have."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class Text(Body):
    """How text is written. `verbosity` is accepted and without effect."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    """How much is thought. Summaries are not made: thoughts are told as they are."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(Body):
    """Accepted and without effect."""

    include_obfuscation: bool | None = None


class Create(Body):
    """The body of a request. `max_output_tokens` bounds the visible reply; a strategy's branches
    are bounded by `anabranch.budget`."""

    model: Name
    input: Input
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=200)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    stream: bool | None = False
    background: bool | None = False
    store: bool | None = True
    metadata: Metadata | None = None
    truncation: Literal["disabled"] | None = None
    anabranch: Extension | None = None

    # Accepted, since clients send them, and without effect.
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    stream_options: StreamOptions | None = None


_SHAPE = shape("response", id="string", created_at="integer", status="string",
               model="string", output="array", usage="object null", error="object null",
               incomplete_details="object null")  # fmt: skip


@routes.post("/v1/responses", response_model=None, responses=or_stream(_SHAPE))
async def create(body: Create, request: Request) -> HTTPResponse:
    """Reply to items."""
    state, store = request.app.state, own(request).store
    keeps = body.store is not False
    if body.background and not keeps:
        raise Refusal(400, "a response in the background must be stored", param="store")
    kept = await begin(body, state.hub, Terms.of(request), store)
    told = kept.response.told
    if body.background:
        store.add(kept)
        kept.task = state.jobs.start(_by_itself(kept, store))
        return events(kept.events(-1), done=False) if body.stream else JSONResponse(told)
    happening = kept.response.events()
    if keeps:
        happening = _keeping(happening, kept, store)
    if body.stream:
        return events(await unless_gone(request, first(happening)), done=False)
    await unless_gone(request, _to_the_end(happening))
    if kept.response.fault is not None:
        raise kept.response.fault
    return JSONResponse(told)


@routes.get("/v1/responses/{name}", response_model=None, responses=or_stream(_SHAPE))
async def retrieve(
    name: str, request: Request, stream: bool = False, starting_after: int = -1
) -> HTTPResponse:
    """A response as it stands; with `stream`, what has happened and happens yet."""
    kept = own(request).store.get(name)
    if not stream:
        return JSONResponse(kept.response.told)
    if kept.log is None:
        message = "only a response that was made with background and stream can be streamed again"
        raise Refusal(400, message, param="stream")
    return events(kept.events(starting_after), done=False)


@routes.delete("/v1/responses/{name}", responses=DELETED)
async def delete(name: str, request: Request) -> dict[str, Any]:
    """Forget a response, and end it if it is under way."""
    kept = own(request).store.remove(name)
    if kept.task is not None:
        kept.task.cancel()
    return {"id": name, "object": "response", "deleted": True}


@routes.post("/v1/responses/{name}/cancel")
async def cancel(name: str, request: Request) -> dict[str, Any]:
    """End a response in the background; its branches are freed."""
    kept = own(request).store.get(name)
    if kept.task is None:
        message = "only a response in the background can be cancelled: close the connection"
        raise Refusal(400, message)
    kept.response.end("cancelled")
    kept.task.cancel()
    return kept.response.told


@routes.get("/v1/responses/{name}/input_items", responses=PAGE)
async def input_items(
    name: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """What a response was given."""
    found = [listed(item) for item in own(request).store.get(name).given]
    return page(found, limit, order == "desc", after)


async def begin(body: Create, hub: Hub, terms: Terms, store: Store) -> Kept:
    """The response to a body, not begun. Raises Refusal, InputError."""
    before: list[Any] = []
    if body.previous_response_id is not None:
        previous = store.get(body.previous_response_id)
        if previous.response.told["status"] not in ("completed", "incomplete"):
            raise Refusal(
                409, "the previous response is not completed", param="previous_response_id"
            )
        before = [*previous.before, *previous.given, *_said(previous.response)]
    given = items_of(body.input)
    items = [*before, *given]
    if len(items) > MOST_ITEMS:
        raise Refusal(400, f"a conversation has at most {MOST_ITEMS} items", param="input")
    reply = await chat.begin(_chat(body, items), hub, terms)
    log = bool(body.background and body.stream)
    return Kept(Response(reply, _about(body)), before, given, log)


def _said(response: Response) -> list[Item]:
    """What a response said, as items of the conversation that goes on."""
    found: list[Item] = []
    for item in response.told["output"]:
        if item["type"] == "message":
            text = item["content"][0]["text"]
            found.append(MessageItem(role="assistant", content=text, id=item["id"]))
        elif item["type"] == "function_call":
            found.append(CallItem.model_validate(item))
    return found


def _chat(body: Create, items: list[Any]) -> chat.Chat:
    """The same request in the words of chat."""
    messages = messages_of(items, body.instructions)
    if not messages:
        raise Refusal(400, "the input says nothing", param="input")
    if body.anabranch is not None and body.anabranch.trace:
        raise Refusal(400, "traces are streamed by /v1/chat/completions", param="anabranch.trace")
    told: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "stream": body.stream,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": LIKELY in (body.include or ()),
        "top_logprobs": body.top_logprobs,
        "parallel_tool_calls": body.parallel_tool_calls,
        "anabranch": body.anabranch,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    form = body.text.format if body.text else None
    if form is not None:
        told["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            if form.schema_ is None:
                raise Refusal(400, "text.format names no schema", param="text.format")
            told["response_format"]["json_schema"] = {
                "name": form.name or "answer",
                "schema": form.schema_,
            }
    if body.tools is not None:
        told["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"})}
            for tool in body.tools
        ]
    choice = body.tool_choice
    if isinstance(choice, ChosenTool):
        told["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        told["tool_choice"] = choice
    return chat.Chat.model_validate(told)


def _about(body: Create) -> dict[str, Any]:
    """What a response repeats of its request."""
    plain = body.model_dump(by_alias=True, exclude_none=True)
    reasoning = plain.get("reasoning", {})
    return {
        "model": body.model,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "background": bool(body.background),
        "store": body.store is not False,
        "metadata": body.metadata or {},
        "tools": plain.get("tools", []),
        "tool_choice": plain.get("tool_choice", "auto"),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": {"type": "text"}, **plain.get("text", {})},
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "max_output_tokens": body.max_output_tokens,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "service_tier": "default",
        "user": body.user,
    }


async def _by_itself(kept: Kept, store: Store) -> None:
    try:
        await kept.run()
    finally:
        kept.response.end("cancelled")
        store.ended(kept)


async def _keeping(
    happening: AsyncGenerator[Event | str], kept: Kept, store: Store
) -> AsyncGenerator[Event | str]:
    """The same events, of a response that is kept from the first of them on."""
    async with contextlib.aclosing(happening):
        known = False
        try:
            async for event in happening:
                if not known:
                    store.add(kept)
                    known = True
                yield event
        finally:
            kept.response.end("cancelled")
            store.ended(kept)


async def _to_the_end(happening: AsyncGenerator[Event | str]) -> None:
    async with contextlib.aclosing(happening):
        async for _ in happening:
            pass

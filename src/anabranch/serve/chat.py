"""`/v1/chat/completions`: plain replies, and replies that were thought about in branches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from anabranch.engine import grammar
from anabranch.engine.constraints import Constraint
from anabranch.engine.requests import Result
from anabranch.errors import InputError
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import Ask, begun, rule_of, sampling_of, stops_of
from anabranch.serve.hub import Served
from anabranch.serve.plain import Plain, new_id, seed_of
from anabranch.serve.stream import events, first, unless_gone
from anabranch.serve.think import Thinking, plan_of
from anabranch.serve.wire import Body, Effort, Sampled, Tokens

routes = APIRouter()


class Part(Body):
    """A part of a message's content. Only text is understood."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn. Reasoning is accepted in either spelling and left out of the prompt."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates know it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(Body):
    """A schema with a name."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class Format(Body):
    """What form a reply must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Chat(Sampled):
    """The body of a request. `max_completion_tokens` bounds each visible reply; a strategy's
    branches are bounded by `anabranch.budget`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    reasoning_effort: Effort | None = None


@routes.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: Chat, request: Request) -> Response:
    """Reply to a conversation."""
    served, named = request.app.state.hub.find(body.model)
    plan = plan_of(body.anabranch, named, body.reasoning_effort)
    rule = await begun(_rule(body), served.lm.tokenizer)
    if plan is not None:
        _check_thinking(body)
    own = Reply(body, served, request)
    if plan is None:
        chunks = own.plain(rule)
    else:
        turns = [m.plain() for m in body.messages]
        chunks = own.thought(Thinking(plan, served, turns, rule, _limit(body), own.traced))
    if body.stream:
        return events(await first(chunks))
    return JSONResponse(await unless_gone(request, own.whole(chunks)))


def _check_thinking(body: Chat) -> None:
    for name, given in (("n", (body.n or 1) > 1), ("logprobs", body.logprobs)):
        if given:
            raise Refusal(400, f"{name} does not go with a strategy", param=name)


def _rule(body: Chat) -> Constraint | None:
    form = body.response_format
    if form is None or form.type == "text":
        return rule_of(body.structured_outputs)
    if body.structured_outputs is not None:
        raise InputError("response_format and structured_outputs are both given")
    if form.type == "json_object":
        return grammar.json_schema({"type": "object"})
    if form.json_schema is None:
        raise InputError("response_format names no json_schema")
    return grammar.json_schema(form.json_schema.schema_)


def _limit(body: Chat) -> int:
    return body.max_completion_tokens or body.max_tokens or 1 << 20


class Reply:
    """The chunks of one response, and the response that they add up to."""

    def __init__(self, body: Chat, served: Served, request: Request) -> None:
        self.body, self.served = body, served
        self.admission = request.app.state.admission
        self.seconds = request.app.state.settings.seconds
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.traced = bool(body.stream and body.anabranch and body.anabranch.trace)

    async def plain(self, rule: Constraint | None) -> AsyncGenerator[dict[str, Any] | str]:
        """A reply without a strategy."""
        body, served = self.body, self.served
        top = (body.top_logprobs or 0) if body.logprobs else 0
        ask = Ask(_limit(body), stops_of(body), rule, top, sampling_of(body, served.lm.tokenizer))
        tokens = await served.render([message.plain() for message in body.messages])
        seed = seed_of(body)
        async with self.admission.place():
            work = Plain(served, [tokens], n=body.n or 1, seed=seed, seconds=self.seconds)
            opened = False
            async with contextlib.aclosing(work.deltas(ask)) as deltas:
                async for delta in deltas:
                    for index in range(0 if opened else work.n):  # after what may be refused
                        yield self._chunk(index, {"role": "assistant", "content": ""})
                    opened = True
                    told: dict[str, Any] = {"content": delta.text} if delta.text else {}
                    likely = None
                    if body.logprobs and delta.results:
                        likely = {"content": [self._likely(r) for r in delta.results]}
                    if told or likely or delta.finish:
                        yield self._chunk(delta.index, told, delta.finish, likely)
        if self.body.tells_usage:
            yield self._last(work.usage, {"seed": seed})

    async def thought(self, thinking: Thinking) -> AsyncGenerator[dict[str, Any] | str]:
        """A reply that a strategy has thought about."""
        body = self.body
        async with self.admission.place():
            seed = seed_of(body)
            yield self._chunk(0, {"role": "assistant", "content": ""})
            async with contextlib.aclosing(thinking.events(seed, self.seconds)) as happening:
                async for kind, told in happening:
                    if kind == "progress":
                        yield told
                    elif kind == "reasoning" and body.stream:
                        yield self._chunk(0, {"reasoning": told, "reasoning_content": told})
                    elif kind == "trace" and self.traced:
                        yield {**self._head(), "choices": [], "anabranch": {"event": told}}
        if not body.stream:
            text = thinking.reasoning
            yield self._chunk(0, {"reasoning": text, "reasoning_content": text})
        yield self._chunk(0, {"content": thinking.content}, thinking.finish)
        if self.body.tells_usage:
            yield self._last(thinking.usage, thinking.report)

    async def whole(self, chunks: AsyncGenerator[dict[str, Any] | str]) -> dict[str, Any]:
        """The response without streaming: all chunks put together."""
        found: list[dict[str, Any]] = [
            {"index": i, "message": {"role": "assistant", "content": "", "refusal": None},
             "logprobs": None, "finish_reason": None}
            for i in range(self.body.n or 1)
        ]  # fmt: skip
        last: dict[str, Any] = {}
        async with contextlib.aclosing(chunks) as coming:
            async for chunk in coming:
                if isinstance(chunk, str):
                    continue
                last = chunk
                for part in chunk["choices"]:
                    choice = found[part["index"]]
                    for field, text in part["delta"].items():
                        if field != "role":
                            choice["message"][field] = choice["message"].get(field, "") + text
                    if part["logprobs"]:
                        kept = choice["logprobs"] or {"content": []}
                        kept["content"] += part["logprobs"]["content"]
                        choice["logprobs"] = kept
                    choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
        more = {"choices": found, "usage": last["usage"], "anabranch": last["anabranch"]}
        return {**self._head(), "object": "chat.completion", **more}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": self.served.lm.fingerprint,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None, likely: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": likely, "finish_reason": finish}
        return {**self._head(), "choices": [choice]}

    def _last(self, usage: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
        """The chunk with the usage, and what there is to say in our own words."""
        return {**self._head(), "choices": [], "usage": usage, "anabranch": report}

    def _likely(self, result: Result) -> dict[str, Any]:
        at_most = result.top
        return {
            **self._token(result.token, result.logp),
            "top_logprobs": [self._token(token, logp) for token, logp in at_most],
        }

    def _token(self, token: int, logp: float) -> dict[str, Any]:
        data = self.served.lm.tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logp, "bytes": list(data)}

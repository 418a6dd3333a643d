"""`/v1/chat/completions`: plain replies, and replies that were thought about in branches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from anabranch.engine import grammar
from anabranch.engine.constraints import Constraint
from anabranch.engine.requests import Result
from anabranch.errors import InputError
from anabranch.serve.admission import Terms
from anabranch.serve.calls import current
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import Ask, begun, rule_of, sampling_of, stops_of
from anabranch.serve.hub import Hub, Served
from anabranch.serve.plain import Plain, new_id, seed_of
from anabranch.serve.stream import events, first, unless_gone
from anabranch.serve.think import FORM, Thinking, plan_of
from anabranch.serve.tools import (
    Calls,
    Toolbox,
    ToolCall,
    ToolChoice,
    Tools,
    merge,
    toolbox_of,
    with_calls,
)
from anabranch.serve.tools import response as tool_response
from anabranch.serve.wire import Body, Effort, Said, Sampled, Tokens, or_stream, shape

routes = APIRouter()

MOST_CALLS = 128


class Part(Body):
    """A part of a message's content. Only text is understood."""

    type: Literal["text"]
    text: str


class Message(Said):
    """One turn. Reasoning is accepted in either spelling and left out of the prompt."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_CALLS)] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """Its content."""
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


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
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    # vLLM's words for a reply that has begun already, in a last message by the assistant.
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    extra_body: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_continued(self) -> Chat:
        last = self.messages[-1]
        if self.continue_final_message and (last.role != "assistant" or last.tool_calls):
            raise ValueError("continue_final_message needs a last message by the assistant")
        if self.add_generation_prompt not in (None, not self.continue_final_message):
            raise ValueError("add_generation_prompt is false if continue_final_message is set")
        for name, value in (self.extra_body or {}).items():
            # its_hub says these twice; what is said only there would be lost without a word.
            if name not in self.model_fields_set or getattr(self, name) != value:
                raise ValueError(f"extra_body is a client's own: put {name} into the body itself")
        return self


_SHAPE = shape("chat.completion", id="string", created="integer", model="string",
               choices="array", usage="object", anabranch="object")  # fmt: skip


@routes.post("/v1/chat/completions", response_model=None, responses=or_stream(_SHAPE))
async def chat_completions(body: Chat, request: Request) -> Response:
    """Reply to a conversation."""
    own = await begin(body, request.app.state.hub, Terms.of(request))
    if body.stream:
        return events(await unless_gone(request, first(own.chunks())))
    return JSONResponse(await unless_gone(request, own.whole()))


async def begin(body: Chat, hub: Hub, terms: Terms) -> Reply:
    """The reply to a body, not begun. Raises Refusal, InputError."""
    served, named = hub.find(body.model)
    current().wants(body.anabranch)
    plan = plan_of(body.anabranch, named, body.reasoning_effort)
    toolbox = toolbox_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    rule = await begun(_rule(body, toolbox), served.lm.tokenizer)
    turns = conversation(body.messages, toolbox)
    thinking = None
    if plan is not None:
        hub.allowed(plan.strategy)
        _check_thinking(body)
        form = toolbox.form if toolbox else FORM
        thinking = Thinking(plan, served, turns, rule, _limit(body), form, live=_traced(body))
    return Reply(body, served, terms, turns, rule, thinking, calls=toolbox is not None)


def conversation(messages: Sequence[Message], toolbox: Toolbox | None) -> list[dict[str, str]]:
    """Messages as every chat template knows them: tools and calls are text.

    Raises:
        Refusal: a call or a result in a message of another role.
    """
    turns: list[dict[str, str]] = []
    last = None
    for message in messages:
        role, text = message.role, message.text
        if message.tool_calls:
            if role != "assistant":
                raise Refusal(
                    400, "only the assistant's messages have tool_calls", param="messages"
                )
            text = with_calls(text, message.tool_calls)
        if role == "tool":
            text = tool_response(text)
            if last == "tool":  # results of one turn's calls stand in one turn
                turns[-1]["content"] += f"\n{text}"
                continue
        known = {"developer": "system", "tool": "user"}.get(role, role)
        turns.append({"role": known, "content": text})
        last = role
    if toolbox is not None:
        if turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": ""})
        turns[0]["content"] = f"{turns[0]['content']}\n\n{toolbox.text}".strip()
    return turns


def _traced(body: Chat) -> bool:
    """Whether what happens in the tree is streamed."""
    return bool(body.stream and body.anabranch and body.anabranch.trace)


def _check_thinking(body: Chat) -> None:
    for name, given in (("n", (body.n or 1) > 1), ("logprobs", body.logprobs)):
        if given:
            raise Refusal(400, f"{name} does not go with a strategy", param=name)


def _rule(body: Chat, toolbox: Toolbox | None) -> Constraint | None:
    schema = _schema(body)
    if body.structured_outputs is not None:
        for name, given in (("response_format", schema is not None), ("tools", toolbox)):
            if given:
                raise InputError(f"{name} and structured_outputs are both given")
    if toolbox is not None:
        return toolbox.rule(schema)
    return rule_of(body.structured_outputs) if schema is None else grammar.json_schema(schema)


def _schema(body: Chat) -> dict[str, Any] | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None:
        raise InputError("response_format names no json_schema")
    return form.json_schema.schema_


def _limit(body: Chat) -> int:
    return body.max_completion_tokens or body.max_tokens or 1 << 20


class Reply:
    """The chunks of one response, and the response that they add up to."""

    def __init__(
        self,
        body: Chat,
        served: Served,
        terms: Terms,
        turns: list[dict[str, str]],
        rule: Constraint | None,
        thinking: Thinking | None,
        *,
        calls: bool,
    ) -> None:
        self.body, self.served, self.terms, self.turns = body, served, terms, turns
        self.rule, self.thinking = rule, thinking
        self._calls = [Calls() for _ in range(body.n or 1)] if calls else []
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.traced = _traced(body)

    def chunks(self) -> AsyncGenerator[dict[str, Any] | str]:
        """What the reply comes by."""
        return self._plain() if self.thinking is None else self._thought(self.thinking)

    async def _plain(self) -> AsyncGenerator[dict[str, Any] | str]:
        body, served = self.body, self.served
        top = (body.top_logprobs or 0) if body.logprobs else 0
        ask = Ask(
            _limit(body),
            stops_of(body),
            self.rule,
            top,
            sampling_of(body, served.lm.tokenizer),
            keep=body.include_stop_str_in_output,
        )
        tokens = await served.render(self.turns, going_on=body.continue_final_message)
        seed = seed_of(body)
        async with self.terms.admission.place():
            work = Plain(served, [tokens], n=body.n or 1, seed=seed, terms=self.terms)
            opened = False
            async with contextlib.aclosing(work.deltas(ask)) as deltas:
                async for delta in deltas:
                    for index in range(0 if opened else work.n):  # after what may be refused
                        yield self._chunk(index, {"role": "assistant", "content": ""})
                    opened = True
                    likely = None
                    if body.logprobs and delta.results:
                        likely = {"content": [self._likely(r) for r in delta.results]}
                    for chunk in self._told(delta.index, delta.text, delta.finish, likely):
                        yield chunk
        if self.body.tells_usage:
            yield self._last(work.usage, {"seed": seed})

    async def _thought(self, thinking: Thinking) -> AsyncGenerator[dict[str, Any] | str]:
        body = self.body
        async with self.terms.admission.place():
            seed = seed_of(body)
            yield self._chunk(0, {"role": "assistant", "content": ""})
            async with contextlib.aclosing(thinking.events(seed, self.terms)) as happening:
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
        for chunk in self._told(0, thinking.content, thinking.finish):
            yield chunk
        if self.body.tells_usage:
            yield self._last(thinking.usage, thinking.report)

    def _told(
        self, index: int, text: str, finish: str | None, likely: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Chunks for more of a choice's text."""
        if self._calls:
            calls = self._calls[index]
            deltas = calls.read(text, last=finish is not None)
            if finish == "stop" and calls.complete:
                finish = "tool_calls"
        else:
            deltas = [{"content": text}] if text else []
        if not deltas and (likely or finish):
            deltas = [{}]
        for i, delta in enumerate(deltas, 1):
            last = i == len(deltas)
            yield self._chunk(index, delta, finish if last else None, likely if last else None)

    async def whole(self) -> dict[str, Any]:
        """The response without streaming: all chunks put together."""
        found: list[dict[str, Any]] = [
            {"index": i, "message": {"role": "assistant", "content": "", "refusal": None},
             "logprobs": None, "finish_reason": None}
            for i in range(self.body.n or 1)
        ]  # fmt: skip
        last: dict[str, Any] = {}
        async with contextlib.aclosing(self.chunks()) as coming:
            async for chunk in coming:
                if isinstance(chunk, str):
                    continue
                last = chunk
                for part in chunk["choices"]:
                    choice = found[part["index"]]
                    merge(choice["message"], part["delta"])
                    if part["logprobs"]:
                        kept = choice["logprobs"] or {"content": []}
                        kept["content"] += part["logprobs"]["content"]
                        choice["logprobs"] = kept
                    choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
        for choice in found:
            if "tool_calls" in choice["message"]:
                choice["message"]["content"] = choice["message"]["content"] or None
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

"""Items: what conversations are made of in `/v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from anabranch.serve.chat import Message
from anabranch.serve.plain import new_id
from anabranch.serve.tools import ToolCall, ToolName
from anabranch.serve.wire import Said

MOST_ITEMS = 4096

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Field(max_length=200)]


class TextPart(Said):
    """A part of a message. Only text is understood; what came with text from us is ignored."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str = ""
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Content = str | Annotated[list[TextPart], Field(max_length=MOST_ITEMS)]


class MessageItem(Said):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Id | None = None
    status: Status | None = None
    phase: str | None = None


class CallItem(Said):
    """A call of a function by the assistant."""

    type: Literal["function_call"]
    call_id: Id
    name: ToolName
    arguments: str
    id: Id | None = None
    status: Status | None = None


class ResultItem(Said):
    """What it gave."""

    type: Literal["function_call_output"]
    call_id: Id
    output: Content
    id: Id | None = None
    status: Status | None = None


class ReasoningItem(Said):
    """What was thought: accepted, and left out of the prompt."""

    type: Literal["reasoning"]
    id: Id | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


def _kind(item: Any) -> str:
    told = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "")
    return told if isinstance(told, str) else ""


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]

Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS), Tag("items")],
    Discriminator(lambda given: "text" if isinstance(given, str) else "items"),
]

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco",
             "reasoning": "rs"}  # fmt: skip


def items_of(given: str | Sequence[Item]) -> list[Item]:
    """What was given, each with an id."""
    if isinstance(given, str):
        given = [MessageItem(role="user", content=given)]
    return [
        item.model_copy(update={"id": item.id or new_id(_PREFIXES[item.type])}) for item in given
    ]


def listed(item: Item) -> dict[str, Any]:
    """An item as it is sent."""
    told = item.model_dump(exclude_none=True)
    if isinstance(item, MessageItem):
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts: list[dict[str, Any]] = [{"type": kind, "text": _text(item.content)}]
        if item.role == "assistant":
            parts[0]["annotations"] = []
        told |= {"content": parts, "status": item.status or "completed"}
    return told


def messages_of(items: Sequence[Item], instructions: str | None) -> list[Message]:
    """The conversation that items make: calls belong to the turn before them."""
    turns: list[dict[str, Any]] = []
    calling = False  # the last turn is the assistant's and may take calls
    for item in items:
        if isinstance(item, CallItem):
            if not calling:
                turns.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = ToolCall.model_validate({"id": item.call_id, "function": function})
            turns[-1].setdefault("tool_calls", []).append(call)
            calling = True
        elif isinstance(item, ResultItem):
            told = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
            turns.append(told)
            calling = False
        elif isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": _text(item.content)})
            calling = role == "assistant"
    if instructions:
        if turns and turns[0]["role"] == "system":
            turns[0]["content"] = f"{instructions}\n\n{turns[0]['content']}"
        else:
            turns.insert(0, {"role": "system", "content": instructions})
    return [Message.model_validate(turn) for turn in turns]


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content)

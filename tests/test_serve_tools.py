"""Tools over HTTP, as OpenAI's own client sees them, over a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pytest

from anabranch.serve.tools import Calls, merge
from tests.serving import Running, serving

ASKED: Any = [{"role": "user", "content": "How warm is it in Oslo and Rome?"}]
OSLO = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather now — outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """Calls where tools are told and not answered yet; else says what was told."""
    if "step by step" in prompt and "Now make" not in prompt:
        full = "The answer is 7."
    elif "<tool_response>" in prompt:
        full = "Oslo 3, Rome 20." if "3\n</tool_response>\n<tool_response>\n20" in prompt else "?"
    elif "<tools>" in prompt and "wise" in prompt:
        full = "I <tool_know> it."
    elif "<tools>" in prompt:
        full = f"Let me see.\n{OSLO}\n{ROME}"
    else:
        full = "No tools."
    return {full[len(reply) :]: 1.0} if full.startswith(reply) else {"": 1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(rule) as running:
        yield running


def ask(server: Running, messages: Any = ASKED, **options: Any) -> Any:
    """The first choice of a reply."""
    reply = server.client.chat.completions.create(
        **{"model": "scripted", "messages": messages, "tools": [WEATHER, CLOCK], **options}
    )
    return reply.choices[0]


def called(choice: Any) -> list[tuple[str, Any]]:
    """Names and arguments of the calls in a choice."""
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls or []
    ]


def test_text_and_parallel_calls(server: Running) -> None:
    choice = ask(server)
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert called(choice) == [("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})]
    first, second = choice.message.tool_calls
    assert first.id != second.id
    assert first.type == "function"


def test_the_results_go_back(server: Running) -> None:
    choice = ask(server)
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": warm}
        for call, warm in zip(choice.message.tool_calls, ("3", "20"), strict=True)
    ]
    again = ask(server, [*ASKED, choice.message.model_dump(), *results])
    assert again.finish_reason == "stop"
    assert again.message.content == "Oslo 3, Rome 20."
    assert again.message.tool_calls is None


def test_free_text_stays_free(server: Running) -> None:
    choice = ask(server, [{"role": "user", "content": "Be wise."}])
    assert choice.message.content == "I <tool_know> it."
    assert choice.finish_reason == "stop"


def test_choices_of_tools(server: Running) -> None:
    assert ask(server, tool_choice="none").message.content == "No tools."
    assert called(ask(server, parallel_tool_calls=False)) == [("weather", {"city": "Oslo"})]
    # The model wants to say something first, and to end at once: it may not.
    required = ask(server, tool_choice="required", seed=1, max_tokens=400)
    assert required.finish_reason == "tool_calls"
    assert required.message.content is None
    assert {name for name, _ in called(required)} <= {"weather", "clock"}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    (only,) = called(ask(server, tool_choice=named, seed=2))
    assert only[0] == "weather"
    assert only[1]["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_model_wants_calls_are_valid(seed: int) -> None:
    """All bytes are equally likely here."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
              "required": ["a", "b"], "additionalProperties": False}  # fmt: skip
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with serving(lambda prompt, reply: {}) as running:
        choice = ask(running, tools=[tool], tool_choice="required", seed=seed, temperature=8)
    for name, arguments in called(choice):
        assert name == "f"
        assert isinstance(arguments["a"], int)
        assert isinstance(arguments["b"], bool)


def test_a_stream_of_calls(server: Running) -> None:
    message: dict[str, Any] = {}
    finish = None
    begun = []
    with server.client.chat.completions.create(
        model="scripted", messages=ASKED, tools=[WEATHER], stream=True
    ) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            finish = choice.finish_reason or finish
            delta = choice.delta.model_dump(exclude_none=True)
            begun += [c["id"] for c in delta.get("tool_calls", []) if "id" in c]
            merge(message, delta)
    assert message["content"] == "Let me see."
    assert [call["id"] for call in message["tool_calls"]] == begun
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]
    assert finish == "tool_calls"


def test_a_limit_in_a_call_is_said(server: Running) -> None:
    choice = ask(server, max_tokens=70)
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Osl'


def test_calls_or_a_form(server: Running) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "yes"}}}
    choice = ask(server, [{"role": "user", "content": "Be wise."}], response_format=form, seed=3)
    assert called(choice) or json.loads(choice.message.content) == "yes"


def test_a_strategy_thinks_and_then_calls(server: Running) -> None:
    choice = ask(server, model="scripted:vote-4")
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning == "The answer is 7."
    assert called(choice) == [("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [WEATHER, WEATHER]}, "same name"),
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weathr"}}},
            "did you mean weather",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 7}}}]},
            "no object",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"properties": {"a": {"$ref": "http://x/y"}}},
                        },
                    }
                ]
            },
            "grammar",
        ),
        ({"extra_body": {"structured_outputs": {"choice": ["a"]}}}, "both given"),
        ({"messages": [{**ASKED[0], "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]}]},
         "only the assistant"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be(server: Running, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(server, **options)


def test_calls_are_read_the_same_however_they_come() -> None:
    text = f'So {{"a": "}}"}} <tool\n\n{OSLO}\n{ROME}'.replace("Rome", 'a"}}\\n</tool')

    def read(size: int) -> dict[str, Any]:
        calls = Calls()
        message: dict[str, Any] = {}
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        for i, piece in enumerate(pieces, 1):
            for delta in calls.read(piece, last=i == len(pieces)):
                merge(message, delta)
        assert calls.complete
        for call in message["tool_calls"]:
            del call["id"]
        return message

    whole = read(len(text))
    assert whole["content"] == 'So {"a": "}"} <tool'
    assert len(whole["tool_calls"]) == 2
    assert all(read(size) == whole for size in (1, 2, 3, 7))


def test_a_budget_leaves_room_for_the_call(server: Running) -> None:
    """Thoughts that use up all that they may: the call comes all the same."""
    prompt = server.client.chat.completions.create(
        model="scripted", messages=ASKED, tools=[WEATHER], max_tokens=1
    ).usage
    assert prompt is not None
    least = 2 * (prompt.prompt_tokens + 100) + 512
    for tokens in (least, 4 * least):
        extension = {"strategy": "vote(n=128)", "budget": {"tokens": tokens}}
        reply = server.client.chat.completions.create(
            model="scripted", messages=ASKED, tools=[WEATHER], tool_choice="required",
            extra_body={"anabranch": extension},
        )  # fmt: skip
        assert reply.choices[0].finish_reason == "tool_calls"
        assert reply.usage is not None
        assert reply.usage.total_tokens <= tokens
    with pytest.raises(openai.BadRequestError, match="in form"):
        ask(server, extra_body={"anabranch": {"strategy": "vote", "budget": {"tokens": 300}}})

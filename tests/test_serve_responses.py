"""`/v1/responses` as OpenAI's own client sees it, over a scripted model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import openai
import pydantic
import pytest

from tests.serving import Running, serving
from tests.test_serve import connected
from tests.test_serve_tools import OSLO


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """Says what it was told last, or calls, or never ends."""
    last = prompt.rstrip("\n").rpartition("\n")[2]
    if "for ever" in last:
        return {"a": 0.5, "b": 0.5}
    if "step by step" in prompt:
        full = "The answer is 7."
    elif "<tool_response>" in prompt:
        full = "It is cold."
    elif "<tools>" in prompt:
        full = f"Let me see.\n{OSLO}"
    else:
        full = f"{prompt.count('?')} asked, {prompt.count('!')} told"
    return {full[len(reply) :]: 1.0} if full.startswith(reply) else {"": 1.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(rule) as running:
        yield running


WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def create(server: Running, given: Any = "Who?", **options: Any) -> Any:
    """A response."""
    return server.client.responses.create(**{"model": "scripted", "input": given, **options})


def until_over(server: Running, response: Any) -> Any:
    """A response in the background at its end."""
    for _ in range(1000):
        response = server.client.responses.retrieve(response.id)
        if response.status not in ("queued", "in_progress"):
            return response
        time.sleep(0.01)
    raise AssertionError(response)


def test_a_response(server: Running) -> None:
    response = create(server, instructions="Be brief!", metadata={"a": "b"}, temperature=0)
    assert response.status == "completed"
    assert response.output_text == "1 asked, 1 told"
    assert response.usage.output_tokens == len(response.output_text) + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.metadata == {"a": "b"}
    assert response.model_dump()["temperature"] == 0
    again = server.client.responses.retrieve(response.id)
    assert again.output == response.output
    items = server.client.responses.input_items.list(response.id)
    (item,) = list[Any](items.data)
    assert item.content[0].text == "Who?"


def test_items_and_parts(server: Running) -> None:
    given = [
        {"role": "developer", "content": "One!"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Two?"},
                                                        {"type": "input_text", "text": "3?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "?!"}]},
        {"role": "assistant", "content": [
            {"type": "output_text", "text": "Three!", "annotations": []}]},
        {"role": "user", "content": "Four?"},
    ]  # fmt: skip
    assert create(server, given).output_text == "3 asked, 2 told"


def test_a_conversation_goes_on(server: Running) -> None:
    first = create(server, "One?", instructions="Never repeated!")
    second = create(server, "Two?", previous_response_id=first.id)
    third = create(server, "Three?", previous_response_id=second.id)
    assert third.output_text == "3 asked, 0 told"
    assert third.previous_response_id == second.id
    with pytest.raises(openai.NotFoundError):
        create(server, previous_response_id="resp_none")


def test_tools(server: Running) -> None:
    first = create(server, "How warm?", tools=[WEATHER])
    message, call = first.output
    assert message.content[0].text == "Let me see."
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call", "weather", {"city": "Oslo"},
    )  # fmt: skip
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "-3"}
    linked = create(server, [result], previous_response_id=first.id, tools=[WEATHER])
    assert linked.output_text == "It is cold."
    whole = create(server, [{"role": "user", "content": "How warm?"},
                            *(item.model_dump() for item in first.output), result])  # fmt: skip
    assert whole.output_text == "It is cold."
    assert whole.usage.input_tokens < linked.usage.input_tokens  # which is told of the tools


def test_forms(server: Running) -> None:
    class Colour(pydantic.BaseModel):
        red: bool

    parsed = server.client.responses.parse(model="scripted", input="Who?", text_format=Colour)
    assert isinstance(parsed.output_parsed, Colour)


def test_a_limit_and_log_probabilities(server: Running) -> None:
    response = create(
        server, max_output_tokens=3, include=["message.output_text.logprobs"], top_logprobs=1
    )
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    likely = response.output[0].content[0].logprobs
    assert [each.token for each in likely] == ["1", " ", "a"]
    assert likely[0].top_logprobs[0].token == "1"
    assert response.output[0].status == "incomplete"


@pytest.mark.parametrize("background", [False, True])
def test_events(server: Running, background: bool) -> None:
    with create(server, "How warm?", tools=[WEATHER], stream=True, background=background) as stream:
        happened = list(stream)
    assert [event.sequence_number for event in happened] == list(range(len(happened)))
    kinds = [event.type.removeprefix("response.") for event in happened]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert [kind for kind in kinds if "delta" not in kind][4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    said = "".join(e.delta for e in happened if e.type == "response.output_text.delta")
    called = "".join(e.delta for e in happened if e.type.endswith("arguments.delta"))
    response = happened[-1].response
    assert said == response.output[0].content[0].text == "Let me see."
    assert called == response.output[1].arguments
    assert response.usage.output_tokens > 0
    if background:
        later = server.client.responses.retrieve(response.id, stream=True, starting_after=4)
        assert [e.sequence_number for e in later] == list(range(5, len(happened)))
    else:
        with pytest.raises(openai.BadRequestError, match="background"):
            server.client.responses.retrieve(response.id, stream=True)


def test_the_clients_own_reader_of_streams(server: Running) -> None:
    with server.client.responses.stream(
        model="scripted", input="How warm?", tools=[WEATHER]
    ) as stream:
        for _ in stream:
            pass
        final: Any = stream.get_final_response()
    assert final.output_text == "Let me see."
    assert final.output[1].type == "function_call"


def test_thoughts_are_reasoning_items(server: Running) -> None:
    response = create(server, reasoning={"effort": "low"})
    thought, message = response.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "The answer is 7.")
    assert message.content[0].text == response.output_text == "7"
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    with create(server, model="scripted:vote-4", stream=True) as stream:
        happened = list(stream)
    assert sum(event.type == "response.reasoning_text.delta" for event in happened) == 4
    assert happened[-1].response.output[0].content[0].text.count("The answer is 7.") == 4
    longer = create(server, "Why?", previous_response_id=response.id)
    assert longer.output_text == "2 asked, 0 told"  # and not what was thought


def test_in_the_background(server: Running) -> None:
    response = create(server, background=True)
    assert response.status in ("queued", "in_progress")
    assert until_over(server, response).output_text == "1 asked, 0 told"


def test_cancel_frees_the_branches(server: Running) -> None:
    response = create(server, "Go on for ever", background=True)
    while not server.lm.engine.core.requests:
        time.sleep(0.005)
    with pytest.raises(openai.ConflictError, match="not completed"):
        create(server, previous_response_id=response.id)
    assert server.client.responses.cancel(response.id).status == "cancelled"
    server.until_idle()
    assert server.client.responses.retrieve(response.id).status == "cancelled"
    done = create(server)
    with pytest.raises(openai.BadRequestError, match="background"):
        server.client.responses.cancel(done.id)


def test_delete_ends_and_forgets(server: Running) -> None:
    response = create(server, "Go on for ever", background=True)
    server.client.responses.delete(response.id)
    server.until_idle()
    with pytest.raises(openai.NotFoundError):
        server.client.responses.retrieve(response.id)


def test_who_leaves_frees_the_branches(server: Running) -> None:
    for stream in (False, True):
        body = {"model": "scripted", "input": "Go on for ever", "stream": stream}
        with connected(server) as connection:
            connection.request(
                "POST", "/v1/responses", json.dumps(body), {"Content-Type": "application/json"}
            )
            while not server.lm.engine.core.requests:
                time.sleep(0.005)
        server.until_idle()


def test_what_is_not_stored_is_gone(server: Running) -> None:
    response = create(server, store=False)
    with pytest.raises(openai.NotFoundError):
        server.client.responses.retrieve(response.id)


def test_the_oldest_make_room() -> None:
    with serving(rule, responses=2) as running:
        first, second, third = (create(running) for _ in range(3))
        with pytest.raises(openai.NotFoundError):
            running.client.responses.retrieve(first.id)
        running.client.responses.retrieve(second.id)
        running.client.responses.retrieve(third.id)
        under_way = [create(running, "Go on for ever", background=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="under way"):
            create(running)
        for each in under_way:
            running.client.responses.cancel(each.id)
    with serving(rule, responses_bytes=1 << 16) as running:
        ballast = {"type": "reasoning", "summary": [{"text": "x" * (1 << 15)}]}
        given = [{"role": "user", "content": "Who?"}, ballast]
        large = create(running, given)
        running.client.responses.retrieve(large.id)
        create(running, given)
        with pytest.raises(openai.NotFoundError):
            running.client.responses.retrieve(large.id)


def test_pages_of_items(server: Running) -> None:
    given: Any = [{"role": "user", "content": str(i)} for i in range(5)]
    response = create(server, given)
    listed: Any = server.client.responses.input_items.list(response.id, limit=2, order="asc")
    assert listed.has_more
    assert [item.content[0].text for item in listed] == list("01234")  # the client turns pages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"type": ["x"]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"input": [{"type": "reasoning", "id": "a", "summary": []}]}, "says nothing"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema"),
        ({"background": True, "store": False}, "stored"),
        ({"truncation": "auto"}, "truncation"),
        ({"model": "scripted:voat"}, "vote"),
        ({"extra_body": {"anabranch": {"trace": True, "strategy": "vote"}}}, "trace"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ],
)
def test_what_cannot_be(server: Running, options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        create(server, **options)


def test_what_fails_on_the_way_is_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model breaks after four bytes."""
    distribution = server.lm.engine.core.decoder._distribution  # type: ignore[attr-defined]
    calls = 0

    def broken(path: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise RuntimeError("secret")
        return distribution(path)

    monkeypatch.setattr(server.lm.engine.core.decoder, "_distribution", broken)
    with pytest.raises(openai.InternalServerError) as failed:
        create(server)
    assert "secret" not in str(failed.value)
    with create(server, stream=True) as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"
    over = until_over(server, create(server, background=True))
    assert over.status == "failed"
    assert 0 < len(over.output_text) <= 5
    assert "1 asked, 0 told".startswith(over.output_text)

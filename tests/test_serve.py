"""The server as OpenAI's own client sees it, over a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.errors import ResourceError
from anabranch.serve.calls import Call, begin
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub
from anabranch.serve.keys import Account
from anabranch.serve.metrics import Metrics
from anabranch.serve.stream import events, first
from tests.serving import Running, serving, soon

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
ASKED: Any = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(TWO) as running:
        yield running


def endless(prompt: str, reply: str) -> Mapping[str, float]:
    """Never comes to an end."""
    return {"a": 0.5, "b": 0.5}


# ---- chat ----------------------------------------------------------------------------------------


def test_a_reply(server: Running) -> None:
    reply = server.client.chat.completions.create(model="scripted", messages=ASKED, seed=1)
    (choice,) = reply.choices
    assert choice.message.content in TWO
    assert choice.finish_reason == "stop"
    usage = reply.usage
    assert usage is not None
    assert usage.completion_tokens == len(choice.message.content) + 1  # and the end
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")


def test_the_seed_decides_and_the_number_of_choices_does_not(server: Running) -> None:
    def texts(**options: Any) -> list[str | None]:
        reply = server.client.chat.completions.create(model="scripted", messages=ASKED, **options)
        return [choice.message.content for choice in reply.choices]

    eight = texts(seed=5, n=8)
    assert set(eight) == set(TWO)
    assert texts(seed=5, n=8) == eight
    assert texts(seed=5, n=3) == eight[:3]
    assert texts(seed=6, n=8) != eight


def test_a_stream_says_what_the_whole_says(server: Running) -> None:
    options: dict[str, Any] = {"model": "scripted", "messages": ASKED, "seed": 3, "n": 3}
    whole = server.client.chat.completions.create(**options)
    texts, ends = [""] * 3, [None] * 3
    usage = None
    with server.client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **options
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == ["stop"] * 3
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_reply_that_has_begun_goes_on_as_vllms_clients_ask_for_it(server: Running) -> None:
    """As its_hub does: some fields twice, and stop texts kept."""
    more = {"add_generation_prompt": False, "continue_final_message": True}
    body = {
        "model": "scripted",
        "messages": [*ASKED, {"role": "assistant", "content": "So the"}],
        "temperature": 0,
        "stop": ["swer"],
        "include_stop_str_in_output": True,
        **more,
    }

    def reply(**other: Any) -> tuple[int, Any]:
        return ask(server, "/v1/chat/completions", {**body, **other})

    def content(**other: Any) -> str:
        return str(reply(**other)[1]["choices"][0]["message"]["content"])

    assert content(extra_body=more) == " answer"
    assert content(include_stop_str_in_output=False) == " an"
    assert content(stop=None) == " answer is 4."
    for wrong, why in (
        ({"messages": ASKED}, "needs a last message by the assistant"),
        ({"add_generation_prompt": True}, "add_generation_prompt is false"),
        ({"extra_body": {"seed": 1}}, "put seed into the body itself"),
        ({"extra_body": {"continue_final_message": False}}, "into the body itself"),
    ):
        status, told = reply(**wrong)
        assert status == 400
        assert why in told["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_is_left_out_to_the_letter(server: Running, stream: bool) -> None:
    options: dict[str, Any] = {
        "model": "scripted",
        "messages": ASKED,
        "stop": ["answer", "swer: "],
        "temperature": 0,
    }
    if stream:
        chunks = server.client.chat.completions.create(stream=True, **options)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
    else:
        reply = server.client.chat.completions.create(**options)
        assert reply.choices[0].finish_reason == "stop"
        text = reply.choices[0].message.content or ""
    assert text == "So the "


def test_a_limit_is_said(server: Running) -> None:
    reply = server.client.chat.completions.create(
        model="scripted", messages=ASKED, max_completion_tokens=5
    )
    assert reply.choices[0].finish_reason == "length"
    assert len(reply.choices[0].message.content or "") == 5


def test_log_probabilities(server: Running) -> None:
    reply = server.client.chat.completions.create(
        model="scripted", messages=ASKED, temperature=0, logprobs=True, top_logprobs=2
    )
    assert reply.choices[0].logprobs is not None
    told = reply.choices[0].logprobs.content or []
    assert "".join(token.token for token in told) == reply.choices[0].message.content
    assert told[0].logprob == pytest.approx(-0.5108, abs=1e-3)  # log 0.6
    assert [top.token for top in told[0].top_logprobs] == ["S", "A"]


def test_the_reply_keeps_to_a_schema(server: Running) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    reply = server.client.chat.completions.create(
        model="scripted",
        messages=ASKED,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        max_tokens=40,
        extra_body={"min_p": 0.0},
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content or "")["n"], int)
    choice = server.client.chat.completions.create(
        model="scripted",
        messages=ASKED,
        extra_body={"structured_outputs": {"choice": ["red", "blue"]}},
    )
    assert choice.choices[0].message.content in ("red", "blue")


def test_parts_and_roles_of_messages(server: Running) -> None:
    parts: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    counted = server.client.chat.completions.create(model="scripted", messages=parts)
    assert counted.usage is not None
    assert counted.usage.prompt_tokens == len("Be brief.") + len("ab") + 2 * 3 + 1


# ---- strategies ----------------------------------------------------------------------------------


def test_a_strategy_by_body_and_by_name(server: Running) -> None:
    by_name = server.client.chat.completions.create(
        model="scripted:vote-16", messages=ASKED, seed=1
    )
    by_body = server.client.chat.completions.create(
        model="scripted:best-2",
        messages=ASKED,
        extra_body={"anabranch": {"strategy": "vote(n=16)", "seed": 1}},
    )
    report: Any = by_body.model_extra
    assert report["anabranch"]["strategy"].startswith("vote(n=16")
    assert by_name.choices[0].message.content == by_body.choices[0].message.content == "4"
    message: Any = by_body.choices[0].message
    assert message.reasoning == message.reasoning_content == "So the answer is 4."
    assert len(report["anabranch"]["candidates"]) == 16
    usage = by_body.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == usage.completion_tokens - 1


def test_thoughts_stream_as_reasoning_and_the_answer_as_content(server: Running) -> None:
    with server.client.chat.completions.create(
        model="scripted",
        messages=ASKED,
        stream=True,
        extra_body={"anabranch": {"strategy": "vote(n=8)", "seed": 1, "trace": True}},
    ) as stream:
        chunks: list[Any] = list(stream)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    thoughts = [d.reasoning for d in deltas if getattr(d, "reasoning", None)]
    assert len(thoughts) == 8
    assert "".join(d.content or "" for d in deltas) == "4"
    happened = [c.anabranch["event"]["event"] for c in chunks if not c.choices]
    assert {"open", "fork", "extend", "drop", "answer"} <= set(happened)


def test_the_budget_bounds_all_branches(server: Running) -> None:
    reply = server.client.chat.completions.create(
        model="scripted",
        messages=ASKED,
        extra_body={"anabranch": {"strategy": "vote(n=64)", "budget": {"tokens": 400}}},
    )
    usage = reply.usage
    assert usage is not None
    assert usage.total_tokens <= 400
    report: Any = reply.model_extra
    assert "the budget was used up" in report["anabranch"]["notes"]
    assert reply.choices[0].message.content


def test_effort_is_a_documented_budget(server: Running) -> None:
    reply = server.client.chat.completions.create(
        model="scripted", messages=ASKED, reasoning_effort="low"
    )
    report: Any = reply.model_extra
    assert report["anabranch"]["strategy"].startswith("adaptive(n=4")


def test_the_answer_is_put_in_form_and_thoughts_are_free(server: Running) -> None:
    reply = server.client.chat.completions.create(
        model="scripted:vote-4",
        messages=ASKED,
        extra_body={"structured_outputs": {"choice": ["four", "five"]}},
    )
    assert reply.choices[0].message.content in ("four", "five")
    message: Any = reply.choices[0].message
    assert message.reasoning in TWO


def test_no_strategy_is_read_from_what_is_said(server: Running) -> None:
    said: Any = [{"role": "user", "content": "<anabranch>vote(n=16)</anabranch> scripted:vote-16"}]
    reply = server.client.chat.completions.create(model="scripted", messages=said)
    report: Any = reply.model_extra
    assert "strategy" not in report["anabranch"]


# ---- completions ---------------------------------------------------------------------------------


def test_completions_of_several_prompts(server: Running) -> None:
    reply = server.client.completions.create(
        model="scripted", prompt=["So", "Answe"], n=2, max_tokens=4, seed=1
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in reply.choices] == [" the", " the", "r: 5", "r: 5"]


def test_an_echo_tells_what_the_model_says_of_the_prompt(server: Running) -> None:
    reply = server.client.completions.create(
        model="scripted", prompt="So the", max_tokens=0, echo=True, logprobs=1
    )
    (choice,) = reply.choices
    assert choice.text == "So the"
    told = choice.logprobs
    assert told is not None
    assert told.tokens == list("So the")
    assert told.text_offset == [0, 1, 2, 3, 4, 5]
    assert told.token_logprobs is not None
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1] == pytest.approx(0, abs=1e-3)
    assert told.top_logprobs is not None
    assert list(told.top_logprobs[1]) == ["o"]
    longer = server.client.completions.create(
        model="scripted", prompt="So the", max_tokens=3, echo=True, logprobs=1, temperature=0
    )
    assert longer.choices[0].text == "So the an"
    assert longer.choices[0].logprobs is not None
    assert len(longer.choices[0].logprobs.tokens or []) == 9


def test_completions_stream(server: Running) -> None:
    with server.client.completions.create(
        model="scripted", prompt="So the", max_tokens=8, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " answer "
    assert chunks[-1].choices[0].finish_reason == "length"


def test_ends_can_be_ignored(server: Running) -> None:
    reply = server.client.completions.create(
        model="scripted",
        prompt="So the answer is 4.",
        max_tokens=9,
        extra_body={"ignore_eos": True},
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 9


# ---- service -------------------------------------------------------------------------------------


def test_models_and_tokens(server: Running) -> None:
    names = [model.id for model in server.client.models.list()]
    assert names[0] == "scripted"
    assert "scripted:vote-16" in names
    assert server.client.models.retrieve("scripted:vote-16").id == "scripted:vote-16"
    assert ask(server, "/tokenize", {"model": "scripted", "prompt": "ab"})[1]["tokens"] == [97, 98]
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "ab"}]}
    assert ask(server, "/tokenize", asked)[1]["count"] > 2
    for wrong in ([], [{}], [{"role": "user", "content": 1}], [{"role": "nobody", "content": ""}]):
        assert ask(server, "/tokenize", asked | {"messages": wrong})[0] == 400
    told = ask(server, "/detokenize", {"model": "scripted", "tokens": [97, 98]})
    assert told == (200, {"prompt": "ab"})


def test_a_tokenizer_for_clients_that_have_none(server: Running) -> None:
    """As lm-eval asks for it: without a model's name."""
    told = ask(server, "/tokenizer_info")
    assert told == (200, {"eos_token": "<256>", "bos_token": None})
    body = {"prompt": "ab", "add_special_tokens": False}
    assert ask(server, "/tokenize", body)[1]["tokens"] == [97, 98]
    assert ask(server, "/detokenize", {"tokens": [97, 98]}) == (200, {"prompt": "ab"})
    hub = Hub({"a": lambda: server.lm, "b": lambda: server.lm})
    with pytest.raises(Refusal, match="several models are served, name one: a, b"):
        _ = hub.only


def ask(server: Running, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of a raw request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    with connected(server) as connection:
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def connected(server: Running) -> Any:
    """A raw connection, closed at the end."""
    return contextlib.closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10))


def test_health_follows_the_loading() -> None:
    gate = threading.Event()
    with serving(TWO, wait=lambda: gate.wait(10)) as running:
        status, told = ask(running, "/health")
        assert (status, told["error"]["code"]) == (503, "loading")
        with pytest.raises(openai.InternalServerError):
            running.client.chat.completions.create(model="scripted", messages=ASKED)
        gate.set()
        while ask(running, "/health")[0] != 200:
            time.sleep(0.01)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": "0.5"}, 400, "temperature"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"n": 1000}, 400, "n:"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"stop": [""]}, 400, "stop text"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, 400, "bias"),
        ({"stream": True, "logit_bias": {"9999": 1}}, 400, "bias"),
        ({"model": "other"}, 404, "no model"),
        ({"model": "scripted:voat-4"}, 400, "did you mean vote"),
        ({"anabranch": {"strategy": "vote(n=0)"}}, 400, "n is out of range"),
        ({"anabranch": {"strategi": "vote"}}, 400, "strategi"),
        ({"anabranch": {"budget": {"tokens": 9}}}, 400, "needs a strategy"),
        ({"anabranch": {"strategy": "vote", "judge": "likelihood"}}, 400, "judge"),
        ({"anabranch": {"strategy": "vote"}, "n": 2}, 400, "n does not go"),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema"),
        ({"structured_outputs": {"regex": "("}}, 400, "grammar"),
        ({"structured_outputs": {}}, 400, "structured_outputs"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: Running, change: dict[str, Any], status: int, message: str
) -> None:
    got, told = ask(
        server, "/v1/chat/completions", {"model": "scripted", "messages": ASKED, **change}
    )
    assert (got, set(told)) == (status, {"error"})
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert message in told["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": NaN}', b"[" * 100_000])
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    status, told = ask(server, "/v1/chat/completions", body)
    assert status == 400
    assert told["error"]["type"] == "invalid_request_error"


def test_large_bodies_are_refused_whatever_their_headers_say() -> None:
    with serving(TWO, body_bytes=2000) as running:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "x" * 3000}]}
        assert ask(running, "/v1/chat/completions", body)[0] == 413
        pieces = iter([json.dumps(body).encode()])
        with connected(running) as connection:
            connection.request("POST", "/v1/chat/completions", pieces, encode_chunked=True)
            assert connection.getresponse().status == 413


def test_unknown_routes_and_methods(server: Running) -> None:
    assert ask(server, "/v1/nothing")[1]["error"]["type"] == "not_found_error"
    assert ask(server, "/v1/chat/completions")[0] == 405
    assert ask(server, "/v1/models/", None)[0] == 404
    for path, allowed in (
        ("/v1/files", "GET, POST"),
        ("/v1/branches/a.b", "DELETE, GET"),
        ("/", "GET"),
    ):
        with connected(server) as connection:
            connection.request("PUT", path)
            response = connection.getresponse()
            assert (response.status, response.headers["allow"]) == (405, allowed)


def test_the_document_tells_what_every_route_gives(server: Running) -> None:
    for path, methods in ask(server, "/openapi.json")[1]["paths"].items():
        for method, route in methods.items():
            told = route["responses"]
            assert set(told) == {"200", "4XX", "5XX"}, (method, path)
            for status in ("4XX", "5XX"):
                assert set(told[status]["content"]) == {"application/json"}, (method, path)
            for kind, each in told["200"]["content"].items():
                assert kind == "text/event-stream" or each["schema"], (method, path)


def test_a_full_queue_says_when_to_come_back() -> None:
    with serving(endless, running=1, waiting=0) as running:
        holding = running.client.chat.completions.create(
            model="scripted", messages=ASKED, stream=True
        )
        next(iter(holding))
        with pytest.raises(openai.RateLimitError) as refused:
            running.client.chat.completions.create(model="scripted", messages=ASKED)
        assert refused.value.response.headers["retry-after"] == "2"
        holding.close()
        running.until_idle()
        reply = running.client.chat.completions.create(
            model="scripted", messages=ASKED, max_tokens=3
        )
        assert reply.choices[0].finish_reason == "length"


def test_an_inner_fault_tells_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(TWO) as running:
        for error in (RuntimeError("/secret/path"), ResourceError("secret")):

            def fail(*_: Any, error: Exception = error, **__: Any) -> None:
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(running.lm.engine, "open", fail)
                status, told = ask(
                    running, "/v1/chat/completions", {"model": "scripted", "messages": ASKED}
                )
            assert status in (500, 503)
            assert "secret" not in json.dumps(told)


# ---- clients that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"anabranch": {"strategy": "vote"}}])
def test_who_leaves_frees_the_branches(options: dict[str, Any]) -> None:
    with serving(endless) as running:
        body = json.dumps({"model": "scripted", "messages": ASKED, **options}).encode()
        with connected(running) as connection:
            connection.request(
                "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            while not running.lm.engine.core.requests:
                time.sleep(0.005)
        running.until_idle()
        assert running.lm.engine.core.stats.passes < 5000  # 65,000 positions were to be had


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
def test_who_leaves_before_a_stream_begins_is_noticed(route: str) -> None:
    with serving(endless, running=1) as running:
        admission = running.app.state.admission
        holding = running.client.chat.completions.create(
            model="scripted", messages=ASKED, stream=True
        )
        next(iter(holding))
        body = {"model": "scripted", "stream": True}
        body |= {"messages": ASKED} if "chat" in route else {"input": "?"}
        for _ in range(3):
            with connected(running) as connection:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", route, json.dumps(body), headers)
                soon(lambda: admission.waiting == 1)
            soon(lambda: admission.waiting == 0)
        assert admission.running == 1
        holding.close()
        soon(lambda: admission.running == 0)


def test_a_stream_that_was_left_before_it_began_is_ended() -> None:
    ended = False

    async def chunks() -> AsyncGenerator[dict[str, Any]]:
        nonlocal ended
        try:
            yield {}
            yield {}
        finally:
            ended = True

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0.01)

    async def leave() -> None:
        call = Call(Account(), "id", metrics=Metrics(), stopping=asyncio.Event())
        begin(call)
        begun = await first(chunks())  # held here, as by whoever looks at it: no collector helps
        await events(begun)({"type": "http"}, receive, send)
        assert ended
        await begun.aclose()

    asyncio.run(leave())


# ---- who may ask ---------------------------------------------------------------------------------


def test_names_that_point_here_from_elsewhere_are_refused(server: Running) -> None:
    with connected(server) as connection:
        connection.request("GET", "/v1/models", headers={"Host": "elsewhere.example"})
        assert connection.getresponse().status == 403


def test_the_server_listens_to_this_machine_only() -> None:
    told = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert told.exit_code == 2
    assert "this machine only" in told.stderr

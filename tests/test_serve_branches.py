"""Branches over HTTP: the primitives give what they give in the process, and nobody's stay."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.scripted import replies, scripted
from tests.serving import Running, serving
from tests.test_serve import connected

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
ASKED: Any = [{"role": "user", "content": "What is 2 + 2?"}]


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """One of two, or no end."""
    if "for ever" in prompt:
        return {"a": 0.5, "b": 0.5}
    return replies(TWO)(prompt, reply)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(rule) as running:
        yield running


def call(
    server: Running, path: str, body: object = None, *, secret: str = "", method: str = "POST"
) -> tuple[int, Any]:
    """Status and JSON."""
    headers = {"Content-Type": "application/json", "X-Session-Secret": secret}
    with connected(server) as connection:
        connection.request(method, f"/v1/{path}", json.dumps(body or {}), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


class Client:
    """One session, ended at the end."""

    def __init__(self, server: Running, **options: Any) -> None:
        self.server = server
        status, self.root = call(
            server, "branches", {"model": "scripted", "messages": ASKED, **options}
        )
        assert status == 200, self.root
        self.session, self.secret = self.root["session"], self.root["secret"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.call(f"sessions/{self.session}", method="DELETE")

    def call(self, path: str, body: object = None, **options: Any) -> tuple[int, Any]:
        """Status and JSON."""
        return call(self.server, path, body, secret=self.secret, **options)

    def do(self, branch: Any, operation: str, **body: Any) -> Any:
        """What an operation on a branch gives."""
        status, told = self.call(f"branches/{branch['id']}/{operation}", body)
        assert status == 200, told
        return told

    def state(self) -> Any:
        """Of the session."""
        return self.call(f"sessions/{self.session}", method="GET")[1]


def test_the_same_as_in_the_process(server: Running) -> None:
    """Token for token and bit for bit."""

    async def program() -> list[Any]:
        root = scripted(rule).open(ASKED, seed=7)
        children = root.fork(3)
        steps = [await child.extend(6, temperature=0.9, top=2) for child in children]
        forced = await children[0].force(" xyz")
        seen = await root.peek(2)
        return [steps, forced, seen]

    steps, forced, seen = asyncio.run(program())
    with Client(server, seed=7) as client:
        children = client.do(client.root, "fork", n=3)["data"]
        for child, step in zip(children, steps, strict=True):
            told = client.do(child, "extend", limit=6, temperature=0.9, top=2)
            assert told["tokens"] == list(step.tokens)
            assert told["logps"] == list(step.logps)
            assert (told["logq"], told["stop"]) == (step.logq, "limit")
            assert [[each["token"] for each in top] for top in told["tops"]] == [
                [token for token, _ in top] for top in step.tops
            ]
        assert client.do(children[0], "force", text=" xyz")["logps"] == list(forced.logps)
        told = client.do(client.root, "peek", top=2)
        assert [each["text"] for each in told["next"]] == ["S", "A"]
        assert [each["logp"] for each in told["next"]] == list(seen.logps)
        assert told["entropy"] == seen.entropy


def test_a_search_from_outside(server: Running) -> None:
    with Client(server, seed=1) as client:
        shares = client.do(client.root, "score", options=["So", "Answer"])["scores"]
        assert shares == pytest.approx([math.log(0.6), math.log(0.4)], abs=1e-3)
        (child,) = client.do(client.root, "fork")["data"]
        step = client.do(child, "extend", until=" answer", keep=False, temperature=0)
        assert (step["text"], step["stop"]) == ("So the", "until")
        client.do(child, "force", tokens=list(b" sum"))
        state = client.call(f"branches/{child['id']}?tokens=true", method="GET")[1]
        assert state["text"] == "So the sum"
        assert bytes(state["tokens"][-4:]) == b" sum"
        assert state["last"]["stop"] == "forced"
        (earlier,) = client.do(child, "fork", at=state["position"] - 4)["data"]
        assert earlier["text"] == "So the"
        assert earlier["parent"] == child["id"]
        rest = client.do(earlier, "extend", temperature=0)
        assert (rest["text"], rest["stop"]) == (" answer is 4.", "end")
        state = client.state()
        assert len(state["branches"]) == 3
        assert state["usage"]["sampled_tokens"] > 0
        client.call(f"branches/{child['id']}", method="DELETE")
        assert client.call(f"branches/{child['id']}", method="GET")[0] == 404
        second = {"session": client.session, "prompt": "So the", "seed": 3}
        assert client.call("branches", second)[1]["position"] == 6
        assert len(client.state()["branches"]) == 3
    assert client.call(f"sessions/{client.session}", method="GET")[0] == 404


def test_rules_hold_across_steps(server: Running) -> None:
    with Client(server) as client:
        start, branch = client.root["position"], client.root
        rule = {"regex": "[0-9]{2}-[0-9]{2}"}
        client.do(branch, "extend", limit=3, allow=rule)
        step = client.do(branch, "extend", limit=30, allow=rule, since=start)
        text = client.call(f"branches/{branch['id']}", method="GET")[1]["text"]
        assert step["stop"] in ("complete", "end")
        assert len(text) == 5
        assert text[2] == "-"
        status, told = client.call(
            f"branches/{branch['id']}/extend", {"allow": {"choice": ["x"]}, "since": start}
        )
        assert (status, "breaks the rule" in told["error"]["message"]) == (400, True)


def test_a_stream_of_pieces(server: Running) -> None:
    with Client(server) as client, connected(server) as connection:
        headers = {"Content-Type": "application/json", "X-Session-Secret": client.secret}
        body = json.dumps({"stream": True, "temperature": 0})
        connection.request("POST", f"/v1/branches/{client.root['id']}/extend", body, headers)
        lines = connection.getresponse().read().decode().split("\n\n")
        *pieces, step = [json.loads(each[6:]) for each in lines if each.startswith("data: {")]
        assert "".join(piece["text"] for piece in pieces) == step["text"] == "So the answer is 4."
        assert [token["token"] for p in pieces for token in p["tokens"]] == step["tokens"]
        assert lines[-2] == "data: [DONE]"


def test_the_budget_is_of_all_branches(server: Running) -> None:
    with Client(server, budget={"tokens": 40}) as client:
        left = client.state()["left_tokens"]
        children = client.do(client.root, "fork", n=2)["data"]
        first, second = (client.do(c, "extend", limit=19, temperature=0) for c in children)
        assert len(first["tokens"]) + len(second["tokens"]) == left
        assert second["stop"] == "budget"
        assert client.do(children[1], "score", options=["a", "b"])["scores"] == [None, None]
    with serving(rule, session_tokens=30) as small, Client(small, budget={"tokens": 99}) as client:
        assert client.state()["left_tokens"] < 30


def test_a_session_is_its_owners(server: Running) -> None:
    with Client(server) as client, Client(server) as other:
        branch = client.root["id"]
        for secret in ("", "none", "x", "\xff", other.secret):
            for method, path in (
                ("POST", f"branches/{branch}/fork"),
                ("GET", f"branches/{branch}"),
                ("DELETE", f"branches/{branch}"),
                ("GET", f"sessions/{client.session}"),
                ("DELETE", f"sessions/{client.session}"),
            ):
                assert call(server, path, secret=secret, method=method)[0] == 404
        stolen = {"session": client.session, "prompt": "x"}
        assert call(server, "branches", stolen, secret=other.secret)[0] == 404
        assert "secret" not in json.dumps(client.state())
        assert len(client.state()["branches"]) == 1


def test_a_dead_clients_branches_are_freed(server: Running) -> None:
    client = Client(server, lease=1)
    client.do(client.root, "fork", n=5)
    for _ in range(3):
        time.sleep(0.5)
        assert len(client.state()["branches"]) == 6  # use renews it
    time.sleep(1.2)
    server.until_idle()
    assert client.call(f"sessions/{client.session}", method="GET")[0] == 404


def test_work_holds_the_lease_and_ends_with_its_client(server: Running) -> None:
    asked: Any = [{"role": "user", "content": "for ever"}]
    with Client(server, lease=1, messages=asked) as client:
        headers = {"Content-Type": "application/json", "X-Session-Secret": client.secret}
        path = f"/v1/branches/{client.root['id']}/extend"
        with connected(server) as connection:
            connection.request("POST", path, json.dumps({"limit": 100_000}), headers)
            while not server.lm.engine.core.requests:
                time.sleep(0.005)
            status, told = client.call(path[4:], {})
            assert (status, told["error"]["code"]) == (409, "busy")
        while server.lm.engine.core.requests:
            time.sleep(0.01)
        step = client.do(client.root, "extend", limit=2)  # and the branch is as good as before
        assert len(step["tokens"]) == 2
        with connected(server) as connection:
            connection.request("POST", path, json.dumps({"limit": 100_000}), headers)
            while not server.lm.engine.core.requests:
                time.sleep(0.005)
            client.call(f"branches/{client.root['id']}", method="DELETE")
            assert json.loads(connection.getresponse().read())["stop"] == "dead"


def test_fork_bombs_go_nowhere() -> None:
    with serving(rule, session_branches=50, branches=80, sessions=2) as running:
        with Client(running) as client, Client(running) as other:
            status, told = client.call(f"branches/{client.root['id']}/fork", {"n": 4096})
            assert (status, told["error"]["code"]) == (429, "too_many")
            client.do(client.root, "fork", n=49)
            assert client.call(f"branches/{client.root['id']}/fork")[0] == 429
            assert client.call(f"branches/{client.root['id']}/score", {"options": ["a"]})[0] == 429
            other.do(other.root, "fork", n=29)
            assert other.call(f"branches/{other.root['id']}/fork")[0] == 429
            opened = {"model": "scripted", "prompt": "x"}
            assert call(running, "branches", opened)[0] == 429
        with Client(running) as client:
            branch, depth = client.root, 0
            while True:
                status, told = client.call(f"branches/{branch['id']}/fork")
                if status != 200:
                    break
                client.call(f"branches/{branch['id']}", method="DELETE")
                branch, depth = told["data"][0], depth + 1
            assert (status, depth) == (400, 256)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("branches", {"model": "scripted"}, "give one of"),
        ("branches", {"prompt": "x"}, "model is missing"),
        ("branches", {"model": "scripted:vote", "prompt": "x"}, "strategies"),
        ("branches", {"model": "scripted", "tokens": [99999]}, "token id"),
        ("branches", {"model": "scripted", "prompt": "x", "lease": 1e9}, "lease"),
        ("branches", {"model": "scripted", "prompt": "x", "budget": {"tokens": 0}}, "budget"),
        ("branches/{}/fork", {"n": 0}, "n:"),
        ("branches/{}/fork", {"at": 10_000}, "not on this branch"),
        ("branches/{}/extend", {"limit": 0}, "limit"),
        ("branches/{}/extend", {"allow": {"regex": "("}}, "grammar"),
        ("branches/{}/extend", {"since": 1}, "since"),
        ("branches/{}/extend", {"stream": True, "logit_bias": {"9999": 1}}, "bias"),
        ("branches/{}/force", {}, "either text or tokens"),
        ("branches/{}/force", {"tokens": [-1]}, "token id"),
        ("branches/{}/score", {"options": ["a", "a"]}, "twice"),
        ("branches/{}/peek", {"top": 0}, "top"),
    ],
)
def test_what_cannot_be(server: Running, path: str, body: object, message: str) -> None:
    with Client(server) as client:
        status, told = client.call(path.format(client.root["id"]), body)
        assert (status, set(told)) == (400, {"error"})
        assert message in told["error"]["message"]
        assert client.call(f"branches/{client.root['id']}", method="GET")[0] == 200


def test_dropped_branches_leave_no_text_behind(server: Running) -> None:
    """Children hold their parents: a chain of dropped ones must stay small."""
    with Client(server) as client:
        client.do(client.root, "force", text="x" * 500)
        (child,) = client.do(client.root, "fork")["data"]
        client.call(f"branches/{client.root['id']}", method="DELETE")
        (session,) = server.app.state.own[""].sessions._sessions.values()
        parent = session.branches[child["id"].partition(".")[2]].parent
        assert parent is not None
        assert parent.text == ""
        assert client.call(f"branches/{child['id']}", method="GET")[1]["text"] == "x" * 500

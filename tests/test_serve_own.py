"""What belongs to a key: nobody else sees, uses or pushes it out, and its key pays for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from anabranch.serve import batch as batch_module
from tests.scripted import replies
from tests.serving import Running, serving
from tests.test_serve_keys import keys_in

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
ASKED: Any = [{"role": "user", "content": "What is 2 + 2?"}]
CHAT: Any = "/v1/chat/completions"
ROUTES = re.compile(r"/v1/(responses|files|batches|branches|sessions)/\{")


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """One of two, or no end."""
    if "for ever" in prompt:
        return {"a": 0.5, "b": 0.5}
    return replies(TWO)(prompt, reply)


class User:
    """Who has a key."""

    def __init__(self, server: Running, key: str) -> None:
        self.server, self.key = server, key
        self.client = server.client_of(key)

    def ask(
        self, path: str, body: object = None, method: str = "POST", secret: str = ""
    ) -> tuple[int, Any]:
        """Status and JSON, or text."""
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "X-Session-Secret": secret,
        }
        netloc = urlsplit(self.server.url).netloc
        with contextlib.closing(http.client.HTTPConnection(netloc, timeout=20)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith("{") else text

    def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """Likewise."""
        return self.ask(path, method="GET", **options)

    def file(self, *lines: Mapping[str, Any]) -> Any:
        """A file of requests of a chat."""
        data = [
            {"custom_id": str(i), "method": "POST", "url": CHAT,
             "body": {"model": "scripted", **line}}
            for i, line in enumerate(lines)
        ]  # fmt: skip
        text = "\n".join(map(json.dumps, data)).encode()
        return self.client.files.create(file=("in.jsonl", text), purpose="batch")

    def batch(self, *lines: Mapping[str, Any]) -> Any:
        """A batch of them."""
        return self.client.batches.create(
            input_file_id=self.file(*lines).id, endpoint=CHAT, completion_window="24h"
        )

    def until(self, batch: Any, holds: Callable[[Any], bool]) -> Any:
        """A batch once something holds."""
        for _ in range(2000):
            batch = self.client.batches.retrieve(batch.id)
            if holds(batch):
                return batch
            time.sleep(0.01)
        raise AssertionError(batch)

    def open(self, text: str = "What is 2 + 2?", **options: Any) -> Any:
        """The root of a new session."""
        body = {"model": "scripted", "messages": [{"role": "user", "content": text}], **options}
        status, root = self.ask("/v1/branches", body)
        assert status == 200, root
        return root

    def records(self, count: int) -> list[dict[str, Any]]:
        """What is kept of this key's requests, once there are so many."""
        for _ in range(1000):
            found: list[dict[str, Any]] = self.get("/v1/records?limit=1000")[1]["data"]
            if len(found) == count:
                return found
            time.sleep(0.01)
        raise AssertionError(found)


def asking(text: str, **more: Any) -> dict[str, Any]:
    """A line of a batch."""
    return {"messages": [{"role": "user", "content": text}], **more}


@contextlib.contextmanager
def users(
    tmp_path: Path, quotas: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[tuple[User, User]]:
    """Two of them, of which the first may have limits."""
    path, keys = keys_in(tmp_path, alice=quotas or {}, bob={})
    settings = {"folder": tmp_path / "folder", "records": tmp_path / "records.db", **settings}
    with serving(rule, keys=path, **settings) as server:
        yield User(server, keys["alice"]), User(server, keys["bob"])


# ---- whose it is ---------------------------------------------------------------------------------


def test_what_is_another_keys_is_like_what_does_not_exist(tmp_path: Path) -> None:
    with users(tmp_path) as (alice, bob):
        with alice.client.responses.create(
            model="scripted", input="for ever", background=True, stream=True
        ) as stream:
            kept = next(iter(stream)).response.id  # type: ignore[union-attr]
        batch = alice.batch(asking("for ever"))
        root = alice.open()
        secret = root["secret"]
        of_alice = {"responses": kept, "files": batch.input_file_id, "batches": batch.id,
                    "branches": root["id"], "sessions": root["session"]}  # fmt: skip
        of_nobody = {"responses": "resp-" + "0" * 24, "files": "file-" + "0" * 24,
                     "batches": "batch-" + "0" * 24, "branches": "session-" + "0" * 24 + ".0",
                     "sessions": "session-" + "0" * 24}  # fmt: skip
        bodies = {"extend": {}, "fork": {}, "peek": {}, "force": {"text": "x"},
                  "score": {"options": ["x"]}, "cancel": None}  # fmt: skip
        told = alice.server.app.openapi()["paths"]
        found = 0
        for path in filter(ROUTES.match, told):
            for method in told[path]:
                kind, last = path.split("/")[2], path.rpartition("/")[2]
                body = bodies[last] if method == "post" else None
                seen, unseen = (
                    bob.ask(re.sub(r"\{.*?\}", ids[kind], path), body, method.upper(), secret)
                    for ids in (of_alice, of_nobody)
                )
                assert seen == unseen
                assert seen[0] == 404, (path, seen)
                found += 1
        assert found >= 18
        for id in (kept, of_nobody["responses"]):
            with pytest.raises(openai.NotFoundError, match="no response"):
                bob.client.responses.create(model="scripted", input="x", previous_response_id=id)
        for id in (batch.input_file_id, of_nobody["files"]):
            with pytest.raises(openai.NotFoundError, match="no file"):
                bob.client.batches.create(input_file_id=id, endpoint=CHAT, completion_window="24h")
        more = {"messages": ASKED, "session": root["session"]}
        assert bob.ask("/v1/branches", more, secret=secret)[0] == 404
        assert not list(bob.client.files.list())
        assert not list(bob.client.batches.list())
        # Nothing of it did anything.
        assert alice.client.responses.retrieve(kept).status == "in_progress"
        assert alice.client.batches.retrieve(batch.id).status == "in_progress"
        assert alice.get(f"/v1/branches/{root['id']}", secret=secret)[0] == 200
        assert [each.id for each in alice.client.files.list()] == [batch.input_file_id]
        assert [each.id for each in alice.client.batches.list()] == [batch.id]
        alice.client.responses.cancel(kept)
        alice.client.batches.cancel(batch.id)
        assert (
            alice.ask(f"/v1/sessions/{root['session']}", method="DELETE", secret=secret)[0] == 200
        )


def test_limits_are_each_keys_own(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"responses": 2, "files": 2, "sessions": 1, "files_bytes": 2048}
    with users(tmp_path, **limits) as (alice, bob):
        one = alice.client.responses.create(model="scripted", input="x")
        file = alice.file(asking("x"))
        root = alice.open()
        for _ in range(3):
            bob.client.responses.create(model="scripted", input="x")
        with pytest.raises(openai.APIStatusError) as large:
            bob.file(asking("x" * 2048))
        assert large.value.status_code == 413
        bob.file(asking("x" * 1024))
        bob.file(asking("x"))
        with pytest.raises(openai.RateLimitError):
            bob.file(asking("x"))
        other = bob.open()
        assert bob.ask("/v1/branches", {"model": "scripted", "messages": ASKED})[0] == 429
        assert alice.client.responses.retrieve(one.id).status == "completed"
        assert [each.id for each in alice.client.files.list()] == [file.id]
        alice.file(asking("x"))
        for user, opened in ((alice, root), (bob, other)):
            path = f"/v1/sessions/{opened['session']}"
            assert user.ask(path, method="DELETE", secret=opened["secret"])[0] == 200


def test_what_is_on_disk_keeps_its_owner(tmp_path: Path) -> None:
    """Through restarts; a batch whose key was taken away stands still until the key is back."""
    path, keys = keys_in(tmp_path, bob={}, alice={"tokens_per_day": 1})
    folder = tmp_path / "folder"
    with serving(rule, keys=path, folder=folder) as server:
        alice = User(server, keys["alice"])
        done = alice.until(alice.batch(asking("x")), lambda b: b.status == "completed")
        # Its tokens are used up until the server is started again, which forgets without records.
        going = alice.until(alice.batch(asking("x")), lambda batch: batch.status == "in_progress")
    text = path.read_text()
    path.write_text(text.partition('\n[[key]]\nname = "alice"')[0])
    for needed in (path, None):
        with serving(TWO, folder=folder, keys=needed) as server:
            other = User(server, keys["bob"])
            assert not list(other.client.files.list())
            assert not list(other.client.batches.list())
            assert other.get(f"/v1/files/{done.output_file_id}/content")[0] == 404
            assert other.get(f"/v1/batches/{going.id}")[0] == 404
    path.write_text(text)
    with serving(TWO, keys=path, folder=folder) as server:
        alice, bob = User(server, keys["alice"]), User(server, keys["bob"])
        assert alice.client.batches.retrieve(done.id) == done
        assert "custom_id" in alice.client.files.content(done.output_file_id).text
        assert bob.get(f"/v1/files/{done.output_file_id}/content")[0] == 404
        alice.until(going, lambda batch: batch.status == "completed")


# ---- who pays ------------------------------------------------------------------------------------


def test_each_line_of_a_batch_is_a_request_of_its_owner(tmp_path: Path) -> None:
    with users(tmp_path) as (alice, bob):
        lines = [asking(f"Number {i}") for i in range(5)]
        lines += [asking("Think", model="scripted:vote-4"), asking("Bad", temperature=-1)]
        batch = alice.until(alice.batch(*lines), lambda batch: batch.status == "completed")
        assert (batch.request_counts.completed, batch.request_counts.failed) == (6, 1)
        text = alice.client.files.content(batch.output_file_id).text
        responses = [json.loads(line)["response"] for line in text.splitlines()]
        records = {each["request_id"]: each for each in alice.records(6)}
        for response in responses:
            record, usage = records[response["request_id"]], response["body"]["usage"]
            assert (record["route"], record["status"], record["model"]) == (CHAT, 200, "scripted")
            assert record["tokens"] == usage["completion_tokens"]
            assert record["prompt_tokens"] == usage["prompt_tokens"]
        assert sum(each["strategy"] is not None for each in records.values()) == 1
        assert bob.records(0) == []
        metrics = bob.get("/metrics")[1]
        for name, field in (("prompt", "prompt_tokens"), ("generation", "tokens")):
            line = f'anabranch_{name}_tokens_total{{model_name="scripted"}}'
            total = sum(each[field] for each in records.values())
            assert f"{line} {float(total)}\n" in metrics


def test_lines_wait_when_their_keys_tokens_are_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "QUOTA_SECONDS", 0.01)
    with users(tmp_path, {"tokens_per_day": 100}, batch_lines=1) as (alice, bob):
        batch: Any = alice.batch(*(asking(f"Number {i}") for i in range(20)))
        account = alice.server.app.state.keys.accounts["alice"]
        alice.until(batch, lambda _: account._quotas[0].wait() > 0)
        alice.server.until_idle()
        batch = alice.client.batches.retrieve(batch.id)
        counts = batch.request_counts
        assert batch.status == "in_progress"
        assert 0 < counts.completed < 20
        with pytest.raises(openai.RateLimitError):
            alice.client.chat.completions.create(model="scripted", messages=ASKED)
        bob.client.chat.completions.create(model="scripted", messages=ASKED)
        used = sum(r["tokens"] + r["prompt_tokens"] for r in alice.records(counts.completed))
        assert used >= 100  # and by no more than the line that ran when they were used up
        assert used - max(r["tokens"] + r["prompt_tokens"] for r in alice.records(
            counts.completed)) < 100  # fmt: skip
        day = 0

        def tomorrow() -> float:
            nonlocal day
            day += 1
            return day * 86_400.0  # another day, whenever it is asked

        account._quotas[0]._clock = tomorrow
        batch = alice.until(batch, lambda batch: batch.status == "completed")
        assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 0)


def test_what_a_session_uses_is_charged_to_its_key_once(tmp_path: Path) -> None:
    with users(tmp_path) as (alice, _):
        root = alice.open("for ever", seed=1)
        secret = root["secret"]

        def do(branch: Any, operation: str, **body: Any) -> Any:
            path = f"/v1/branches/{branch['id']}/{operation}"
            status, told = alice.ask(path, body, secret=secret)
            assert status == 200, told
            return told

        children = do(root, "fork", n=4)["data"]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda child: do(child, "extend", limit=20), children))
        do(children[0], "force", text="xyz")
        do(children[1], "score", options=["a", "bcd"])
        do(children[2], "peek")
        again = {"messages": ASKED, "session": root["session"]}
        assert alice.ask("/v1/branches", again, secret=secret)[0] == 200
        path = f"/v1/sessions/{root['session']}"
        usage = alice.get(path, secret=secret)[1]["usage"]
        records = alice.records(9)
        assert sum(each["prompt_tokens"] for each in records) == usage["prompt_tokens"]
        drawn = usage["sampled_tokens"] + usage["forced_tokens"]
        assert sum(each["tokens"] for each in records) == drawn == 4 * 20 + 3 + 4
        assert {(each["model"], each["seed"]) for each in records} == {("scripted", 1)}
        line = 'anabranch_generation_tokens_total{model_name="scripted"}'
        assert f"{line} {float(drawn)}\n" in alice.get("/metrics")[1]
        alice.ask(path, method="DELETE", secret=secret)


def test_a_session_ends_where_its_keys_tokens_do(tmp_path: Path) -> None:
    with users(tmp_path, {"tokens_per_day": 200}) as (alice, _):
        root = alice.open("for ever")
        secret, path = root["secret"], f"/v1/branches/{root['id']}"
        statuses = [alice.ask(f"{path}/extend", {"limit": 50}, secret=secret)[0] for _ in range(6)]
        good = statuses.count(200)
        assert statuses == [200] * good + [429] * (6 - good)
        assert 1 < good <= 4
        status, told = alice.ask("/v1/branches", {"model": "scripted", "messages": ASKED})
        assert (status, told["error"]["code"]) == (429, "quota_exceeded")
        assert alice.get(path, secret=secret)[0] == 200
        alice.ask(f"/v1/sessions/{root['session']}", method="DELETE", secret=secret)

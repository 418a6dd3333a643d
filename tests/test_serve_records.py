"""What is kept of requests, whatever happens to the disk."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from anabranch.program.trace import read_trace
from anabranch.serve import records as module
from anabranch.serve.keys import new_key
from tests.serving import Running, serving

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
SECRET = "What is 2 + 2, asks the walrus?"
ASKED: Any = [{"role": "user", "content": SECRET}]


def get(server: Running, path: str, key: str = "") -> tuple[int, str]:
    """Status and body."""
    netloc = urlsplit(server.url).netloc
    with contextlib.closing(http.client.HTTPConnection(netloc, timeout=10)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def kept(server: Running, key: str = "", query: str = "") -> list[dict[str, Any]]:
    """A key's records."""
    status, text = get(server, f"/v1/records{query}", key)
    assert status == 200, text
    found: list[dict[str, Any]] = json.loads(text)["data"]
    return found


def soon(holds: Callable[[], bool]) -> None:
    """Wait for it; fails after 10 s."""
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def ask(server: Running, key: str = "none", **options: Any) -> Any:
    """A reply."""
    return server.client_of(key).chat.completions.create(
        **{"model": "scripted", "messages": ASKED, **options}
    )


def test_every_request_is_kept_and_each_key_sees_its_own(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = new_key(keys, "alice"), new_key(keys, "bob")
    path = tmp_path / "deep" / "records.db"
    with serving(TWO, keys=keys, records=path) as server:
        replies = [
            ask(server, alice, seed=7, model="scripted:vote-4"),
            ask(server, alice, seed=2**63 - 1, max_tokens=3),
            ask(server, bob),
        ]
        with pytest.raises(openai.NotFoundError):
            ask(server, alice, model="walrus")
        soon(lambda: len(kept(server, alice)) == 2 and len(kept(server, bob)) == 1)
        newest, oldest = kept(server, alice)
        assert [row["id"] for row in kept(server, alice, "?limit=1")] == [newest["id"]]
        before = kept(server, alice, f"?before={newest['id']}")
        assert [row["id"] for row in before] == [oldest["id"]]
        assert get(server, "/v1/records?limit=0", alice)[0] == 400
        assert get(server, f"/v1/records/{oldest['id']}/trace", alice)[0] == 404
    assert (oldest["seed"], newest["seed"]) == (7, 2**63 - 1)
    assert oldest["strategy"].startswith("vote(n=4")
    assert (newest["strategy"], newest["finish"]) == (None, "length")
    assert oldest["tokens"] == replies[0].usage.completion_tokens
    assert newest["prompt_tokens"] == replies[1].usage.prompt_tokens
    assert (oldest["key"], oldest["status"], oldest["has_trace"]) == ("alice", 200, 0)
    assert b"walrus" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0


def test_traces_are_kept_when_wanted_and_are_a_keys_own(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = new_key(keys, "alice"), new_key(keys, "bob")
    with serving(TWO, keys=keys, records=tmp_path / "records.db", traces=2) as server:
        for _ in range(3):
            ask(server, alice, model="scripted:vote-4", seed=1)
        soon(lambda: len(kept(server, alice)) == 3)
        assert [row["has_trace"] for row in kept(server, alice)] == [1, 1, 0]
        route = f"/v1/records/{kept(server, alice)[0]['id']}/trace"
        status, text = get(server, route, alice)
        assert get(server, route, bob)[0] == 404
    assert status == 200
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    assert len(read_trace(path).branches) == 5


def test_the_oldest_give_way(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with serving(TWO, records=path, most_records=3) as server:
        for seed in range(5):
            ask(server, seed=seed)
        soon(lambda: [row["seed"] for row in kept(server)] == [4, 3, 2])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (3,)


@pytest.mark.parametrize("kind", ["full", "folder", "foreign"])
def test_no_request_fails_where_nothing_can_be_written(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "records.db"
    if kind == "full":
        path = Path("/dev/full")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"somebody's letters" * 1000)
    with serving(TWO, records=path) as server:
        for _ in range(3):
            assert ask(server).choices[0].message.content in TWO
        status, text = get(server, "/health")
        assert (status, json.loads(text)["records"][:17]) == (200, "cannot be written")
        assert str(path) not in text
        if kind != "full":
            assert get(server, "/v1/records")[0] == 503
    told = [record.getMessage() for record in caplog.records]
    assert sum("cannot be written" in message for message in told) == 1
    assert "3 records were not written" in told
    if kind == "foreign":
        assert path.read_bytes() == b"somebody's letters" * 1000


def test_rows_wait_until_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    folder = tmp_path / "folder"
    with serving(TWO, records=folder / "records.db") as server:
        ask(server, seed=1)
        soon(lambda: len(kept(server)) == 1)
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("in the way")  # so that nothing can be made there
        ask(server, seed=2)
        soon(lambda: "records" in get(server, "/health")[1])
        ask(server, seed=3)
        folder.unlink()
        soon(lambda: "records" not in get(server, "/health")[1])
        assert [row["seed"] for row in kept(server)] == [3, 2]
        # A file that is replaced is noticed: nothing goes on into the one that was taken away.
        for old in folder.iterdir():
            old.unlink()
        ask(server, seed=4)
        soon(lambda: get(server, "/v1/records")[0] == 200 and len(kept(server)) == 1)


def test_what_a_key_used_today_outlives_the_server(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    alice = new_key(keys, "alice")
    with keys.open("a") as file:
        file.write("tokens_per_day = 60\n")
    settings: dict[str, Any] = {"keys": keys, "records": tmp_path / "records.db"}
    with serving(TWO, **settings) as server:
        ask(server, alice)
    with serving(TWO, **settings) as server, pytest.raises(openai.RateLimitError):  # noqa: PT012
        ask(server, alice)
        ask(server, alice)

"""What is kept of requests, whatever happens to the disk or to the database.

With ANABRANCH_TEST_POSTGRES, the URL of a PostgreSQL server on which databases may be made, the
same tests run there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import openai
import psycopg
import pytest
from psycopg import conninfo

from anabranch.errors import InputError
from anabranch.program.trace import read_trace
from anabranch.serve import records as module
from anabranch.serve.calls import Call
from anabranch.serve.keys import new_key
from anabranch.serve.metrics import Metrics
from tests.serving import Running, serving, soon

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
SECRET = "What is 2 + 2, asks the walrus?"
ASKED: Any = [{"role": "user", "content": SECRET}]


class Postgres:
    """A database of a test's own, not made yet."""

    def __init__(self, server: str) -> None:
        self.server, self.name = server, f"anabranch_test_{secrets.token_hex(6)}"
        told = {**conninfo.conninfo_to_dict(server), "dbname": self.name}
        told = {name: quote(str(value), safe="") for name, value in told.items()}
        self.url = "postgresql://?" + "&".join(f"{name}={value}" for name, value in told.items())

    def do(self, statement: str) -> None:
        """Run one on the server. NAME in it is the database's."""
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement.replace("NAME", self.name).encode())


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    address = os.environ.get("ANABRANCH_TEST_POSTGRES")
    if not address:
        pytest.skip("no PostgreSQL: ANABRANCH_TEST_POSTGRES names no server")
    database = Postgres(address)
    yield database
    database.do("DROP DATABASE IF EXISTS NAME WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where records may be kept."""
    if request.param == "sqlite":
        return tmp_path / "deep" / "records.db"
    database: Postgres = request.getfixturevalue("postgres")
    database.do("CREATE DATABASE NAME")
    return database.url


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


def ask(server: Running, key: str = "none", **options: Any) -> Any:
    """A reply."""
    return server.client_of(key).chat.completions.create(
        **{"model": "scripted", "messages": ASKED, **options}
    )


def test_every_request_is_kept_and_each_key_sees_its_own(tmp_path: Path, where: Path | str) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = new_key(keys, "alice"), new_key(keys, "bob")
    with serving(TWO, keys=keys, records=where) as server:
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
    if isinstance(where, Path):
        assert b"walrus" not in where.read_bytes()
        assert where.stat().st_mode & 0o077 == 0


def test_traces_are_kept_when_wanted_and_are_a_keys_own(tmp_path: Path, where: Path | str) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = new_key(keys, "alice"), new_key(keys, "bob")
    with serving(TWO, keys=keys, records=where, traces=2) as server:
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


def test_the_oldest_give_way(where: Path | str) -> None:
    with serving(TWO, records=where, most_records=3) as server:
        for seed in range(5):
            ask(server, seed=seed)
        soon(lambda: [row["seed"] for row in kept(server)] == [4, 3, 2])
    count = "SELECT count(*) FROM records"
    if isinstance(where, Path):
        with contextlib.closing(sqlite3.connect(where)) as connection:
            assert connection.execute(count).fetchone() == (3,)
    else:
        with psycopg.connect(where) as other:
            assert other.execute(count).fetchone() == (3,)


def test_a_server_that_is_to_keep_less_drops_the_rest_as_it_begins(where: Path | str) -> None:
    with serving(TWO, records=where, traces=9) as server:
        for seed in range(4):
            ask(server, seed=seed, model="scripted:vote-2")
        soon(lambda: [row["has_trace"] for row in kept(server)] == [True] * 4)
    with serving(TWO, records=where, most_records=3, traces=1) as server:
        assert [row["has_trace"] for row in kept(server)] == [True, False, False]
    with serving(TWO, records=where) as server:
        assert [row["has_trace"] for row in kept(server)] == [False] * 3


def test_a_table_of_an_earlier_version_gets_the_columns_that_it_lacks(where: Path | str) -> None:
    with serving(TWO, records=where) as server:
        ask(server, seed=1)
        soon(lambda: len(kept(server)) == 1)
    drop = "ALTER TABLE records DROP COLUMN cached_tokens"
    if isinstance(where, Path):
        with contextlib.closing(sqlite3.connect(where)) as connection:
            connection.execute(drop)
    else:
        with psycopg.connect(where) as other:
            other.execute(drop)
    with serving(TWO, records=where) as server:
        ask(server, seed=2)
        soon(lambda: len(kept(server)) == 2)
        assert [row["cached_tokens"] for row in kept(server)] == [0, 0]


def test_nobodys_records_give_way_to_those_of_others(tmp_path: Path, where: Path | str) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = new_key(keys, "alice"), new_key(keys, "bob")
    with serving(TWO, keys=keys, records=where, most_records=3, traces=2) as server:
        ask(server, alice, seed=1, model="scripted:vote-2")
        for seed in range(5):
            ask(server, bob, seed=seed, model="scripted:vote-2")
        soon(lambda: [row["seed"] for row in kept(server, bob)] == [4, 3, 2])
        assert [row["has_trace"] for row in kept(server, bob)] == [True, True, False]
        assert [(row["seed"], row["has_trace"]) for row in kept(server, alice)] == [(1, True)]


def test_two_servers_may_share_a_database(tmp_path: Path, where: Path | str) -> None:
    keys = tmp_path / "keys.toml"
    alice = new_key(keys, "alice")
    settings: dict[str, Any] = {"keys": keys, "records": where}
    with serving(TWO, **settings) as one, serving(TWO, **settings) as other:
        for seed in range(6):
            ask((one, other)[seed % 2], alice, seed=seed)
        soon(lambda: len(kept(one, alice)) == 6)
        rows = kept(other, alice)
        assert sorted(row["seed"] for row in rows) == list(range(6))
        assert [row["id"] for row in rows] == [6, 5, 4, 3, 2, 1]


def test_what_no_database_takes_holds_up_nobody(where: Path | str) -> None:
    """Text with a NUL, or with half of a character."""
    with serving(TWO, records=where) as server:
        ask(server, seed=1)
        soon(lambda: len(kept(server)) == 1)
        call = Call(server.app.state.keys.open, "id", metrics=Metrics(), stopping=asyncio.Event())
        call.strategy = "vote(\0\ud800)"
        server.app.state.records.add(call)
        soon(lambda: len(kept(server)) == 2)
        assert kept(server)[0]["strategy"] == "vote(\ufffd?)"
        assert "records" not in get(server, "/health")[1]


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


def test_a_database_that_is_not_there_stops_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(TWO, records="postgresql://walrus:oyster@127.0.0.1:9/walrus") as server:
        for _ in range(3):
            assert ask(server).choices[0].message.content in TWO
        status, text = get(server, "/health")
        assert (status, json.loads(text)["records"][:17]) == (200, "cannot be written")
        status, refusal = get(server, "/v1/records")
        assert status == 503
        assert "127.0.0.1" not in text + refusal
    told = [record.getMessage() for record in caplog.records]
    assert sum("cannot be written" in message for message in told) == 1
    assert "3 records were not written" in told
    assert "oyster" not in "".join(told)


def test_a_database_that_comes_back_has_every_row(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    with serving(TWO, records=postgres.url) as server:
        ask(server, seed=1)
        soon(lambda: "records" in get(server, "/health")[1])
        postgres.do("CREATE DATABASE NAME")
        soon(lambda: get(server, "/v1/records")[0] == 200 and len(kept(server)) == 1)
        postgres.do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'NAME'")
        ask(server, seed=2)
        soon(lambda: len(kept(server)) == 2)
        postgres.do("DROP DATABASE NAME WITH (FORCE)")
        ask(server, seed=3)
        soon(lambda: "records" in get(server, "/health")[1])
        postgres.do("CREATE DATABASE NAME")
        soon(lambda: get(server, "/v1/records")[0] == 200 and len(kept(server)) == 1)
        assert [(row["id"], row["seed"]) for row in kept(server)] == [(1, 3)]
        assert "records" not in get(server, "/health")[1]


def test_an_address_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(InputError) as refused:
        module.Records("postgresql://walrus:oy%zzster@localhost/walrus", 1, 0)
    assert "oy" not in str(refused.value)
    assert "%40 for @" in str(refused.value)


def test_what_a_key_used_today_outlives_the_server(tmp_path: Path, where: Path | str) -> None:
    keys = tmp_path / "keys.toml"
    alice = new_key(keys, "alice")
    with keys.open("a") as file:
        file.write("tokens_per_day = 60\n")
    settings: dict[str, Any] = {"keys": keys, "records": where}
    with serving(TWO, **settings) as server:
        ask(server, alice)
    with serving(TWO, **settings) as server, pytest.raises(openai.RateLimitError):  # noqa: PT012
        ask(server, alice)
        ask(server, alice)

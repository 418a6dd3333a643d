"""What fails under a server: its process, its disk, its database, the file of its model.

Each has one outcome: it goes on, and what was kept is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from anabranch.engine.core import EngineCore
from anabranch.models.decoder import Decoder
from anabranch.models.files import open_model
from anabranch.program.engine import Engine
from tests.checkpoints import write_gguf
from tests.engines import ByteTokenizer, backend, run
from tests.serving import serving, soon
from tests.test_serve import ASKED, TWO, ask
from tests.test_serve_batches import asking, begin, until
from tests.test_serve_records import ask as asked
from tests.test_serve_records import get, kept
from tests.test_serve_stopped import Process, config, started
from tests.toy import toy

__all__ = ["started"]  # a fixture

MODEL = "made-up"


def settings_of(tmp_path: Path) -> tuple[str, str]:
    """Arguments for a server that keeps everything."""
    kept = {"folder": str(tmp_path / "files"), "records": str(tmp_path / "records.db")}
    return "--config", config(tmp_path, models=[MODEL], log_level="error", **kept)


def rows(server: Process) -> list[int]:
    """Seeds of what is recorded, newest first."""
    return [row["seed"] for row in server.answers("/v1/records?limit=1000")["data"]]


def lines(count: int, tokens: int) -> bytes:
    """A batch, its lines numbered."""
    return b"".join(asking(i, "x", model=MODEL, max_tokens=tokens, seed=i) for i in range(count))


# ---- the process ---------------------------------------------------------------------------------


def test_a_killed_server_comes_back_with_all_that_it_kept(tmp_path: Path, started: Any) -> None:
    """Killed while it streams, thinks, holds branches, takes in a file and works on a batch."""
    server: Process = started(*settings_of(tmp_path))
    client = server.client
    kept_file = client.files.create(file=("a.jsonl", b"x" * 3_000_000), purpose="batch")
    for seed in (1001, 1002, 1003):
        client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=5, seed=seed)
    while len(server.answers("/v1/records")["data"]) < 3:
        time.sleep(0.01)
    batch = begin(server, lines(200, 20))
    while (client.batches.retrieve(batch.id).request_counts or batch).completed < 5:
        time.sleep(0.01)
    streams = [
        client.chat.completions.create(model=model, messages=ASKED, stream=True)
        for model in (MODEL, f"{MODEL}:vote-4")
    ]
    for stream in streams:
        next(iter(stream))
    session = client.post("/branches", body={"model": MODEL, "prompt": "x"}, cast_to=object)
    response = client.responses.create(model=MODEL, input="x", background=True)
    server.process.kill()
    server.process.wait()
    for stream in streams:
        with pytest.raises((openai.APIError, httpx.TransportError)):
            list(stream)
    (tmp_path / "files" / "file" / f"file-{'0' * 24}.part").write_bytes(b"torn")

    again: Process = started(*settings_of(tmp_path))
    assert {1001, 1002, 1003} <= set(rows(again))
    assert again.client.files.content(kept_file.id).content == b"x" * 3_000_000
    assert not list((tmp_path / "files").glob("*/*.part"))
    batch = until(again, batch, "completed")
    assert (batch.request_counts.completed, batch.request_counts.failed) == (200, 0)
    text = again.client.files.content(batch.output_file_id).text
    names = [json.loads(each)["custom_id"] for each in text.splitlines()]
    assert sorted(names, key=int) == [str(i) for i in range(200)]
    # What lives in memory only is gone, and says so.
    with pytest.raises(openai.NotFoundError):
        again.client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        again.client.get(f"/branches/{dict(session)['id']}", cast_to=object)  # type: ignore[call-overload]


# ---- the disk ------------------------------------------------------------------------------------


def test_a_full_disk_is_waited_for(tmp_path: Path, started: Any) -> None:
    """The kernel refuses to let the server's files grow; then there is room again."""
    server: Process = started(*settings_of(tmp_path))
    client, number = server.client, server.process.pid
    small = client.files.create(file=("a.jsonl", b"x" * 1000), purpose="batch")
    batch = begin(server, lines(150, 100))
    resource.prlimit(number, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    for size in (100_000, 3_000_000):
        with pytest.raises(openai.InternalServerError) as told:
            client.files.create(file=("b.jsonl", b"y" * size), purpose="batch")
        assert (told.value.status_code, told.value.code) == (507, "disk_full")
    while "records" not in server.answers("/health"):
        client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=1, seed=7)
    stood = client.batches.retrieve(batch.id)
    assert stood.status == "in_progress"
    assert client.files.content(small.id).content == b"x" * 1000
    assert len(list(client.files.list())) == 2

    resource.prlimit(number, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    batch = until(server, batch, "completed")
    assert batch.request_counts.completed == 150
    while "records" in server.answers("/health") or 7 not in rows(server):
        time.sleep(0.01)
    client.files.create(file=("b.jsonl", b"y" * 100_000), purpose="batch")
    server.process.kill()
    assert any("no room on the disk" in told["message"] for told in server.end())


# ---- the database of records ---------------------------------------------------------------------


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    with serving(TWO, records=path) as server:
        asked(server, seed=1)
        soon(lambda: len(kept(server)) == 1)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for seed in range(2, 5):
                asked(server, seed=seed)
            assert ask(server, "/health")[0] == 200
            assert [row["seed"] for row in kept(server)] == [1]
            other.execute("ROLLBACK")
        soon(lambda: [row["seed"] for row in kept(server)] == [4, 3, 2, 1])


@pytest.mark.parametrize("how", ["overwritten", "truncated"])
def test_a_corrupt_database_is_said_and_can_be_moved_away(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.serve.records.RETRY_SECONDS", 0.05)
    path = tmp_path / "records.db"
    with serving(TWO, records=path) as server:
        for seed in range(3):
            asked(server, seed=seed)
        soon(lambda: len(kept(server)) == 3)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as file:
            if how == "truncated":
                file.truncate(5000)
            else:
                file.seek(0)
                file.write(b"\xff" * path.stat().st_size)
        asked(server, seed=1000)
        soon(lambda: "records" in json.loads(get(server, "/health")[1]))
        assert get(server, "/v1/records")[0] == 503
        asked(server, seed=1001)
        for name in ("records.db", "records.db-wal", "records.db-shm"):
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / name).rename(tmp_path / f"{name}.broken")
        soon(lambda: "records" not in json.loads(get(server, "/health")[1]))
        assert [row["seed"] for row in kept(server)] == [1001, 1000]


def test_a_deleted_database_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    with serving(TWO, records=folder / "records.db") as server:
        asked(server, seed=1)
        soon(lambda: len(kept(server)) == 1)
        shutil.rmtree(folder)
        asked(server, seed=2)
        soon(lambda: get(server, "/v1/records")[0] == 200)
        assert [row["seed"] for row in kept(server)] == [2]


# ---- the file of the model -----------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["truncated", "overwritten", "replaced", "deleted"])
def test_a_loaded_model_needs_its_file_no_more(tmp_path: Path, how: str) -> None:
    """Files are mapped while they are read. A map of one cut short would end the process."""
    path = tmp_path / "model.gguf"
    write_gguf(path, toy("qwen2"))
    decoder = Decoder(open_model(path, dtype="stored"), backend("native"), max_rows=64)
    assert path.name not in Path("/proc/self/maps").read_text()
    engine = Engine(EngineCore(decoder, pages=64), ByteTokenizer())  # type: ignore[arg-type]

    def said() -> list[int]:
        return list(run(engine, engine.open("Hello", seed=3).extend(20)).tokens)

    before = said()
    if how == "truncated":
        os.truncate(path, 100)
    elif how == "overwritten":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif how == "replaced":
        (tmp_path / "other").write_bytes(b"x")
        (tmp_path / "other").rename(path)
    else:
        path.unlink()
    assert said() == before

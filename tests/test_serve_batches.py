"""Files and batches over HTTP: done once each, whatever happens to the server or its disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from anabranch.errors import InputError
from anabranch.serve import batch as batch_module
from anabranch.serve.folder import Folder, Folders, Lines
from tests.serving import Running, serving
from tests.test_serve import ask
from tests.test_serve_stopped import Process

CHAT: Any = "/v1/chat/completions"


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """Repeats what it was asked."""
    if "for ever" in prompt:
        return {"a": 0.5, "b": 0.5}
    said = prompt.strip()
    return {said[len(reply) :]: 1.0}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with serving(rule, folder=tmp_path) as running:
        yield running


def line(name: object, url: str = CHAT, **body: Any) -> bytes:
    """A request of a batch."""
    body = {"model": "scripted", **body}
    told = {"custom_id": str(name), "method": "POST", "url": url, "body": body}
    return json.dumps(told).encode() + b"\n"


def asking(name: object, text: str, **more: Any) -> bytes:
    """A request of a chat."""
    return line(name, messages=[{"role": "user", "content": text}], **more)


def begin(server: Running | Process, data: bytes, endpoint: Any = CHAT, **more: Any) -> Any:
    """A batch."""
    file = server.client.files.create(file=("in.jsonl", data), purpose="batch")
    return server.client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def until(server: Running | Process, batch: Any, *statuses: str) -> Any:
    """A batch once it has one of these statuses."""
    for _ in range(2000):
        batch = server.client.batches.retrieve(batch.id)
        if batch.status in statuses:
            return batch
        time.sleep(0.01)
    raise AssertionError(batch)


def results(server: Running, name: str | None) -> dict[str, Any]:
    """The lines of a file by their ids, which are all different."""
    if name is None:
        return {}
    lines = [json.loads(each) for each in server.client.files.content(name).text.splitlines()]
    found = {each["custom_id"]: each for each in lines}
    assert len(found) == len(lines)
    return found


def said(result: Any) -> str:
    """What a line's reply says."""
    text: str = result["response"]["body"]["choices"][0]["message"]["content"]
    return text


def test_a_batch(server: Running) -> None:
    data = b"".join(asking(i, f"Number {i}", seed=1) for i in range(100)) + b"\n"
    data += asking("bad", "x", temperature=-1) + asking("streams", "x", stream=True)
    batch = until(server, begin(server, data, metadata={"a": "b"}), "completed")
    assert (batch.object, batch.metadata) == ("batch", {"a": "b"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (102, 100, 2)
    found = results(server, batch.output_file_id)
    assert {name: said(result) for name, result in found.items()} == {
        str(i): f"Number {i}" for i in range(100)
    }
    assert all(result["response"]["status_code"] == 200 for result in found.values())
    failed = results(server, batch.error_file_id)
    assert set(failed) == {"bad", "streams"}
    assert failed["bad"]["response"]["status_code"] == 400
    assert failed["bad"]["response"]["body"]["error"]["param"] == "temperature"


def test_shared_prefixes_are_computed_once(server: Running) -> None:
    before = server.lm.engine.core.decoder.rows  # type: ignore[attr-defined]
    long = "x" * 1000
    data = b"".join(asking(i, long + f"{i:03}", max_tokens=1) for i in range(50))
    until(server, begin(server, data), "completed")
    rows = server.lm.engine.core.decoder.rows - before  # type: ignore[attr-defined]
    assert rows < 2000  # of 50,000 without sharing


def test_other_endpoints(server: Running) -> None:
    url = "/v1/embeddings"
    batch = until(server, begin(server, line(1, url, input=["a", "b"]), url), "completed")
    (result,) = results(server, batch.output_file_id).values()
    assert len(result["response"]["body"]["data"]) == 2
    url = "/v1/completions"
    data = line(1, url, prompt="ab", max_tokens=2, ignore_eos=True)
    batch = until(server, begin(server, data, url), "completed")
    (result,) = results(server, batch.output_file_id).values()
    assert result["response"]["body"]["usage"]["completion_tokens"] == 2


def test_files(server: Running) -> None:
    files = server.client.files
    made = [files.create(file=(f"../{i}", b"x" * i), purpose="batch") for i in (1, 2, 3)]
    assert [file.bytes for file in made] == [1, 2, 3]
    listed = list(files.list(limit=1, order="asc"))  # the client turns pages
    assert {file.filename for file in listed} == {"../1", "../2", "../3"}
    assert files.retrieve(made[1].id) == made[1]
    assert files.content(made[2].id).content == b"xxx"
    assert files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        files.content(made[0].id)
    for name in ("../lock", "file-../../../../x", "batch-" + "0" * 24, "file-" + "0" * 24):
        assert ask(server, f"/v1/files/{name}")[0] == 404
    with pytest.raises(openai.BadRequestError, match="purpose"):
        files.create(file=b"x", purpose="fine-tune")
    assert ask(server, "/v1/files", {"file": "x"})[0] == 400


def test_bounds(tmp_path: Path) -> None:
    options: Any = {"files": 2, "files_bytes": 1024, "file_bytes": 2000, "body_bytes": 1024}
    with serving(rule, folder=tmp_path, **options) as running:
        files = running.client.files
        files.create(file=b"x" * 500, purpose="batch")
        for size in (600, 3000):  # too much in all, and too much in one
            with pytest.raises(openai.APIStatusError) as refused:
                files.create(file=b"x" * size, purpose="batch")
            assert refused.value.status_code == 413
        files.create(file=b"x", purpose="batch")
        with pytest.raises(openai.RateLimitError, match="delete some"):
            files.create(file=b"x", purpose="batch")


def test_without_a_folder_there_are_none() -> None:
    with serving(rule) as running, pytest.raises(openai.InternalServerError, match="folder"):
        running.client.batches.list()


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (b"", "empty_file", 0),
        (asking(1, "a") + b"{", "invalid_line", 2),
        (b"[1]\n", "invalid_line", 1),
        (b"[" * 100_000 + b"\n", "invalid_line", 1),
        (b"\xff\n", "invalid_line", 1),
        (asking(1, "a") + asking(1, "b"), "duplicate_custom_id", 2),
        (asking("", "a"), "invalid_custom_id", 1),
        (line(1, "/v1/embeddings", input="a"), "mismatched_endpoint", 1),
    ],
)
def test_files_that_are_no_batch(server: Running, data: bytes, code: str, number: int) -> None:
    batch = until(server, begin(server, data), "failed")
    (fault,) = batch.errors.data
    assert (fault.code, fault.line) == (code, number)


def test_what_cannot_be(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        begin(server, asking(1, "a"), "/v1/moderations")
    with pytest.raises(openai.NotFoundError):
        server.client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")


def test_cancel_keeps_what_is_done(tmp_path: Path) -> None:
    with serving(rule, folder=tmp_path, batch_lines=2) as server:
        data = (
            asking(1, "a") + asking(2, "for ever") + asking(3, "for ever") + asking(4, "for ever")
        )
        batch = begin(server, data)
        while until(server, batch, "in_progress").request_counts.completed < 1:
            time.sleep(0.01)
        with pytest.raises(openai.ConflictError, match="cancel it first"):
            server.client.files.delete(batch.input_file_id)
        server.client.batches.cancel(batch.id)
        batch = until(server, batch, "cancelled")
        server.until_idle()
        assert [said(r) for r in results(server, batch.output_file_id).values()] == ["a"]
        assert batch.error_file_id is None
        server.client.files.delete(batch.input_file_id)
        assert [each.id for each in server.client.batches.list()] == [batch.id]


def test_a_day_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.serve.batches.HOURS", 4.0)
    with serving(rule, folder=tmp_path) as server:
        batch = begin(server, asking(1, "a") + asking(2, "for ever"))
        batch = until(server, batch, "expired")
        assert set(results(server, batch.output_file_id)) == {"1"}
        failed = results(server, batch.error_file_id)
        assert failed["2"]["error"]["code"] == "batch_expired"


KILLED = """
import sys, time
from tests.serving import serving
def rule(prompt, reply):
    time.sleep(0.002)
    return {prompt.strip()[len(reply):]: 1.0}
with serving(rule, folder=sys.argv[1], batch_lines=3) as running:
    print(running.url, flush=True)
    time.sleep(60)
"""


def test_a_kill_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            data = b"".join(asking(i, f"Number {i}") for i in range(60))
            file = client.files.create(file=data, purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h"
            )
            counts: Any = None
            while counts is None or counts.completed < 5:
                time.sleep(0.02)
                counts = client.batches.retrieve(batch.id).request_counts
        finally:
            process.kill()
    (output,) = (
        path for path in (tmp_path / "file").glob("*.data") if b'"response"' in path.read_bytes()
    )
    done = [json.loads(each)["id"] for each in output.read_bytes().splitlines()]
    assert 5 <= len(done) < 60
    with open(output, "ab") as torn:
        torn.write(b'{"id": "batch_req-torn", "custom_id": "59", "resp')
    with serving(rule, folder=tmp_path) as server:
        batch = until(server, batch, "completed")
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 60
        found = results(server, batch.output_file_id)
        assert {said(r) for r in found.values()} == {f"Number {i}" for i in range(60)}
        assert [each["id"] for each in found.values()][: len(done)] == done


def test_a_full_disk_makes_batches_wait(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "RETRY_SECONDS", 0.05)
    write = os.pwrite
    full = True
    refused = 0

    def pwrite(file: int, data: bytes, at: int) -> int:
        nonlocal refused
        if full:
            refused += 1
            if len(data) > 10:
                return write(file, data[:10], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    batch = begin(server, asking(1, "a") + asking(2, "b"))
    while refused < 10:
        time.sleep(0.01)
    assert until(server, batch, "in_progress").request_counts.completed == 0
    full = False
    batch = until(server, batch, "completed")
    assert {said(r) for r in results(server, batch.output_file_id).values()} == {"a", "b"}


def test_a_full_disk_refuses_files(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfileobj", fail)
        with pytest.raises(openai.InternalServerError, match="disk is full"):
            server.client.files.create(file=b"x", purpose="batch")
    with monkeypatch.context() as patched:  # room for the data, but none for the record
        patched.setattr(Folder, "write", fail)
        with pytest.raises(openai.InternalServerError, match="disk is full"):
            server.client.files.create(file=b"x", purpose="batch")
    assert not list(server.client.files.list())
    assert not list((tmp_path / "file").iterdir())


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    first = Folders(tmp_path, [""], 10, 1000)
    with pytest.raises(InputError, match="another server"):
        Folders(tmp_path, [""], 10, 1000)
    first.close()
    Folders(tmp_path, [""], 10, 1000).close()
    (tmp_path / "plain").write_text("x")
    (tmp_path / "keys").write_text("x")
    for path, owner in ((tmp_path / "plain", ""), (tmp_path, "alice")):
        with pytest.raises(InputError, match="cannot be used"):
            Folders(path, [owner], 10, 1000)


@pytest.mark.parametrize("torn", [b"{", b'{"a": 1}', b"\0" * 10 + b"\n", b"[1]\n", b"{}\xff\n"])
def test_torn_ends_are_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"n": 1}\n' + torn)
    lines = Lines(path)
    assert lines.kept == [{"n": 1}]
    lines.append({"n": 2})
    lines.close()
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'

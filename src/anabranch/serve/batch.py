"""Batches under way: every line of a file is a request of its own, by the key of its batch.

Each line's result is on the disk before it counts. After a kill the lines without one are done
again, and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from anabranch.serve import chat, completions, embeddings
from anabranch.serve.admission import Terms
from anabranch.serve.calls import Call, begin
from anabranch.serve.errors import Refusal, invalid_body, refusal_of
from anabranch.serve.folder import Folder, Lines, Record, about
from anabranch.serve.hub import Hub
from anabranch.serve.jobs import Jobs
from anabranch.serve.keys import Account
from anabranch.serve.plain import new_id

log = logging.getLogger("anabranch.serve")

MOST_LINES = 50_000
MOST_ACTIVE = 100
MOST_LINE = 4 << 20
"""Longest line, in bytes."""

HOURS = 24 * 3600.0
RETRY_SECONDS = 2.0
"""Time until what had no room, on the disk or in memory, is tried again."""

QUOTA_SECONDS = 60.0
"""Longest time until it is looked again whether a key has tokens left: clocks may be set."""

TRIES = 5
BEHIND = 100
"""How far lines stand behind people who wait: more than any key or request can make up for."""

ACTIVE = ("validating", "in_progress", "finalizing", "cancelling")

T = TypeVar("T")
Answer = Callable[[Any, Hub, Terms], Awaitable[dict[str, Any]]]


def _unstreamed(body: Any) -> Any:
    """A body that asks for one response. Raises Refusal."""
    if getattr(body, "stream", False):
        raise Refusal(400, "stream does not go with batches", param="stream")
    return body


async def _chat(body: chat.Chat, hub: Hub, terms: Terms) -> dict[str, Any]:
    return await (await chat.begin(body, hub, terms)).whole()


async def _completion(body: completions.Completion, hub: Hub, terms: Terms) -> dict[str, Any]:
    return await completions.begin(body, hub, terms).whole()


ENDPOINTS: dict[str, tuple[type[BaseModel], Answer]] = {
    "/v1/chat/completions": (chat.Chat, _chat),
    "/v1/completions": (completions.Completion, _completion),
    "/v1/embeddings": (embeddings.Embeddings, embeddings.whole),
}


@dataclass(frozen=True)
class Line:
    """Where a request stands in its file."""

    custom_id: str
    begin: int
    size: int


@dataclass(frozen=True)
class Means:
    """What all batches of a server run by.

    Attributes:
        loaded: done once the models answer.
        terms: on which a line runs, whosever it is.
        side_by_side: lines that run at the same time, those of all batches together.
        new_call: makes the `Call` of an account and an id, `method`, `route` and `behind`.
    """

    hub: Hub
    jobs: Jobs
    loaded: asyncio.Future[None]
    terms: Terms
    side_by_side: int
    new_call: Callable[..., Call]


class Batches:
    """All batches of one key. Those that were under way when the server ended go on.

    Attributes:
        folder: where they are kept, and the files.
        reading: files that batches under way read.
    """

    def __init__(self, folder: Folder, account: Account, means: Means) -> None:
        self.folder, self._account, self._means = folder, account, means
        self._active: dict[str, Batch] = {}
        for record in folder.records("batch"):
            if record["status"] in ACTIVE:
                self._start(record)

    @property
    def reading(self) -> set[str]:
        """See the class."""
        return {batch.record["input_file_id"] for batch in self._active.values()}

    def add(self, record: Record) -> Record:
        """Begin one. Raises Refusal, OSError."""
        if len(self._active) >= MOST_ACTIVE:
            raise Refusal(429, f"{MOST_ACTIVE} batches are under way", retry_after=60)
        self.folder.write(record)
        return self._start(record).shown

    def find(self, name: str) -> Record:
        """One as it stands. Raises Refusal."""
        if name in self._active:
            return self._active[name].shown
        return shown(self.folder.record("batch", name))

    def cancel(self, name: str) -> Record:
        """End one; what is done stays. Raises Refusal, OSError."""
        batch = self._active.get(name)
        if batch is not None and batch.record["status"] in ("validating", "in_progress"):
            batch.cancel()
        return self.find(name)

    def _start(self, record: Record) -> Batch:
        batch = Batch(record, self.folder, self._account, self._means)
        self._active[record["id"]] = batch
        self._means.jobs.start(self._run(batch))
        return batch

    async def _run(self, batch: Batch) -> None:
        try:
            await asyncio.shield(self._means.loaded)
            await batch.run()
        except Exception:
            log.exception("%s stopped; it goes on when the server is started again", batch.name)
        finally:
            if batch.record["status"] not in ACTIVE:
                del self._active[batch.name]


class Batch:
    """One batch, from its record to its files."""

    def __init__(self, record: Record, folder: Folder, account: Account, means: Means) -> None:
        self.record, self.name = record, record["id"]
        self._folder, self._account, self._means = folder, account, means
        self._cancelled = asyncio.Event()

    @property
    def shown(self) -> Record:
        """As it is told to clients."""
        return shown(self.record)

    def cancel(self) -> None:
        """Let it end. Raises OSError, and goes on."""
        self._folder.write({**self.record, **_now("cancelling")})
        self.record |= _now("cancelling")
        self._cancelled.set()

    async def run(self) -> None:
        """Come to the end."""
        path = self._folder.data(self.record["input_file_id"])
        try:
            lines = await asyncio.to_thread(read_lines, path, self.record["endpoint"])
        except Invalid as fault:
            errors = {"object": "list", "data": [fault.told]}
            await self._become("failed", errors=errors)
            return
        self.record["request_counts"]["total"] = len(lines)
        if self.record["status"] == "validating":
            await self._become("in_progress")
        output = await self._insist(lambda: Lines(self._folder.data(self.record["_output"])))
        errors_file = await self._insist(lambda: Lines(self._folder.data(self.record["_errors"])))
        with contextlib.closing(output), contextlib.closing(errors_file):
            done = {kept["custom_id"] for kept in (*output.kept, *errors_file.kept)}
            counts = self.record["request_counts"]
            counts |= {"completed": len(output.kept), "failed": len(errors_file.kept)}
            output.kept, errors_file.kept = [], []
            left = [line for line in lines if line.custom_id not in done]
            outcome = await self._work(path, left, output, errors_file)
        if outcome == "completed":
            await self._become("finalizing")
        await self._hand_over(output.size, errors_file.size)
        await self._become(outcome)

    async def _work(self, path: Path, lines: list[Line], output: Lines, errors_file: Lines) -> str:
        """Do the lines; how that ended."""
        if self.record["status"] == "cancelling":
            return "cancelled"
        coming = iter(lines)
        counts = self.record["request_counts"]
        done: set[str] = set()

        async def some() -> None:
            for line in coming:
                response = await self._answer(path, line)
                good = response["status_code"] == 200
                await self._append(
                    output if good else errors_file, line, response=response, error=None
                )
                done.add(line.custom_id)
                counts["completed" if good else "failed"] += 1

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._means.side_by_side, len(lines))):
                    group.create_task(some())

        work = asyncio.ensure_future(all_of_them())
        stop = asyncio.ensure_future(self._cancelled.wait())
        seconds = max(0.0, self.record["expires_at"] - time.time())
        try:
            await asyncio.wait((work, stop), timeout=seconds, return_when="FIRST_COMPLETED")
            finished = work.done()
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
        if finished:
            work.result()
            return "completed"
        if self._cancelled.is_set():
            return "cancelled"
        fault = {"code": "batch_expired", "message": "the batch's time was over before this line"}
        for line in lines:
            if line.custom_id not in done:
                await self._append(errors_file, line, response=None, error=fault)
                counts["failed"] += 1
        return "expired"

    async def _answer(self, path: Path, line: Line) -> Record:
        """The response to a line, as results have it."""
        tries = itertools.count(1)
        while True:
            await self._until_allowed()
            call = self._means.new_call(
                self._account,
                new_id("req"),
                method="POST",
                route=self.record["endpoint"],
                behind=BEHIND,
            )
            call.pattern = call.route
            begin(call)
            refusal = None
            with call.under_way():
                try:
                    body = await self._ask(path, line)
                except Exception as error:
                    refusal = refusal_of(error)
                    call.status, body = refusal.status, refusal.body
                call.complete = True
            again = refusal is not None and refusal.status in (429, 503)
            if again and refusal is not None and refusal.code == "quota_exceeded":
                continue
            if not again or (attempt := next(tries)) == TRIES:
                return {"status_code": call.status, "request_id": call.id, "body": body}
            await asyncio.sleep(RETRY_SECONDS * attempt)

    async def _ask(self, path: Path, line: Line) -> dict[str, Any]:
        """The body of a line's response. Raises what HTTP would tell as an error."""
        kind, answer = ENDPOINTS[self.record["endpoint"]]
        told = await asyncio.to_thread(_body, path, line)
        try:
            request = _unstreamed(kind.model_validate(told))
        except ValidationError as error:
            raise invalid_body(error.errors()) from None
        return await answer(request, self._means.hub, self._means.terms)

    async def _until_allowed(self) -> None:
        """Wait until the key has tokens left. What the batch's time is not enough for expires."""
        while wait := self._account.wait:
            await asyncio.sleep(min(wait, QUOTA_SECONDS))

    async def _append(self, lines: Lines, line: Line, **fields: Any) -> None:
        record = {"id": new_id("batch_req"), "custom_id": line.custom_id, **fields}
        await self._insist(functools.partial(lines.append, record))

    async def _hand_over(self, completed: int, failed: int) -> None:
        """Make files of what was written; nothing was: no file."""
        for which, field, size in (
            ("_output", "output_file_id", completed),
            ("_errors", "error_file_id", failed),
        ):
            name = self.record[which]
            if not size:
                self._folder.remove(name)
                continue
            file = about(self._folder, name, f"{self.name}{which}.jsonl", "batch_output")
            await self._insist(functools.partial(self._folder.write, file))
            self.record[field] = name

    async def _become(self, status: str, **fields: Any) -> None:
        self.record |= {**_now(status), **fields}
        await self._insist(lambda: self._folder.write(self.record))

    async def _insist(self, write: Callable[[], T]) -> T:
        """Write; where there is no room, wait for it."""
        while True:
            try:
                return write()
            except OSError as error:
                log.error("%s cannot be written, and waits: %s", self.name, error.strerror)
                await asyncio.sleep(RETRY_SECONDS)


class Invalid(Exception):
    """A file that is no batch.

    Attributes:
        told: what is wrong, as a batch's record has it.
    """

    def __init__(self, number: int, code: str, message: str) -> None:
        super().__init__(message)
        self.told = {"line": number, "code": code, "message": message, "param": None}


def read_lines(path: Path, endpoint: str) -> list[Line]:
    """The lines of a file, those that begin alike side by side. Raises Invalid."""
    found: dict[str, tuple[str, Line]] = {}
    try:
        for number, begin, data in _raw(path):
            line, key = _checked(number, data, endpoint)
            if line in found:
                raise Invalid(number, "duplicate_custom_id", "an earlier line has this custom_id")
            if len(found) == MOST_LINES:
                raise Invalid(number, "too_many_lines", f"a batch has at most {MOST_LINES} lines")
            found[line] = key, Line(line, begin, len(data))
    except OSError:
        raise Invalid(0, "no_file", "the file is gone") from None
    if not found:
        raise Invalid(0, "empty_file", "the file has no lines")
    # Prompts that begin alike meet in the token tree if they run at the same time.
    return [line for _, line in sorted(found.values(), key=lambda each: each[0])]


def _raw(path: Path) -> Iterator[tuple[int, int, bytes]]:
    begin = number = 0
    with open(path, "rb") as file:
        while data := file.readline(MOST_LINE + 1):
            number += 1
            if len(data) > MOST_LINE:
                raise Invalid(number, "line_too_long", f"longer than {MOST_LINE} bytes")
            if data.strip():
                yield number, begin, data
            begin += len(data)


def _checked(number: int, data: bytes, endpoint: str) -> tuple[str, str]:
    """The id of a line, and what its prompt begins with."""
    try:
        told = json.loads(data)
        body, name = told["body"], told["custom_id"]
        form = (told["method"], told["url"])
    except (ValueError, RecursionError, KeyError, TypeError):
        message = "no JSON object with custom_id, method, url and body"
        raise Invalid(number, "invalid_line", message) from None
    if form != ("POST", endpoint) or not isinstance(body, dict):
        raise Invalid(number, "mismatched_endpoint", f"not a POST of an object to {endpoint}")
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        raise Invalid(number, "invalid_custom_id", "custom_id is not a text of 1 to 512 characters")
    prompt = body.get("messages") or body.get("prompt") or body.get("input")
    return name, json.dumps([body.get("model"), body.get("tools"), prompt])[:1024]


def _body(path: Path, line: Line) -> Any:
    with open(path, "rb") as file:
        file.seek(line.begin)
        return json.loads(file.read(line.size))["body"]


def shown(record: Record) -> Record:
    """A record without what is ours."""
    return {name: value for name, value in record.items() if not name.startswith("_")}


def _now(status: str) -> Record:
    """A status, and since when."""
    return {"status": status, f"{status}_at": int(time.time())}

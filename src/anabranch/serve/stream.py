"""Responses that take their time: server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Generic, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from anabranch.serve.calls import current
from anabranch.serve.errors import Refusal, refusal_of

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PING_SECONDS = 10.0
"""A comment is sent after so long a silence, so that nobody on the way takes it for the end."""

AHEAD = 64
"""Chunks that are made before those ahead of them are sent."""


class Chunks(Protocol[T_co]):
    """What comes one after the other, and can be ended before."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def __anext__(self) -> Awaitable[T_co]: ...

    def aclose(self) -> Awaitable[None]: ...


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Work, cancelled when the client has left, or the server waits no longer.

    Raises:
        Refusal: so it is. Nobody reads it who has left.
    """
    gone = asyncio.ensure_future(_left(request.receive))
    try:
        return await _unless(work, gone)
    finally:
        await _end(gone)


async def _unless(work: Awaitable[T], *ends: asyncio.Future[None]) -> T:
    """Work, cancelled when one of these comes about or the server stops. Raises Refusal."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(current().stopping.wait())
    try:
        await asyncio.wait((task, stop, *ends), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _stopped() if stop.done() else Refusal(499, "the client has left")
    finally:
        await _end(task, stop)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stopped() -> Refusal:
    return Refusal(503, "the server is being stopped", code="stopping", retry_after=5)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """A stream that ends what it is made from, also when its client has left before it began."""

    def __init__(self, lines: AsyncGenerator[str], chunks: Chunks[Any]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._lines, self._chunks = lines, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Starlette's would go on while chunks come with every turn of the loop."""
        sent = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((sent, gone), return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                sent.result()
        finally:
            await _end(sent, gone)
            await self._lines.aclose()
            await self._chunks.aclose()


def events(chunks: Chunks[Any], *, done: bool = True) -> Events:
    """Chunks as server-sent events: dictionaries as data, texts as comments.

    An error after the first event is the last event, in the form of an error's body.

    Args:
        done: end with `[DONE]`.
    """

    call = current()

    async def lines() -> AsyncGenerator[str]:
        async with contextlib.aclosing(_as_they_come(chunks)) as coming:
            try:
                async for ready in coming:
                    yield "".join(map(_event, ready))
            except Exception as error:
                call.finishes["error"] += 1
                yield _event(refusal_of(error).body)
            else:
                if done:
                    yield "data: [DONE]\n\n"

    return Events(lines(), chunks)


def _event(chunk: dict[str, Any] | str) -> str:
    if isinstance(chunk, str):
        return f": {chunk}\n\n"
    event = (
        f"event: {chunk['type']}\n" if str(chunk.get("type", "")).startswith("response.") else ""
    )
    return f"{event}data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


async def _as_they_come(chunks: Chunks[Any]) -> AsyncGenerator[list[Any]]:
    """Chunks, those together that are there; a comment where none came for a while."""
    coming: asyncio.Queue[Any] = asyncio.Queue()
    room = asyncio.Semaphore(AHEAD)
    told = 0

    async def tell(chunk: Any) -> None:
        nonlocal told
        told += 1
        coming.put_nowait(chunk)
        await room.acquire()

    async def read() -> None:
        async for chunk in chunks:
            await tell(chunk)

    async def ping() -> None:
        while True:
            before = told
            await asyncio.sleep(PING_SECONDS)
            if told == before:
                await tell("still at it")

    reader, stop, pinger = map(
        asyncio.ensure_future, (read(), current().stopping.wait(), ping())
    )  # one task for each, not one for each chunk
    for task in (reader, stop):
        task.add_done_callback(lambda _: coming.put_nowait(None))
    try:
        while True:
            ready = [await coming.get()]
            while not coming.empty():
                ready.append(coming.get_nowait())
            if None in ready:
                if ready := ready[: ready.index(None)]:
                    yield ready
                if not reader.done():
                    raise _stopped()
                reader.result()
                return
            yield ready
            for _ in ready:
                room.release()
    finally:
        await _end(reader, stop, pinger)
        await chunks.aclose()


class Begun(Generic[T]):
    """Chunks of which the first is there."""

    def __init__(self, head: T, rest: Chunks[T]) -> None:
        self._head, self._rest = [head], rest

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return self._head.pop() if self._head else await anext(self._rest)

    async def aclose(self) -> None:
        """End them."""
        await self._rest.aclose()


async def first(chunks: Chunks[T]) -> Begun[T]:
    """Chunks that have come to the first: what fails before it is an ordinary error."""
    try:
        head = await _unless(anext(chunks))
    except BaseException:
        await chunks.aclose()
        raise
    return Begun(head, chunks)

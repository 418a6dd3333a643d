"""HTTP to one endpoint: bounded connections, retries, bodies that may be broken or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import re
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from anabranch.errors import ContextError, InputError, RemoteError

T = TypeVar("T")

BODY_MOST = 16 << 20
"""Largest body of a reply, in bytes."""

LINE_MOST = 1 << 20
"""Longest line of a stream, in bytes."""

TRIES = 5
"""How often a request is sent that the endpoint does not take or that breaks off."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second try, doubled before each further one; and most that `Retry-After` is
heeded for."""

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses of which another try may come out differently."""


class BrokenError(RemoteError):
    """It broke off, or was not taken now; another try may come out differently.

    Attributes:
        wait: seconds that the endpoint asks for, or 0.
    """

    def __init__(self, failed: str, *, wait: float = 0.0, **told: Any) -> None:
        super().__init__(failed, **told)
        self.wait = wait


class RefusedError(RemoteError):
    """The endpoint does not do what it was asked for."""


class Wire:
    """Sends JSON to an endpoint and reads JSON, whole or as a stream of events.

    Connections belong to the event loop that opened them, and close with it.

    Args:
        url: the base, such as "http://127.0.0.1:8080/v1".
        key: sent as a bearer token; shown nowhere, also where the endpoint repeats it.
        connections: most at a time; further requests wait.
        timeout: seconds to wait for the next bytes of a reply.

    Raises:
        InputError: not such a URL.
    """

    def __init__(self, url: str, key: str, *, connections: int, timeout: float) -> None:
        try:
            parsed = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise InputError("not a URL", got=str(error)) from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError("not the URL of an endpoint", allowed="http://host:port/v1")
        if parsed.userinfo or parsed.query:
            raise InputError(
                "the URL holds a user or a query", fix="give a key by an environment variable"
            )
        if not (key.isascii() and key.isprintable()):
            raise InputError("the key holds characters that no key has")  # never shown
        self.url = str(parsed.copy_with(fragment=None))
        self.root = self.url.removesuffix("/v1")
        self._key, self._limit, self._timeout = key, connections, timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._holder: AsyncGenerator[None] | None = None

    async def json(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """The reply to one request, tried again where that may help. Raises RemoteError."""

        async def once() -> Any:
            async with self._sent(method, url, body) as response:
                return self._parse(await self._whole(response))

        return await retrying(once)

    async def events(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The events of a stream, up to its end or to where it breaks off. Not tried again.

        Raises:
            RemoteError: no stream, or it holds something else than JSON objects.
        """
        async with self._sent("POST", url, body) as response:
            kind = response.headers.get("content-type", "")
            if "text/event-stream" not in kind:
                raise RefusedError(f"{self.url} does not stream", got=kind or "no content type")
            async for line in self._lines(response):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = self._parse(data)
                if not isinstance(event, dict):
                    raise self._fault("sent an event that is no object", data)
                if event.get("error"):
                    raise self._fault("failed within a reply", self._told(data))
                yield event

    # ---- inside --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _sent(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[httpx.Response]:
        """A reply of which the head has come. Raises RemoteError."""
        try:
            async with (await self._connected()).stream(method, url, json=body) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise self._fault("compresses unasked", response.headers["content-encoding"])
                if response.status_code != 200:
                    raise await self._refusal(response)
                yield response
        except httpx.TimeoutException:
            raise BrokenError(
                f"{self.url} does not answer", got=f"nothing for {self._timeout:g} s"
            ) from None
        except httpx.HTTPError as error:
            told = self._clean(f"{type(error).__name__}: {error}")
            fix = "is the server running?" if isinstance(error, httpx.ConnectError) else ""
            raise BrokenError(f"{self.url} cannot be reached", got=told, fix=fix) from None

    async def _connected(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            headers = {"Accept-Encoding": "identity"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._client = httpx.AsyncClient(
                headers=headers,
                verify=_certificates(),
                limits=httpx.Limits(max_connections=self._limit),
                timeout=httpx.Timeout(self._timeout, connect=min(10.0, self._timeout), pool=None),
            )
            # An event loop ends its asynchronous generators when it is closed.
            self._loop, self._holder = loop, _held(self._client)
            await anext(self._holder)
        return self._client

    async def _whole(self, response: httpx.Response, most: int = BODY_MOST) -> bytes:
        body = b""
        async for part in response.aiter_raw():
            body += part
            if len(body) > most:
                raise self._fault(f"sent more than {most} bytes", body)
        return body

    async def _lines(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        rest = b""
        async for part in response.aiter_raw():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > LINE_MOST:
                raise self._fault(f"sent a line of more than {LINE_MOST} bytes", rest)

    async def _refusal(self, response: httpx.Response) -> RemoteError | ContextError:
        status = response.status_code
        try:
            told = self._told(await self._whole(response, LINE_MOST))
        except (RemoteError, httpx.HTTPError):
            told = ""
        got = f"status {status}: {told}"
        if status in AGAIN:
            return BrokenError(f"{self.url} is busy or failing", got=got, wait=_wait(response))
        if status in (401, 403):
            fix = "put the key into ANABRANCH_API_KEY, or name the variable that holds it"
            return RemoteError(f"{self.url} does not let us in", got=got, fix=fix)
        if re.search(r"context.{0,40}(length|size|window)|too (long|many tokens)", told, re.I):
            return ContextError("the text does not fit into the endpoint's context", got=got)
        return RefusedError(f"{self.url} refuses a request", got=got)

    def _parse(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise BrokenError(f"{self.url} sent what is no JSON", got=self._clean(data)) from None

    def _told(self, data: bytes) -> str:
        """What an error's body says."""
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            body = json.loads(data)
            error = body.get("error", body)
            return self._clean(str(error if isinstance(error, str) else error.get("message", body)))
        return self._clean(data)

    def _fault(self, fault: str, got: bytes | str) -> RemoteError:
        return RemoteError(f"{self.url} {fault}", got=self._clean(got))

    def _clean(self, text: bytes | str) -> str:
        """The beginning of what an endpoint said, without our key."""
        if isinstance(text, bytes):
            text = text[:4096].decode("utf-8", "replace")
        return text.replace(self._key, "***")[:200] if self._key else text[:200]


async def retrying(once: Callable[[], Awaitable[T]]) -> T:
    """Try a request up to `TRIES` times while it breaks off. Raises what the last try raised."""
    for tried in range(1, TRIES):
        try:
            return await once()
        except BrokenError as error:
            await pause(tried, error)
    return await once()


async def pause(tried: int, error: BrokenError) -> None:
    """Wait before the next try, as long as the endpoint asks, or longer each time."""
    await asyncio.sleep(max(error.wait, FIRST_WAIT * 2.0 ** (tried - 1)))


@functools.cache
def _certificates() -> ssl.SSLContext:
    # Reading them takes a tenth of a second, and every event loop has a client of its own.
    return httpx.create_ssl_context()


async def _held(client: httpx.AsyncClient) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await client.aclose()


def _wait(response: httpx.Response) -> float:
    """Seconds that `Retry-After` asks for: a number, or a date."""
    told, seconds = response.headers.get("retry-after", ""), 0.0
    try:
        seconds = float(told)
    except ValueError:
        with contextlib.suppress(ValueError):
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
    return min(LONGEST_WAIT, max(0.0, seconds)) if math.isfinite(seconds) else 0.0

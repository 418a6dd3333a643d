"""The HTTP server under the application: TLS, and an end that breaks nothing off in silence."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from anabranch.errors import InputError
from anabranch.serve.settings import Settings

LAST_SECONDS = 5.0
"""For clients to read what they are told at the end; who has not by then is cut off."""


LEAST_BYTES = 1 << 14
"""What a client must send or take in each `stall_seconds`; as much as a request's head may have."""

log = logging.getLogger("anabranch.serve")


class Server(uvicorn.Server):
    """Serves an application that `create_app` made.

    On SIGTERM or SIGINT it takes no more requests. Those under way have `settings.grace` seconds to
    end; then each is told that the server stops, streams by their last event.

    Raises:
        InputError: a certificate that cannot be used.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._stopping: asyncio.Event = app.state.stopping
        self._grace = settings.grace
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=functools.partial(  # type: ignore[arg-type]
                Connection, most=settings.connections, stall_seconds=settings.stall_seconds
            ),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.grace + LAST_SECONDS),
            **_tls(settings),
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        timer = asyncio.get_running_loop().call_later(self._grace, self._stopping.set)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


class Connection(H11Protocol):
    """One client's connection, closed when the client keeps it waiting.

    Clients that send their request, or read the response, a byte at a time would otherwise hold
    connections, places and branches for as long as they like.

    Args:
        most: connections at the same time; further ones are closed at once.
        stall_seconds: in so long a client must send `LEAST_BYTES` of its request or the rest of
            it, and take as much of what there is for it. Looked at from time to time: what has
            stalled is closed after one to two times as long.
    """

    def __init__(self, *args: Any, most: int, stall_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most, self._seconds = most, stall_seconds
        self._received = self._resumed = 0
        self._seen: tuple[object, int] = None, 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            log.warning("there are %d connections: one more was closed", self._most)
            transport.abort()
            return
        self._timer = self.loop.call_later(self._seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._resumed += 1
        super().resume_writing()

    def _look(self) -> None:
        """Close the connection if it has been waiting for its client since the last look."""
        moved = self._received - self.transport.get_write_buffer_size()
        (turn, before), self._seen = self._seen, (self._turn(), moved)
        if turn is not None and turn == self._seen[0] and moved - before < LEAST_BYTES:
            log.info("a connection was closed: its client has stalled")
            self.transport.abort()
            return
        self._timer = self.loop.call_later(self._seconds, self._look)

    def _turn(self) -> object:
        """What the client is to do next, None if it waits for us. Differs from one to the next."""
        taking = self.flow.write_paused or self.transport.is_closing()
        idle = self.timeout_keep_alive_task is not None  # between requests; has its own end
        sending = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if taking or (sending and not idle and not self.flow.read_paused):
            return self.conn.their_state, self.cycle, self._resumed
        return None


def _tls(settings: Settings) -> dict[str, Any]:
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return {}
    if cert is None or key is None:
        raise InputError("TLS needs both tls_cert and tls_key", fix="name both, or neither")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"the certificate {cert} cannot be used with the key {key}: {error}",
            allowed="PEM files of a certificate and its key",
        ) from None
    return {"ssl_certfile": cert, "ssl_keyfile": key}

"""The HTTP server under the application: TLS, and an end that breaks nothing off in silence."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import uvicorn
from fastapi import FastAPI

from anabranch.errors import InputError
from anabranch.serve.settings import Settings

LAST_SECONDS = 5.0
"""For clients to read what they are told at the end; who has not by then is cut off."""


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

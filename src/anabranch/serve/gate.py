"""The door that every request passes: keys, request ids, and where a browser may ask from."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch.serve.calls import Call, begin
from anabranch.serve.errors import Refusal, refusal_of
from anabranch.serve.keys import LOOPBACK, Account, Keyring

OPEN_ROUTES = ("/health",)
PARENTS = ("traceparent", "tracestate")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """Lets in who has a key, and knows from then on whose request it is.

    A key comes as a bearer token, or as the password of HTTP's basic authentication, which
    browsers ask their user for. `/health` alone is open.

    Args:
        call: makes a `Call` of an account, an id, `method` and `route`.
        nobody: whose requests without a key are.
    """

    def __init__(
        self, app: ASGIApp, keys: Keyring, call: Callable[..., Call], nobody: Account
    ) -> None:
        self.app, self.keys, self._call, self._nobody = app, keys, call, nobody

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks anything else: the server closes the connection
        headers = Headers(scope=scope)
        told = headers.get("x-request-id", "")
        name = told if _ID.fullmatch(told) else f"req-{secrets.token_hex(12)}"
        account = self.keys.find(_key(headers))
        call = self._call(
            account or self._nobody,
            name,
            method=scope["method"],
            route=scope["path"],
            parents={each: headers[each] for each in PARENTS if each in headers},
        )
        begin(call)
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, call.status = True, message["status"]
                call.pattern = getattr(scope.get("route"), "path", "")
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                call.complete = True

        with call.under_way():
            try:
                if scope["path"] not in OPEN_ROUTES:
                    self._check(headers, account)
                await self.app(scope, receive, answer)
            except Exception as error:
                refusal = refusal_of(error)
                call.status = refusal.status
                if not started:
                    await refusal.response()(scope, receive, answer)

    def _check(self, headers: Headers, account: Account | None) -> None:
        if account is None:
            raise Refusal(
                401,
                "no valid API key was given; send `Authorization: Bearer KEY`, or, where a browser "
                "asks, any name with the key as its password",
                code="invalid_api_key",
                headers={"WWW-Authenticate": _challenge(headers)},
            )
        if self.keys.open is not None and _host(headers.get("host", "")) not in LOOPBACK:
            # A page elsewhere may give its own name this machine's address ("DNS rebinding").
            raise Refusal(403, "without API keys, requests must name this machine as their host")
        bearer = headers.get("authorization", "")[:7].lower() == "bearer "
        if not bearer and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refusal(403, "requests from other sites' pages need a bearer token")


def tell_of_keys(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document which routes ask for a key, and how it may come."""
    kinds = {kind: {"type": "http", "scheme": kind} for kind in ("bearer", "basic")}
    document.setdefault("components", {})["securitySchemes"] = kinds
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["security"] = [] if path in OPEN_ROUTES else [{kind: []} for kind in kinds]


def _challenge(headers: Headers) -> str:
    """Browsers ask their user where a page is opened; an open page asks by itself."""
    by_script = headers.get("sec-fetch-mode", "navigate") != "navigate"
    return "Bearer" if by_script else 'Basic realm="anabranch", charset="UTF-8"'


def _key(headers: Headers) -> str | None:
    """The key that a request shows."""
    kind, _, told = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return told.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(told, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _host(header: str) -> str:
    """A host without its port, as in `[::1]:8000`."""
    host = header.rpartition("]")[0].lstrip("[") if header.startswith("[") else header.split(":")[0]
    return host.lower()

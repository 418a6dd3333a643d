"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.

Nothing of the inside gets out: a message is one that we wrote for the caller, or it is generic.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from anabranch.errors import AnabranchError, ContextError, InputError, ModelError, ResourceError

log = logging.getLogger("anabranch.serve")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


_FULL = (errno.ENOSPC, errno.EDQUOT)


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: of the response.
        message: for the caller.
        param: which field is to blame.
        code: a word for programs.
        retry_after: seconds after which to try again.
        challenge: how to say who asks, in the words of `WWW-Authenticate`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        challenge: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.challenge = retry_after, challenge

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, as a response or as the last event of a stream."""
        kind = _TYPES.get(self.status, "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The response itself."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.challenge is not None:
            headers["WWW-Authenticate"] = self.challenge
        return JSONResponse(self.body, self.status, headers)


def refusal_of(error: Exception) -> Refusal:
    """What a caller is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextError):
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, InputError):
        return Refusal(400, str(error))
    if isinstance(error, OSError) and error.errno in _FULL:
        log.error("no room on the disk: %s", error)
        return Refusal(507, "the server's disk is full", code="disk_full")
    if isinstance(error, ResourceError):
        return Refusal(503, "the server is out of room for this request", retry_after=5)
    if isinstance(error, TimeoutError):
        return Refusal(504, "the request took longer than this server allows", code="timeout")
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, Refusal):  # raised while the body was read
            return error.__cause__
        return Refusal(error.status_code, str(error.detail))
    if not isinstance(error, AnabranchError):
        log.error("a request failed", exc_info=error)
    elif isinstance(error, ModelError):
        log.error("the model failed: %s", error)
    return Refusal(500, "the request failed in the server; it is in the log", code="internal")


def add_handlers(app: FastAPI) -> None:
    """Let every error leave the app in that form."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid_body(error.errors()).response()

    for kind in (Refusal, AnabranchError, HTTPException, OSError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(RequestValidationError, invalid)


def invalid_body(faults: Sequence[Any]) -> Refusal:
    """The first fault of a body, by the name of its field. Values are not repeated."""
    first = faults[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return Refusal(400, f"{where or 'body'}: {first['msg']}", param=where or None)

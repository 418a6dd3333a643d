"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.

Nothing of the inside gets out: a message is one that we wrote for the caller, or it is generic.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: of the response.
        message: for the caller.
        param: which field is to blame.
        code: a word for programs.
        retry_after: seconds after which to try again.
        headers: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, as a response or as the last event of a stream."""
        kind = _TYPES.get(self.status, "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The response itself."""
        return JSONResponse(self.body, self.status, self.headers)


class Fault(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """The body of every response that is no success."""

    error: Fault


FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Failure, "description": "The request cannot be served as it is."},
    "5XX": {"model": Failure, "description": "The server cannot serve it, now or at all."},
}
"""For the OpenAPI document of every route."""


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
        return Refusal(
            504, "the request took longer than its deadline or this server allows", code="timeout"
        )
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, Refusal):  # raised while the body was read
            return error.__cause__
        return Refusal(error.status_code, str(error.detail), headers=error.headers)
    if not isinstance(error, AnabranchError):
        log.error("a request failed", exc_info=error)
    elif isinstance(error, ModelError):
        log.error("the model failed: %s", error)
    return Refusal(500, "the request failed in the server; it is in the log", code="internal")


def add_handlers(app: FastAPI) -> None:
    """Let every error leave the app in that form."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        refusal = refusal_of(error)
        if refusal.status == 405 and (methods := _methods(app, request)):
            # Of several routes for one path, the router names the first one's methods only.
            refusal.headers["Allow"] = ", ".join(methods)
        return refusal.response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid_body(error.errors()).response()

    for kind in (Refusal, AnabranchError, HTTPException, OSError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(RequestValidationError, invalid)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What can be done with a path, by the OpenAPI document; nothing where it is not in there."""
    path = request.url.path
    return sorted(
        method.upper()
        for route, methods in app.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path)
        for method in methods
    )


def invalid_body(faults: Sequence[Any]) -> Refusal:
    """The first fault of a body, by the name of its field. Values are not repeated."""
    first = faults[0]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is no JSON: {first.get('ctx', {}).get('error', '')}")
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return Refusal(400, f"{where or 'body'}: {first['msg']}", param=where or None)

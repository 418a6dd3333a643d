"""What the server is told: flags over environment over a TOML file over defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from anabranch.serve.database import SCHEMES

EMPTY = BeforeValidator(lambda value: value or None)
"""An empty text, as environment variables have, is none."""


def _place(value: object) -> object:
    """A URL as it is, anything else as a file."""
    if not value or not isinstance(value, str) or value.startswith(SCHEMES):
        return value or None
    return Path(value)


class Settings(BaseModel):
    """Limits and addresses.

    Attributes:
        models: names, files or folders to serve.
        loadable: further models that requests may let strategies and judges load, as in
            `reward(model=...)`; they stay in memory.
        code_tools: strategies and judges may run programs that a model wrote, in an interpreter
            without files and network; clients choose the strategy, and with it that this happens.
        running: requests that generate at the same time.
        waiting: requests that may wait for that; more are refused.
        body_bytes: largest body of a request.
        seconds: longest time of one request.
        connections: clients' connections at the same time; more are closed at once.
        stall_seconds: in so long a client must send 16 KiB of its request or the rest of it, and
            take as much of what is sent to it; who is slower is cut off.
        keys: file of API keys; without one, only this machine can ask.
        share_cache: keys share computed prefixes, which lets each find out by the time that an
            answer takes whether another has asked the same.
        records: SQLite file of requests and what they cost, without text, or the URL of a
            PostgreSQL database for them; empty: none is kept.
        most_records: rows of each key in it; older ones are dropped.
        traces: of each key's newest, how many keep the trace of their strategy, with its text.
        otlp_endpoint: base address of an OpenTelemetry collector, to which spans of requests are
            sent; without one, OpenTelemetry's own environment variables are heeded.
        grace: seconds that requests under way have to end when the server is stopped.
        tls_cert, tls_key: PEM files, for HTTPS.
        log_level: least important that is logged.
        responses, responses_bytes: responses of each key that are kept in memory, to be asked for
            again.
        folder: where `/v1/files` and `/v1/batches` keep what they have; without one there are none.
        files, files_bytes: files, and batches, of each key that are kept there; bytes of its files.
        file_bytes: largest file that is taken in.
        batch_lines: lines of batches that run at the same time.
        sessions: sessions of branches of each key that are open at the same time.
        session_branches, branches: live branches of one session, and of all of a key.
        session_tokens: most tokens that a session may spend.
    """

    model_config = ConfigDict(extra="forbid")

    models: Annotated[list[str], Field(min_length=1, max_length=16)] = ["qwen2.5-coder-0.5b"]
    loadable: Annotated[list[str], Field(max_length=16)] = []
    code_tools: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    running: Annotated[int, Field(ge=1, le=4096)] = 64
    waiting: Annotated[int, Field(ge=0, le=1 << 16)] = 256
    body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 4 << 20
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    connections: Annotated[int, Field(ge=1, le=1 << 20)] = 768
    stall_seconds: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    keys: Path | None = None
    share_cache: bool = False
    records: Annotated[Path | str | None, BeforeValidator(_place)] = None
    most_records: Annotated[int, Field(ge=1, le=1 << 32)] = 100_000
    traces: Annotated[int, Field(ge=0, le=1 << 32)] = 0
    otlp_endpoint: Annotated[str | None, EMPTY, Field(pattern=r"^https?://")] = None
    grace: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    responses: Annotated[int, Field(ge=1, le=1 << 20)] = 1000
    responses_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 36)] = 64 << 20
    folder: Path | None = None
    files: Annotated[int, Field(ge=1, le=1 << 20)] = 10_000
    files_bytes: Annotated[int, Field(ge=1024, le=1 << 44)] = 4 << 30
    file_bytes: Annotated[int, Field(ge=1024, le=1 << 34)] = 128 << 20
    batch_lines: Annotated[int, Field(ge=1, le=4096)] = 64
    sessions: Annotated[int, Field(ge=0, le=1 << 16)] = 256
    session_branches: Annotated[int, Field(ge=1, le=1 << 16)] = 1024
    branches: Annotated[int, Field(ge=1, le=1 << 20)] = 8192
    session_tokens: Annotated[int, Field(ge=1, le=1 << 40)] = 1 << 20

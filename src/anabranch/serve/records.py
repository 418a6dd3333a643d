"""What was asked of the server and what it cost, kept in SQLite: no text, unless traces are kept.

Rows are written by a thread of their own. A disk that is full or a file that is gone fails no
request: rows wait in memory, a bounded number of them, until they can be written again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anabranch.program.trace import Trace
from anabranch.serve.calls import Call

log = logging.getLogger("anabranch.serve")

MOST_PENDING = 4096
"""Rows that wait to be written; the oldest are given up first."""

MOST_PENDING_TRACES = 64
"""Of these, how many with their trace."""

MOST_TRACE = 16 << 20
"""Bytes of one trace before it is compressed; longer ones are not kept."""

RETRY_SECONDS = 2.0

FIELDS = {
    "request_id": "TEXT NOT NULL",
    "time": "REAL NOT NULL",
    "key": "TEXT NOT NULL",
    "route": "TEXT NOT NULL",
    "status": "INTEGER NOT NULL",
    "finish": "TEXT",
    "model": "TEXT NOT NULL",
    "strategy": "TEXT",
    "seed": "INTEGER",
    "prompt_tokens": "INTEGER NOT NULL",
    "tokens": "INTEGER NOT NULL",
    "seconds": "REAL NOT NULL",
    "first_seconds": "REAL",
}
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    + ", ".join(f"{name} {kind}" for name, kind in FIELDS.items())
    + ", trace BLOB)",
    "CREATE INDEX IF NOT EXISTS records_by_key ON records (key, id)",
    "CREATE INDEX IF NOT EXISTS records_traced ON records (id) WHERE trace IS NOT NULL",
)
_INSERT = (
    f"INSERT INTO records ({', '.join(FIELDS)}, trace) "
    f"VALUES ({', '.join(f':{name}' for name in FIELDS)}, :trace)"
)
_SHOWN = f"id, {', '.join(FIELDS)}, trace IS NOT NULL AS has_trace"


class Trouble(Exception):
    """Records cannot be read; the log says why."""


class Records:
    """The table of one server.

    Args:
        path: file, made if it is not there.
        most: rows to keep; older ones are dropped.
        traces: of the newest of them, how many keep their trace.

    Attributes:
        fault: why rows cannot be written at present, or None.
        lost: rows that were given up.
    """

    def __init__(self, path: Path, most: int, traces: int) -> None:
        self.path, self.most, self.traces = path, most, traces
        self.fault: str | None = None
        self.lost = 0
        self._pending: deque[dict[str, Any]] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._writer = threading.Thread(target=self._write_all, name="anabranch-records")

    def open(self) -> None:
        """Begin. Where that fails, it is tried again. Reads the disk."""
        self._write([])
        self._writer.start()

    def add(self, call: Call) -> None:
        """Keep a request. Never fails, never waits for the disk."""
        row = {
            "request_id": call.id,
            "time": time.time(),
            "key": call.account.name,
            "route": call.route,
            "status": call.status,
            "finish": call.outcome,
            "model": call.model,
            "strategy": call.strategy,
            "seed": call.seed,
            "prompt_tokens": call.prompt_tokens,
            "tokens": call.tokens,
            "seconds": call.seconds,
            "first_seconds": call.first,
            "trace": call.trace,
        }
        with self._news:
            if sum(other["trace"] is not None for other in self._pending) >= MOST_PENDING_TRACES:
                row["trace"] = None
            self._pending.append(row)
            if len(self._pending) > MOST_PENDING:
                self._pending.popleft()
                self.lost += 1
            self._news.notify()

    def of(self, key: str, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """A key's newest records, newest first; `before`: those with a smaller id. Reads the disk.

        Raises:
            Trouble: they cannot be read.
        """
        query = f"SELECT {_SHOWN} FROM records WHERE key = ? AND id < ? ORDER BY id DESC LIMIT ?"
        rows = self._read(query, (key, before or 2**62, limit))
        return [dict(row) for row in rows]

    def trace(self, key: str, record: int) -> str | None:
        """The trace of a key's record as JSON lines. Reads the disk.

        Raises:
            Trouble: it cannot be read.
        """
        rows = self._read("SELECT trace FROM records WHERE key = ? AND id = ?", (key, record))
        return zlib.decompress(rows[0]["trace"]).decode() if rows and rows[0]["trace"] else None

    def used_since(self, when: float) -> Mapping[str, int]:
        """Tokens by key since a time; nothing where that cannot be read. Reads the disk."""
        query = (
            "SELECT key, sum(prompt_tokens + tokens) AS used FROM records WHERE time >= ? "
            "GROUP BY key"
        )
        try:
            return {row["key"]: row["used"] for row in self._read(query, (when,))}
        except Trouble:
            return {}

    def close(self) -> None:
        """Write what can be written, and end."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._writer.join()

    def _read(self, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        try:
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=5)) as connection:
                connection.row_factory = sqlite3.Row
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            log.error("records cannot be read: %s", error)
            raise Trouble from None

    # ---- the thread ------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._news:
                if not self._pending and not self._closing:
                    self._news.wait()
                rows, closing = list(self._pending), self._closing
            if rows and not self._write(rows) and not closing:
                with self._news:
                    if not self._closing:
                        self._news.wait(RETRY_SECONDS)
                continue
            if closing:
                if self._pending:
                    log.error("%d records were not written", len(self._pending))
                if self._connection is not None:
                    self._connection.close()
                return

    def _write(self, rows: list[dict[str, Any]]) -> bool:
        """Write rows, and take them off what is pending. Whether that worked."""
        try:
            connection = self._connected()
            with connection:
                packed = ({**row, "trace": _packed(row["trace"])} for row in rows)
                connection.executemany(_INSERT, packed)
                old = "id <= (SELECT max(id) FROM records) - ?"
                connection.execute(f"DELETE FROM records WHERE {old}", (self.most,))
                connection.execute(
                    f"UPDATE records SET trace = NULL WHERE trace IS NOT NULL AND {old}",
                    (self.traces,),
                )
        except Exception as error:  # whatever it is, the thread goes on
            if self.fault is None:
                log.error("records cannot be written, and wait: %s", error)
            self.fault = str(error)
            self._disconnect()
            return False
        if self.fault is not None:
            log.warning("records are written again; %d were lost meanwhile", self.lost)
        self.fault = None
        with self._news:
            done = {id(row) for row in rows}
            self._pending = deque(row for row in self._pending if id(row) not in done)
        return True

    def _connected(self) -> sqlite3.Connection:
        """A connection to the file that is there now: not to one that was taken away."""
        if self._connection is not None and self._file != _identity(self.path):
            self._disconnect()
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                self.path, timeout=5, check_same_thread=False, cached_statements=8
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            with self._connection:
                for statement in _SCHEMA:
                    self._connection.execute(statement)
            self._file = _identity(self.path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, or None."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _packed(trace: Trace | None) -> bytes | None:
    """A trace as compressed JSON lines, if it is not too long."""
    if trace is None:
        return None
    text = "".join(f"{json.dumps(event)}\n" for event in (trace.header, *trace.events)).encode()
    return zlib.compress(text) if len(text) <= MOST_TRACE else None

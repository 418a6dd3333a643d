"""What was asked of the server and what it cost, in a database: no text, unless traces are kept.

Rows are written by a thread of their own. A disk that is full, a file that is gone or a database
that does not answer fails no request: rows wait in memory, a bounded number of them, until they can
be written again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anabranch.program.trace import Trace
from anabranch.serve.calls import Call
from anabranch.serve.database import Cursor, DatabaseError, database_at

log = logging.getLogger("anabranch.serve")

MOST_PENDING = 4096
"""Rows that wait to be written; the oldest are given up first."""

MOST_PENDING_TRACES = 64
"""Of these, how many with their trace."""

MOST_TRACE = 16 << 20
"""Bytes of one trace before it is compressed; longer ones are not kept."""

RETRY_SECONDS = 2.0

LAST_SECONDS = 10.0
"""For what is left to be written when the server ends."""

# A column that comes later needs a default: tables of earlier versions get it.
FIELDS = {
    "request_id": "TEXT NOT NULL",
    "time": "DOUBLE PRECISION NOT NULL",
    "key": "TEXT NOT NULL",
    "route": "TEXT NOT NULL",
    "status": "BIGINT NOT NULL",
    "finish": "TEXT",
    "model": "TEXT NOT NULL",
    "strategy": "TEXT",
    "seed": "BIGINT",
    "prompt_tokens": "BIGINT NOT NULL",
    "cached_tokens": "BIGINT NOT NULL DEFAULT 0",
    "tokens": "BIGINT NOT NULL",
    "seconds": "DOUBLE PRECISION NOT NULL",
    "first_seconds": "DOUBLE PRECISION",
}
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS records (id BIGINT PRIMARY KEY, "
    + ", ".join(f"{name} {kind}" for name, kind in FIELDS.items())
    + ", trace BYTEA)",
    "CREATE INDEX IF NOT EXISTS records_by_key ON records (key, id)",
    "CREATE INDEX IF NOT EXISTS records_traced ON records (key, id) WHERE trace IS NOT NULL",
)
_INSERT = (
    f"INSERT INTO records (id, {', '.join(FIELDS)}, trace) "
    "VALUES ((SELECT coalesce(max(id), 0) + 1 FROM records), "
    f"{', '.join(f':{name}' for name in FIELDS)}, :trace)"
)
_OLD = (
    "key = :key AND id <= (SELECT id FROM records WHERE key = :key {} "
    "ORDER BY id DESC LIMIT 1 OFFSET :most)"
)
_DROP = f"DELETE FROM records WHERE {_OLD.format('')}"
_DROP_TRACES = (
    f"UPDATE records SET trace = NULL WHERE trace IS NOT NULL AND "
    f"{_OLD.format('AND trace IS NOT NULL')}"
)
_SHOWN = f"id, {', '.join(FIELDS)}, trace IS NOT NULL AS has_trace"


class Trouble(Exception):
    """Records cannot be read; the log says why."""


class Records:
    """The table of one server.

    Args:
        where: an SQLite file, made if it is not there, or the URL of a PostgreSQL database.
        most: rows to keep of each key; older ones are dropped.
        traces: of each key's newest, how many keep their trace.

    Attributes:
        fault: why rows cannot be written at present, or None.
        lost: rows that were given up.

    Raises:
        InputError: what the URL says cannot be understood.
    """

    def __init__(self, where: Path | str, most: int, traces: int) -> None:
        self._database = database_at(where, self._prepare)
        self.most, self.traces = most, traces
        self.fault: str | None = None
        self.lost = 0
        self._pending: deque[dict[str, Any]] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._writer = threading.Thread(
            target=self._write_all, name="anabranch-records", daemon=True
        )

    def open(self) -> None:
        """Begin. Where that fails, it is tried again. Waits for the database."""
        self._write([])
        self._writer.start()

    def add(self, call: Call) -> None:
        """Keep a request. Never fails, never waits for the database."""
        row = {
            "request_id": call.id,
            "time": time.time(),
            "key": call.account.name,
            "route": _told(call.route),
            "status": call.status,
            "finish": call.outcome,
            "model": call.model,
            "strategy": call.strategy and _told(call.strategy),
            "seed": call.seed,
            "prompt_tokens": call.prompt_tokens,
            "cached_tokens": call.cached_tokens,
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
        query = (
            f"SELECT {_SHOWN} FROM records WHERE key = :key AND id < :before "
            "ORDER BY id DESC LIMIT :most"
        )
        rows = self._read(query, {"key": key, "before": before or 2**62, "most": limit})
        return [{**row, "has_trace": bool(row["has_trace"])} for row in rows]

    def trace(self, key: str, record: int) -> str | None:
        """The trace of a key's record as JSON lines. Reads the disk.

        Raises:
            Trouble: it cannot be read.
        """
        query = "SELECT trace FROM records WHERE key = :key AND id = :id"
        rows = self._read(query, {"key": key, "id": record})
        return zlib.decompress(rows[0]["trace"]).decode() if rows and rows[0]["trace"] else None

    def used_since(self, when: float) -> Mapping[str, int]:
        """Tokens by key since a time; nothing where that cannot be read. Reads the disk."""
        query = (
            "SELECT key, sum(prompt_tokens + tokens) AS used FROM records WHERE time >= :time "
            "GROUP BY key"
        )
        try:
            return {row["key"]: int(row["used"]) for row in self._read(query, {"time": when})}
        except Trouble:
            return {}

    def close(self) -> None:
        """Write what can be written, and end; a database that is frozen is not waited for."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._writer.join(LAST_SECONDS)
        if self._writer.is_alive():
            log.error("the database does not answer: %d records may be lost", len(self._pending))

    def _read(self, query: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            return self._database.read(query, values)
        except DatabaseError as error:
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
                self._database.close()
                return

    def _write(self, rows: list[dict[str, Any]]) -> bool:
        """Write rows, and take them off what is pending. Whether that worked."""
        try:
            with self._database.transaction() as cursor:
                packed = ({**row, "trace": _packed(row["trace"])} for row in rows)
                cursor.executemany(_INSERT, packed)
                self._drop_old(cursor, {row["key"] for row in rows})
        except Exception as error:  # whatever it is, the thread goes on
            if self.fault is None:
                log.error("records cannot be written, and wait: %s", error)
            self.fault = str(error)
            self._database.close()
            return False
        if self.fault is not None:
            log.warning("records are written again; %d were lost meanwhile", self.lost)
        self.fault = None
        with self._news:
            done = {id(row) for row in rows}
            self._pending = deque(row for row in self._pending if id(row) not in done)
        return True

    def _prepare(self, cursor: Cursor) -> None:
        """Make the table; one of an earlier version gets the columns that it lacks, and one of a
        server that kept more gives that up."""
        for statement in _SCHEMA:
            cursor.execute(statement)
        cursor.execute("SELECT * FROM records LIMIT 0")
        there = {column[0] for column in cursor.description or ()}
        for name, kind in FIELDS.items():
            if name not in there:
                cursor.execute(f"ALTER TABLE records ADD COLUMN {name} {kind}")
        cursor.execute("SELECT DISTINCT key FROM records")
        self._drop_old(cursor, [key for (key,) in cursor.fetchall()])

    def _drop_old(self, cursor: Cursor, keys: Iterable[str]) -> None:
        for key in keys:
            cursor.execute(_DROP, {"key": key, "most": self.most})
            cursor.execute(_DROP_TRACES, {"key": key, "most": self.traces})


def _told(text: str) -> str:
    """A client's text as every database takes it: one that none takes would hold up all others."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _packed(trace: Trace | None) -> bytes | None:
    """A trace as compressed JSON lines, if it is not too long."""
    if trace is None:
        return None
    text = "".join(f"{json.dumps(event)}\n" for event in (trace.header, *trace.events)).encode()
    return zlib.compress(text) if len(text) <= MOST_TRACE else None

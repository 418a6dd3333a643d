"""The same few statements on an SQLite file or on a PostgreSQL server.

Parameters are named, `:name`; types and functions are those that both know.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anabranch.errors import InputError

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql://", "postgres://")

SECONDS = 5
"""For a connection to be made, and for a lock to be had."""

READERS = 2
"""Threads that may wait for a PostgreSQL server at once: one that is frozen must not have all."""

Values = Mapping[str, Any]


class DatabaseError(Exception):
    """It cannot be reached, or refuses."""


class Cursor(Protocol):
    """What a transaction gives.

    Attributes:
        description: of each column of the last query, a sequence that begins with its name.
    """

    @property
    def description(self) -> Sequence[Sequence[Any]] | None: ...

    def execute(self, query: str, values: Values = ..., /) -> object:
        """Run one statement."""
        ...

    def executemany(self, query: str, values: Iterable[Values], /) -> object:
        """Run one for each of several sets of parameters."""
        ...

    def fetchall(self) -> Sequence[Sequence[Any]]:
        """The rows of the last query."""
        ...


Prepare = Callable[[Cursor], None]


class Database(Protocol):
    """One table's home."""

    def transaction(self) -> contextlib.AbstractContextManager[Cursor]:
        """Write all of it or nothing; nobody else writes meanwhile. Any exception may come."""
        ...

    def read(self, query: str, values: Values) -> list[dict[str, Any]]:
        """Rows by their columns' names, from any thread. Raises DatabaseError."""
        ...

    def close(self) -> None:
        """Let go of it; the next transaction connects anew."""
        ...


def database_at(where: Path | str, prepare: Prepare) -> Database:
    """An SQLite file, made if it is not there, or a PostgreSQL database by its URL.

    Args:
        prepare: makes what is not there yet; called in a transaction, at each connection.

    Raises:
        InputError: the URL cannot be read, or the library for it is not installed.
    """
    return SQLite(where, prepare) if isinstance(where, Path) else PostgreSQL(where, prepare)


class SQLite:
    """A file, readable to its owner only."""

    def __init__(self, path: Path, prepare: Prepare) -> None:
        self.path, self._prepare = path, prepare
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """See `Database`."""
        with self._connected() as connection:
            yield connection.cursor()

    def read(self, query: str, values: Values) -> list[dict[str, Any]]:
        """See `Database`."""
        try:
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            connecting = sqlite3.connect(address, uri=True, timeout=SECONDS)
            with contextlib.closing(connecting) as connection:
                connection.row_factory = sqlite3.Row
                return [dict(row) for row in connection.execute(query, values)]
        except sqlite3.Error as error:
            raise DatabaseError(error) from None

    def close(self) -> None:
        """See `Database`."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _connected(self) -> sqlite3.Connection:
        """A connection to the file that is there now: not to one that was taken away."""
        if self._connection is not None and self._file != _identity(self.path):
            self.close()
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                self.path, timeout=SECONDS, check_same_thread=False, cached_statements=8
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            with self._connection:
                self._prepare(self._connection.cursor())
            self._file = _identity(self.path)
        return self._connection


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, or None."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class PostgreSQL:
    """A database on a server, which several of ours may share."""

    def __init__(self, url: str, prepare: Prepare) -> None:
        try:
            import psycopg
            import psycopg.rows
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:  # also where psycopg finds no libpq
            raise InputError(
                f"records in PostgreSQL need psycopg: {error}",
                fix="pip install 'anabranch[postgres]'",
            ) from None
        try:
            told = conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # whose message may have the password
            raise InputError(
                "the address of the database cannot be read",
                allowed="postgresql://user:password@host:5432/name",
                fix="write %40 for @, %2F for / and %25 for % in names and passwords",
            ) from None
        self._options: dict[str, Any] = {
            "application_name": "anabranch",
            "connect_timeout": SECONDS,
            "tcp_user_timeout": SECONDS * 1000,  # for a server that has gone without a word
            **told,
        }
        self._psycopg, self._prepare = psycopg, prepare
        self._connection: psycopg.Connection[Any] | None = None
        self._readers = threading.Semaphore(READERS)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """See `Database`."""
        connection = self._connected()
        with connection.transaction(), connection.cursor() as cursor:
            # Not as options of the connection, which poolers refuse.
            cursor.execute(f"SET LOCAL lock_timeout = '{SECONDS}s'")
            cursor.execute(f"SET LOCAL statement_timeout = '{6 * SECONDS}s'")
            # As SQLite has it: who writes first, writes alone. Reading goes on.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('anabranch'))")
            yield _Named(cursor)

    def read(self, query: str, values: Values) -> list[dict[str, Any]]:
        """See `Database`."""
        rows = self._psycopg.rows.dict_row
        if not self._readers.acquire(blocking=False):
            raise DatabaseError("others wait for the database")
        try:
            with self._psycopg.connect(**self._options) as connection:
                return connection.cursor(row_factory=rows).execute(_named(query), values).fetchall()
        except self._psycopg.Error as error:
            raise DatabaseError(error) from None
        finally:
            self._readers.release()

    def close(self) -> None:
        """See `Database`."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = self._psycopg.connect(**self._options, autocommit=True)
            with self.transaction() as cursor:
                self._prepare(cursor)
        return self._connection


class _Named:
    """A cursor of psycopg that takes our parameters."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor

    @property
    def description(self) -> Sequence[Sequence[Any]] | None:
        """See `Cursor`."""
        return self._cursor.description

    def execute(self, query: str, values: Values | None = None, /) -> object:
        """See `Cursor`."""
        return self._cursor.execute(_named(query), values)

    def executemany(self, query: str, values: Iterable[Values], /) -> None:
        """See `Cursor`."""
        self._cursor.executemany(_named(query), values)

    def fetchall(self) -> Sequence[Sequence[Any]]:
        """See `Cursor`."""
        return self._cursor.fetchall()


def _named(query: str) -> bytes:
    return re.sub(r":(\w+)", r"%(\1)s", query).encode()

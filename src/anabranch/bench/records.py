"""What the bench keeps: a SQLite file with one row for each problem, condition and seed.

`conditions` holds what decides an answer to the bit, once: weights, strategy, budget, task, seed of
the problems, version. `sessions` holds where and how a process of the bench ran. `attempts` holds
what came of each problem. A row is written in one transaction when its problem is finished, so a
killed process loses nothing but what was under way, and nothing is there twice: its key is
condition, problem and seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anabranch.bench.attempts import Attempt, Sample
from anabranch.errors import FileFormatError, InputError, ResourceError, UnsupportedError
from anabranch.program.types import Usage
from anabranch.tasks.registry import difficulty, parse

APPLICATION, SCHEMA = 0x414E4252, 1
"""What SQLite's header says of these files: "ANBR", and the version of the tables."""

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""

_USAGE = [f.name for f in dataclasses.fields(Usage)]

_TABLES = f"""
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    began TEXT NOT NULL,
    environment TEXT NOT NULL
);
CREATE TABLE conditions (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    parameters INTEGER,
    strategy TEXT NOT NULL,
    budget INTEGER,
    task TEXT NOT NULL,
    problem_seed INTEGER NOT NULL,
    version TEXT NOT NULL,
    skipped TEXT NOT NULL DEFAULT ''
);
CREATE TABLE attempts (
    condition INTEGER NOT NULL REFERENCES conditions (id),
    problem INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions (id),
    digest TEXT NOT NULL,
    question TEXT NOT NULL,
    gold TEXT NOT NULL,
    answer TEXT NOT NULL,
    text TEXT NOT NULL,
    score REAL NOT NULL,
    prefix REAL,
    confidence REAL NOT NULL,
    {", ".join(f"{name} {'REAL' if name == 'seconds' else 'INTEGER'} NOT NULL" for name in _USAGE)},
    pass_seconds REAL NOT NULL,
    samples TEXT NOT NULL,
    notes TEXT NOT NULL,
    error TEXT NOT NULL,
    trace TEXT NOT NULL,
    PRIMARY KEY (condition, problem, seed)
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
"""


@dataclass(frozen=True)
class Settings:
    """All that decides the answer to a problem, to the bit, but the problem's place and the seed.

    Attributes:
        model: its name; the fingerprint decides.
        parameters: that a token is multiplied with; None where nobody knows. Decides nothing.
        strategy, task: with all parameters, as they could be typed again.
        budget: most tokens to charge for a problem, or None.
        problem_seed: what the problems are made from.
        version: of this package.
    """

    model: str
    fingerprint: str
    parameters: int | None
    strategy: str
    budget: int | None
    task: str
    problem_seed: int
    version: str

    @property
    def digest(self) -> str:
        """The same for the same answers."""
        told = {k: v for k, v in asdict(self).items() if k not in ("model", "parameters")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Condition:
    """Settings as they stand in a file.

    Attributes:
        skipped: why none, or no more, of its problems were tried; "" if they are.
    """

    id: int
    settings: Settings
    skipped: str


@dataclass(frozen=True)
class Row:
    """One finished problem.

    Attributes:
        problem: its place in the task.
        digest: of all that was asked and expected.
        score: how right the answer is, in [0, 1].
        prefix: share of the steps before the first wrong one; None where steps are not checked.
        pass_seconds: its share of the time of the passes it took part in, by rows. `usage.seconds`
            is wall time beside other problems.
        error: why there is no answer, or "".
        trace: path of the saved tree, or "".
    """

    problem: int
    seed: int
    digest: str
    question: str
    gold: str
    answer: str = ""
    text: str = ""
    score: float = 0.0
    prefix: float | None = None
    confidence: float = 0.0
    usage: Usage = field(default_factory=Usage)
    pass_seconds: float = 0.0
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    trace: str = ""


class Records:
    """A file of records. Several processes may have it open and add to it.

    Args:
        path: the file.
        create: make it if it is not there.

    Raises:
        InputError: it is not there, or cannot be opened.
        FileFormatError: it is no file of records, or damaged.
        UnsupportedError: a later version wrote it.
    """

    def __init__(self, path: Path | str, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise InputError(
                "there are no such records", got=str(path), fix="`anabranch bench` makes them"
            )
        if self.path.is_dir() or not self.path.absolute().parent.is_dir():
            raise InputError(
                "the records cannot be written", got=str(path), fix="name a file in a folder"
            )
        with self._faults():
            # Serial use only, but `LM.run` may use another thread than the one that opened it.
            self._db = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
        self._claims: int | None = None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and give up what was claimed."""
        self._db.close()
        if self._claims is not None:
            with contextlib.suppress(OSError):  # unless another process has claims, or it is gone
                fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._claim_file.unlink()
            os.close(self._claims)
            self._claims = None

    # ---- writing -------------------------------------------------------------------------------

    def begin(self, environment: Mapping[str, Any]) -> int:
        """Note that a process begins to run, where and how; its number for `add`."""
        with self._faults():
            found = self._db.execute(
                "INSERT INTO sessions (began, environment) VALUES (datetime('now'), ?)",
                (json.dumps(environment),),
            ).lastrowid
        assert found is not None
        return found

    def condition(self, settings: Settings) -> Condition:
        """The condition with these settings; entered if it is new."""
        told = {"digest": settings.digest, **asdict(settings)}
        with self._faults():
            self._db.execute(
                f"INSERT OR IGNORE INTO conditions ({', '.join(told)}) "
                f"VALUES ({', '.join('?' * len(told))})",
                [_text(v) if isinstance(v, str) else v for v in told.values()],
            )
            row = self._db.execute(
                "SELECT * FROM conditions WHERE digest = ?", (settings.digest,)
            ).fetchone()
        return _condition(row)

    def skip(self, condition: Condition, reason: str) -> None:
        """Note why a condition is not tried, or "" if it is."""
        with self._faults():
            self._db.execute(
                "UPDATE conditions SET skipped = ? WHERE id = ?", (_text(reason), condition.id)
            )

    def claim(self, condition: Condition, problem: int, seed: int) -> bool:
        """Take on a problem, unless another process has; a claim ends with its process.

        Have a look whether it is finished after this, not before.
        """
        with self._locking():
            if self._claims is None:
                self._claims = os.open(self._claim_file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                where = _place(condition, problem, seed)
                fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, where)
            except (BlockingIOError, PermissionError):
                return False
        return True

    def release(self, condition: Condition, problem: int, seed: int) -> None:
        """Give up a claim."""
        assert self._claims is not None
        with self._locking():
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _place(condition, problem, seed))

    def add(self, condition: Condition, session: int, row: Row) -> None:
        """Keep a finished problem; one that is kept already stays as it is.

        Raises:
            ResourceError: the disk is full, or another process holds the file for too long.
        """
        told = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
        told |= {"condition": condition.id, "session": session, **asdict(told.pop("usage"))}
        told["samples"] = json.dumps([asdict(sample) for sample in row.samples])
        told["notes"] = json.dumps(row.notes)
        with self._faults():
            self._db.execute(
                f"INSERT OR IGNORE INTO attempts ({', '.join(told)}) "
                f"VALUES ({', '.join('?' * len(told))})",
                [_text(v) if isinstance(v, str) else v for v in told.values()],
            )

    # ---- reading -------------------------------------------------------------------------------

    def conditions(self) -> list[Condition]:
        """Every condition, in the order they were entered."""
        with self._faults():
            found = self._db.execute("SELECT * FROM conditions ORDER BY id").fetchall()
        return [_condition(row) for row in found]

    def sessions(self) -> list[dict[str, Any]]:
        """Where and how each process ran."""
        with self._faults():
            found = self._db.execute("SELECT environment FROM sessions ORDER BY id").fetchall()
            return [json.loads(row["environment"]) for row in found]

    def finished(self, condition: Condition) -> dict[tuple[int, int], str]:
        """Digests of the finished problems, by place and seed."""
        with self._faults():
            found = self._db.execute(
                "SELECT problem, seed, digest FROM attempts WHERE condition = ?", (condition.id,)
            ).fetchall()
        return {(row["problem"], row["seed"]): row["digest"] for row in found}

    def is_finished(self, condition: Condition, problem: int, seed: int) -> bool:
        """Whether there is a row."""
        with self._faults():
            found = self._db.execute(
                "SELECT 1 FROM attempts WHERE condition = ? AND problem = ? AND seed = ?",
                (condition.id, problem, seed),
            ).fetchone()
        return found is not None

    def rows(self, condition: Condition) -> Iterator[Row]:
        """Its finished problems, by place and seed."""
        with self._faults():
            found = self._db.execute(
                "SELECT * FROM attempts WHERE condition = ? ORDER BY problem, seed",
                (condition.id,),
            )
            for row in found:
                yield _row(row)

    def attempts(self, among: Iterable[Condition] | None = None) -> list[Attempt]:
        """What analyses read, condition after condition.

        `usage.seconds` is there what a problem took of the machine: its share of the time of
        passes where that is known, else wall time. One that failed counts as wrong.
        """
        found = []
        for condition in self.conditions() if among is None else among:
            settings, level = condition.settings, _difficulty(condition.settings.task)
            for row in self.rows(condition):
                seconds = row.pass_seconds or row.usage.seconds
                failed = (f"failed: {row.error}",) if row.error else ()
                found.append(
                    Attempt(
                        task=settings.task,
                        problem=row.problem,
                        strategy=settings.strategy,
                        seed=row.seed,
                        right=row.score == 1,
                        answer=row.answer,
                        model=settings.model,
                        budget="" if settings.budget is None else f"{settings.budget} tokens",
                        gold=row.gold,
                        question=row.question,
                        difficulty=level,
                        confidence=row.confidence,
                        text=row.text,
                        usage=dataclasses.replace(row.usage, seconds=seconds),
                        samples=row.samples,
                        notes=(*failed, *row.notes),
                        trace=row.trace,
                        prefix=row.prefix,
                        failed=bool(row.error),
                        parameters=settings.parameters,
                    )
                )
        return found

    # ---- the file ------------------------------------------------------------------------------

    @property
    def _claim_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}-claims")

    def _prepare(self) -> None:
        """Make the tables, or see that they are those expected."""
        with self._faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                told = [
                    self._db.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("application_id", "user_version")
                ]
                empty = not self._db.execute("SELECT 1 FROM sqlite_schema").fetchone()
                if told == [0, 0] and empty:
                    for statement in _TABLES.split(";"):
                        self._db.execute(statement)
                    told = [APPLICATION, SCHEMA]
            finally:
                self._db.execute("COMMIT")
            if told[0] != APPLICATION:
                raise FileFormatError(
                    self.path, "a database, but not of the bench", fix="name another file"
                )
            if told[1] != SCHEMA:
                raise UnsupportedError(
                    f"{self.path}: records of another version",
                    got=told[1],
                    allowed=str(SCHEMA),
                    fix="read them with the version that wrote them",
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            # Safe against killed processes; a power cut may cost the last few rows, no more.
            self._db.execute("PRAGMA synchronous = NORMAL")
            fault = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if fault != "ok":
                raise FileFormatError(self.path, str(fault), fix=_DAMAGED)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise ResourceError(
                    f"the records cannot be written: {error}",
                    got=str(self.path),
                    fix="make room on the disk and run it again: what was finished is kept",
                ) from error
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise ResourceError(
                    "another process holds the records",
                    got=str(self.path),
                    fix="wait for it, or end it",
                ) from error
            if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
                raise InputError(
                    f"the records cannot be opened: {error}", got=str(self.path)
                ) from error
            raise FileFormatError(self.path, str(error), fix=_DAMAGED) from error
        except (sqlite3.DatabaseError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise FileFormatError(self.path, str(error), fix=_DAMAGED) from error

    @contextlib.contextmanager
    def _locking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"problems cannot be claimed: {error.strerror}",
                got=str(self._claim_file),
                fix="keep the records on a disk of this machine",
            ) from error


def merged(sessions: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What all sessions say, each different value once."""
    values: dict[str, dict[str, None]] = {}
    for session in sessions:
        for key, value in session.items():
            text = value if isinstance(value, str) else json.dumps(value)
            values.setdefault(key, {})[text] = None
    return {key: "; ".join(texts) for key, texts in values.items()}


_DAMAGED = "copy what `sqlite3 FILE .recover` can save, or name another file"


def _condition(row: sqlite3.Row) -> Condition:
    names = [f.name for f in dataclasses.fields(Settings)]
    return Condition(row["id"], Settings(**{name: row[name] for name in names}), row["skipped"])


def _difficulty(task: str) -> float | None:
    """How hard a task's problems are; None where it has no such parameter, or is unknown here."""
    try:
        named = parse(task)
    except InputError:  # from a file of the user's own that was not loaded
        return None
    known = difficulty(named.entry)
    return None if known is None else float(named.values[known.name])


def _row(row: sqlite3.Row) -> Row:
    names = {f.name for f in dataclasses.fields(Row)} - {"usage", "samples", "notes"}
    return Row(
        **{name: row[name] for name in names},
        usage=Usage(**{name: row[name] for name in _USAGE}),
        samples=tuple(Sample(**sample) for sample in json.loads(row["samples"])),
        notes=tuple(json.loads(row["notes"])),
    )


def _place(condition: Condition, problem: int, seed: int) -> int:
    """The byte that is locked for a problem, the same in every process."""
    key = f"{condition.settings.digest} {problem} {seed}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:7], "big")


def _text(value: str) -> str:
    """What SQLite can hold: lone surrogates, which a file of problems may have, are replaced."""
    return value.encode("utf-8", "replace").decode()

"""Files and batches on disk: a folder that survives kills, full disks and torn writes.

A record is a JSON file that is replaced as a whole; what a batch writes grows by whole lines. Names
on disk are ids of ours; what clients call their files stands in records only.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from anabranch.errors import InputError
from anabranch.serve.errors import Refusal

_ID = re.compile(r"(file|batch)-[0-9a-f]{24}")

Record = dict[str, Any]


class Folder:
    """The folder, held by one server at a time.

    Args:
        most: records of each kind.
        most_bytes: of all data, above which no more is taken in.

    Raises:
        InputError: it cannot be used, or another server holds it.
    """

    def __init__(self, path: Path, most: int, most_bytes: int) -> None:
        self._path, self._most, self._most_bytes = path, most, most_bytes
        try:
            for kind in ("file", "batch"):
                (path / kind).mkdir(parents=True, exist_ok=True)
            self._lock = open(path / "lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"the folder cannot be used: {error.strerror}", got=path) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError("another server uses the folder", got=path) from None
        for torn in path.glob("*/*.part"):
            torn.unlink()

    def close(self) -> None:
        """Let another server have it."""
        self._lock.close()

    # ---- records -------------------------------------------------------------------------------

    def records(self, kind: str) -> list[Record]:
        """All of a kind, oldest first; one that cannot be read is passed over."""
        found = []
        for path in (self._path / kind).glob("*.json"):
            try:
                found.append(json.loads(path.read_bytes()))
            except (OSError, ValueError):
                continue
        return sorted(found, key=lambda record: (record["created_at"], record["id"]))

    def record(self, kind: str, name: str) -> Record:
        """One of them. Raises Refusal."""
        try:
            if _ID.fullmatch(name) and name.startswith(kind):
                record: Record = json.loads(self._place(name, "json").read_bytes())
                return record
        except FileNotFoundError:
            pass
        raise Refusal(404, f"there is no {kind} of this id")

    def write(self, record: Record) -> None:
        """Put a record in the place of the one before. Raises OSError."""
        path = self._place(record["id"], "json")
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            file.write(json.dumps(record).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def remove(self, name: str) -> None:
        """Forget a record and its data."""
        self._place(name, "json").unlink(missing_ok=True)
        self._place(name, "data").unlink(missing_ok=True)

    def check_room(self, kind: str, size: int = 0) -> None:
        """Raise Refusal where one more record, or so many bytes, are too many."""
        if sum(1 for _ in (self._path / kind).glob("*.json")) >= self._most:
            raise Refusal(429, f"there are {self._most} of them already: delete some")
        held = sum(path.stat().st_size for path in (self._path / "file").glob("*.data"))
        if held + size > self._most_bytes:
            raise Refusal(413, f"all files have {self._most_bytes} bytes: delete some")

    # ---- data ----------------------------------------------------------------------------------

    def data(self, name: str) -> Path:
        """Where the data of a file are."""
        return self._place(name, "data")

    def take(self, name: str, source: BinaryIO) -> None:
        """Copy data in. Raises OSError."""
        part = self._place(name, "part")
        try:
            with open(part, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.data(name))
        finally:
            part.unlink(missing_ok=True)

    def _place(self, name: str, suffix: str) -> Path:
        assert _ID.fullmatch(name), name
        return self._path / name.partition("-")[0] / f"{name}.{suffix}"


class Lines:
    """A file that grows by whole lines of JSON.

    Attributes:
        kept: what it held when it was opened; a torn end was cut off.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.kept: list[Record] = []
        self.size = 0
        for record, end in _whole_lines(path):
            self.kept.append(record)
            self.size = end
        os.ftruncate(self._file, self.size)

    def append(self, record: Record) -> None:
        """Add a line, or nothing of it. Raises OSError."""
        line = json.dumps(record).encode() + b"\n"
        at = self.size
        try:
            while line:
                written = os.pwrite(self._file, line, at)
                at, line = at + written, line[written:]
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size = at

    def close(self) -> None:
        """Everything is on the disk."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)


def _whole_lines(path: Path) -> Iterator[tuple[Record, int]]:
    """Lines up to the first that is torn, each with its end."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(record, dict):
                return
            yield record, end

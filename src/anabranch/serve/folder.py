"""Files and batches on disk: a folder that survives kills, full disks and torn writes.

A record is a JSON file that is replaced as a whole; what a batch writes grows by whole lines. Names
on disk are ids of ours; what clients call their files stands in records only. Each key has a folder
of its own in it, so that nobody's ids lead to what is another's.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from anabranch.errors import InputError
from anabranch.serve.errors import Refusal

KINDS = ("file", "batch")
_ID = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{24}}")

Record = dict[str, Any]


class Folders:
    """The folder of a server, held by one at a time, with a part for each of its keys.

    Args:
        owners: names of keys; "" is everybody, where there are no keys.
        most: records of each kind, for each owner.
        most_bytes: of an owner's data, above which no more is taken in.

    Attributes:
        of: each owner's part.

    Raises:
        InputError: it cannot be used, or another server holds it.
    """

    def __init__(self, path: Path, owners: Iterable[str], most: int, most_bytes: int) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / "lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError("another server uses the folder", got=path) from None
        places = {owner: path / "keys" / owner if owner else path for owner in owners}
        try:
            self.of: Mapping[str, Folder] = {
                owner: Folder(place, most, most_bytes) for owner, place in places.items()
            }
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Let another server have it."""
        self._lock.close()


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(f"the folder cannot be used: {error.strerror}", got=path)


class Folder:
    """What one owner keeps.

    Args:
        most: records of each kind.
        most_bytes: of all data, above which no more is taken in.

    Raises:
        InputError: it cannot be used.
    """

    def __init__(self, path: Path, most: int, most_bytes: int) -> None:
        self._path, self._most, self._most_bytes = path, most, most_bytes
        try:
            for kind in KINDS:
                (path / kind).mkdir(parents=True, exist_ok=True)
                for torn in (path / kind).glob("*.part"):
                    torn.unlink()
        except OSError as error:
            raise _unusable(path, error) from None

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


def about(folder: Folder, name: str, filename: str, purpose: str) -> Record:
    """The record of a file whose data are there."""
    return {
        "id": name,
        "object": "file",
        "bytes": folder.data(name).stat().st_size,
        "created_at": int(time.time()),
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }


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

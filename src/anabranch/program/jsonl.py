"""Files with a JSON object on each line, from anywhere: nothing in them is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anabranch.errors import FileFormatError, InputError

MAX_LINE = 4 << 20
"""Longest line, in bytes."""


class Line(dict[str, Any]):
    """One line's object, which knows where it stands."""

    def __init__(self, value: dict[str, Any], path: Path | str, number: int, fix: str) -> None:
        super().__init__(value)
        self.path, self.number, self.fix = path, number, fix

    def fault(self, what: str) -> FileFormatError:
        """An error about this line."""
        return FileFormatError(self.path, f"line {self.number}: {what}", fix=self.fix)


def read_lines(path: Path | str, what: str, fix: str) -> Iterator[Line]:
    """The objects of a file, one line after the other; empty lines are passed over.

    Args:
        what: what they are, in the plural.
        fix: what to do about a line that is none.

    Raises:
        InputError: the file cannot be read, or holds none.
        FileFormatError: a line is no object; says which and why.
    """
    found = number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if line.strip():
                    found += 1
                    yield _read(line, Line({}, path, number, fix))
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        if isinstance(error, FileFormatError | InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the {what} cannot be read: {reason}", got=str(path)) from None
    if not found:
        raise InputError(f"there are no {what}", got=str(path))


def _read(text: bytes, line: Line) -> Line:
    if len(text) > MAX_LINE:
        raise line.fault(f"longer than {MAX_LINE} bytes")
    try:
        value: Any = json.loads(text.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise line.fault(f"no JSON: not UTF-8, byte {error.object[error.start]:#x}") from None
    except (ValueError, RecursionError):
        raise line.fault(f"no JSON: {text[:40].decode('utf-8', 'replace')!r}") from None
    if not isinstance(value, dict):
        raise line.fault(f"no JSON object: got {type(value).__name__}")
    line.update(value)
    return line

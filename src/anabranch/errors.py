"""Every error Anabranch raises on purpose, as one tree.

    AnabranchError
    ├── InputError            what the caller gave is wrong        (exit code 2)
    │   └── ContextError      prompt and limits do not fit the model's context
    ├── ModelError            the model or its files are at fault  (exit code 3)
    │   ├── FileFormatError   a file is not what it claims to be
    │   ├── UnsupportedError  a valid file that this version cannot run, or what an endpoint lacks
    │   ├── RemoteError       an endpoint failed, or said what it should not
    │   └── DownloadError     the weights could not be had
    └── ResourceError         memory, disk or threads ran out      (exit code 4)

A message says what failed, what was received, what is allowed and what to do next.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class AnabranchError(Exception):
    """Root of the tree.

    Args:
        failed: what could not be done, as a sentence without its full stop.
        got: the value received, if one is to blame.
        allowed: the values or range that would have worked.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(
        self, failed: str, *, got: object = None, allowed: str = "", fix: str = ""
    ) -> None:
        self.failed, self.got, self.allowed, self.fix = failed, got, allowed, fix
        parts = [failed]
        if got is not None:
            parts.append(f"got {_shorten(got)}")
        if allowed:
            parts.append(f"allowed: {allowed}")
        if fix:
            parts.append(fix)
        super().__init__("; ".join(parts))


class InputError(AnabranchError, ValueError):
    """What the caller gave is outside what is allowed."""

    exit_code = 2


class ContextError(InputError):
    """Prompt and limits do not fit into the model's context."""


class ModelError(AnabranchError):
    """The model or its files are at fault."""

    exit_code = 3


class FileFormatError(ModelError):
    """A file is not what it claims to be: truncated, corrupt or hostile."""

    def __init__(self, path: Path | str, fault: str, *, fix: str = "") -> None:
        self.path, self.fault = str(path), fault
        super().__init__(
            f"{path}: {fault}", fix=fix or "download the file again or name another one"
        )


class UnsupportedError(ModelError):
    """A valid file that this version cannot run, or something that a remote endpoint lacks."""


class RemoteError(ModelError):
    """A remote endpoint failed, refused, or said what it should not."""


class DownloadError(ModelError):
    """The weights could not be had."""


class ResourceError(AnabranchError):
    """Memory, disk or threads ran out."""

    exit_code = 4


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not registered, with the nearest ones that are."""
    names = sorted(known)
    near = get_close_matches(name, names, n=2, cutoff=0.5)
    fix = f"did you mean {' or '.join(near)}?" if near else ""
    return InputError(f"unknown {kind}", got=name, allowed=", ".join(names), fix=fix)


def check_range(
    name: str, value: float, low: float, high: float, *, low_open: bool = False
) -> None:
    """Raise `InputError` unless `low <= value <= high` (`low < value` if `low_open`); NaN fails."""
    above = value > low if low_open else value >= low
    if isinstance(value, bool) or not (above and value <= high):
        bracket = "(" if low_open else "["
        raise InputError(
            f"{name} is out of range", got=value, allowed=f"{bracket}{low:g}, {high:g}]"
        )


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"

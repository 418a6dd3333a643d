"""What a solver is. What it is given was written by a model, and is hostile."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from anabranch.errors import InputError

MAX_SOURCE = 1 << 14
"""Longest source that a solver takes, in characters."""

MAX_VALUE = 4000
"""Longest value or complaint that one gives back, in characters."""


@dataclass(frozen=True)
class Result:
    """What became of a source: a value, or what is wrong with it.

    Attributes:
        value: the outcome as text, or None.
        error: what went wrong, in words that can be shown to the model; "" when there is a value.
    """

    value: str | None
    error: str = ""


Solver = Callable[[str], Awaitable[Result]]
"""Runs a source. Whatever the source is, it returns; it only raises when it is cancelled."""


def needs(module: str, package: str, extra: str = "reason") -> None:
    """Raise InputError unless an optional package is installed."""
    if importlib.util.find_spec(module) is None:
        raise InputError(
            "a package that this needs is not installed",
            got=package,
            fix=f"pip install anabranch[{extra}]",
        )


def library(module: str) -> Any:
    """An optional package, loaded where it is used: it takes long, and has no types."""
    return importlib.import_module(module)


def failure(error: str) -> Result:
    """A result that is none, its complaint kept short."""
    text = error.strip() or "it failed without a word"
    return Result(None, text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…")


def outcome(value: str) -> Result:
    """A result, unless it is empty or too long to be one."""
    value = value.strip()
    if not value:
        return failure("there was no outcome")
    if len(value) > MAX_VALUE:
        return failure(f"the outcome is longer than {MAX_VALUE} characters")
    return Result(value)


def too_long(source: str) -> Result | None:
    """The complaint about a source that is too long, or None."""
    if len(source) <= MAX_SOURCE:
        return None
    return failure(f"longer than {MAX_SOURCE} characters")

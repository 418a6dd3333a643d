"""Python that a model wrote, run where it can reach nothing."""

from __future__ import annotations

import re
from typing import Any

from anabranch.tools.isolated import slots
from anabranch.tools.results import (
    MAX_VALUE,
    Result,
    Solver,
    failure,
    needs,
    outcome,
    too_long,
)

MEMORY = 64 << 20
"""Most memory of a program, in bytes."""

DEPTH = 500
"""Deepest recursion of a program."""

# Where a program shows nothing, what it was asked for may still lie there.
_LEFT = (("solution()", re.compile(r"^def solution\(\)", re.M)),
         ("answer", re.compile(r"^answer\s*=", re.M)))  # fmt: skip


def python(*, seconds: float = 5.0) -> Solver:
    """A solver that runs Python in pydantic-monty's interpreter: no files, no network, no packages.

    The value is what the program printed; else the value of its last line, of `solution()`, or of
    `answer`. Its random numbers and its clock are the same in every run.

    Raises:
        InputError: pydantic-monty is not installed.
    """
    needs("pydantic_monty", "pydantic-monty")

    async def solve(source: str) -> Result:
        if complaint := too_long(source):
            return complaint
        async with slots():
            return await _run(source, seconds)

    return solve


async def _run(source: str, seconds: float) -> Result:
    from datetime import UTC, datetime

    from pydantic_monty import AsyncMonty, CollectString, MontyError

    shown = CollectString(MAX_VALUE)
    try:
        async with (
            AsyncMonty(max_processes=1, request_timeout=seconds + 5) as pool,
            pool.checkout(
                limits={
                    "max_feed_duration_secs": seconds,
                    "max_memory": MEMORY,
                    "max_recursion_depth": DEPTH,
                    "max_suspensions": 100,
                },
                os_policy={
                    "datetime": datetime(2000, 1, 1, tzinfo=UTC),
                    "sleep": "zero",
                    "random_start": {"seed": 0},
                },
            ) as session,
        ):
            value = await session.feed_run(source, print_callback=shown)
            for name, there in _LEFT:
                if value is None and not shown.output.strip() and there.search(source):
                    value = await session.feed_run(name, print_callback=shown)
            text = shown.output
            return outcome(text if text.strip() or value is None else str(value))
    except MontyError as error:
        return failure(_told(error))
    except (ValueError, RecursionError) as error:  # a value that is no text, such as a huge number
        return failure(str(error))


def _told(error: Exception) -> str:
    """A complaint with the line that it is about."""
    frames: list[Any] = getattr(error, "traceback", list)()
    line = f"line {frames[-1].line}: " if frames else ""
    if "memory limit exceeded" in str(error) and f"{MAX_VALUE} bytes" in str(error):
        return f"it printed more than {MAX_VALUE} characters"
    return f"{line}{error}"

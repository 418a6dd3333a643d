"""Solvers in processes of their own, since nothing else can be stopped for sure.

The libraries behind them were not made for hostile input: they may take for ever, take all memory,
or crash. A process has limits that hold, and dies alone.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anabranch.tools.results import Result, Solver, failure, outcome, too_long

MEMORY = 1 << 30
"""Most memory of one process, in bytes, where the system can limit it."""

_SLOTS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


def slots() -> asyncio.Semaphore:
    """Held while a process runs, so that there are never more of them than cores."""
    return _SLOTS.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(os.cpu_count() or 1))


def isolated(work: Callable[[str], str], seconds: float) -> Solver:
    """A solver that calls a module's function in a process of its own.

    Args:
        work: from a source to its outcome; raises ValueError, with what to tell the model.
        seconds: of processor time.
    """

    async def solve(source: str) -> Result:
        if complaint := too_long(source):
            return complaint
        async with slots():
            return await _call(f"{work.__module__}:{work.__name__}", source, seconds)

    return solve


async def _call(name: str, source: str, seconds: float) -> Result:
    package = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", __name__, name, str(seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path[1:]])},
    )
    try:
        # Processor time is limited inside; a process that waits is ended by the clock.
        asked = process.communicate(source.encode("utf-8", "replace"))
        answered, _ = await asyncio.wait_for(asked, 30 + 10 * seconds)
    except TimeoutError:
        return failure(f"it took longer than {seconds:g} seconds")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        value, error = json.loads(answered)
    except ValueError:
        if process.returncode and process.returncode > 0:  # not by a signal: it never began
            return failure("the solver's process could not be started")
        return failure(f"it took longer than {seconds:g} seconds, or too much memory")
    return outcome(value) if value is not None else failure(error)


def limit_memory() -> None:
    """Let this process have no more than `MEMORY`, where the system can see to that."""
    try:
        import resource
    except ImportError:
        return
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit(seconds: float) -> None:
    limit_memory()
    try:
        import resource
    except ImportError:  # no such limits on this system: the clock remains
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    whole = math.ceil(used.ru_utime + used.ru_stime + seconds)
    with suppress(ValueError, OSError):  # not to be had here
        resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))


def main(name: str, seconds: str) -> None:
    """In the process: read the source, do the work, write value and error."""
    module, _, function = name.partition(":")
    work: Callable[[str], str] = getattr(importlib.import_module(module), function)
    source = sys.stdin.buffer.read().decode()
    _limit(float(seconds))
    value, error = None, ""
    try:
        value = work(source)
    except ValueError as complaint:
        error = str(complaint)
    except (MemoryError, RecursionError):
        error = "it took too much memory"
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    sys.stdout.write(json.dumps([value, error]))


if __name__ == "__main__":
    main(*sys.argv[1:])

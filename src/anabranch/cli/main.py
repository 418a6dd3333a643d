"""The entry point. Importing a module of commands adds its commands."""

from __future__ import annotations

import os
import sys

from anabranch.cli import (  # noqa: F401
    bench,
    chat,
    doctor,
    judges,
    models,
    report,
    serve,
    solve,
    strategies,
    tasks,
    trace,
)
from anabranch.cli.app import app


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app(prog_name="anabranch")
    finally:
        _flush()


def _flush() -> None:
    """Write what is left; if the reader has gone (`| head`), keep Python from saying so at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

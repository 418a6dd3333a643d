"""The entry point: imports what the command that was typed needs, and runs it."""

from __future__ import annotations

import importlib
import os
import sys

from anabranch.cli.app import app

QUICK = ("chat", "serve", "solve")
"""Commands that people wait for, each in a module of its name: the others' imports take them a
quarter of a second."""


def main() -> None:
    """Run the command line and exit with its code."""
    typed = sys.argv[1] if len(sys.argv) > 1 else ""
    importlib.import_module(f"anabranch.cli.{typed if typed in QUICK else 'main'}")
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

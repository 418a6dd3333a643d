"""Every command. Importing a module of commands adds its commands."""

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

__all__ = ["app"]

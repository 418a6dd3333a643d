"""The `anabranch` command: its frame, its errors, its exit codes.

A command is a function decorated with `@app.command()` in a module of its own, which `main.py`
imports.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anabranch import __version__
from anabranch.errors import AnabranchError

_EXIT_CODES = (
    "Exit codes: 0 success, 1 a check failed or a bug, 2 bad input, 3 the model or its files, "
    "4 out of memory or disk, 130 interrupted."
)


class _Commands(TyperGroup):
    """Turns the errors that we raise on purpose into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Any other exception is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except AnabranchError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    name="anabranch",
    help="Think in branches: an inference engine for open-weight models on your own machine.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"anabranch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    files: Annotated[
        list[Path],
        typer.Option(
            "--with", metavar="FILE", help="Python file with methods, judges or tasks of your own."
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    for file in files:
        # Imported late: listing commands needs no registry.
        from anabranch.program.registry import load_file

        load_file(file)

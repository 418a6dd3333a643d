"""What commands print with: rich in a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from anabranch.models.download import Progress, format_bytes


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose last column folds to fit the terminal; in a pipe, lines that never wrap."""
    console = Console()
    if console.is_terminal:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column != columns[-1])
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A callback for `progress=` of `pull` and `load` that shows itself on stderr while called.

    A bar in a terminal, gone when done; one line per phase in a pipe.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _phase_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        yield _moving_bar(bar)


@contextmanager
def show_count(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A callback told of (done, total) that shows itself on stderr unless `quiet`.

    A bar with the time left in a terminal, gone when done; a line for every tenth in a pipe.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield (lambda done, total: None) if quiet else _tenth_lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tenth_lines(what: str) -> Callable[[int, int], None]:
    told = 0

    def report(done: int, total: int) -> None:
        nonlocal told
        if (tenth := 10 * done // total) > told:
            told = tenth
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return report


def _phase_lines() -> Progress:
    shown: list[str] = []

    def report(done: int, total: int, phase: str) -> None:
        if shown[-1:] != [phase]:
            shown[:] = [phase]
            print(phase, file=sys.stderr, flush=True)

    return report


def _moving_bar(bar: Bar) -> Progress:
    def report(done: int, total: int, phase: str) -> None:
        if phase == "loading":  # counts parameters, everything else bytes
            figures = f"{done / max(total, 1):.0%}"
        else:
            figures = f"{format_bytes(done)} of {format_bytes(total)}"
        if not bar.tasks:
            bar.add_task(phase, completed=done, total=total, figures=figures)
        shown = bar.tasks[0].id
        bar.update(shown, completed=done, total=total, description=phase, figures=figures)

    return report

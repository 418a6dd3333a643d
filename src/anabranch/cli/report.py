"""`anabranch report`: what records of the bench show, as a page, as figures and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from anabranch.bench.analyses import analyse, findings
from anabranch.bench.attempts import Attempt, Attempts, on_task
from anabranch.bench.records import Records, merged
from anabranch.bench.report import write_report
from anabranch.bench.tables import written
from anabranch.cli.app import app
from anabranch.cli.draw import clean
from anabranch.cli.terminal import print_json, print_table
from anabranch.errors import InputError
from anabranch.tasks.registry import parse as parse_task


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORDS...",
            help="Written by `anabranch bench`. Several are takes of the same runs: it is told "
            "whether those came out the same.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.html and figures.")
    ] = Path("report"),
    task: Annotated[str | None, typer.Option("--task", "-t", help="Of this task alone.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all tables as JSON, and write no files.")
    ] = False,
) -> None:
    """Write a page of tables, curves and every answer from records of the bench."""
    found, told = _read(files)
    if task is not None:
        found = on_task(found, str(parse_task(task)))
    attempts = Attempts(found)
    if as_json:
        tables = {table.key: table.as_json() for table in analyse(attempts)}
        print_json({"findings": findings(attempts), "tables": tables})
        return
    made = write_report(found, out, provenance=told)
    first = analyse(attempts)[0]
    columns = [*first.columns[1:-1], first.columns[0]]
    print_table(
        [column.name for column in columns],
        [
            [clean(written(cell, c.kind)) for cell, c in zip(cells, columns, strict=True)]
            for row in first.rows
            if (cells := [*row[1:-1], row[0]])
        ],
    )
    for line in findings(attempts):
        print(clean(line))
    for path in made:
        print(path)


def _read(files: Sequence[Path]) -> tuple[list[Attempt], dict[str, str]]:
    """Attempts of all files, each file a take, and where and how they were made."""
    attempts: list[Attempt] = []
    told: dict[str, str] = {}
    several = len(files) > 1
    for file in files:
        with Records(file) as records:
            own = records.attempts()
            sessions = records.sessions()
        if not own:
            raise InputError("these records are empty", got=str(file), fix="run the bench first")
        attempts += [replace(attempt, take=str(file) if several else "") for attempt in own]
        for key, value in merged(sessions).items():
            told[f"{file.name}: {key}" if several else key] = value
    return attempts, told

"""`anabranch strategies` and `anabranch judges`: ways to think, and what rates thoughts."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.console import Console

from anabranch.cli.app import app
from anabranch.cli.terminal import print_json, print_table
from anabranch.errors import unknown_name
from anabranch.program.registry import Entry
from anabranch.reason.registry import strategies as all_strategies
from anabranch.verify.registry import judges as all_judges

Name = Annotated[str, typer.Argument(metavar="[NAME]", help="Tell everything about one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TOLD = {"cost": "Costs", "use": "Use it", "difficulty": "Difficulty", "counts": "It counts"}
"""What kinds may say of their entries besides, and how it is introduced."""


@app.command()
def strategies(name: Name = "", as_json: AsJson = False) -> None:
    """List what `solve --strategy` takes, or say what one does and takes."""
    _show("strategy", all_strategies(), name, as_json)


@app.command()
def judges(name: Name = "", as_json: AsJson = False) -> None:
    """List what strategies let thoughts be rated by: `beam(judge=likelihood)`."""
    _show("judge", all_judges(), name, as_json)


def _show(kind: str, entries: list[Entry], name: str, as_json: bool) -> None:
    known = {entry.name: entry for entry in entries}
    if name and name not in known:
        raise unknown_name(kind, name, known)
    if as_json:
        told = [entry.describe() for entry in entries]
        print_json(told if not name else known[name].describe())
    elif name:
        tell_entry(known[name])
    else:
        list_entries(entries)


def list_entries(entries: list[Entry]) -> None:
    """A line each for programs; for people, what it does with cost and paper below."""
    more = [field for field in ("cost",) if field in entries[0].extra]
    rows = [(e.name, e.summary, *(e.extra[field] for field in more), e.paper) for e in entries]
    if Console().is_terminal:
        print_table(("name", "what it does"), [(name, "\n".join(told)) for name, *told in rows])
    else:
        print_table(("name", "what it does", *more, "paper"), rows)


def tell_entry(entry: Entry) -> None:
    print(f"{entry.name}: {entry.summary}\n\n{inspect.getdoc(entry.make) or ''}\n")
    print(f"Paper: {entry.paper}")
    for field, title in TOLD.items():
        if entry.extra.get(field):
            print(f"{title}: {entry.extra[field]}")
    print()
    rows = [(p.name, f"{p.default}", p.allowed) for p in entry.parameters.values()]
    print_table(("parameter", "default", "allowed"), rows)

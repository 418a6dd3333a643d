"""`anabranch pull` and `anabranch models`: get models, and see which are here."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from anabranch.cli.app import app
from anabranch.cli.terminal import print_json, print_table, show_progress
from anabranch.errors import FileFormatError
from anabranch.models import registry
from anabranch.models.download import format_bytes

_NAMES = ", ".join(model.name for model in registry.known())


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {_NAMES}.")],
    offline: Annotated[
        bool, typer.Option("--offline", help="Only look whether it is here.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read a file already here and replace it if damaged.")
    ] = False,
) -> None:
    """Download a model, checked to the byte, and print its path."""
    started, here = time.monotonic(), registry.locate(name)
    with show_progress() as progress:
        path = registry.pull(name, progress=progress, offline=offline, check=verify)
    if path != here:
        size, seconds = registry.find(name).artifact.size, time.monotonic() - started
        print(f"{name}: {format_bytes(size)} in {seconds:.1f} s", file=sys.stderr)
    print(path)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the files that are here.")] = False,
) -> None:
    """List the models known by name and where they lie."""
    listing = [_look(model, verify) for model in registry.known()]
    if as_json:
        print_json([entry.as_json() for entry in listing])
    else:
        print_table(
            ("name", "size", "licence", "here", "what it is / where it lies"),
            [entry.row() for entry in listing],
        )
    for entry in listing:
        if entry.path and entry.sound is False:
            raise FileFormatError(
                entry.path,
                "its sha256 is not the pinned one",
                fix=f"run `anabranch pull {entry.model.name} --verify` to replace it",
            )


@dataclass(frozen=True)
class _Entry:
    """A known model and its state here; `sound` is None unless it was hashed."""

    model: registry.KnownModel
    path: Path | None
    sound: bool | None

    def row(self) -> tuple[str, ...]:
        here = (
            "no"
            if self.path is None
            else {None: "yes", True: "sound", False: "damaged"}[self.sound]
        )
        what = str(self.path or self.model.title)
        size = format_bytes(self.model.artifact.size)
        return self.model.name, size, self.model.license, here, what

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.model.name,
            "title": self.model.title,
            "license": self.model.license,
            "size_bytes": self.model.artifact.size,
            "sha256": self.model.artifact.sha256,
            "here": self.path is not None,
            "path": None if self.path is None else str(self.path),
            "sound": self.sound,
        }


def _look(model: registry.KnownModel, verify: bool) -> _Entry:
    path = registry.locate(model.name)
    sound = registry.verify(model.name) if verify and path else None
    return _Entry(model, path, sound)

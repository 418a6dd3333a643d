"""`anabranch trace`: draw the tree that `solve --trace` saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from anabranch.cli.app import app
from anabranch.cli.draw import clean, draw_tree, plain_console
from anabranch.cli.terminal import print_json
from anabranch.program.trace import TracedBranch, TraceTree, read_trace


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `solve --trace`.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the tree as a JSON object.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Draw every branch with its text.")] = False,
) -> None:
    """Draw a saved tree."""
    tree = read_trace(file)
    if as_json:
        print_json(_as_json(tree))
        return
    console, header = plain_console(), tree.header
    console.print(Text(clean(f"{header['model']}  {header['strategy']}  seed {header['seed']}")))
    console.print(draw_tree(tree, full=full))
    if tree.answer is not None:
        answer = Text(f"answer: {clean(tree.answer)}", style="bold")
        console.print(answer.append(f"  confidence {tree.confidence:.2f}", "not bold"))
    for note in tree.notes:
        console.print(Text(f"note: {clean(note)}"))


def _as_json(tree: TraceTree) -> dict[str, object]:
    return {
        "header": tree.header,
        "answer": tree.answer,
        "confidence": tree.confidence,
        "notes": tree.notes,
        "branches": [_branch_as_json(branch) for branch in tree.branches.values()],
    }


def _branch_as_json(branch: TracedBranch) -> dict[str, object]:
    return {
        "id": branch.id,
        "parent": branch.parent,
        "start": branch.start,
        "end": branch.end,
        "sampled_tokens": branch.sampled_tokens,
        "forced_tokens": branch.forced_tokens,
        "logp": _finite(branch.logp),
        "scores": [[option, _finite(score)] for option, score in branch.scores],
        "joined": branch.joined,
        "answer": branch.answer,
        "kept": branch.kept,
        "dropped": branch.dropped,
        "text": branch.text,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""`anabranch tasks`: what there is to be measured by."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anabranch.cli.app import app
from anabranch.cli.strategies import AsJson, list_entries, tell_entry
from anabranch.cli.terminal import print_json
from anabranch.errors import AnabranchError
from anabranch.tasks.registry import Posed, parse, problems
from anabranch.tasks.registry import tasks as all_tasks

SAMPLES = 2

Task = Annotated[
    str,
    typer.Argument(metavar="[TASK]", help="Tell everything about one: hanoi, or 'hanoi(disks=4)'."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the sample problems.")]


@app.command()
def tasks(task: Task = "", seed: Seed = 0, as_json: AsJson = False) -> None:
    """List tasks, or say what one takes and show two of its problems."""
    if not task:
        if as_json:
            print_json([entry.describe() for entry in all_tasks()])
        else:
            list_entries(all_tasks())
        return
    named = parse(task)
    samples, why = _samples(task, seed)
    if why is not None and task.strip() != named.entry.name:
        raise why  # some tasks cannot do without parameters
    if as_json:
        print_json({**named.entry.describe(), "samples": [_shown(posed) for posed in samples]})
        return
    tell_entry(named.entry)
    if why is not None:
        print(f"\nNo problems to show: {why}")
    for i, posed in enumerate(samples, 1):
        shown = _shown(posed)
        print(f"\nProblem {i}:\n{shown['problem']}")
        print("Answer: " + (shown["answer"] or "(checked by a program)"))


def _samples(task: str, seed: int) -> tuple[list[Posed], AnabranchError | None]:
    """Some problems, or why there are none."""
    try:
        return problems(task, SAMPLES, seed), None
    except AnabranchError as error:
        return [], error


def _shown(posed: Posed) -> dict[str, Any]:
    context, text = posed.problem.context, posed.problem.text
    return {
        "problem": f"{context}\n\n{text}" if context else text,
        "choices": list(posed.problem.choices),
        "answer": posed.answer,
        "steps": list(posed.steps),
        "habit": posed.habit,
    }

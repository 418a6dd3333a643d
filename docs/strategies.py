"""Writes strategies.md and tasks.md from what is registered: `python docs/strategies.py`.

With records of the bench (`anabranch bench docs/measured.toml -o measured.db`), what was measured
is taken from them first, and kept in measured.json: `python docs/strategies.py measured.db`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from anabranch.bench.attempts import brief
from anabranch.bench.records import Records
from anabranch.bench.summary import Line, lines
from anabranch.cli.strategies import TOLD
from anabranch.program.registry import Entry
from anabranch.reason.registry import strategies
from anabranch.tasks.registry import parse, tasks
from anabranch.verify.registry import judges

HEAD = """# Strategies and judges

What `anabranch solve --strategy` takes, and what thoughts are rated by. Parameters nest:
`beam(width=2, judge=likelihood * likelihood)`. `anabranch strategies NAME` prints one of these
entries. This page is written by `python docs/strategies.py`.

Measured is accuracy with its 95% interval at the tokens that a budget is charged for a problem, by
`anabranch bench docs/measured.toml`. Intervals of a dozen problems are wide: they tell what is far
apart, no more.
"""


MEASURED = Path(__file__).with_name("measured.json")
BASE = "single"

HEAD_OF_TASKS = """# Tasks

What strategies are measured by. A problem depends on the task, its parameters, a seed and its place
alone; `anabranch tasks NAME` prints one of these entries with two problems. Where a task has a
difficulty, that parameter makes its problems harder as it grows. This page is written by
`python docs/strategies.py`.
"""


def section(entry: Entry, measured: dict[str, str]) -> str:
    """One entry: what it does, where it comes from, what it takes, what it came to."""
    told = entry.describe()
    rows = [f"| `{p['name']}` | `{p['default']}` | {p['allowed']} |" for p in told["parameters"]]
    table = ["| parameter | default | allowed |", "|---|---|---|", *rows, ""] if rows else []
    parts = [f"### `{told['name']}`", "", told["summary"], "", told["about"], ""]
    parts += [f"- {title}: {told[field]}" for field, title in TOLD.items() if field in told]
    if entry.name in measured:
        parts += [f"- Measured: {measured[entry.name]}"]
    parts += [""] * any(field in told for field in TOLD)
    return "\n".join([*parts, f"*{told['paper']}*", "", *table])


def page() -> str:
    """The whole page."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    parts = [HEAD, "## Strategies\n", *(section(entry, measured) for entry in strategies())]
    return "\n".join([*parts, "## Judges\n", *(section(entry, {}) for entry in judges())])


def page_of_tasks() -> str:
    """The page of tasks."""
    return "\n".join([HEAD_OF_TASKS, *(section(entry, {}) for entry in tasks())])


def measure(path: str) -> dict[str, str]:
    """What records say of each strategy, next to the base on the same problems.

    Of several tasks, the first on which it was tried.
    """
    with Records(path) as records:
        attempts = records.attempts()
    found: dict[str, str] = {}
    for task in dict.fromkeys(attempt.task for attempt in attempts):
        own: list[Any] = lines(attempts, task=task)
        base = next(line for line in own if _name(line) == BASE)
        for line in own:
            where = f"of {line.problems} problems of `{brief(task, parse)}`, {_model(line)}"
            against = "" if line is base else f"; `{BASE}` {_figures(base)}"
            found.setdefault(_name(line), f"{_figures(line)}{against}; {where}.")
    return found


def _figures(line: Line) -> str:
    share, low, high = (100 * value for value in line.accuracy)
    return f"{share:.0f}% ({low:.0f} to {high:.0f}) at {line.charged:.0f} tokens"


def _name(line: Line) -> str:
    return line.strategy.partition("(")[0]


def _model(line: Line) -> str:
    return Path(line.model.partition("(")[0]).stem if "/" in line.model else line.model


if __name__ == "__main__":
    if len(sys.argv) > 1:
        facts = json.dumps(dict(sorted(measure(sys.argv[1]).items())), indent=1)
        MEASURED.write_text(f"{facts}\n", encoding="utf-8")
    for name, text in (("strategies", page()), ("tasks", page_of_tasks())):
        Path(__file__).with_name(f"{name}.md").write_text(text, encoding="utf-8")

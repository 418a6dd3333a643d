"""Writes strategies.md and tasks.md from what is registered: `python docs/strategies.py`."""

from __future__ import annotations

from pathlib import Path

from anabranch.cli.strategies import TOLD, describe
from anabranch.program.registry import Entry
from anabranch.reason.registry import strategies
from anabranch.tasks.registry import tasks
from anabranch.verify.registry import judges

HEAD = """# Strategies and judges

What `anabranch solve --strategy` takes, and what thoughts are rated by. Parameters nest:
`beam(width=2, judge=likelihood * likelihood)`. `anabranch strategies NAME` prints one of these
entries. This page is written by `python docs/strategies.py`.
"""


HEAD_OF_TASKS = """# Tasks

What strategies are measured by. A problem depends on the task, its parameters, a seed and its place
alone; `anabranch tasks NAME` prints one of these entries with two problems. Where a task has a
difficulty, that parameter makes its problems harder as it grows. This page is written by
`python docs/strategies.py`.
"""


def section(entry: Entry) -> str:
    """One entry: what it does, where it comes from, what it takes."""
    told = describe(entry)
    rows = [f"| `{p['name']}` | `{p['default']}` | {p['allowed']} |" for p in told["parameters"]]
    table = ["| parameter | default | allowed |", "|---|---|---|", *rows, ""] if rows else []
    parts = [f"### `{told['name']}`", "", told["summary"], "", told["about"], ""]
    parts += [f"- {title}: {told[field]}" for field, title in TOLD.items() if field in told]
    parts += [""] * any(field in told for field in TOLD)
    return "\n".join([*parts, f"*{told['paper']}*", "", *table])


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Strategies\n", *map(section, strategies())]
    return "\n".join([*parts, "## Judges\n", *map(section, judges())])


def page_of_tasks() -> str:
    """The page of tasks."""
    return "\n".join([HEAD_OF_TASKS, *map(section, tasks())])


if __name__ == "__main__":
    for name, text in (("strategies", page()), ("tasks", page_of_tasks())):
        Path(__file__).with_name(f"{name}.md").write_text(text, encoding="utf-8")

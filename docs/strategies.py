"""Writes strategies.md from what is registered: `python docs/strategies.py`."""

from __future__ import annotations

from pathlib import Path

from anabranch.cli.strategies import TOLD, describe
from anabranch.program.registry import Entry
from anabranch.reason.registry import strategies
from anabranch.verify.registry import judges

HEAD = """# Strategies and judges

What `anabranch solve --strategy` takes, and what thoughts are rated by. Parameters nest:
`beam(width=2, judge=likelihood * likelihood)`. `anabranch strategies NAME` prints one of these
entries. This page is written by `python docs/strategies.py`.
"""


def section(entry: Entry) -> str:
    """One entry: what it does, where it comes from, what it takes."""
    told = describe(entry)
    rows = [f"| `{p['name']}` | `{p['default']}` | {p['allowed']} |" for p in told["parameters"]]
    table = ["| parameter | default | allowed |", "|---|---|---|", *rows, ""] if rows else []
    parts = [f"### `{told['name']}`", "", told["summary"], "", told["about"], ""]
    parts += [f"- {title}: {told[field]}" for field, title in TOLD.items() if field in told]
    parts += [""] * ("cost" in told)
    return "\n".join([*parts, f"*{told['paper']}*", "", *table])


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Strategies\n", *map(section, strategies())]
    return "\n".join([*parts, "## Judges\n", *map(section, judges())])


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")

"""`anabranch strategies`, `anabranch judges` and `anabranch tasks`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.reason.registry import strategies
from anabranch.tasks.registry import tasks
from anabranch.verify.registry import judges

KINDS = [("strategies", strategies()), ("judges", judges()), ("tasks", tasks())]


@pytest.mark.parametrize(
    ("command", "entries"), KINDS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_everything_registered_is_listed_and_told(command: str, entries: list) -> None:  # type: ignore[type-arg]
    listed = CliRunner().invoke(app, [command]).stdout
    told = json.loads(CliRunner().invoke(app, [command, "--json"]).stdout)
    for entry, record in zip(entries, told, strict=True):
        assert f"{entry.name} " in listed
        assert entry.summary in listed
        assert record["name"] == entry.name
        assert [p["name"] for p in record["parameters"]] == list(entry.parameters)
        one = CliRunner().invoke(app, [command, entry.name])
        assert entry.paper in one.stdout
        assert one.exit_code == 0


@pytest.mark.parametrize(
    ("command", "near"), [("strategies", "beam"), ("judges", "product"), ("tasks", "words")]
)
def test_an_unknown_name_gets_the_nearest(command: str, near: str) -> None:
    result = CliRunner().invoke(app, [command, near + "s"])
    assert result.exit_code == 2
    assert f"did you mean {near}" in result.stderr


def test_a_task_shows_problems_with_answers() -> None:
    shown = CliRunner().invoke(app, ["tasks", "hanoi(disks=2)", "--seed", "3"]).stdout
    told = json.loads(
        CliRunner().invoke(app, ["tasks", "hanoi(disks=2)", "--seed=3", "--json"]).stdout
    )
    assert told["difficulty"] == "disks"
    assert len(told["samples"]) == 2
    for sample in told["samples"]:
        assert "2 disks" in sample["problem"]
        assert sample["problem"] in shown
        assert f"Answer: {sample['answer']}\n" in shown
    assert "needs its path" in CliRunner().invoke(app, ["tasks", "file"]).stdout
    missing = CliRunner().invoke(app, ["tasks", "file(path='nowhere')"])
    assert missing.exit_code == 2
    assert "cannot be read" in missing.stderr

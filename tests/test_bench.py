"""The bench: grids that are checked, problems that are kept once, figures that can be trusted."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anabranch.bench.attempts import Attempt
from anabranch.bench.grid import Grid, build_grid, read_grid
from anabranch.bench.intervals import share
from anabranch.bench.models import load_model
from anabranch.bench.recommend import recommend, try_halves
from anabranch.bench.records import Records, Row
from anabranch.bench.runner import Bench
from anabranch.bench.scripted import scripted_engine
from anabranch.bench.summary import lines
from anabranch.cli.main import app
from anabranch.errors import (
    AnabranchError,
    FileFormatError,
    InputError,
    ResourceError,
    UnsupportedError,
)
from anabranch.lm import LM
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.registry import parse, strategy
from anabranch.tasks.registry import problems

SMALL = {
    "models": ["simulated"],
    "strategies": ["single", "vote(n=8)"],
    "tasks": ["copy(digits=4)"],
    "problems": 6,
}


def grid(**values: Any) -> Grid:
    return build_grid({**SMALL, **values}, lambda key, value: f"here, {key}")


def run(path: Path, wanted: Grid, **options: Any) -> Bench:
    with Records(path, create=True) as records:
        bench = Bench(wanted, records, **options)
        bench.run()
    return bench


def rows(path: Path) -> dict[tuple[str, str, int, int], Row]:
    """Everything kept, but for times and what depends on how problems share passes."""
    found = {}
    with Records(path) as records:
        for condition in records.conditions():
            for row in records.rows(condition):
                usage = replace(row.usage, seconds=0.0, passes=0)
                row = replace(row, usage=usage, pass_seconds=0.0)
                settings = condition.settings
                found[settings.task, settings.strategy, row.problem, row.seed] = row
    return found


# ---- the grid ------------------------------------------------------------------------------------


def test_blocks_inherit_what_they_do_not_say(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'models = ["simulated"]\ntasks = ["copy"]\nproblems = 9\n'
        '[[grid]]\nstrategies = ["single"]\nbudgets = [100, "unlimited"]\n'
        '[[grid]]\nstrategies = ["vote(n=4)", "single"]\nproblems = 3\nseeds = [1]\n'
    )
    cells = {(c.strategy.partition("(")[0], c.budget): c for c in read_grid(path).cells}
    assert set(cells) == {("single", 100), ("single", None), ("vote", None)}
    assert (cells["vote", None].problems, cells["vote", None].seeds) == (3, (1,))
    assert (cells["single", None].problems, cells["single", None].seeds) == (9, (0, 1))
    assert read_grid(path, {"problems": 2}).attempts == 2 + 4 + 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = [\n'simulated'\nx", "no TOML.*line 3"),
        ("models = ['simulated']\n\nstrategies = ['vot']", "line 3: unknown strategy.*mean vote"),
        ("strategies = ['vote(m=2)']", "line 1: unknown parameter of vote"),
        ("tasks = ['copy', 'arithmetics']", "line 1: unknown task.*did you mean arithmetic"),
        ("tasks = ['copy(digits=99)']", "line 1: digits is out of range"),
        ("models = ['simulatd']", "line 1: unknown model.*did you mean simulated"),
        ("models = ['simulated(right=2)']", "line 1: right is out of range"),
        ("\nstrategys = ['vote']", "line 2: unknown key.*did you mean strategies"),
        ("budgets = [0]", "line 1: budgets is out of range"),
        ("budgets = ['all']", 'not a whole number.*"unlimited"'),
        ("problems = true", "line 1: problems is out of range"),
        ("problems = 1e3", "line 1: problems: not a whole number"),
        ("seeds = []", "line 1: seeds is no list"),
        ("seeds = [-1]", "line 1: seeds is out of range"),
        ("strategies = [3]", "line 1: not a text"),
        ("grid = 3", "grid is no block"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said_with_its_line(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.toml"
    rest = [f"{key} = {json.dumps(value)}" for key, value in SMALL.items() if key not in text]
    path.write_text("\n".join([text, *([] if "grid =" in text else rest)]))
    with pytest.raises(InputError, match=f"(?s){message}"):
        read_grid(path)


def test_the_ready_grids_and_the_documented_one_are_valid(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    ready = {path.stem: read_grid(path) for path in (root / "benchmarks").glob("*.toml")}
    assert ready.keys() >= {"grid", "noisy", "tiny", "vote"}
    assert len({cell.task for cell in ready["grid"].cells}) >= 8
    assert len({cell.strategy for cell in ready["grid"].cells}) >= 12
    example = re.search(r"```toml\n(.*?)```", (root / "docs" / "bench.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "example.toml").write_text(example[1])
    assert len(read_grid(tmp_path / "example.toml").cells) == 4


def test_a_grid_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("none.toml", "huge.toml", "bytes.toml", "."):
        with pytest.raises(InputError):
            read_grid(tmp_path / name)


# ---- running and keeping -------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_and_repeats_nothing(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.db", tmp_path / "parts.db"
    run(whole, grid(seeds=[0, 1]))
    run(parts, grid(problems=2), together=1)
    run(parts, grid(strategies=["single"], seeds=[1]), together=3)
    before = rows(parts)
    bench = run(parts, grid(seeds=[0, 1]))
    assert [column.done for column in bench.columns] == [12, 12]
    assert rows(parts) == rows(whole)
    assert before.items() <= rows(parts).items()
    with Records(parts) as records:
        assert len(records.sessions()) == 3
    run(parts, grid())  # nothing is left: no session
    with Records(parts) as records:
        assert len(records.sessions()) == 3


def test_costs_do_not_depend_on_what_else_is_in_the_grid(tmp_path: Path) -> None:
    run(tmp_path / "alone.db", grid(strategies=["best(n=8)"]))
    began = time.monotonic()
    bench = run(tmp_path / "all.db", grid(strategies=["vote(n=8)", "best(n=8)"]))
    wall = time.monotonic() - began
    alone, together = rows(tmp_path / "alone.db"), rows(tmp_path / "all.db")
    assert alone.items() <= together.items()
    shares = [column.seconds for column in bench.columns]
    assert 0.5 < shares[0] / shares[1] < 2
    assert 0.1 * wall < sum(shares) < wall  # no pass is counted twice


def test_all_that_is_needed_to_repeat_a_problem_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    run(path, grid(budgets=[200], seeds=[3]), traces=tmp_path / "traces")
    with Records(path) as records:
        condition = records.conditions()[1]
        row = list(records.rows(condition))[2]
        session = records.sessions()[0]
    settings = condition.settings
    assert {"commit", "python", "packages", "processor", "cores", "backend"} <= session.keys()
    with load_model(settings.model) as lm:
        assert lm.fingerprint == settings.fingerprint
        answer = lm.solve(
            Problem(row.question, kind="number"),
            settings.strategy,
            budget=settings.budget,
            seed=(row.seed << 32) + row.problem,
        )
    assert answer.answer == row.answer
    assert answer.usage.sampled_tokens == row.usage.sampled_tokens
    assert row.score == (row.answer == row.gold)
    assert len(row.samples) == 8
    assert all(sample.right == (sample.answer == row.gold) for sample in row.samples)
    assert Path(row.trace).read_text().count("\n") > 8


@pytest.fixture
def faulty(own_methods: None) -> Callable[[AnabranchError | Exception], None]:
    """Registers a strategy that fails on every third seed."""

    def register(error: Exception) -> None:
        @strategy("faulty", paper="none", summary="fails", cost="n", use="never", fold=majority)
        def faulty() -> Strategy:
            async def solve(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
                await asyncio.sleep(0)
                if root.run.seed % 3 == 1:
                    raise error
                single: Strategy = parse("single").make()
                return await single(problem, root, budget)

            return solve

    return register


def test_a_problem_that_fails_is_kept_with_its_error_and_counts_as_wrong(
    faulty: Callable[[Exception], None], tmp_path: Path
) -> None:
    faulty(ZeroDivisionError("by zero"))
    bench = run(tmp_path / "r.db", grid(strategies=["faulty", "single"]))
    kept = [row for key, row in rows(tmp_path / "r.db").items() if key[1] == "faulty()"]
    assert [row.error for row in kept if row.error] == ["ZeroDivisionError: by zero"] * 2
    assert [row.problem for row in kept if row.error] == [1, 4]
    assert all(row.score == 0 and row.usage.prompt_tokens > 0 for row in kept if row.error)
    assert [column.failed for column in bench.columns] == [2, 0]
    with Records(tmp_path / "r.db") as records:
        found = lines(records.attempts())
    assert [(line.problems, line.failed) for line in found] == [(6, 2), (6, 0)]


def test_a_condition_that_cannot_run_is_skipped_with_its_reason(
    faulty: Callable[[Exception], None], tmp_path: Path
) -> None:
    faulty(UnsupportedError("this model has no hidden states"))
    bench = run(tmp_path / "r.db", grid(strategies=["faulty", "single"]), together=1)
    assert [column.done for column in bench.columns] == [1, 6]
    with Records(tmp_path / "r.db") as records:
        assert ["hidden" in c.skipped for c in records.conditions()] == [True, False]
        records.skip(records.conditions()[1], "no reason any more")
    run(tmp_path / "r.db", grid(strategies=["faulty", "single"]))
    with Records(tmp_path / "r.db") as records:
        assert ["hidden" in c.skipped for c in records.conditions()] == [True, False]
        assert records.conditions()[1].skipped == ""
    assert not list(tmp_path.glob("*-claims"))


def test_what_finds_no_memory_is_put_off_not_blamed(
    faulty: Callable[[Exception], None], tmp_path: Path
) -> None:
    faulty(ResourceError("not enough memory"))
    with pytest.raises(ResourceError, match="memory"):
        run(tmp_path / "r.db", grid(strategies=["faulty", "single"]))
    assert len(rows(tmp_path / "r.db")) == 6 + 4


def test_records_of_other_problems_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    run(path, grid())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE attempts SET digest = 'x' WHERE problem = 3")
    with pytest.raises(InputError, match="another problem 3 of copy"):
        run(path, grid())


# ---- files that are not as they should be --------------------------------------------------------


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path, wanted = tmp_path / "r.db", grid(problems=60, strategies=["vote(n=8)"])
    with Records(path, create=True) as records:
        pages = records._db.execute("PRAGMA page_count").fetchone()[0]
        records._db.execute(f"PRAGMA max_page_count = {pages + 6}")
        with pytest.raises(ResourceError, match=r"full.*make room"):
            Bench(wanted, records, together=4).run()
    kept = rows(path)
    assert 0 < len(kept) < 60
    run(path, wanted)
    assert kept.items() <= rows(path).items()
    assert len(rows(path)) == 60


def test_a_damaged_file_is_told_from_a_foreign_one(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    run(path, grid())
    data = path.read_bytes()

    def opening(content: bytes) -> None:
        (tmp_path / "bad.db").write_bytes(content)
        with Records(tmp_path / "bad.db") as records:
            records.attempts()

    opening(data)
    for bad in (b"no database at all, but long enough" * 99, data[:5000], data[:100]):
        with pytest.raises(FileFormatError):
            opening(bad)
    scribbled = bytearray(data)
    scribbled[4096:] = bytes(b ^ 0x5A for b in data[4096:])
    with pytest.raises(FileFormatError, match="recover"):
        opening(bytes(scribbled))
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(FileFormatError, match="not of the bench"):
        Records(tmp_path / "other.db", create=True)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UnsupportedError, match="another version"):
        Records(path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM attempts").fetchone() == (12,)


def test_records_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such records"):
        Records(tmp_path / "none.db")
    for path in (tmp_path, tmp_path / "no" / "r.db"):
        with pytest.raises(InputError):
            Records(path, create=True)
    assert not list(tmp_path.iterdir())


# ---- what is made of them ------------------------------------------------------------------------


def test_a_recommendation_holds_on_problems_held_out(tmp_path: Path) -> None:
    """Chosen from one half, what is expected of it and what it has on the other half differ by no
    more than the 95% intervals of the two allow."""
    strategies = ["single", "vote(n=4)", "best(n=4)", "beam(width=2)"]
    path = tmp_path / "r.db"
    run(path, grid(strategies=strategies, tasks=["copy"], problems=60), together=60)
    with Records(path) as records:
        attempts = records.attempts()
    for budget, name in ((50, "single"), (120, "beam")):
        for trial in try_halves(attempts, "copy(digits=8)", budget):
            made, seen = trial.made, trial.seen
            assert made.strategy.startswith(name)
            assert made.problems == 30
            own = [a for a in attempts if a.strategy == made.strategy]
            halves = [share([a.right for a in own if a.problem % 2 == odd]) for odd in (0, 1)]
            assert seen in halves
            assert trial.holds == (made.expected.low <= seen.value <= made.expected.high)
            allowed = math.hypot(
                (made.expected.high - made.expected.low) / 2, (seen.high - seen.low) / 2
            )
            assert abs(made.expected.value - seen.value) < allowed < 0.25
            if name == "single":
                assert made.expected.low < 0.7**8 < made.expected.high
            assert made.tokens <= budget
            assert trial.tokens < 1.1 * budget
    known = [a for a in attempts if a.problem % 2 == 0]
    with pytest.raises(InputError, match=r"no condition.*4\d tokens or more"):
        recommend(known, "copy(digits=8)", 10)
    with pytest.raises(InputError, match="unknown task of these records"):
        recommend(known, "copy(digits=9)", 100)


def test_one_recommendation_for_all_tasks() -> None:
    """What is good on both tasks, not what is best on one; what was not tried on both is out."""
    rates = {"even": (0.6, 0.6), "onesided": (0.9, 0.1), "partial": (1.0, None)}
    attempts = [
        Attempt(task, problem, name, 0, problem < rate * 40, "")
        for name, both in rates.items()
        for task, rate in zip(("a", "b"), both, strict=True)
        if rate is not None
        for problem in range(40)
    ]
    found = recommend(attempts, None, 1000)
    assert (found.strategy, found.considered, found.problems) == ("even", 2, 80)
    assert found.expected.low < 0.6 < found.expected.high
    assert recommend(attempts, "a", 1000).strategy == "partial"
    with pytest.raises(InputError, match="every task"):
        recommend([a for a in attempts if (a.strategy == "even") == (a.task == "a")], None, 1000)


def test_the_winner_of_equals_is_not_overrated() -> None:
    """Of many conditions that are equally good, the best on these problems looks better than it is;
    what is expected of it is not what it had here."""
    rng = random.Random(0)
    equals = [
        Attempt("toy", problem, f"s{i}", 0, rng.random() < 0.5, "")
        for i in range(20)
        for problem in range(40)
    ]
    best = max(sum(a.right for a in equals if a.strategy == f"s{i}") / 40 for i in range(20))
    found = recommend(equals, "toy", 1000)
    assert best > 0.6
    assert found.expected.value < best - 0.05
    assert found.expected.low <= 0.5 <= found.expected.high


def anabranch_(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_line_measures_compares_and_recommends(tmp_path: Path) -> None:
    path = str(tmp_path / "r.db")
    flags = ["-m", "simulated", "-s", "single", "-s", "vote(n=16)", "-t", "copy(digits=4)"]
    told = anabranch_("bench", *flags, "--problems", "12", "-o", path, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    first, second = found["conditions"]
    assert first["gain"] is None
    assert second["gain"]["value"] == pytest.approx(
        second["accuracy"]["value"] - first["accuracy"]["value"]
    )
    assert second["sampled"] == 16 * 5
    assert second["charged"] > second["computed"] > second["sampled"] / 2
    assert first["cheapest"] == ["tokens", "time"]
    plain = anabranch_("bench", "run", *flags, "--problems", "12", "-o", path)
    assert "tokens, time" in plain.stdout
    assert "12 of 24" not in plain.output
    told = anabranch_("bench", "compare", "vote(n=16)", "single", "-r", path, "--json")
    last = json.loads(told.stdout)[-1]
    assert last["difference"]["value"] == pytest.approx(second["gain"]["value"])
    assert last["difference"]["above"] > 0.95
    told = anabranch_("bench", "compare", "vote(n=16)", "single", "-r", path)
    assert "A is better" in told.stdout
    told = anabranch_("bench", "compare", path, path)
    assert "not decided" in told.stdout
    better = str(tmp_path / "better.db")
    flags[1] = "simulated(right=0.95)"
    anabranch_("bench", *flags, "--problems", "12", "-o", better)
    told = anabranch_("bench", "compare", better, path, "--json")
    assert json.loads(told.stdout)[-1]["problems"] == 12
    assert json.loads(told.stdout)[-1]["difference"]["value"] > 0
    told = anabranch_("recommend", "-t", "copy(digits=4)", "-b", "200", "-r", path)
    assert told.stdout.startswith("vote(n=16)\nexpect ")
    told = anabranch_("recommend", "-b", "200", "-r", path, "--halves")
    assert "on all tasks" in told.stdout
    assert told.stdout.count("from half of them: vote(n=16), expect ") == 2
    told = anabranch_("recommend", "-b", "200", "-r", path, "--halves", "--json")
    trials = json.loads(told.stdout)["halves"]
    assert [trial["made"]["problems"] for trial in trials] == [6, 6]
    for wrong in (
        ["bench", "compare", "vote(n=3)", "single", "-r", path],
        ["bench", "compare", "single", "vote(n=16)", "-r", path, "-t", "copy(digits=5)"],
        ["bench", "run", "-o", path],
        ["recommend", "-t", "copy", "-b", "0", "-r", path],
    ):
        assert anabranch_(*wrong).exit_code == 2


def test_gains_are_told_over_what_each_strategy_has_tried(tmp_path: Path) -> None:
    """A grid whose strategies have their own tasks; `single` is fair on all of them."""
    path = tmp_path / "grid.toml"
    path.write_text(
        'models = ["simulated(right=0.9)"]\nproblems = 12\n'
        '[[grid]]\nstrategies = ["single", "vote(n=4)"]\ntasks = ["copy(digits=4)"]\n'
        '[[grid]]\nstrategies = ["single", "vote(n=16)"]\ntasks = ["copy(digits=5)"]\n'
    )
    told = anabranch_("bench", str(path), "-o", str(tmp_path / "r.db"), "--no-report")
    assert "note: over all tasks: the conditions were not tried on the same problems" in told.stdout
    assert re.search(r"^vote\(n=4\): \+.* over copy\(digits=4\)$", told.stdout, re.MULTILINE)
    assert re.search(r"^vote\(n=16\): \+.* over copy\(digits=5\)$", told.stdout, re.MULTILINE)
    told = anabranch_("bench", str(path), "-o", str(tmp_path / "r.db"), "--no-report", "--json")
    gains = json.loads(told.stdout)["gains"]
    assert [len(gain["tasks"]) for gain in gains] == [1, 1]
    assert json.loads(told.stdout)["conditions"] == []


def test_steps_are_counted_where_a_task_checks_them(tmp_path: Path) -> None:
    """A model that carries out the first two operations of four, and then errs."""
    posed = problems("procedures(steps=4)", 4)
    written = {p.problem.text: "\n".join((*p.steps[:2], "The answer is nothing.")) for p in posed}
    path = tmp_path / "r.db"
    wanted = grid(tasks=["procedures(steps=4)"], strategies=["single"], problems=4)

    def rule(prompt: str, reply: str) -> dict[str, float]:
        text = next(text for question, text in written.items() if question in prompt)
        return {text[len(reply) :]: 1.0}

    run(path, wanted, load=lambda text: LM(scripted_engine(rule), text, "scripted"))
    with Records(path) as records:
        (line,) = lines(records.attempts())
    assert line.accuracy.value == 0
    assert line.prefix is not None
    assert line.prefix.value == pytest.approx(0.5)

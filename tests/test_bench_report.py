"""Analyses of simulated runs, and the page: what it says, and that nothing in it can act."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anabranch.bench import plots, report
from anabranch.bench.analyses import analyse, findings, paired
from anabranch.bench.attempts import Attempt, Attempts, Sample, brief, series
from anabranch.bench.intervals import Difference, Estimate
from anabranch.bench.records import Records, Row, Settings
from anabranch.bench.report import write_report
from anabranch.bench.tables import Table, written
from anabranch.cli.main import app
from anabranch.errors import InputError, ResourceError
from anabranch.program.trace import Trace
from anabranch.program.types import Usage
from anabranch.reason.registry import parse
from anabranch.tasks.registry import parse as parse_task
from tests.attempts import STRATEGIES, TASKS, attempts


def tables(problems: int) -> dict[str, Table]:
    return {table.key: table for table in analyse(Attempts(attempts(problems)))}


def column(table: Table, name: str) -> dict[str, Any]:
    where = [c.name for c in table.columns].index(name)
    return {row[0]: row[where] for row in table.rows}


def tried(strategy: str, right: list[bool], tokens: int = 10, **fields: Any) -> list[Attempt]:
    return [
        Attempt(
            "t", i, strategy, 0, r, "1" if r else "0", usage=Usage(sampled_tokens=tokens), **fields
        )
        for i, r in enumerate(right)
    ]


# ---- analyses ------------------------------------------------------------------------------------


def test_the_table_of_conditions_in_numbers() -> None:
    runs = tried("a", [True, False, False, False], 10) + tried("b", [True, True, True, False], 40)
    runs += tried("c", [True, True, False, False], 50)
    found = analyse(Attempts(runs))[0]
    accuracy, gain = column(found, "accuracy"), column(found, "gain")
    assert [accuracy[name].value for name in "abc"] == [0.25, 0.75, 0.5]
    assert gain["a"] is None
    assert (gain["b"].value, gain["c"].value) == (0.5, 0.25)
    assert column(found, "tokens") == {"a": 10, "b": 40, "c": 50}
    assert column(found, "frontier") == {"a": "tokens", "b": "tokens and time", "c": ""}
    assert column(found, "problems") == dict.fromkeys("abc", 4)


def test_pairs_are_of_the_same_problem_and_seed() -> None:
    ours, base = tried("a", [True, True]), tried("b", [False, False, True])[1:]
    gap = paired(ours, base)
    assert gap is not None
    assert gap.value == 1  # problem 1 alone
    assert paired(ours, [replace(base[0], seed=5)]) is None


def test_every_analysis_speaks_of_runs_that_have_it_all_and_is_silent_otherwise() -> None:
    twice = attempts(8, 2) + attempts(8, 1, take="again", noise=1)
    full = [table.key for table in analyse(Attempts(twice))]
    assert full == [
        "conditions", "tasks", "coverage", "calibration", "retries", "complexity", "optimal",
        "voters", "lengths", "repeats",
    ]  # fmt: skip
    assert [table.key for table in analyse(Attempts(tried("a", [True])))] == ["conditions", "tasks"]


def test_what_the_simulation_put_in_comes_out() -> None:
    found = tables(24)
    limits = {row[0]: row for row in found["coverage"].rows}
    for worst, mean, majority, best in (row[2:6] for row in limits.values()):
        assert worst <= mean <= best
        assert worst <= majority <= best
    assert set(limits) == {brief(s, parse) for s, (count, _) in STRATEGIES.items() if count > 1}
    gap = column(found["coverage"], "gap")["vote(n=16)"]
    assert gap.low > 0.1
    # Harder levels of arithmetic are worse by construction, and length means nothing within one.
    for row in found["complexity"].rows:
        assert row[3].value > row[4].value
    assert min(column(found["lengths"], "p").values()) > 0.001
    ranking = column(found["voters"], "reliability")
    assert ranking["beam(width=8)"] > ranking["vote(n=4)"] > ranking["single"]
    for row in found["optimal"].rows:
        assert row[-1].high >= 0
        assert row[5] <= row[0] * 1.1  # held out: the budget holds on average, not always


def test_takes_are_compared_and_counted_once() -> None:
    first = tried("a", [True, True, False], text="abc", take="1 thread")
    second = [replace(run, take="2 threads") for run in first]
    second[1] = replace(second[1], text="abX", right=False)
    both = Attempts(first + second)
    assert len(both.all) == 3
    (row,) = next(table for table in analyse(both) if table.key == "repeats").rows
    assert row[1:] == (3, pytest.approx(2 / 3), 2, pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_findings_name_the_best_and_the_cheapest_that_may_be_as_good() -> None:
    half = [True, False] * 40
    runs = tried("weak", [False] * 80, 1) + tried("dear", half, 900) + tried("good", half, 100)
    runs[80] = replace(runs[80], right=False)
    told = findings(Attempts(runs))
    assert told[0].startswith("good is right most often: 50.0% (")
    assert told[1:] == ["These runs cannot tell it from dear."]
    clear = findings(Attempts(tried("a", [False] * 80) + tried("b", half)))
    assert clear[1] == "It is better than every other condition, beyond chance."
    runs = tried("dear", half, 900) + tried("cheap", half, 9)
    assert findings(Attempts(runs))[-1] == "The cheapest of them is cheap: 9 tokens."


def test_only_what_every_condition_tried_is_compared() -> None:
    runs = tried("a", [False, True]) + tried("b", [True, True, True])
    (told, *_), found = findings(Attempts(runs)), analyse(Attempts(runs))[0]
    assert told.startswith("b is right most often: 100.0% (")
    assert column(found, "problems") == {"a": 2, "b": 2}
    apart = Attempts(runs[:2] + [replace(run, task="u") for run in runs[2:]] * 8)
    found = analyse(apart)[0]
    assert findings(apart) == [
        "The conditions were tried on different problems: see them task by task."
    ]
    assert column(found, "problems") == {"a": 2, "b": 3}
    assert set(column(found, "frontier").values()) == {""}


def test_models_and_budgets_tell_conditions_apart() -> None:
    runs = tried("a", [True], budget="512 tokens", model="m")
    assert list(Attempts(runs).by_condition) == ["a · 512 tokens"]
    runs += tried("a", [True], budget="512 tokens", model="n")
    assert list(Attempts(runs).by_condition) == ["a · 512 tokens · m", "a · 512 tokens · n"]


def test_what_stands_at_its_default_is_left_out_where_nothing_is_lost() -> None:
    long = "vote(n=9, temperature=0.8, top_p=1.0, max_tokens=512)"
    runs = tried(long, [True]) + tried("no such strategy(x=1)", [True])
    assert list(Attempts(runs).by_condition) == ["vote(n=9)", "no such strategy(x=1)"]
    # As from a version that had fewer parameters.
    assert list(Attempts(runs + tried("vote(n=9)", [True])).by_condition) == [
        long, "no such strategy(x=1)", "vote(n=9)",
    ]  # fmt: skip


def test_cells_for_readers_and_for_programs() -> None:
    found = Estimate(0.5, 0.25, 0.75)
    assert written(found, "share") == "50.0% (25.0% to 75.0%)"
    assert written(Difference(-0.1, -0.2, 0.05, 0.1), "points") == "−10.0 (−20.0 to +5.0)"
    assert [written(v, "number") for v in (None, float("inf"), 1234.5)] == ["–", "∞", "1,234"]
    assert [written(v, "p") for v in (0.0001, 0.25)] == ["< 0.001", "0.250"]
    assert written("a-b", "text") == "a-b"


def test_tasks_that_differ_in_difficulty_alone_are_one_curve() -> None:
    runs = [run for n in (2, 4, 8) for run in tried("a", [n < 8] * 4, difficulty=float(n))]
    tasks = [f"arithmetic(digits={n})" for n in (2, 4, 8) for _ in range(4)]
    runs = [replace(run, task=task) for run, task in zip(runs, tasks, strict=True)]
    runs += [replace(run, task="own file", difficulty=None) for run in runs[:2]]
    found = next(table for table in analyse(Attempts(runs)) if table.key == "complexity")
    ((task, name, levels, easiest, hardest, collapse, _),) = found.rows
    assert (task, name, levels, easiest.value, hardest.value) == ("arithmetic", "a", 3, 1, 0)
    assert collapse == 6  # straight between 4, all right, and 8, none


def test_parameters_other_than_difficulty_keep_series_apart() -> None:
    assert series("needles(words=100, needles=2)") == series("needles(words=900, needles=2)")
    assert series("needles(words=100, needles=2)") != series("needles(words=100, needles=3)")
    assert series("no such task") == "no such task"


# ---- the command ---------------------------------------------------------------------------------


def kept(path: Path, right: Sequence[bool], text: str = "abc") -> Path:
    """Records of one condition."""
    settings = Settings("toy", "f", None, "single(temperature=0.0)", None, "copy(digits=4)", 0, "1")
    with Records(path, create=True) as records:
        condition, session = records.condition(settings), records.begin({"cores": 2, "system": "x"})
        for i, r in enumerate(right):
            answer = "1" if r else "0"
            row = Row(i, 0, "d", "q", "1", answer, text, float(r), usage=Usage(sampled_tokens=9))
            records.add(condition, session, row)
    return path


def test_the_command_writes_a_report_of_records(tmp_path: Path) -> None:
    file, out = kept(tmp_path / "a.db", [True, True, False]), tmp_path / "out"
    done = CliRunner().invoke(app, ["report", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "66.7% (" in done.stdout
    assert "single is right most often" in done.stdout
    assert str(out / "report.html") in done.stdout
    assert json.loads((out / "report.json").read_text())["provenance"]["cores"] == "2"
    done = CliRunner().invoke(app, ["report", str(file), "--json", "--task", "copy(digits=5)"])
    assert done.exit_code == 2
    assert "unknown task of these records" in done.output


def test_several_records_are_takes_of_the_same_runs(tmp_path: Path) -> None:
    files = [
        kept(tmp_path / "a.db", [True, True, False]),
        kept(tmp_path / "b.db", [True, False, False], "abX"),
    ]
    done = CliRunner().invoke(app, ["report", *map(str, files), "--json"])
    told = json.loads(done.stdout)["tables"]
    (row,) = told["repeats"]
    assert (row["runs"], row["identical"], row["parts at"]) == (3, 0, 2)
    assert row["flips"] == pytest.approx(1 / 3)
    assert told["conditions"][0]["problems"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "b.db"]


def test_records_that_are_not_there_or_empty_are_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "absent.db", kept(tmp_path / "empty.db", [])):
        assert CliRunner().invoke(app, ["report", str(file)]).exit_code == 2


# ---- the page ------------------------------------------------------------------------------------

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202eevil\u0000\ud800 & \"'"
)


class Page(HTMLParser):
    """Tags, their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)


def page_of(folder: Path) -> tuple[str, Page, dict[str, Any]]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    return text, page, json.loads(page.scripts[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the simulation."""
    made = tmp_path_factory.mktemp("report")
    files = write_report(attempts(5), made, provenance={"version": "1"})
    assert [path.name for path in files] == [
        "report.html", "report.json", "frontier.png", "frontier.svg",
    ]  # fmt: skip
    return made


def test_hostile_output_is_shown_and_never_acts(tmp_path: Path) -> None:
    runs = attempts(5)
    bad = Sample(HOSTILE, False, HOSTILE, 0.5, 3)
    runs += [
        replace(
            run, strategy=HOSTILE, task=HOSTILE, model=HOSTILE, question=HOSTILE, gold=HOSTILE,
            answer=HOSTILE, text=HOSTILE * 2000, notes=(HOSTILE,), samples=(bad, bad),
            confidence=float("nan"), budget="$x$ \\frac",
        )
        for run in runs[:8]
    ]  # fmt: skip
    write_report(runs, tmp_path, title=HOSTILE, provenance={HOSTILE: HOSTILE})
    text, page, data = page_of(tmp_path)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any(tag in ("img", "iframe", "link", "object") for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "\u202e" not in text
    assert "\\u202e" not in text
    told = [run for problem in data["problems"] for run in problem["runs"]]
    assert any("<script>alert(1)" in run["answer"] for run in told)
    assert max(len(run["text"]) for run in told) < report.MAX_TEXT + 60


def test_the_page_needs_nothing_else_and_allows_no_other_script(folder: Path) -> None:
    text, page, _ = page_of(folder)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "content" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    # Addresses of any kind: only names of XML, and links within the page.
    assert set(re.findall(r"https?://[^\"\s]+", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert {f"#{name}" for name in ids} >= links
    assert "prefers-color-scheme: dark" in text


def test_figures_take_their_colours_from_the_page() -> None:
    figure = plots.coverages(Attempts(attempts(5)))
    assert figure is not None
    text = plots.inline(figure, "x", "Coverage")
    assert "var(--c0)" in text
    assert not set(re.findall("#[0-9a-f]{6}", text)) - {"#000000", "#ffffff"}
    style = (Path(report.__file__).parent / "report.css").read_text()
    dark = style.partition("dark) {")[2].partition("* {")[0]
    for name in set(re.findall(r"var\(--(\w+)\)", text)):
        assert f"--{name}:" in dark, name


def test_the_same_runs_make_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_report(attempts(5), tmp_path, provenance={"version": "1"})
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_json_has_what_the_tables_have(folder: Path) -> None:
    found = json.loads((folder / "report.json").read_text())
    assert found["provenance"] == {"version": "1"}
    assert set(found["tables"]) == set(tables(5))
    first = found["tables"]["conditions"][0]
    assert first["condition"] == "single"
    assert set(first["accuracy"]) == {"value", "low", "high"}
    names = {brief(task, parse_task) for task in TASKS}
    assert set(found["tables"]["tasks"][0]) == {"condition", *names}


def test_trees_are_drawn_and_broken_ones_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    with Trace(path) as trace:
        trace.note("open", branch="0", position=3, text="q", seed=0, group="")
        for i in range(report.MAX_BRANCHES + 5):
            trace.note("fork", branch=f"0.{i}", parent="0", position=3)
        last = f"0.{report.MAX_BRANCHES + 4}"
        trace.note("force", branch=last, start=3, end=5, text=HOSTILE, logp=-1.0)
        trace.note("answer", answer="1", confidence=1.0, kept=[last], notes=[])
    broken = tmp_path / "broken.jsonl"
    broken.write_text("nothing\n")
    runs = tried("a", [True, True, True])
    traces = [str(path), str(broken), str(tmp_path / "absent.jsonl")]
    runs = [replace(run, trace=trace) for run, trace in zip(runs, traces, strict=True)]
    write_report(runs, tmp_path)
    _, _, data = page_of(tmp_path)
    good, bad, absent = (problem["runs"][0]["tree"] for problem in data["problems"])
    assert good["left_out"] == 6
    assert good["branches"][0]["id"] == "0"
    assert good["branches"][-1]["kept"]
    assert "alert(1)" in good["branches"][-1]["text"]
    assert "broken.jsonl" in bad["fault"]
    assert "cannot be read" in absent["fault"]


def test_a_page_of_too_many_texts_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_DETAIL", 250)
    write_report(tried("a", [True] * 4, text="x" * 100), tmp_path)
    text, _, data = page_of(tmp_path)
    assert [len(problem["runs"][0]["text"]) for problem in data["problems"]] == [100, 100, 0, 0]
    assert "2 problems come without texts" in text


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no attempts"):
        write_report([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder"):
        write_report(tried("a", [True]), tmp_path / "file")
    (tmp_path / "report.html.part").mkdir()
    with pytest.raises(ResourceError, match="cannot be written"):
        write_report(tried("a", [True]), tmp_path)
    assert not (tmp_path / "report.html").exists()

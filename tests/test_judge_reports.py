"""Fitting judges and measuring them: exact where it can be, on scripted models and made-up data."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

import anabranch
from anabranch.cli import judges as commands  # noqa: F401 - registers the commands
from anabranch.cli import terminal
from anabranch.cli.app import app
from anabranch.errors import FileFormatError, InputError, ResourceError
from anabranch.lm import LM
from anabranch.program.branch import Branch
from anabranch.program.engine import Engine
from anabranch.program.run import Run
from anabranch.program.types import Problem, Thought
from anabranch.verify.records import Record, by_problem, read_records, replay
from anabranch.verify.registry import Judge, parse, rate
from anabranch.verify.report import auc, measure, report
from anabranch.verify.value import Head, fit, fit_to, load
from tests.engines import run as run_checked
from tests.scripted import ask, replies, scripted, scripted_lm


def root_of(engine: Any) -> Any:
    def root(problem: Problem, run: Run) -> Branch:
        return ask(engine, problem.text, run)

    return root


def made(text: str) -> Judge:
    judge: Judge = parse(text).make()
    return judge


# ---- area under the curve ------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_the_area_is_the_share_of_pairs_won(pairs: list[tuple[int, bool]]) -> None:
    ratings = np.array([r / 5 for r, _ in pairs])
    right = np.array([b for _, b in pairs], np.bool_)
    wins = [
        (ratings[i] > ratings[j]) + (ratings[i] == ratings[j]) / 2
        for i in np.flatnonzero(right)
        for j in np.flatnonzero(~right)
    ]
    found = auc(ratings, right)
    if wins:
        assert found == pytest.approx(float(np.mean(wins)))
        assert auc(1 - ratings, right) == pytest.approx(1 - found)
    else:
        assert found is None


def test_a_report_in_numbers() -> None:
    found = report("j", [0.9, 0.9, 0.1, 0.5], [True, False, False, True], [0, 0, 1, 1])
    # Pairs (right over wrong): 0.9 = 0.9, 0.9 > 0.1, 0.5 < 0.9, 0.5 > 0.1.
    assert found.auc == pytest.approx(2.5 / 4)
    assert found.auc_within == pytest.approx(1.5 / 2)
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.01 + 0.25) / 4)
    assert found.calibration_error == pytest.approx((2 * 0.4 + 0.1 + 0.5) / 4)
    assert [(b.count, b.right) for b in found.bins] == [(1, 0), (1, 1), (2, 0.5)]
    assert (found.count, found.right, found.unknown) == (4, 2, 0.25)


def test_the_interval_is_over_problems() -> None:
    """Copies of the same solutions say nothing new: the interval must not shrink."""
    draws = np.random.default_rng(4)
    right = draws.random(60) < 0.5
    ratings = np.clip(0.5 + 0.2 * right + 0.25 * draws.standard_normal(60), 0, 1)
    once = report("j", ratings, right)
    copies = report("j", np.tile(ratings, 20), np.tile(right, 20), np.tile(np.arange(60), 20))
    alone = report("j", np.tile(ratings, 20), np.tile(right, 20))
    width = [r.auc_high - r.auc_low for r in (once, copies, alone)]  # type: ignore[operator]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] < width[0] / 3
    assert once.auc_low < once.auc < once.auc_high  # type: ignore[operator]


def test_one_kind_alone_has_no_area() -> None:
    found = report("j", [0.2, 0.4], [True, True])
    assert (found.auc, found.auc_low, found.auc_high, found.auc_within) == (None,) * 4


# ---- fitting -------------------------------------------------------------------------------------


def test_a_linear_outcome_is_found() -> None:
    draws = np.random.default_rng(0)
    states, truth = draws.standard_normal((300, 20)), draws.standard_normal(20) / 20
    head = fit(states, 0.5 + np.clip(states @ truth, -0.5, 0.5))
    assert np.allclose(head.weights, truth, atol=0.01)
    assert head.bias == pytest.approx(0.5, abs=0.01)
    right = states @ truth > 0
    noisy = fit(states, right)
    assert noisy.auc is not None
    assert noisy.auc > 0.95


def test_states_that_say_nothing_are_not_believed() -> None:
    """More dimensions than states fit any outcome; held-out groups must show that it is nothing."""
    draws = np.random.default_rng(1)
    areas = [fit(draws.standard_normal((60, 200)), draws.random(60) < 0.5).auc for _ in range(20)]
    assert 0.4 < float(np.mean(np.array(areas, np.float64))) < 0.6


def test_groups_keep_copies_out_of_the_test() -> None:
    draws = np.random.default_rng(2)
    states, right = draws.standard_normal((40, 100)), np.arange(40) % 2 == 0
    copies = np.repeat(states, 10, axis=0), np.repeat(right, 10)
    leaking, honest = fit(*copies).auc, fit(*copies, np.repeat(np.arange(40), 10)).auc
    assert leaking is not None
    assert honest is not None
    assert leaking > 0.99 > 0.75 > honest


@pytest.mark.parametrize(
    ("states", "outcomes", "message"),
    [
        (np.ones((3, 2)), [1, 0], "do not fit"),
        (np.ones(3), [1, 0, 1], "do not fit"),
        (np.full((2, 2), np.nan), [1, 0], "finite"),
        (np.ones((2, 2)), [1, 2], "between 0 and 1"),
        (np.ones((2, 2)), [1, 1], "all the same"),
        (np.ones((1, 2)), [1], "all the same"),
    ],
)
def test_what_cannot_be_fitted_is_refused(states: Any, outcomes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(states, outcomes)


# ---- the file ------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "head.npz"
    Head(np.arange(260) / 1e4, 0.25, "f00d").save(path)
    return path


def test_a_head_comes_back(file: Path) -> None:
    head = load(file)
    assert (head.weights == np.arange(260) / 1e4).all()
    assert (head.bias, head.fingerprint) == (0.25, "f00d")


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_head_is_refused_or_is_one(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("head") / "head.npz"
    Head(np.arange(9.0), 0.25, "f00d").save(path)
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        assert np.isfinite(load(path).weights).all()
    except FileFormatError:
        return


def test_files_that_are_no_heads(tmp_path: Path, file: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.npz")
    arrays = dict(np.load(file))
    for name, wrong in [
        ("weights", np.ones((2, 2))),
        ("weights", np.array(["x"])),
        ("weights", np.array([np.inf])),
        ("bias", np.array(0)),
        ("format", np.int64(2)),
        ("fingerprint", np.float64(1)),
    ]:
        path = tmp_path / "wrong.npz"
        np.savez(path, **{**arrays, name: wrong})
        with pytest.raises(FileFormatError):
            load(path)
    np.savez_compressed(path, **{**arrays, "weights": np.zeros(3 << 20)})
    with pytest.raises(FileFormatError, match="larger than"):
        load(path)
    with pytest.raises(InputError, match="cannot be written"):
        load(file).save(tmp_path / "no" / "folder.npz")


# ---- the judge -----------------------------------------------------------------------------------


def test_value_reads_the_state_at_the_tip(file: Path) -> None:
    """The scripted model's state counts bytes: the value is linear in them."""
    engine, run = scripted({"ab": 1.0}), Run()
    engine.fingerprint = "f00d+kv-bf16"

    async def program() -> None:
        root = ask(engine, "?", run)
        text, ended = root.fork(2)
        await text.force("ab")
        await ended.extend()
        assert ended.tokens[-1] in engine.tokenizer.ends
        before = run.budget.spent_tokens
        thoughts = [Thought(text, text="ab"), Thought(ended, text="ab", done=True)]
        ratings = await rate(made(f"value(head={str(file)!r})"), Problem("?"), thoughts)
        counts = np.bincount(text.tokens, minlength=260)
        expected = min(1.0, 0.25 + float(counts @ np.arange(260)) / 1e4)
        assert ratings == pytest.approx([expected, expected])
        assert run.budget.spent_tokens == before
        text.drop()
        again = Thought(text, text="ab")
        assert (await rate(made(f"value(head={str(file)!r})"), Problem("?"), [again]))[0] <= 1
        engine.fingerprint = "beef"
        with pytest.raises(InputError, match="another model"):
            await rate(made(f"value(head={str(file)!r})"), Problem("?"), [Thought(root.fork())])
        run.drop_all()

    run_checked(engine, program())


def test_a_head_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a head"):
        made("value")
    with pytest.raises(InputError, match="cannot be read"):
        made(f"value(head={str(tmp_path / 'none.npz')!r})")


# ---- records -------------------------------------------------------------------------------------


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_records_are_labelled_or_compared(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "r.jsonl",
        {"problem": "2+2?", "text": "The answer is 4.", "right": False},
        {"problem": "2+2?", "text": "The answer is 4.0.", "gold": "4"},
        {"problem": "2+2?", "text": "The answer is 5.", "gold": "4"},
        {"problem": "Which?", "text": "The answer is B.", "gold": "b", "choices": ["x", "y"]},
    )
    records = read_records(path)
    assert [record.right for record in records] == [False, True, False, True]
    assert by_problem(records) == [[0, 1, 2], [3]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ('{"text": "x", "right": true}', "no text under 'problem'"),
        ('{"problem": "x", "text": "", "right": true}', "no text under 'text'"),
        ('{"problem": "x", "text": "y"}', "neither"),
        ('{"problem": "x", "text": "y", "right": 1}', "neither"),
        ('{"problem": "x", "text": "y", "gold": "z", "kind": "number"}', "is no answer"),
        ('{"problem": "x", "text": "y", "gold": "z", "kind": "verse"}', "kind is none of"),
        ('{"problem": "x", "text": "y", "gold": "z", "choices": "ab"}', "choices"),
        ("\xff", "no JSON"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    good = '{"problem": "x", "text": "y", "right": true}'
    path.write_bytes(f"{good}\n\n{line}\n".encode("latin-1"))
    with pytest.raises(FileFormatError, match=f"line 3: .*{message}"):
        read_records(path)


def test_files_without_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "none")
    with pytest.raises(InputError, match="no records"):
        read_records(lines(tmp_path / "empty"))


def test_replayed_texts_are_thoughts() -> None:
    text = "First. The answer is 4."
    engine = scripted({text: 1.0})

    async def program() -> None:
        records = [Record(Problem("2+2?"), text, True)]
        async with replay(records, root_of(engine)) as (thought,):
            assert (thought.text, thought.answer, thought.done) == (text, "4", True)
            assert thought.logp == pytest.approx(0, abs=1e-3)
            run = thought.branch.run
        assert not run.live
        async with replay(records, root_of(engine), at=0.25) as (thought,):
            assert (thought.text, thought.answer, thought.done) == ("First.", None, False)

    run_checked(engine, program())


# ---- measuring -----------------------------------------------------------------------------------

WRONG, RIGHT = "So it is bad. The answer is 5.", "So it is good. The answer is 4."


def knows(prompt: str, reply: str) -> Mapping[str, float]:
    """A model that writes wrong solutions more readily, and knows a good one when it sees it."""
    if "Yes or No" not in prompt:
        return replies({WRONG: 0.8, RIGHT: 0.2})(prompt, reply)
    return replies({"Yes": 0.8, "No": 0.2} if "good" in prompt else {"No": 1.0})(prompt, reply)


RECORDS = [
    Record(Problem(f"{n} plus {m}?"), text, text == RIGHT)
    for n in range(3)
    for m, texts in enumerate([(RIGHT, WRONG, WRONG), (WRONG, RIGHT), (WRONG,)])
    for text in texts
]


def test_judges_are_told_apart() -> None:
    engine = scripted(knows)
    judges = [made(text) for text in ("likelihood", "self_rating(prior='none')", "agreement")]
    reports = run_checked(engine, measure(judges, RECORDS, root_of(engine)))
    assert [r.auc for r in reports][:2] == [0.0, 1.0]
    assert [r.auc_within for r in reports] == [0.0, 1.0, (2 * 0 + 0.5) / 3]
    assert [r.tokens > 0 for r in reports] == [False, True, False]
    assert reports[1].brier == pytest.approx(6 * 0.2**2 / 18, abs=1e-3)
    assert reports[1].judge == "self_rating(of='steps', scale='verdict', prior='none')"


def test_unfinished_solutions_need_a_judge_that_may() -> None:
    engine = scripted(knows)
    with pytest.raises(InputError, match="finished thoughts only"):
        run_checked(engine, measure([made("agreement")], RECORDS, root_of(engine), at=0.5))
    (found,) = run_checked(engine, measure([made("self_rating")], RECORDS, root_of(engine), at=0.5))
    assert found.auc == 1.0  # "good" stands in the first half
    (found,) = run_checked(engine, measure([made("self_rating")], RECORDS, root_of(engine), at=0.1))
    assert found.auc == 0.5


def test_a_head_fitted_to_records_judges_others() -> None:
    engine = scripted(knows)
    head, states = run_checked(engine, fit_to(RECORDS, root_of(engine), fingerprint="x"))
    assert states == len(RECORDS)
    assert head.fingerprint == "x"
    assert head.auc == 1.0


# ---- commands ------------------------------------------------------------------------------------


@pytest.fixture
def records_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        anabranch, "load", lambda name, **options: scripted_lm(knows), raising=False
    )
    return lines(
        tmp_path / "records.jsonl",
        *({"problem": r.problem.text, "text": r.text, "right": r.right} for r in RECORDS),
    )


def anabranch_(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_fit_then_report(records_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.npz"
    fitted = anabranch_("fit-judge", str(records_file), "--out", str(out), "--json")
    assert fitted.exit_code == 0, fitted.output
    assert json.loads(fitted.stdout) == {
        "head": str(out), "records": 18, "states": 18, "auc": 1.0
    }  # fmt: skip
    told = anabranch_("fit-judge", str(records_file), "--out", str(out), "--ends-only")
    assert "18 states of 18 solutions" in told.stdout
    judge = f"value(head={str(out)!r})"
    found = anabranch_("judge-report", str(records_file), "-j", judge, "-j", "likelihood", "--json")
    assert found.exit_code == 0, found.output
    value, likelihood = json.loads(found.stdout)
    assert (value["auc"], likelihood["auc"]) == (1.0, 0.0)
    assert value["judge"] == judge
    table = anabranch_("judge-report", str(records_file))
    assert table.stdout.splitlines()[0] == "18 solutions, 6 of them right"
    assert "self_rating(of='steps', scale='verdict', prior='empty')" in table.stdout


def test_long_work_is_shown_on_stderr_only(records_file: Path, tmp_path: Path) -> None:
    problems = len(by_problem(RECORDS))
    for command in (["judge-report"], ["fit-judge", "--out", str(tmp_path / "h.npz")]):
        found = anabranch_(command[0], str(records_file), *command[1:])
        told = [line for line in found.stderr.splitlines() if " of " in line]
        assert told[-1].endswith(f": {problems} of {problems}")
        assert len(told) == len(set(told)) <= 10
        assert told[-1] not in found.stdout
        quiet = anabranch_(command[0], str(records_file), *command[1:], "--json")
        assert quiet.stderr == ""
        json.loads(quiet.stdout)


def test_a_bar_in_a_terminal_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "Console", lambda **options: console)
    with terminal.show_count("problems judged") as progress:
        progress(3, 8)
        console.file.flush()
    assert "problems judged" in screen.getvalue()
    assert "3/8" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is erased


@pytest.mark.parametrize("command", ["judge-report", "fit-judge"])
def test_an_interrupt_leaves_an_old_head_as_it_was(
    command: str, tmp_path: Path, records_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def interrupted(prompt: str, reply: str) -> Mapping[str, float]:
        nonlocal asked
        asked += 1
        if asked == 40:
            signal.raise_signal(signal.SIGINT)
        return knows(prompt, reply)

    lm, out = scripted_lm(interrupted), tmp_path / "h.npz"
    out.write_bytes(b"old")
    monkeypatch.setattr(anabranch, "load", lambda name, **options: lm, raising=False)
    written = ["--out", str(out)] if command == "fit-judge" else []
    found = anabranch_(command, str(records_file), *written)
    assert found.exit_code == 130
    assert found.stderr.endswith("interrupted\n")
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == sorted([out, records_file])
    assert not lm.engine.core.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge-report", "none.jsonl"], "cannot be read"),
        (["judge-report", "RECORDS", "-j", "oracle"], "unknown judge"),
        (["judge-report", "RECORDS", "--at", "0"], "out of range"),
        (["judge-report", "RECORDS", "-j", "value"], "needs a head"),
        (["fit-judge", "RECORDS", "--out", "/no/such/folder/x.npz"], "cannot be written"),
    ],
)
def test_what_commands_refuse(records_file: Path, arguments: list[str], message: str) -> None:
    given_ = [str(records_file) if a == "RECORDS" else a for a in arguments]
    found = anabranch_(*given_)
    assert found.exit_code == 2
    assert message in found.output


def test_solutions_of_one_kind_fit_nothing(tmp_path: Path) -> None:
    path = lines(tmp_path / "r", *[{"problem": "x", "text": "y", "right": True}] * 3)
    found = anabranch_("fit-judge", str(path), "--out", str(tmp_path / "h.npz"))
    assert found.exit_code == 2
    assert "all right or all wrong" in found.output


# ---- a second model ------------------------------------------------------------------------------


def test_a_model_beside_another_is_loaded_once_and_closed_with_it() -> None:
    loaded: list[LM] = []

    def loader(name: str) -> Engine:
        loaded.append(scripted_lm({"Yes": 0.9, "No": 0.1}))
        return loaded[-1].engine

    lm = LM(scripted({"The answer is 4.": 1.0}), "first", "f")
    lm.engine.loader = loader
    strategy = "beam(width=2, fanout=1, judge=reward(model='second.gguf'))"
    for _ in range(2):
        answer = lm.solve("2+2?", strategy)
        assert answer.answer == "4"
    assert len(loaded) == 1
    lm.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        loaded[0].engine._worker.submit(int)
    with pytest.raises(InputError, match="no other models"):
        asyncio.run(scripted_lm({"x": 1.0}).engine.other("y"))


def test_a_model_is_loaded_beside_what_goes_on_once_for_all_who_wait() -> None:
    begun, go_on, tries = threading.Event(), threading.Event(), list[str]()
    engine, second = scripted({"The answer is 4.": 1.0}), scripted({"x": 1.0})

    def loader(name: str) -> Engine:
        tries.append(name)
        begun.set()
        assert go_on.wait(10)
        if len(tries) == 1:
            raise ResourceError("the model does not fit into memory")
        return second

    async def program() -> None:
        for fails in (True, False):
            begun.clear()
            go_on.clear()
            waiting = [asyncio.create_task(engine.other("second.gguf")) for _ in range(3)]
            while not begun.is_set():
                await asyncio.sleep(0)
            root = ask(engine, "2+2?", Run())
            assert (await root.extend(99)).text == "The answer is 4."  # while it is loaded
            root.drop()
            waiting[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            go_on.set()
            for waiter in waiting[1:]:
                if fails:
                    with pytest.raises(ResourceError, match="fit into memory"):
                        await waiter
                else:
                    assert await waiter is second
        assert tries == ["second.gguf"] * 2
        assert await engine.other("second.gguf") is second

    engine.loader = loader
    asyncio.run(program())
    assert asyncio.run(engine.other("second.gguf")) is second  # in another loop, too
    assert len(tries) == 2
    engine.close()


def test_a_load_that_nobody_waits_for_any_more_is_kept_for_the_next() -> None:
    engine, second, go_on = scripted({"x": 1.0}), scripted({"x": 1.0}), threading.Event()

    def loader(name: str) -> Engine:
        assert go_on.wait(10)
        return second

    async def impatient() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.other("y"), 0.01)

    engine.loader = loader
    asyncio.run(impatient())  # its loop is closed when the load ends
    go_on.set()
    assert asyncio.run(engine.other("y")) is second
    engine.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        second._worker.submit(int)

"""The log and its tree: what is written is read back, and no file can hurt a reader."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anabranch.cli.draw import BRIEF_CHILDREN, clean, draw_tree, snippet
from anabranch.errors import FileFormatError, InputError, ResourceError
from anabranch.program.derived import choose, join
from anabranch.program.run import Run
from anabranch.program.trace import MAX_LINE_BYTES, Trace, TraceTree, build_tree, read_trace
from anabranch.program.types import Problem
from anabranch.reason.registry import parse
from anabranch.reason.solve import think
from tests.scripted import ask, scripted

REPLIES = {"It is so. The answer is 4.": 0.7, "The answer is 5.": 0.3}


def solved(path: Path | None, strategy: str = "vote(n=6)") -> Trace:
    """The log of a solved problem."""
    engine = scripted(REPLIES)
    with Trace(path, model="scripted", seed=3, strategy=strategy) as trace:
        run = Run(seed=3, trace=trace)
        program = think(
            Problem("2+2?"),
            lambda problem, run: ask(engine, problem.text, run),
            parse(strategy),
            run,
            model="scripted",
        )
        asyncio.run(program)
    return trace


def drawn(tree: TraceTree, *, full: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False).print(draw_tree(tree, full=full))
    return out.getvalue()


@pytest.fixture(scope="module")
def trace_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    solved(path)
    return path.read_bytes()


def test_file_and_memory_tell_the_same_tree(tmp_path: Path) -> None:
    trace = solved(tmp_path / "t.jsonl")
    read = read_trace(tmp_path / "t.jsonl")
    assert read == build_tree(trace.header, trace.events)
    assert read.answer == "4"
    assert read.header["seed"] == 3
    thoughts = [b for b in read.branches.values() if b.parent == "0"]
    assert len(thoughts) == 6
    for thought in thoughts:
        assert thought.kept == (thought.answer == "4")
        assert thought.text in REPLIES
        assert thought.sampled_tokens == len(thought.text) + 1
        assert thought.dropped == ""
    assert read.branches["0"].kept


def test_joins_choices_and_scores_are_kept() -> None:
    engine, trace = scripted({"abcab": 1.0}), Trace()
    run = Run(trace=trace)

    async def program() -> None:
        root = ask(engine, "?", run)
        one, two = root.fork(2)
        await one.extend(2)
        await choose(two, ["abc", "b"])
        joined = await join([one, two], "+".join)
        assert joined.text == "ab+abc"
        run.drop_all()

    asyncio.run(program())
    tree = build_tree(trace.header, trace.events)
    joined = next(b for b in tree.branches.values() if b.joined)
    assert joined.joined == ("0.0", "0.1")
    assert joined.parent == "0.0"
    assert [option for option, _ in tree.branches["0.1"].scores] == ["abc", "b"]
    assert "joins 0.0, 0.1" in drawn(tree)


def test_numbers_json_cannot_write_become_null(tmp_path: Path) -> None:
    with Trace(tmp_path / "t") as trace:
        trace.note("open", branch="0", position=1)
        trace.note("score", branch="0", options=["a"], scores=[float("-inf")])
    lines = (tmp_path / "t").read_text().splitlines()
    assert json.loads(lines[2])["scores"] == [None]
    assert read_trace(tmp_path / "t").branches["0"].scores == [("a", float("-inf"))]


@given(st.data())
def test_a_file_cut_anywhere_reads_as_far_as_it_goes(
    trace_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    cut = data.draw(st.integers(trace_bytes.index(b"\n"), len(trace_bytes)))
    path.write_bytes(trace_bytes[:cut])
    whole = trace_bytes[:cut].count(b'"event":"fork"')
    # The last line may be cut after the word.
    assert len(read_trace(path).branches) in (whole, whole + 1)


@given(st.data())
def test_flipped_bits_are_a_fault_or_harmless(
    trace_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, broken = tmp_path_factory.getbasetemp() / "flip.jsonl", bytearray(trace_bytes)
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=4)):
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(broken)
    try:
        tree = read_trace(path)
    except FileFormatError:
        return
    assert drawn(tree, full=True)


HEADER = (
    '{"trace":"anabranch","format":1,"version":"","model":"","fingerprint":"","seed":0,'
    '"strategy":""}'
)
OPEN = '{"event":"open","branch":"0","position":4}'


def _event(event: str, branch: object = "0", **fields: Any) -> str:
    return json.dumps({"event": event, "branch": branch, **fields})


def _extend(**fields: Any) -> str:
    return _event("extend", **{"start": 4, "end": 5, "text": "", "logp": -1, **fields})


def _answer(**fields: Any) -> str:
    return _event("answer", **{"answer": "", "confidence": 1, "kept": [], "notes": [], **fields})


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "no header"),
        (["GGUF"], "not JSON"),
        (["[1]"], "not a JSON object"),
        (["{}"], "not the header"),
        ([HEADER.replace('"format":1', '"format":2')], "format 2"),
        ([HEADER.replace('"seed":0', '"seed":-1')], "seed"),
        ([HEADER.replace('"seed":0', '"seed":true')], "seed"),
        ([HEADER, "nonsense", OPEN], "not JSON"),
        ([HEADER, '{"event":NaN}', OPEN], "not JSON"),
        ([HEADER, "[" * 100_000, OPEN], "not JSON"),
        ([HEADER, '{"event":' + "9" * 10_000 + "}", OPEN], "not JSON"),
        ([HEADER, "3"], "not a JSON object"),
        ([HEADER, "{}"], "event is not text"),
        ([HEADER, OPEN, OPEN], "appears twice"),
        ([HEADER, _event("fork", "0.0", parent="0", position=1)], "unknown branch"),
        ([HEADER, _event("fork", "0", parent="0", position=1)], "unknown branch"),
        ([HEADER, OPEN, _event("fork", "1", parent=["0"], position=1)], "parent"),
        ([HEADER, OPEN, _event("drop", ["0"], reason="")], "branch is not text"),
        ([HEADER, _event("open", position=-1)], "position"),
        ([HEADER, _event("open", position=2**70)], "position"),
        ([HEADER, OPEN, _extend(end=3)], "ends"),
        ([HEADER, OPEN, _extend(text=1)], "text"),
        ([HEADER, OPEN, _extend(logp="")], "logp"),
        ([HEADER, OPEN, _event("score", options=["a"], scores=[])], "scores"),
        ([HEADER, OPEN, _event("score", options=[1], scores=[1])], "option"),
        ([HEADER, OPEN, _event("join", parents=["1"])], "unknown branch"),
        ([HEADER, OPEN, _answer(confidence=10**400)], "confidence"),
        ([HEADER, OPEN, _answer(kept=["x"])], "unknown branch"),
        ([HEADER, OPEN, _answer(notes=[1])], "not text"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, lines: list[str], fault: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(FileFormatError, match=fault):
        read_trace(path)


def test_a_huge_line_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    path.write_bytes(HEADER.encode() + b"\n" + b" " * (MAX_LINE_BYTES + 1))
    with pytest.raises(FileFormatError, match="longer than"):
        read_trace(path)


def test_a_missing_file_and_an_unwritable_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be written"):
        Trace(tmp_path)


def test_a_full_disk_ends_the_file_not_the_log() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("wants a device that is always full")
    with pytest.raises(ResourceError, match="cannot be written"):
        Trace(full)


def test_unknown_events_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    path.write_text("\n".join([HEADER, OPEN, _event(event="weave", with_="?")]) + "\n")
    assert list(read_trace(path).branches) == ["0"]


def test_drawing_escapes_what_models_write() -> None:
    tree = build_tree({}, [])
    hostile = "\x1b[31m[bold]x[/bold]\u202e\x07\ud800"
    tree.add({"event": "open", "branch": "0", "position": 3})
    tree.add({"event": "fork", "branch": hostile, "parent": "0", "position": 3})
    grown = {
        "event": "extend",
        "branch": hostile,
        "start": 3,
        "end": 9,
        "text": hostile,
        "logp": -1,
    }
    tree.add(grown)
    tree.add({"event": "thought", "branch": hostile, "answer": hostile})
    tree.add({"event": "drop", "branch": hostile, "reason": hostile})
    for full in (False, True):
        text = drawn(tree, full=full)
        assert "[bold]x[/bold]" in text
        assert not set(text) & set("\x1b\x07\u202e\ud800")


def test_brief_drawing_is_brief_and_keeps_the_answer() -> None:
    tree = build_tree({}, [])
    tree.add({"event": "open", "branch": "0", "position": 3})
    for i in range(300):
        name = f"0.{i}"
        tree.add({"event": "fork", "branch": name, "parent": "0", "position": 3})
        step = {"event": "extend", "branch": name, "start": 3, "end": 5, "text": "hi", "logp": -1}
        tree.add(step)
    tree.add({"event": "answer", "answer": "x", "confidence": 1, "kept": ["0.299"], "notes": []})
    brief, full = drawn(tree), drawn(tree, full=True)
    assert brief.count("\n") == 1 + BRIEF_CHILDREN
    assert "0.299" in brief
    assert "284 not shown" in brief
    assert full.count("0.") >= 300


def test_a_tree_of_any_depth_is_drawn() -> None:
    tree = build_tree({}, [])
    tree.add({"event": "open", "branch": "0", "position": 1})
    for i in range(5000):
        tree.add({"event": "fork", "branch": str(i + 1), "parent": str(i), "position": 1})
    assert "not shown" in drawn(tree, full=True)


@given(st.text())
def test_clean_text_holds_no_control_characters(text: str) -> None:
    assert clean(text, keep="").isprintable() or any(not c.isprintable() for c in text)
    assert "\x1b" not in clean(text)
    assert len(snippet(text, 20)) <= 20

"""What a program did, as a log of events: JSON lines on disk, and the tree that they describe.

The first line is a header, every other line one event. Views of a program (the tree in a terminal,
the web page, exporters) read this log and nothing else.

    event    fields besides `event` and `t` (seconds since the start)
    open     branch, position, text, seed, group
    fork     branch, parent, position
    extend   branch, start, end, text, logp, logq, entropy, stop, seconds (it took); per token,
             logps (rounded) and borders (characters of the text with it)
    force    likewise, but for the last two
    peek     branch, position
    drop     branch, reason
    score    branch, options, scores
    choose   branch, choice
    join     branch, parents
    rate     branch, judge, rating, seconds (the judge took, for all it was asked for at once)
    solve    branch, source, value, error, seconds
    thought  branch, answer, tokens, logp, done
    answer   answer, confidence, kept (branches that lead to it), notes

Other events may occur: readers pass over them.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

from anabranch.errors import FileFormatError, InputError, ResourceError

FORMAT = 1
"""Version of the file format. Readers refuse others."""

MAX_LINE_BYTES = 16 << 20
"""Longest line a reader takes in."""

Event = Mapping[str, Any]


class Trace:
    """The log of one program, kept in memory and, given a path, written as it grows.

    Every event is flushed: what a killed process leaves behind is valid up to its last line.

    Args:
        path: file to write, replaced if it exists; None: memory only.
        model, fingerprint: which weights think.
        seed, strategy, budget: what brings the program back.
        version: of Anabranch.
        clock: seconds, monotonic.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        model: str = "",
        fingerprint: str = "",
        seed: int = 0,
        strategy: str = "",
        budget: Mapping[str, float | None] | None = None,
        version: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.header: Event = {
            "trace": "anabranch",
            "format": FORMAT,
            "version": version,
            "model": model,
            "fingerprint": fingerprint,
            "seed": seed,
            "strategy": strategy,
            "budget": dict(budget or {}),
        }
        self.events: list[Event] = []
        self._clock, self._began = clock, clock()
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
            except OSError as error:
                raise InputError(
                    f"the trace cannot be written: {error.strerror or error}",
                    got=str(path),
                    fix="name another file",
                ) from error
            self._write(self.header)

    def note(self, event: str, **fields: object) -> None:
        """Record one event. Numbers JSON has no word for (infinity, NaN) become null."""
        seconds = round(self._clock() - self._began, 6)
        record = {"event": event, "t": seconds} | {k: plain(v) for k, v in fields.items()}
        self.events.append(record)
        self._write(record)

    def close(self) -> None:
        """Close the file; the events stay in memory. Closing twice is harmless."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, record: Event) -> None:
        # ASCII only: no terminal that shows the file obeys what a model wrote.
        if self._file is None:
            return
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            path = self._file.name
            with contextlib.suppress(OSError):
                self.close()
            self._file = None
            raise ResourceError(
                f"the trace cannot be written: {error.strerror or error}", got=path
            ) from error


def plain(value: object) -> Any:
    """A value as JSON can write it: numbers that it has no word for become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


# ---- the tree a log describes ------------------------------------------------------------------


@dataclass
class TracedBranch:
    """One branch as its events tell of it.

    Attributes:
        start, end: positions where its own tokens begin and end.
        pieces: the texts it appended itself.
        sampled_tokens, forced_tokens: how many tokens of each kind it appended.
        logp: log-probability of its sampled tokens, summed, nats.
        scores: scores of options tried on it, in order: `(option, score)`.
        joined: ids of the branches whose text was joined into it.
        answer: the answer read off it.
        kept: it leads to the answer.
        dropped: why it was dropped; None while it lives.
    """

    id: str
    parent: str | None
    start: int
    end: int
    pieces: list[str] = field(default_factory=list)
    sampled_tokens: int = 0
    forced_tokens: int = 0
    logp: float = 0.0
    scores: list[tuple[str, float]] = field(default_factory=list)
    joined: tuple[str, ...] = ()
    answer: str | None = None
    kept: bool = False
    dropped: str | None = None
    children: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it appended itself."""
        return "".join(self.pieces)

    @property
    def mean_logp(self) -> float | None:
        """Mean log-probability per sampled token, nats."""
        return self.logp / self.sampled_tokens if self.sampled_tokens else None


@dataclass
class TraceTree:
    """A program's tree, rebuilt from its log.

    Attributes:
        branches: by id, parents before children.
        answer, confidence, notes: the outcome, if it got that far.
    """

    header: Event
    branches: dict[str, TracedBranch] = field(default_factory=dict)
    answer: str | None = None
    confidence: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def roots(self) -> list[TracedBranch]:
        """Branches without a parent."""
        return [branch for branch in self.branches.values() if branch.parent is None]

    def add(self, event: Event) -> None:
        """Take the next event of the log. Raises ValueError with the fault."""
        kind = _get(event, "event", str)
        if kind in ("open", "fork"):
            self._add_branch(event, kind)
        elif kind == "answer":
            self._answered(event)
        elif kind in _READERS:
            _READERS[kind](self, self._branch(_get(event, "branch", str)), event)

    def _branch(self, name: str) -> TracedBranch:
        if name not in self.branches:
            raise ValueError(f"unknown branch {name[:40]!r}")
        return self.branches[name]

    def _add_branch(self, event: Event, kind: str) -> None:
        name, position = _get(event, "branch", str), _count(event, "position")
        if name in self.branches:
            raise ValueError(f"branch {name[:40]!r} appears twice")
        parent = self._branch(_get(event, "parent", str)) if kind == "fork" else None
        if parent is not None:
            parent.children.append(name)
        known = parent.id if parent else None
        self.branches[name] = TracedBranch(name, known, position, position)

    def _grown(self, branch: TracedBranch, event: Event) -> None:
        start, end = _count(event, "start"), _count(event, "end")
        if end < start:
            raise ValueError(f"a step ends at {end}, before its start {start}")
        branch.end = end
        branch.pieces.append(_get(event, "text", str))
        if event["event"] == "force":
            branch.forced_tokens += end - start
        else:
            branch.sampled_tokens += end - start
            branch.logp += _number(event, "logp")

    def _dropped(self, branch: TracedBranch, event: Event) -> None:
        branch.dropped = _get(event, "reason", str)

    def _scored(self, branch: TracedBranch, event: Event) -> None:
        options, scores = _get(event, "options", list), _get(event, "scores", list)
        if len(options) != len(scores):
            raise ValueError(f"{len(scores)} scores for {len(options)} options")
        for option, score in zip(options, scores, strict=True):
            record = {"option": option, "score": score}
            branch.scores.append((_get(record, "option", str), _number(record, "score")))

    def _joined(self, branch: TracedBranch, event: Event) -> None:
        parents = _get(event, "parents", list)
        branch.joined = tuple(self._branch(_text(name)).id for name in parents)

    def _judged(self, branch: TracedBranch, event: Event) -> None:
        answer = event.get("answer")
        branch.answer = None if answer is None else _text(answer)

    def _answered(self, event: Event) -> None:
        self.answer, self.confidence = _get(event, "answer", str), _number(event, "confidence")
        self.notes = tuple(map(_text, _get(event, "notes", list)))
        for name in _get(event, "kept", list):
            above: str | None = _text(name)
            while above is not None and not self._branch(above).kept:
                self.branches[above].kept = True
                above = self.branches[above].parent


_READERS: Mapping[str, Callable[[TraceTree, TracedBranch, Event], None]] = {
    "extend": TraceTree._grown,
    "force": TraceTree._grown,
    "drop": TraceTree._dropped,
    "score": TraceTree._scored,
    "join": TraceTree._joined,
    "thought": TraceTree._judged,
}


def build_tree(header: Event, events: Sequence[Event]) -> TraceTree:
    """The tree of a log in memory. Raises ValueError at the first event that cannot be."""
    tree = TraceTree(header)
    for event in events:
        tree.add(event)
    return tree


def read_trace(path: Path | str) -> TraceTree:
    """The tree of a trace file. A last line cut short by a kill is passed over.

    Raises:
        InputError: the file cannot be read.
        FileFormatError: it is not a trace, of another version, or describes what cannot be.
    """
    tree: TraceTree | None = None
    try:
        for number, record in _records(path):
            try:
                if tree is None:
                    tree = TraceTree(_header(record))
                else:
                    tree.add(record)
            except ValueError as error:
                raise _fault(path, number, str(error)) from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the trace cannot be read: {reason}", got=str(path)) from error
    if tree is None:
        raise _fault(path, 1, "no header")
    return tree


def _fault(path: Path | str, line: int, fault: str) -> FileFormatError:
    return FileFormatError(
        path, f"line {line}: {fault}", fix="name a file that `solve --trace` wrote"
    )


def _records(path: Path | str) -> Iterator[tuple[int, Event]]:
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise _fault(path, number, f"longer than {MAX_LINE_BYTES} bytes")
            try:
                record = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n") and number > 1:
                    return
                raise _fault(path, number, "not JSON") from error
            if not isinstance(record, dict):
                raise _fault(path, number, "not a JSON object")
            yield number, record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _header(record: Event) -> Event:
    if record.get("trace") != "anabranch":
        raise ValueError("not the header of an Anabranch trace")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"format {str(record.get('format'))[:20]}, but this version reads {FORMAT}"
        )
    for key in ("model", "strategy", "version", "fingerprint"):
        _get(record, key, str)
    _count(record, "seed")
    return record


def _get(event: Event, key: str, kind: type[Any]) -> Any:
    value = event.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} is not {_KINDS[kind]}")
    return value


_KINDS: Mapping[type[Any], Literal["text", "a list", "a whole number"]] = {
    str: "text",
    list: "a list",
    int: "a whole number",
}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a list holds what is not text")
    return value


def _count(event: Event, key: str) -> int:
    value: int = _get(event, key, int)
    if not 0 <= value < 2**64:
        raise ValueError(f"{key} is out of range")
    return value


def _number(event: Event, key: str) -> float:
    """A number; null stands for one that JSON cannot write, always minus infinity here."""
    value = event.get(key)
    if value is None:
        return -math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{key} is not a finite number")
    return float(value)

"""Solutions of which it is known whether they are right: what judges are fitted to and tested on.

A file of records has one JSON object per line:

    problem   the question
    text      a solution, as a model would write it
    right     whether it is right; or
    gold      the right answer, with which the answer read off the text is compared
    system, kind, choices   as in `Problem`; may be left out
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.errors import check_range
from anabranch.program.answers import extract, normalise
from anabranch.program.branch import Branch
from anabranch.program.jsonl import Line, read_lines
from anabranch.program.run import Run
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought

KINDS = ("auto", "number", "choice", "text", "exact", "whole")

RootOf = Callable[[Problem, Run], Branch]
"""Opens the branch that asks a problem."""


@dataclass(frozen=True)
class Record:
    """A solution of a problem."""

    problem: Problem
    text: str
    right: bool


def read_records(path: Path | str) -> list[Record]:
    """The records of a file.

    Raises:
        InputError: it cannot be read, or holds none.
        FileFormatError: a line is no record; says which and why.
    """
    lines = read_lines(path, "records", "see `fit-judge --help`")
    return [_record(line) for line in lines]


def _record(value: Line) -> Record:
    fault = value.fault
    texts = {name: value.get(name) for name in ("problem", "text")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise fault(f"no text under {name!r}")
    system, kind = value.get("system"), value.get("kind", "auto")
    choices = value.get("choices", [])
    if not (system is None or isinstance(system, str)) or kind not in KINDS:
        raise fault("system is no text, or kind is none of " + ", ".join(KINDS))
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise fault("choices is no list of texts")
    problem = Problem(str(texts["problem"]), system, kind, tuple(choices))
    right, gold = value.get("right"), value.get("gold")
    if isinstance(right, bool):
        return Record(problem, str(texts["text"]), right)
    if not isinstance(gold, str):
        raise fault("neither `right` (true or false) nor `gold` (text)")
    wanted = normalise(gold, problem)
    if wanted is None:
        raise fault(f"gold {gold[:40]!r} is no answer to this kind of problem")
    return Record(problem, str(texts["text"]), extract(str(texts["text"]), problem) == wanted)


def by_problem(records: Sequence[Record]) -> list[list[int]]:
    """Indices of the records of each problem, problems in the order they first occur."""
    groups: dict[Problem, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(record.problem, []).append(i)
    return list(groups.values())


@asynccontextmanager
async def replay(
    records: Sequence[Record], root_of: RootOf, *, at: float = 1.0, seed: int = 0
) -> AsyncIterator[list[Thought]]:
    """Thoughts on branches, as if the model had written these records of one problem.

    Args:
        at: how much of each text, as a share of its tokens. Below 1 the thoughts are unfinished.

    Raises:
        ContextError: a text does not fit.
    """
    check_range("share of the text", at, 0, 1, low_open=True)
    run = Run(seed=seed)
    try:
        root = root_of(records[0].problem, run)
        run.thoughts = await together(_thought(root.fork(), record, at) for record in records)
        yield run.thoughts
    finally:
        run.drop_all("replayed")


async def _thought(branch: Branch, record: Record, at: float) -> Thought:
    tokens = branch.engine.encode(record.text)
    step = await branch.force(tokens[: max(1, round(at * len(tokens)))])
    done = len(step.tokens) == len(tokens)
    return Thought(
        branch,
        answer=extract(branch.text, record.problem, done=done),
        logp=step.logp,
        tokens=len(step.tokens),
        done=done,
        text=branch.text,
    )

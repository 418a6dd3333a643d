"""Problems put into a formal language, and solved by a program instead of the model."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from anabranch.program.answers import extract, normalise, normalise_number
from anabranch.program.branch import Branch
from anabranch.program.types import Problem, Thought
from anabranch.reason.kernels import note_thought, waves, write
from anabranch.reason.prompts import stated_question
from anabranch.reason.registry import OneOf
from anabranch.reason.turns import ask, begin
from anabranch.tools.results import Result, Solver

PROGRAM = (
    "Write a Python program that works out the answer and prints it. "
    "Reply with the code alone, in one ```python block."
)

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
CODE = re.compile(r"```[^\n`]*\n[^`]*```")
"""A reply has given its code, and may stop."""

_LONG_DECIMAL = re.compile(r"-?\d{1,15}\.\d{10,20}")

Translate = Callable[[Thought, int], Awaitable[str | None]]
"""Writes a source at a thought's branch, in at most so many tokens; None when it cannot."""

Otherwise = Callable[[], Awaitable[list[Thought]]]
"""What is done instead when nothing could be solved."""

Fallback = Annotated[str, OneOf(("vote", "none"))]
"""Whether chains of thought vote then."""

CHAIN_TOKENS = 512
"""Most tokens of such a chain, where translations are short."""

Read = Callable[[str], str | None]
"""The answer that an outcome amounts to; None when it is none."""


async def formalise(
    problem: Problem,
    thoughts: Sequence[Thought],
    translate: Translate,
    solve: Solver,
    *,
    retries: int,
    limit: int,
    read: Read | None = None,
    otherwise: Otherwise | None = None,
) -> list[Thought]:
    """Each thought is translated and solved; what went wrong is told to it, for another try.

    Equal sources are solved once. Thoughts that fail to the end have no answer: they abstain, and
    a remark says so.

    Args:
        thoughts: their branches wait for a reply.
        retries: how often a thought may try again.
        limit: most tokens of one try.
        read: from an outcome to the answer; None: `outcome_read`.
        otherwise: gives the candidates, with a remark, when no translation was solved at all.
    """
    complaints: dict[int, str] = {}
    solved: dict[str, asyncio.Future[Result]] = {}

    async def advance(thought: Thought, share: int) -> None:
        complaint = complaints.get(id(thought))
        told = f"That failed: {complaint}\nCorrect it, in the same form."
        if complaint is not None and not await ask(thought.branch, told):
            thought.done = True
            return
        source = await translate(thought, share)
        thought.done = False
        if source is None:
            complaints[id(thought)] = "it was not finished"
            return
        if source not in solved:
            solved[source] = asyncio.ensure_future(solve(source))
        began = time.monotonic()
        result = await solved[source]
        seconds = time.monotonic() - began
        value = result.value
        if value is not None:
            thought.answer = read(value) if read else outcome_read(value, problem)
        thought.branch.run.note(
            "solve",
            branch=thought.branch.id,
            source=source,
            value=value,
            error=result.error,
            seconds=seconds,
        )
        if thought.answer is None:
            complaints[id(thought)] = result.error or f"{value!r} is no answer to the question"
            return
        thought.done = True
        thought.text = f"{thought.text.rstrip()}\n\nThe answer is {thought.answer}."
        note_thought(thought)

    begun = await waves(thoughts, advance, limit=limit, rounds=1 + retries)
    failed = [thought for thought in begun if thought.answer is None]
    for thought in failed:
        last = thought.branch.last
        thought.done |= last is not None and last.stop not in ("limit", "budget", "dead")
    if failed:
        example = complaints.get(id(failed[0]), "the budget ended").partition("\n")[0]
        failed[0].branch.run.remark(
            f"{len(failed)} of {len(begun)} translations could not be solved, such as: {example}"
        )
    if otherwise is not None and len(failed) == len(begun) and (instead := await otherwise()):
        instead[0].branch.run.remark("no translation could be solved: chains of thought vote")
        return instead
    return begun


def posed(root: Branch, problem: Problem, instruction: str) -> Branch | None:
    """A conversation that asks for a problem in a formal language; as `turns.begin`."""
    return begin(root, problem, f"{stated_question(problem)}\n\n{instruction}")


def code(**sampling: Any) -> Translate:
    """A translation that is a reply's first block of code, or the whole reply without one."""

    async def translate(thought: Thought, limit: int) -> str | None:
        skip = len(thought.branch.text)
        await write(thought, limit, skip=skip, until=CODE, **sampling)
        if thought.branch.last is None or thought.branch.last.stop in ("budget", "dead"):
            return None
        return fenced(thought.text)

    return translate


def fenced(text: str) -> str:
    """What stands in a text's first block of code; all of it when there is none."""
    match = _FENCED.search(text)
    return (match[1] if match else text).strip("\n")


def outcome_read(value: str, problem: Problem) -> str | None:
    """The normalised answer that a program's output gives: its last line, or what that states."""
    line = value.splitlines()[-1].strip()
    if _LONG_DECIMAL.fullmatch(line):  # 0.1 + 0.2 is 0.30000000000000004
        line = f"{float(line):.9f}"
    if normalise_number(line) is None and (stated := extract(line, problem)) is not None:
        return stated
    return normalise(line, problem)

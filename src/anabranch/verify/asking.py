"""Asking a model about a thought, without a trace on its branch."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from contextlib import ExitStack

from anabranch.errors import ContextError, InputError
from anabranch.program.branch import Branch
from anabranch.program.derived import forks, score, turn
from anabranch.program.engine import Engine, Prompt
from anabranch.program.types import Mark, Thought

VERDICTS = ("Yes", "No")


def unasked(branch: Branch, why: str = "its budget or context has no room") -> None:
    """Remark that a judge could not ask something."""
    branch.run.remark(f"a judge could not ask the model: {why}")


def open_aside(beside: Branch, prompt: Prompt, engine: Engine | None = None) -> Branch | None:
    """A branch of the same program with a prompt of its own; None, with a remark, if it cannot be.

    Args:
        engine: another model than the branch's own.
    """
    run = beside.run
    try:
        return (engine or beside.engine).open(prompt, seed=run.seed, run=run)
    except InputError as error:  # budget, context, template
        unasked(beside, error.failed)
        return None


async def put(branch: Branch, question: str) -> bool:
    """Append a question as the next turn; False, with a remark, when there is no room for it."""
    asked = await turn(branch, question)
    if not asked:
        unasked(branch)
    return asked


async def answers(branch: Branch, options: Sequence[str]) -> list[float] | None:
    """Share of each option as the continuation of a branch; None, with a remark, without room."""
    try:
        scores = await score(branch, options)
    except ContextError:
        scores = [-math.inf]
    return _shares(branch, scores)


async def question(
    branch: Branch, text: str, options: Sequence[str], *, prior: bool = True
) -> list[float] | None:
    """What the model answers to a question about a branch: the share of each option.

    Args:
        prior: subtract what the model would say of an empty reply to the same prompt
            (domain-conditional PMI), so that its liking for a word does not count.

    Returns:
        None when the branch was dropped, or there is no room to ask; a remark says which.
    """
    if not branch.live:
        unasked(branch, "the thought was dropped")
        return None
    with ExitStack() as stack:
        (asked,) = stack.enter_context(forks(branch, 1, "question"))
        if not await put(asked, text):
            return None
        blank = None
        if prior:
            blank = branch.fork(at=branch.opening)
            stack.callback(blank.drop, "question")
            if not await put(blank, text):
                return None
        try:
            scores = await score(asked, options, prior=blank)
        except ContextError:
            scores = [-math.inf]
        return _shares(branch, scores)


def _shares(branch: Branch, scores: Sequence[float]) -> list[float] | None:
    top = max(scores)
    if not math.isfinite(top):
        unasked(branch)
        return None
    weights = [math.exp(s - top) for s in scores]
    return [weight / sum(weights) for weight in weights]


def place(branch: Branch, position: int) -> Mark:
    """One name for a position, whichever fork it is seen from: of the branch that wrote it."""
    while branch.parent is not None and position <= branch.origin:
        branch = branch.parent
    return Mark(branch.id, position)


def before(thought: Thought) -> int:
    """Characters of its branch's text that are not its own: the turns that led to it."""
    whole = thought.branch.text
    return len(whole) - len(thought.text) if whole.endswith(thought.text) else 0


def step_ends(thought: Thought, boundary: str) -> list[int]:
    """Positions where the steps of a thought's text end, the tip last.

    A step goes to the token that completes its boundary; blank ones are none.
    """
    branch, wanted, ends, text = thought.branch, boundary.encode(), [], b""
    start, tip = branch.opening.position, branch.mark.position
    reader, others = codecs.getincrementaldecoder("utf-8")("replace"), before(thought)
    for position, token in enumerate(branch.tokens[start:], start + 1):
        said = branch.engine.tokenizer.token_bytes(token)
        if others > 0:
            others -= len(reader.decode(said))
            continue
        text += said
        if wanted in text:
            if text.strip():
                ends.append(position)
            text = text.rpartition(wanted)[2]
    if not ends or text.strip():
        ends.append(tip)
    else:
        ends[-1] = tip  # what is left is blank
    return ends

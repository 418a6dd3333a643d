"""Conversations within a search: questions put to the model, and its replies as thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from anabranch.errors import ContextError
from anabranch.program.branch import Branch
from anabranch.program.derived import choose, forks, turn
from anabranch.program.types import Problem, Thought
from anabranch.reason.kernels import population, sample, sampler
from anabranch.reason.prompts import conversation, instruction

YES, NO = "Yes", "No"


def begin(
    near: Branch, problem: Problem, text: str, shown: Sequence[tuple[str, str]] = ()
) -> Branch | None:
    """A branch that waits for the reply to `text`, in a conversation of its own.

    Its random stream follows from `near` and the text: fork it to ask the same thing twice.

    Args:
        shown: turns that come before it, each with its reply, as examples.

    Returns:
        None, with a remark, when budget or context do not cover the text.
    """
    messages = conversation(problem, text, shown)
    run, engine = near.run, near.engine
    if run.budget.over or len(engine.tokenizer.chat(messages)) > run.budget.left_tokens:
        run.remark("budget or context did not cover every question of the method")
        return None
    key = blake2b(f"{run.seed}/{near.id}/{text}".encode(), digest_size=8)
    try:
        return engine.open(messages, seed=int.from_bytes(key.digest()), run=run)
    except ContextError:
        run.remark("a question of the method did not fit into the context")
        return None


def put_anew(problem: Problem, root: Branch, lines: Sequence[str]) -> tuple[Problem, Branch]:
    """A problem in other words, its context among them, and the branch that waits for its solution.

    As they were, with a remark, when budget or context do not cover it.
    """
    other = replace(problem, text="\n".join(lines), context="")
    branch = begin(root, other, instruction(other))
    return (problem, root) if branch is None else (other, branch)


async def ask(branch: Branch, text: str) -> bool:
    """Append a user's turn, ready for the reply; False, with a remark, without room for it."""
    asked = await turn(branch, text)
    if not asked:
        branch.run.remark("budget or context did not cover every question of the method")
    return asked


async def reply(
    problem: Problem, branch: Branch, limit: int, *, parent: Thought | None = None, **sampling: Any
) -> Thought:
    """The reply that a branch waits for, as a candidate; it grows on this very branch.

    Args:
        parent: the thought that the conversation goes on from.
    """
    thought = Thought(branch, parent)
    if parent is not None:
        thought.logp, thought.logw, thought.tokens = parent.logp, parent.logw, parent.tokens
    advance = sampler(problem, skip=len(branch.text), **sampling)
    await population([thought], advance, limit=limit)
    return thought


async def answer_turn(
    problem: Problem, thought: Thought, text: str, limit: int, **sampling: Any
) -> Thought | None:
    """What a thought's conversation becomes by one more turn; None where that is not to be had.

    The thought itself stays as it is.
    """
    branch = thought.branch.fork()
    if not await ask(branch, text):
        branch.drop("not covered")
        return None
    return await reply(problem, branch, limit, parent=thought, **sampling)


async def replies(
    problem: Problem, branch: Branch, n: int, limit: int, **sampling: Any
) -> list[Thought]:
    """`n` independent replies that a branch waits for, as candidates."""
    return await sample(problem, branch, n, limit, skip=len(branch.text), **sampling)


async def verdict(
    branch: Branch, question: str, options: Sequence[str] = (YES, NO)
) -> dict[str, float]:
    """Each option's share as the reply to a question about a branch, which is left unchanged.

    Equal shares when the budget does not cover the question.
    """
    with forks(branch, 1, "verdict") as (child,):
        if not await ask(child, question):
            return dict.fromkeys(options, 1 / len(options))
        return (await choose(child, options))[1]


async def remark_on(branch: Branch, question: str, limit: int, **sampling: Any) -> str | None:
    """A reply to a question about a branch, as text; None when there is none.

    The branch is left unchanged, and the text is no candidate.
    """
    with forks(branch, 1, "remark") as (child,):
        if not await ask(child, question):
            return None
        step = await child.extend(limit, **{"temperature": 0.0, **sampling})
        return step.text.strip() or None


async def opinion(
    near: Branch, problem: Problem, text: str, options: Sequence[str] = (YES, NO)
) -> dict[str, float]:
    """Each option's share as the reply to `text`, in a conversation of its own.

    Equal shares when the budget does not cover it.
    """
    branch = begin(near, problem, text)
    if branch is None:
        return dict.fromkeys(options, 1 / len(options))
    try:
        return (await choose(branch, options))[1]
    finally:
        branch.drop("opinion")

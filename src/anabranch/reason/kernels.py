"""The loops that methods are made of.

A method says how a thought takes a step and which thoughts go on; the loops here share out the
budget, run everything that can run at once, and keep the run's thoughts up to date, so that the
best answer so far is there whenever the run ends.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from anabranch.program.answers import extract
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.run import Run
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.registry import Judge, rate

Advance = Callable[[Thought, int], Awaitable[None]]
"""One step of one thought, of at most so many tokens; updates the thought."""

Select = Callable[[list[Thought]], Awaitable[list[Thought]]]
"""Which thoughts go on: some of those given, in any order, and copies on forked branches."""


def sampler(problem: Problem, *, skip: int = 0, **sampling: Any) -> Advance:
    """Advance by sampling (`sampling` as in `Branch.extend`), and read the answer so far.

    A thought is done at the model's own end, or once it has stated an answer; one that a step's
    limit may have cut short is read, but not done.

    Args:
        skip: how many characters of the branch's text come before the thought's own: the turns of
            a conversation that led to it.
    """

    async def advance(thought: Thought, limit: int) -> None:
        try:
            await write(thought, limit, skip=skip, **sampling)
        finally:  # whoever stops us wants what there is
            thought.answer = extract(thought.text, problem, done=thought.done)
        thought.done |= thought.answer is not None and not _cut_short(thought, problem)
        if thought.done:
            note_thought(thought)

    return advance


def _cut_short(thought: Thought, problem: Problem) -> bool:
    """Whether a step's limit came where the answer may go on: "12" may become "123"."""
    last = thought.branch.last
    if last is None or last.stop not in ("limit", "budget"):
        return False
    return extract(thought.text + "7", problem, done=False) != thought.answer


async def write(thought: Thought, limit: int, *, skip: int = 0, **sampling: Any) -> None:
    """Sample on at a thought's branch, and count it, also when it is interrupted.

    Args:
        skip: as in `sampler`.
    """
    branch, before = thought.branch, thought.branch.last
    try:
        await branch.extend(limit, **sampling)
    finally:
        if branch.last is not None and branch.last is not before:
            thought.logp += branch.last.logp
            thought.logw += branch.last.logw
            thought.tokens += len(branch.last.tokens)
            thought.done = branch.last.stop in ("end", "complete", "stuck")
        thought.text = branch.text[skip:]


def note_thought(thought: Thought) -> None:
    """Write a thought into the trace."""
    thought.branch.run.note(
        "thought",
        branch=thought.branch.id,
        answer=thought.answer,
        tokens=thought.tokens,
        logp=thought.logp,
        done=thought.done,
    )


async def population(
    thoughts: Sequence[Thought],
    advance: Advance,
    select: Select | None = None,
    *,
    limit: int,
    rounds: int = 1,
    fanout: int = 1,
) -> list[Thought]:
    """Every unfinished thought takes one step, all at once; then `select` says which go on.

    With `select`, this is beam search, DVTS, pruning or a particle filter; without, plain sampling.

    Args:
        limit: most tokens of one step. When the budget is short, all get the same share of it.
        rounds: most steps of one thought.
        fanout: forks of each unfinished thought that take its next step.

    Returns:
        The last population. Ends early when all are done or the budget is over.
    """
    current = list(thoughts)
    if not current:
        return []
    run = current[0].branch.run
    register(run, current)
    for _ in range(rounds):
        live = [thought for thought in current if not thought.done]
        if not live or run.budget.over:
            break
        if fanout > 1:
            live = [child for thought in live for child in spread(thought, fanout)]
            current = [*(thought for thought in current if thought.done), *live]
            run.thoughts = [t for t in run.thoughts if t.done or t.branch.live]
            register(run, live)
        share = _share(run.budget, limit, len(live))
        await together(advance(thought, share) for thought in live)
        if select is not None:
            selected = await select(current)
            retire(run, current, selected)
            register(run, selected)
            current = selected
    return current


def spread(thought: Thought, n: int) -> list[Thought]:
    """Children of a thought on forks of its branch, which is dropped."""
    children = [
        replace(thought, branch=branch, parent=thought) for branch in thought.branch.fork(n)
    ]
    thought.branch.drop("went on in its forks")
    return children


async def judge_steps(judge: Judge, problem: Problem, thoughts: Sequence[Thought]) -> None:
    """Rate thoughts that have gone on since their last rating, and add that to their scores."""
    if not thoughts:
        return
    known = thoughts[0].branch.run.ratings
    new = [t for t in thoughts if (judge.name, t.branch.mark) not in known]
    for thought, rating in zip(new, await rate(judge, problem, new), strict=True):
        thought.scores = (*thought.scores, rating)


async def sample(
    problem: Problem, root: Branch, n: int, limit: int, **sampling: Any
) -> list[Thought]:
    """`n` independent thoughts from one root, each to its end or for `limit` tokens."""
    thoughts = [Thought(branch) for branch in root.fork(n)]
    return await waves(thoughts, sampler(problem, **sampling), limit=limit)


async def waves(
    thoughts: Sequence[Thought], advance: Advance, *, limit: int, rounds: int = 1
) -> list[Thought]:
    """Thoughts that go on each for itself, for `rounds` steps of up to `limit` tokens.

    All run at once. When the budget might not cover that, as many run at once as it surely covers
    whole, and what they leave over buys the next: a few finished thoughts are worth more than many
    stumps.

    Returns:
        Those that the budget let begin.
    """
    waiting, begun = list(thoughts), list[Thought]()
    while waiting and not (budget := waiting[0].branch.run.budget).over:
        wave = int(max(1, min(len(waiting), budget.left_tokens // (limit * rounds))))
        going, waiting = waiting[:wave], waiting[wave:]
        begun += going
        await population(going, advance, limit=limit, rounds=rounds)
    for thought in waiting:
        thought.branch.drop("the budget ended before it began")
    return begun


def _share(budget: Budget, limit: int, live: int) -> int:
    """Tokens for each of the live branches: the same for all, at least one."""
    left = budget.left_tokens
    return limit if left == math.inf else max(1, min(limit, int(left) // live))


def register(run: Run, thoughts: Sequence[Thought]) -> None:
    """Make them candidates of the run, if they are not already."""
    known = set(map(id, run.thoughts))
    run.thoughts += [thought for thought in thoughts if id(thought) not in known]


def retire(run: Run, before: Sequence[Thought], after: Sequence[Thought]) -> None:
    """Drop the branches of thoughts left out. What has come to its end stays a candidate."""
    kept = set(map(id, after))
    left = [thought for thought in before if id(thought) not in kept]
    for thought in left:
        thought.branch.drop("not selected")
    forgotten = {id(thought) for thought in left if not thought.done}
    run.thoughts = [thought for thought in run.thoughts if id(thought) not in forgotten]


Pick = Callable[[list[Thought]], Thought | None]
"""Which leaf is next, of all there are, oldest first; None when none is worth it."""

Rating = Callable[[Sequence[Thought]], Awaitable[None]]
"""Adds a rating to the scores of thoughts that have just taken a step."""

RESERVE = 1 / 4
"""Share of the budget that is kept for finishing a thought, until one is finished."""

LAST_STEPS = 64
"""Most steps that it then takes alone."""


async def grow(
    root: Thought,
    advance: Advance,
    judge: Rating,
    pick: Pick,
    *,
    backup: Callable[[Thought, list[Thought]], None] | None = None,
    accept: Callable[[Thought], bool] | None = None,
    keep: Callable[[list[Thought]], list[Thought]] | None = None,
    limit: int,
    fanout: int,
    rounds: int,
) -> list[Thought]:
    """One leaf at a time: pick it, expand it, judge its children, tell its ancestors.

    With a heap this is A*, with a stack depth-first search, with a descent from the root Monte
    Carlo tree search. Children that say the same become one, and its `prior` is their share. A
    finished leaf that is picked is not expanded: it is accepted, or just visited again.

    Args:
        judge: rates children at their birth.
        backup: told of the leaf picked and its children; a finished leaf has none.
        accept: whether a finished leaf that was picked ends the search; None: never.
        keep: which leaves stay when there are new ones; None: all.
        limit: most tokens of one step.
        fanout: steps sampled from a leaf.
        rounds: most leaves picked.

    Returns:
        The finished leaves, the accepted one first. When there are none, the leaf next in turn goes
        on alone, on what was kept back for that: it alone if it gets there, else all leaves.
    """
    run = root.branch.run
    leaves = [root]
    register(run, leaves)
    reserve = run.budget.left_tokens * RESERVE
    for _ in range(rounds):
        spare = run.budget.left_tokens
        if spare < math.inf and not any(leaf.done for leaf in leaves):
            spare -= reserve
        leaf = pick(leaves)
        if leaf is None or run.budget.over or spare < fanout:
            break
        children: list[Thought] = []
        if not leaf.done:
            children = await _expand(leaf, advance, int(min(limit, spare / fanout)), fanout)
            await judge(children)
            leaves = [other for other in leaves if other is not leaf] + children
        elif accept is not None and accept(leaf):
            leaves = [leaf, *(other for other in leaves if other is not leaf)]
            break
        if backup is not None:
            backup(leaf, children)
        if keep is not None:
            kept = keep(leaves)
            retire(run, leaves, kept)
            leaves = kept
    if not any(leaf.done for leaf in leaves):
        last = pick(leaves) or leaves[-1]
        await population([last], advance, limit=limit, rounds=LAST_STEPS)
        leaves = [last, *(leaf for leaf in leaves if leaf is not last)]
    if finished := [leaf for leaf in leaves if leaf.done]:
        retire(run, leaves, finished)
        return finished
    return leaves


async def _expand(leaf: Thought, advance: Advance, limit: int, fanout: int) -> list[Thought]:
    """Its children one step on, in its place; one of those that say the same, with their share."""
    run, children = leaf.branch.run, spread(leaf, fanout)
    for child in children:
        child.visits, child.total = 0, 0.0
    run.thoughts = [thought for thought in run.thoughts if thought is not leaf]
    register(run, children)
    await together(advance(child, limit) for child in children)
    groups: dict[tuple[str, bool], list[Thought]] = {}
    for child in children:
        groups.setdefault((child.text, child.done), []).append(child)
    twins: set[int] = set()
    for first, *others in groups.values():
        first.prior = (1 + len(others)) / fanout
        for twin in others:
            twin.branch.drop("said the same as a sibling")
            twins.add(id(twin))
    run.thoughts = [thought for thought in run.thoughts if id(thought) not in twins]
    return [first for first, *_ in groups.values()]


Criticise = Callable[[Thought], Awaitable[str | None]]
"""What is wrong with a draft, or None when nothing is (or nothing can be said)."""

Revise = Callable[[Thought, str], Awaitable[Thought | None]]
"""A new draft that heeds a complaint, or None when there can be none."""


async def refine(
    draft: Thought, criticise: Criticise, revise: Revise, *, rounds: int
) -> list[Thought]:
    """Criticise and revise until there is no complaint, for `rounds` revisions at most.

    Returns:
        Every draft, the first one first. All are the run's candidates, so that a budget that ends
        leaves the best so far.
    """
    run, drafts = draft.branch.run, [draft]
    register(run, drafts)
    while len(drafts) <= rounds and not run.budget.over:
        complaint = await criticise(drafts[-1])
        revised = None if complaint is None else await revise(drafts[-1], complaint)
        run.note("criticise", branch=drafts[-1].branch.id, complaint=complaint)
        if revised is None:
            break
        drafts.append(revised)
        register(run, [revised])
    return drafts

"""Programs that do everything at once, at the wrong moment, with hardly any memory.

Many programs fork, extend, rewind, force, peek, stream, drop and cancel over shared prefixes, at
any turn of the event loop. Afterwards nothing may be left over, every token must have been charged,
and every page must hold what its path says: during the run by a shadow of the cache, afterwards by
the bits of branches that share prefixes with what ran before.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.backends.base import PAGE_SLOTS
from anabranch.engine.core import EngineCore, Pass
from anabranch.errors import AnabranchError, ResourceError
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.engine import Engine
from anabranch.program.run import Run
from anabranch.program.types import Mark, Step
from tests.engines import make_engine


@pytest.fixture(autouse=True, scope="module", params=[0.0, 1e9], ids=["elsewhere", "here"])
def threads_of_passes(request: pytest.FixtureRequest) -> Iterator[None]:
    """All passes on the worker's thread, then all on the event loop's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anabranch.program.engine.SHORT_PASS", request.param)
        yield


RIVER = "The river divides above the island, and below it the waters meet again."
PROMPTS = [RIVER[:17], RIVER[:33], RIVER[:32], RIVER[:40] + "?", RIVER[:20] + "!" * 15, "An", RIVER]


class Boom(Exception):
    """What a caller's own stop condition raises."""


class Glass:
    """A shadow of the KV cache: which token of which path every slot holds.

    Watches an engine's core. Each pass must read, through its page tables, the path that the tree
    had when the pass was prepared. `faults` are the passes of every 24 that break halfway, and
    the copies of every 8 that do (negative).
    """

    def __init__(self, core: EngineCore, faults: set[int]) -> None:
        self.core, self.faults = core, faults
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}
        self.appended = self.passes = self.copies = 0
        self.surprises: list[BaseException] = []
        self.real = core.prepare, core.compute, core._copy_page, core.tree.append
        self.real_fails = core.fail, core.fail_all
        core.fail, core.fail_all = self.fail, self.fail_all  # type: ignore[method-assign]
        core.prepare, core.compute = self.prepare, self.compute  # type: ignore[method-assign]
        core._copy_page = self.copy  # type: ignore[method-assign]
        core.tree.append = self.append  # type: ignore[method-assign]

    def prepare(self) -> Pass | None:
        work = self.real[0]()
        for item in work.items if work else []:
            parts = [node.tokens for node in item.node.ancestry()]
            path = tuple(token for part in reversed(parts) for token in part)[: item.end]
            item.path = path  # type: ignore[attr-defined]
        self.passes += 1
        assert self.passes < 5000, "passes without end"
        return work

    def compute(self, work: Pass) -> None:
        batch = work.batch
        for k, item in enumerate(work.items):
            assert batch is not None
            path = item.path  # type: ignore[attr-defined]
            rows = slice(batch.row_starts[k], batch.row_starts[k + 1])
            table = batch.tables[batch.table_starts[k] : batch.table_starts[k + 1]].tolist()
            assert tuple(batch.tokens[rows].tolist()) == path[item.begin : item.end]
            assert batch.positions[rows].tolist() == list(range(item.begin, item.end))
            for position in range(item.end if not item.store else item.begin):
                held = self.slots.get((table[position // PAGE_SLOTS], position % PAGE_SLOTS))
                assert held == path[: position + 1], f"position {position} of {item.begin}"
            for position, slot in zip(
                range(item.begin, item.end), batch.slots[rows].tolist(), strict=True
            ):
                page = table[position // PAGE_SLOTS]
                assert slot == (page * PAGE_SLOTS + position % PAGE_SLOTS if item.store else -1)
                if item.store:
                    broken = self.passes % 24 in self.faults
                    self.slots[page, position % PAGE_SLOTS] = () if broken else path[: position + 1]
        if self.passes % 24 in self.faults:
            raise MemoryError
        self.real[1](work)

    def copy(self, source: int, target: int) -> None:
        self.copies += 1
        broken = -(self.copies % 8) - 1 in self.faults
        for slot in range(PAGE_SLOTS):
            self.slots[target, slot] = () if broken else self.slots.get((source, slot), ())
        if broken:
            raise MemoryError
        self.real[2](source, target)

    def fail(self, work: Pass, error: AnabranchError) -> None:
        self._expect(error)
        self.real_fails[0](work, error)

    def fail_all(self, error: AnabranchError) -> None:
        self._expect(error)
        self.real_fails[1](error)

    def _expect(self, error: AnabranchError) -> None:
        cause = error.__cause__ or error
        if isinstance(cause, Exception) and not isinstance(cause, ResourceError):
            self.surprises.append(cause)

    def append(self, cursor: Any, tokens: Any) -> int:
        self.appended += len(tokens)
        return self.real[3](cursor, tokens)


class Sluggish:
    """A worker that computes after so many turns of the event loop: any interleaving, none of them
    by chance."""

    def __init__(self, delays: list[int]) -> None:
        self.delays, self.count = delays, 0

    def submit(self, compute: Callable[[Pass], None], work: Pass) -> Future[None]:
        future: Future[None] = Future()
        self.count += 1
        self._later(self.delays[self.count % len(self.delays)], future, compute, work)
        return future

    def _later(self, turns: int, future: Future[None], compute: Any, work: Pass) -> None:
        if turns:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._later, turns - 1, future, compute, work)
        elif future.set_running_or_notify_cancel():
            try:
                future.set_result(compute(work))
            except BaseException as error:
                future.set_exception(error)

    def shutdown(self) -> None:
        """Nothing to stop."""


class Program:
    """One random program: its branches, and what it has started and not awaited yet."""

    def __init__(self, engine: Engine, run: Run, now: list[float]) -> None:
        self.engine, self.run, self.now = engine, run, now
        self.live: list[Branch] = []
        self.started: list[asyncio.Task[Any]] = []
        self.steps: list[tuple[list[int], Step]] = []

    async def play(self, acts: list[tuple[str, int, int]]) -> None:
        try:
            for name, who, size in acts:
                with contextlib.suppress(AnabranchError):
                    await self.act(name, who, size)
            await asyncio.gather(*self.started, return_exceptions=True)
        finally:
            for task in self.started:
                task.cancel()
            try:
                await asyncio.gather(*self.started, return_exceptions=True)
            finally:
                self.run.drop_all()

    async def act(self, name: str, who: int, size: int) -> None:
        if name == "open" or not self.live:
            self.live.append(
                self.engine.open(
                    PROMPTS[who % len(PROMPTS)],
                    seed=size,
                    priority=float(who % 3),
                    deadline=None if size % 2 else float(size),
                    run=self.run,
                )
            )
            return
        branch = self.live[who % len(self.live)]
        if name == "fork":
            self.live += branch.fork(1 + size % 3)
        elif name == "back":
            self.live.append(branch.fork(at=Mark(branch.id, 1 + size % branch.mark.position)))
        elif name == "drop":
            branch.drop()
            self.live.remove(branch)
        elif name == "turns":
            for _ in range(size):
                await asyncio.sleep(0)
        elif name == "wait":
            await asyncio.gather(*self.started, return_exceptions=True)
        elif name == "cancel" and self.started:
            self.started[who % len(self.started)].cancel()
        elif name == "tick":
            self.now[0] += size / 4
        elif name in ("extend", "until", "force", "peek", "stream"):
            self.started.append(asyncio.create_task(getattr(self, name)(branch, size)))

    async def extend(self, branch: Branch, size: int) -> None:
        options: dict[str, Any] = {"temperature": (0.0, 0.7, 1.5)[size % 3], "bias": LETTERS}
        if size % 4 == 0:
            options |= {"frequency_penalty": 1.0, "repetition_penalty": 1.2}
        await self._note(branch, lambda: branch.extend(2 * size, **options))

    async def until(self, branch: Branch, size: int) -> None:
        def meddle(step: Step) -> bool:
            if len(step.tokens) == 2:
                self.live += branch.fork(2)
            if len(step.tokens) == 3 and size % 3 == 0:
                (branch if size % 2 else self.live[0]).drop()
            if len(step.tokens) == 4 and size % 5 == 0:
                raise Boom
            return len(step.tokens) > size // 2

        until, keep = [
            ([chr(c) + chr(d) for c in range(97, 123) for d in range(97, 123, 2)], False),
            (re.compile("[aeiou]|[x-z]"), False),
            (["a", "e", "in"], True),
            (meddle, True),
        ][size % 4]
        with contextlib.suppress(Boom):
            await self._note(
                branch, lambda: branch.extend(size, until=until, keep=keep, bias=LETTERS)
            )

    async def force(self, branch: Branch, size: int) -> None:
        at = branch.mark.position
        text = (RIVER + RIVER)[at : at + size] if size % 2 else "xyz" * size
        await self._note(branch, lambda: branch.force(text))

    async def peek(self, branch: Branch, size: int) -> None:
        tip = await branch.peek(1 + size, hidden=bool(size % 2))
        assert len(tip.tokens) == 1 + size

    async def stream(self, branch: Branch, size: int) -> None:
        async with contextlib.aclosing(branch.stream(3 * size, bias=LETTERS)) as pieces:
            count = 0
            async for _ in pieces:
                count += 1
                if count > size // 2:
                    break

    async def _note(self, branch: Branch, work: Callable[[], Coroutine[Any, Any, Step]]) -> None:
        step = await work()
        if step.tokens and step.stop != "dead" and branch.live:
            path = branch.tokens[: step.end.position]
            assert tuple(path[step.start.position :]) == step.tokens
            self.steps.append((path, step))


LETTERS = dict.fromkeys(range(97, 123), 6.0)

ACT = st.tuples(
    st.sampled_from(
        ["extend"] * 4
        + ["open", "fork", "back", "until", "until", "force", "peek", "drop", "stream"]
        + ["turns", "turns", "wait", "cancel", "cancel", "tick"]
    ),
    st.integers(0, 50),
    st.integers(1, 12),
)
PROGRAM = st.tuples(
    st.lists(ACT, min_size=3, max_size=14),
    st.one_of(st.none(), st.integers(1, 150)),  # tokens
    st.one_of(st.none(), st.integers(1, 20)),  # seconds
    st.one_of(st.none(), st.integers(0, 60)),  # turn at which it is cancelled
)


@cache
def fresh(family: str, path: tuple[int, ...], count: int) -> tuple[Any, ...]:
    """What a fresh engine says of the last `count` tokens of a path."""
    engine = make_engine(family, "native", pages=64)
    step = asyncio.run(engine.open(path[:-count]).force(path[-count:]))
    engine.close()
    return step.logps, step.entropies


@cache
def fresh_step(family: str, prompt: str) -> tuple[Any, ...]:
    """What a fresh engine draws after a prompt."""
    engine = make_engine(family, "native", pages=64)
    step = asyncio.run(engine.open(prompt, seed=7).extend(12))
    engine.close()
    return step.tokens, step.logps, step.entropies


def speaks_the_same(engine: Engine, family: str) -> None:
    """Branches that share prefixes with whatever ran before have the bits of a fresh engine."""
    for prompt in PROMPTS:
        branch = engine.open(prompt, seed=7)
        step = asyncio.run(branch.extend(12))
        count = min(12, engine.core.capacity - len(prompt))
        assert len(step.tokens) == count or step.stop == "end"
        expected = fresh_step(family, prompt)
        assert (step.tokens, step.logps, step.entropies) == tuple(e[:count] for e in expected)
        branch.drop()


def nothing_is_left(engine: Engine) -> None:
    """No request, no pin, no chunk under way; and every page can be had again."""
    core, tree = engine.core, engine.core.tree
    tree.check()
    assert not core.requests
    assert all(not n.pins and n.pending == n.computed for n in tree.nodes())
    assert sum(len(node.tips) for node in tree.nodes()) <= core._most_tips
    while leaves := [node for node in tree.nodes() if not node.children]:
        for node in leaves:
            tree.evict(node)
    assert tree.pool.free == len(tree.pool)
    assert not tree.roots


@given(
    family=st.sampled_from(["llama", "gemma3"]),
    programs=st.lists(PROGRAM, min_size=2, max_size=6),
    pages=st.integers(6, 40),
    max_rows=st.sampled_from([1, 2, 3, 5, 8, 16, 32]),
    most_tips=st.sampled_from([1, 3, 1000]),
    delays=st.lists(st.sampled_from([0, 1, 3, 10, 30]), min_size=1, max_size=5),
    faults=st.sets(st.integers(-8, 23), max_size=3),
)
@settings(max_examples=60)
def test_chaos_leaves_nothing_behind(
    family: str,
    programs: list,
    pages: int,
    max_rows: int,
    most_tips: int,
    delays: list[int],
    faults: set[int],
) -> None:
    engine = make_engine(family, "native", pages=pages, max_rows=max_rows)
    engine.close()
    engine._worker = Sluggish(delays)  # type: ignore[assignment]
    engine.core._most_tips = most_tips
    glass, now = Glass(engine.core, faults), [0.0]
    played: list[Program] = []

    async def main() -> None:
        tasks, ends = [], []
        for acts, tokens, seconds, end in programs:
            budget = Budget(tokens, seconds, clock=lambda: now[0])
            program = Program(engine, Run(budget=budget), now)
            played.append(program)
            tasks.append(asyncio.create_task(program.play(acts)))
            ends.append(end)
        for turn in range(60):
            for task, end in zip(tasks, ends, strict=True):
                if end == turn:
                    task.cancel()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        engine.core.tree.check()
        assert glass.appended == sum(p.run.budget.spent_tokens for p in played)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert not glass.surprises
    faults.clear()
    speaks_the_same(engine, family)
    for program in played:
        for task in program.started:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, AnabranchError)
        run = program.run
        assert not run.live
        assert run.budget._reserved == 0
        used = run.usage
        assert run.budget.spent_tokens == (
            used.prompt_tokens + used.sampled_tokens + used.forced_tokens
        )
        assert used.computed_tokens <= run.budget.spent_tokens
        for path, step in program.steps:
            expected = fresh(family, tuple(path), len(step.tokens))
            assert (step.logps, step.entropies) == expected
    nothing_is_left(engine)


async def begin(engine: Engine, run: Run, turns: int) -> list[asyncio.Future[Any]]:
    """Start more than fits, and leave in the middle."""
    tasks: list[asyncio.Future[Any]] = []

    async def stubborn(branch: Branch) -> None:
        """Asks for more when it is told to stop."""
        try:
            await branch.extend(100, bias=LETTERS)
        except asyncio.CancelledError:
            await branch.extend(3, bias=LETTERS)

    for seed, prompt in enumerate(PROMPTS):
        root = engine.open(prompt, seed=seed, run=run)
        works = [stubborn(root.fork()), root.fork().force(RIVER[:20]), root.fork().extend(40)]
        tasks += map(asyncio.ensure_future, works)
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    return tasks


@pytest.mark.parametrize("abrupt", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 4, 9, 17])
def test_a_loop_may_end_in_the_middle_of_work(turns: int, abrupt: bool) -> None:
    """Cancelled in order by `asyncio.run`, or closed over running tasks: the next loop finds an
    engine in order."""
    engine = make_engine("llama", "native", pages=24, max_rows=4)
    glass, run = Glass(engine.core, set()), Run()
    compute = engine.core.compute

    def slow(work: Pass) -> None:
        time.sleep(0.001)
        compute(work)

    engine.core.compute = slow  # type: ignore[method-assign]
    if abrupt:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it complains about the tasks it loses
        tasks = loop.run_until_complete(begin(engine, run, turns))
        loop.close()
    else:
        tasks = asyncio.run(begin(engine, run, turns))
        assert run.budget._reserved == 0
        assert all(task.done() for task in tasks)
    engine.core.tree.check()
    speaks_the_same(engine, "llama")
    run.drop_all()
    assert not glass.surprises
    nothing_is_left(engine)

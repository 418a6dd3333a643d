"""The laws of the engine over random programs: same bits, whatever else happens.

A program is a random history of forks, extensions, forced tokens, looks and drops. What its
branches draw, and every log-probability, must not depend on order, on chunking, on memory and
preemption, on the cache, on threads and instruction sets, or on programs that run beside it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.backends.native import NativeBackend
from anabranch.engine.core import Pass
from anabranch.engine.requests import Look
from anabranch.engine.scheduler import DecodeFirst, FairShare, Waiting
from anabranch.errors import AnabranchError, InputError, ModelError, ResourceError
from anabranch.program.budget import Budget
from anabranch.program.engine import Engine
from anabranch.program.play import (
    OPERATIONS,
    Fact,
    Gather,
    Played,
    Program,
    facts,
    in_turn,
    play,
    shuffled,
    together,
)
from anabranch.program.run import Run
from anabranch.program.types import Step
from tests.engines import make_engine, run

FAMILIES = ["llama", "gemma3"]
ISAS: Any = NativeBackend(1).features()["available"]
PROMPT = "The river divides above the island, and below it the waters meet again."

PROGRAM = st.lists(
    st.lists(
        st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 10**6), st.integers(1, 9)),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=5,
)


def evidence(step: Step) -> tuple[Any, ...]:
    return step.tokens, step.logps, step.logq, step.entropies, step.text, step.stop


async def beside(engine: Engine, program: Program, seed: int) -> Played:
    """The same program, with four others that share some of its prefixes running beside it."""
    other = [[("extend", k, 5), ("fork", k, 2), ("extend", k + 1, 7)] for k in range(3)]
    results = await asyncio.gather(
        play(engine, other, 77, PROMPT),
        play(engine, program, seed, PROMPT),
        play(engine, other, 78, PROMPT[:40] + "!"),
        play(engine, other, 79, "Something else"),
        play(engine, program[:2], seed + 1, PROMPT),
    )
    return results[1]


@pytest.mark.parametrize("family", FAMILIES)
@given(program=PROGRAM, seed=st.integers(0, 2**64 - 2))
@settings(max_examples=25)
def test_same_bits_whatever_happens(family: str, program: Program, seed: int) -> None:
    def engine(**options: Any) -> Engine:
        return make_engine(family, "native", **options)

    def seen(engine: Engine, played: Coroutine[Any, Any, Played]) -> tuple[list[Fact], Any]:
        result = run(engine, played)
        return list(facts(family, result)), result.paths

    first = engine()
    alone = seen(first, play(first, program, seed, PROMPT, in_turn))
    ways: list[tuple[str, Engine, Gather]] = [
        ("again, from a warm cache", first, together),
        ("all branches at once", engine(), together),
        ("in another order", engine(), shuffled),
        ("in chunks of 3 rows", engine(max_rows=3), together),
        ("on 2 threads", engine(threads=2), together),
        *((f"on {isa}", engine(threads=2, isa=isa), shuffled) for isa in ISAS),
    ]
    for name, other, gather in ways:
        assert seen(other, play(other, program, seed, PROMPT, gather)) == alone, name
    for name, pages in (("beside others", 256), ("with hardly any memory", 24)):
        other = engine(pages=pages)
        assert seen(other, beside(other, program, seed)) == alone, name


@given(program=PROGRAM, seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_forks_equal_computing_from_scratch(program: Program, seed: int) -> None:
    engine = make_engine("llama", "native")
    played = run(engine, play(engine, program, seed, PROMPT))

    async def score(tokens: list[int], count: int) -> Step:
        fresh = make_engine("llama", "native", max_rows=7)
        branch = fresh.open(tokens[:-count])
        return await branch.force(tokens[-count:])

    last = {branch: step for branch, _, step in played.results if isinstance(step, Step)}
    for branch, path in played.paths.items():
        if branch in last and (tokens := last[branch].tokens):
            scratch = asyncio.run(score(path, len(tokens)))
            assert scratch.tokens == tokens
            assert scratch.logps == last[branch].logps
            assert scratch.entropies == last[branch].entropies


@given(program=PROGRAM, seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_dropping_every_branch_makes_every_page_reclaimable(program: Program, seed: int) -> None:
    engine = make_engine("llama", "native", pages=64)
    run(engine, play(engine, program, seed, PROMPT))
    tree = engine.core.tree
    assert all(node.pins == 0 for node in tree.nodes())

    async def fill() -> None:
        branch = engine.open([7] * (engine.core.capacity - 1), scope="other")
        await branch.extend(1)
        branch.drop()

    run(engine, fill())
    assert tree.pool.free == 0
    assert engine.core.stats.preempted_nodes == 0


def test_the_prompt_is_computed_once() -> None:
    engine = make_engine("llama", "native")

    async def program() -> Run:
        root = engine.open(PROMPT)
        steps = await asyncio.gather(*(b.extend(8) for b in root.fork(16)))
        assert sum(len(s.tokens) for s in steps) == root.run.sampled_tokens
        return root.run

    usage = run(engine, program()).usage
    length = len(PROMPT.encode())
    assert usage.prompt_tokens == length
    assert usage.recomputed_tokens == 0
    # The last token of each branch is never fed back.
    assert usage.computed_tokens + usage.cached_tokens <= length + 16 * 8
    assert usage.computed_tokens >= length


def test_requests_that_arrive_together_share_their_prefix() -> None:
    engine = make_engine("llama", "native", max_rows=16)

    async def program() -> list[int]:
        roots = [engine.open(PROMPT + str(k), seed=k) for k in range(5)]
        await asyncio.gather(*(root.extend(1) for root in roots))
        return [root.run.usage.computed_tokens for root in roots]

    assert sum(run(engine, program())) == len(PROMPT.encode()) + 5


def test_greedy_twins_cost_one() -> None:
    engine = make_engine("llama", "native")

    async def program() -> tuple[set[tuple[int, ...]], int]:
        root = engine.open(PROMPT)
        steps = await asyncio.gather(*(b.extend(20, temperature=0) for b in root.fork(16)))
        return {s.tokens for s in steps}, root.run.usage.computed_tokens

    texts, computed = run(engine, program())
    assert len(texts) == 1
    assert computed == len(PROMPT.encode()) + 19


def test_preemption_happens_and_is_counted() -> None:
    engine = make_engine("llama", "native", pages=16)

    async def program() -> list[tuple[int, ...]]:
        branches = [engine.open(f"{k} {PROMPT}", seed=k) for k in range(4)]
        return [s.tokens for s in await asyncio.gather(*(b.extend(60) for b in branches))]

    tight = run(engine, program())
    assert engine.core.stats.preempted_nodes > 0
    engine = make_engine("llama", "native")
    assert run(engine, program()) == tight
    assert engine.core.stats.preempted_nodes == 0


def test_what_fits_alone_fits_whatever_ran_before() -> None:
    """Every fork in mid-page copies a page; they must not cost the branch that goes on."""

    async def program(engine: Engine) -> list[Step]:
        large = engine.open("x" * 90)
        for _ in range(5):
            await large.fork().force("kk")
            large = large.fork()
            await large.force("yz")
        return await asyncio.gather(engine.open("abc").extend(5), large.extend(100))

    tight, roomy = make_engine("llama", "native", pages=12), make_engine("llama", "native")
    fine, full = run(tight, program(tight))
    assert tight.core.stats.preempted_nodes > 0
    assert len(fine.tokens) == 5
    assert (len(full.tokens), full.stop) == (12 * 16 - 100, "limit")
    same, longer = run(roomy, program(roomy))
    assert evidence(same) == evidence(fine)
    assert longer.logps[: len(full.tokens)] == full.logps


def test_forks_that_wait_at_one_place_share_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("llama", "native", max_rows=8)
    prepare, kept = engine.core.prepare, []

    def watched() -> Pass | None:
        if (work := prepare()) is not None and work.cached:
            kept.append((len(work.cached), len(work.cached_logits)))
        return work

    async def program() -> None:
        root = engine.open(PROMPT)
        await asyncio.gather(*(b.extend(1) for b in root.fork(200)))

    monkeypatch.setattr(engine.core, "prepare", watched)
    run(engine, program())
    assert max(kept)[0] > 100
    assert {logits for _, logits in kept} == {1}


def test_priority_comes_before_having_begun() -> None:
    queue = [
        Waiting(0, 50, True, 0.0, math.inf),
        Waiting(1, 50, False, 1.0, math.inf),
        Waiting(2, 50, True, 1.0, math.inf),
    ]
    assert [grant.ticket for grant in DecodeFirst().plan(queue, 150)] == [2, 1, 0]


def test_short_forks_do_not_leak() -> None:
    engine = make_engine("llama", "native", pages=32)

    async def program() -> int:
        root = engine.open(PROMPT)
        for k in range(3000):
            child = root.fork()
            if k % 10 == 0:
                await child.extend(2)
            child.drop()
        return sum(1 for _ in engine.core.tree.nodes())

    nodes = run(engine, program())
    assert nodes <= 2 * 32 + 2


def test_cancel_frees_its_own_branches_only() -> None:
    engine = make_engine("llama", "native")

    async def program() -> tuple[Step, int, int]:
        kept, dropped = engine.open(PROMPT, seed=1), engine.open(PROMPT + "?", seed=2)
        other = asyncio.create_task(kept.extend(40))
        doomed = asyncio.create_task(dropped.extend(4000))
        await asyncio.sleep(0.02)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        charged = dropped.run.budget.spent_tokens
        written = len(dropped.tokens)
        dropped.drop()
        return await other, charged, written

    step, charged, written = run(engine, program())
    assert charged == written
    alone = make_engine("llama", "native")

    async def same() -> Step:
        return await alone.open(PROMPT, seed=1).extend(40)

    assert evidence(run(alone, same())) == evidence(step)


def test_budgets_cannot_be_overspent() -> None:
    engine = make_engine("llama", "native")

    async def program(tokens: int) -> tuple[Run, list[Step]]:
        work = Run(budget=Budget(tokens))
        root = engine.open("abc", run=work)
        steps = await asyncio.gather(*(b.extend(10) for b in root.fork(5)))
        work.drop_all()
        return work, list(steps)

    work, steps = run(engine, program(30))
    assert work.budget.spent_tokens == 30
    assert [len(s.tokens) for s in steps] == [10, 10, 7, 0, 0]
    assert [s.stop for s in steps] == ["limit", "limit", "budget", "budget", "budget"]
    assert work.usage.computed_tokens <= 30
    with pytest.raises(InputError, match="budget does not cover"):
        run(engine, program(2))


def test_poisoned_rows_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("llama", "native")
    honest = engine.core.decoder.logits

    def poisoned(hidden: Any, rows: Any) -> Any:
        logits = honest(hidden, rows)
        if len(rows) > 1:
            logits[0] = float("nan")
        return logits

    async def program() -> list[Any]:
        branches = [engine.open("abc"), engine.open("xyz")]
        return await asyncio.gather(*(b.extend(3) for b in branches), return_exceptions=True)

    monkeypatch.setattr(engine.core.decoder, "logits", poisoned)
    outcomes = run(engine, program())
    assert sorted(type(o).__name__ for o in outcomes) == ["ModelError", "Step"]
    assert issubclass(ModelError, Exception)


def test_a_pass_that_fails_fails_its_requests_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine("llama", "native")

    def broken(*_: Any) -> Any:
        raise MemoryError

    async def program() -> Step:
        branch = engine.open(PROMPT)
        with monkeypatch.context() as patch:
            patch.setattr(engine.core.decoder, "run", broken)
            with pytest.raises(ResourceError, match="memory"):
                await branch.extend(3)
        return await branch.extend(3)

    assert len(run(engine, program()).tokens) == 3


def test_a_fault_while_a_pass_is_prepared_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page whose copy failed must not be taken for a copy."""
    engine = make_engine("llama", "native")

    def broken(*_: Any) -> Any:
        raise MemoryError

    async def program() -> tuple[Step, Step]:
        root = engine.open(PROMPT)
        first, second = root.fork(2)
        step = await first.force("one")
        with monkeypatch.context() as patch:
            patch.setattr(engine.core, "_copy_page", broken)
            with pytest.raises(ResourceError, match="memory"):
                await second.force("two")
        assert all(node.pending == node.computed for node in engine.core.tree.nodes())
        return step, await root.fork().force("two")

    fresh = make_engine("llama", "native")
    _, step = run(engine, program())
    assert evidence(step) == evidence(run(fresh, fresh.open(PROMPT).force("two")))


def test_a_pass_that_fails_lets_go_of_what_was_replaced_meanwhile() -> None:
    """The end of a node that a pass works on is cut off, dropped, and grown again by another."""
    engine = make_engine("llama", "native", max_rows=10)
    core = engine.core
    first = engine.open(PROMPT)
    core.submit(Look(first._cursor, 1, False, lambda: None))
    work = core.prepare()
    assert work is not None
    engine.open(PROMPT[:20] + "#")
    first.drop()
    again = engine.open(PROMPT)
    core.fail(work, ModelError("broken"))
    core.tree.check()
    assert len(run(engine, again.extend(3)).tokens) == 3


def test_a_program_whose_text_cannot_be_read_fails_alone() -> None:
    engine = make_engine("llama", "native")
    honest = engine.tokenizer.token_bytes

    def token_bytes(token: int) -> bytes:
        if token == 299:
            raise KeyError(token)
        return honest(token)

    engine.tokenizer.token_bytes = token_bytes  # type: ignore[method-assign]

    async def program() -> list[Any]:
        good, bad = engine.open("abc"), engine.open("xyz")
        work = good.extend(20), bad.extend(20, bias={299: 100.0})
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert bad.run.budget.spent_tokens == len(bad.tokens)
        return outcomes

    fine, failed = run(engine, program())
    assert len(fine.tokens) == 20
    assert isinstance(failed, KeyError)


def test_a_program_that_is_never_quiet_holds_nobody_up() -> None:
    engine = make_engine("llama", "native")

    async def program() -> Step:
        root = engine.open(PROMPT)

        async def restless() -> None:
            while True:
                root.fork().drop()
                await asyncio.sleep(0)

        noise = asyncio.create_task(restless())
        step = await asyncio.wait_for(root.fork().extend(5), 30)
        noise.cancel()
        return step

    assert len(run(engine, program()).tokens) == 5


def test_a_closed_engine_says_so() -> None:
    engine = make_engine("llama", "native")
    branch = engine.open(PROMPT)
    engine.close()
    with pytest.raises(AnabranchError, match="shutdown"):
        run(engine, branch.extend(3))
    branch.drop()
    assert not engine.core.tree.roots


def test_groups_share_the_engine_fairly() -> None:
    """Two branches of one program go on in every pass, whatever sixty of another ask for."""

    async def program() -> tuple[int, int]:
        many, few = (engine.open(PROMPT, seed=i, group=name) for i, name in enumerate("ab"))
        crowd = [asyncio.ensure_future(branch.extend(40)) for branch in many.fork(60)]
        steps = await asyncio.gather(*(branch.extend(40) for branch in few.fork(2)))
        passes = engine.core.stats.passes
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return passes, max(len(step.tokens) for step in steps)

    engine = make_engine(policy=FairShare(crowded=8), pages=1024)
    passes, tokens = run(engine, program())
    prompts = 2 * len(PROMPT) / 8
    assert tokens == 40
    assert 40 <= passes <= 40 + prompts + 2

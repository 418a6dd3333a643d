"""What a program sees of a branch: steps, marks, stop conditions, streams, errors."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.backends.philox import philox
from anabranch.engine.constraints import Constraint
from anabranch.engine.grammar import regex
from anabranch.errors import ContextError, InputError, ResourceError
from anabranch.program.engine import Engine
from anabranch.program.run import Run
from anabranch.program.types import Mark, Piece, Step, Usage
from tests.engines import make_engine, run

PROMPT = "Where the river divides,"


def on_engine(program: Any, **options: Any) -> Any:
    """Run `program(engine)` on a fresh native engine."""
    engine = make_engine("llama", "native", **options)
    return run(engine, program(engine))


def test_extend_equals_peek_sample_force() -> None:
    """The semantics of `extend`, spelled out: every draw from the peeked distribution."""

    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT, seed=5)
        fast, slow = root.fork(2)
        key = fast._cursor.key
        step = await fast.extend(40, temperature=0.8)
        for token, logp in zip(step.tokens, step.logps, strict=True):
            tip = await slow.peek(engine.core.decoder.config.vocab)
            logps = np.zeros(len(tip.tokens))
            logps[list(tip.tokens)] = tip.logps
            weights = np.exp(logps / 0.8)
            word = philox(key, (slow.mark.position, 0, 0, 0))[0]
            u = ((word >> 8) + 0.5) / 2**24
            assert int(np.searchsorted(np.cumsum(weights) / weights.sum(), u)) == token
            forced = await slow.force([token])
            assert forced.logps == (logp,)

    on_engine(program)


@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 2**64 - 1))
def test_many_short_steps_equal_one_long_step(cuts: list[int], seed: int) -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT, seed=seed)
        whole = await root.extend(sum(cuts))
        again = engine.open(PROMPT, seed=seed)
        steps: list[Step] = []
        for cut in cuts:
            if not steps or steps[-1].stop == "limit":
                steps.append(await again.extend(cut))
        assert sum((s.tokens for s in steps), ()) == whole.tokens
        assert sum((s.logps for s in steps), ()) == whole.logps
        if whole.stop != "end":
            assert "".join(s.text for s in steps) == whole.text

    on_engine(program)


def test_log_weights_are_target_minus_proposal() -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        plain, sharp, cut, greedy = root.fork(4)
        step = await plain.extend(12)
        assert step.logq == pytest.approx(step.logp, abs=1e-4)
        assert step.logw == pytest.approx(0, abs=1e-4)
        assert step.proper
        step = await sharp.extend(12, temperature=0.5)
        assert step.logw == pytest.approx(step.logp - step.logq)
        assert step.proper
        step = await cut.extend(12, top_p=0.5)
        assert step.logq >= step.logp
        assert not step.proper
        step = await greedy.extend(12, temperature=0)
        assert step.logq == 0
        assert not step.proper

    on_engine(program)


def test_marks_lead_back_without_forward_work() -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        branch = root.fork()
        first = await branch.extend(10, temperature=0)
        second = await branch.extend(10, temperature=0)
        rows = engine.core.stats.rows
        back = branch.fork(at=first.end)
        assert back.tokens == branch.tokens[: first.end.position]
        assert engine.core.stats.rows == rows
        again = await back.extend(10, temperature=0)
        assert again.tokens == second.tokens
        assert again.logps == second.logps
        root.drop()
        branch.drop()
        assert back.fork(at=first.start).tokens == engine.encode(PROMPT)
        for wrong in (Mark("9", 3), Mark(back.id, 0), Mark(back.id, 999), Mark(branch.id, 40)):
            with pytest.raises(InputError, match="not on this branch's path"):
                back.fork(at=wrong)

    on_engine(program)


@pytest.mark.parametrize("keep", [True, False])
def test_until_finds_text_across_token_borders(keep: bool) -> None:

    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        plain = root.fork()
        whole = await plain.extend(30, bias=LETTERS, temperature=0)
        stop = whole.text[10:12]
        place = whole.text.index(stop)
        branch = root.fork()
        step = await branch.extend(30, until=[stop, "§§"], keep=keep, bias=LETTERS, temperature=0)
        assert step.stop == "until"
        assert step.text == whole.text[: place + 2 if keep else place]
        assert branch.text == step.text
        assert branch.mark == step.end
        assert branch.run.sampled_tokens >= len(step.tokens)
        pattern = re.compile(re.escape(stop))
        same = await root.fork().extend(30, until=pattern, keep=keep, bias=LETTERS, temperature=0)
        assert same.text == step.text

    on_engine(program)


LETTERS = dict.fromkeys(range(97, 123), 60.0)


def test_until_may_be_a_test_and_its_exception_is_the_callers() -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        step = await root.fork().extend(30, until=lambda s: len(s.tokens) == 4, bias=LETTERS)
        assert (len(step.tokens), step.stop) == (4, "until")

        def broken(_: Step) -> bool:
            raise ZeroDivisionError

        branch = root.fork()
        with pytest.raises(ZeroDivisionError):
            await branch.extend(5, until=broken, bias=LETTERS)
        assert len((await branch.extend(5, bias=LETTERS)).tokens) == 5
        with pytest.raises(InputError, match="keep=False"):
            await branch.extend(5, until=broken, keep=False)

    on_engine(program)


def test_characters_are_never_cut_in_half() -> None:
    """Greek letters are two tokens each here: a step that ends between them shows neither half."""

    async def program(engine: Engine) -> None:
        branch = engine.open(PROMPT)
        halves = {0xCE: 60.0}
        first = await branch.extend(1, bias=halves, temperature=0)
        assert first.text == ""
        step = await branch.force([0xB1, 0xCE])
        assert step.text == "α"
        assert (await branch.force([0xB2])).text == "β"
        assert branch.text == "αβ"

    on_engine(program)


def test_streams_say_what_the_step_says() -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        branch = root.fork()
        pieces = [p async for p in branch.stream(20, temperature=0, bias=LETTERS)]
        assert branch.last is not None
        assert "".join(pieces) == branch.last.text
        assert len(pieces) > 10
        stop = branch.last.text[8:11]
        other = root.fork()
        cut = [
            p async for p in other.stream(20, until=stop, keep=False, temperature=0, bias=LETTERS)
        ]
        assert other.last is not None
        assert "".join(cut) == other.last.text == branch.last.text[: branch.last.text.index(stop)]
        left = root.fork()
        async with contextlib.aclosing(left.stream(400, bias=LETTERS)) as endless:
            async for _ in endless:
                break
        assert (await left.extend(1, bias=LETTERS)).stop == "limit"

    on_engine(program)


@pytest.mark.parametrize("allow", [None, regex("[a-z ]*")], ids=["free", "ruled"])
def test_pieces_carry_tokens_and_what_else_was_likely(allow: Constraint | None) -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        branch, other = root.fork(2)
        pieces = [p async for p in branch.pieces(12, top=3, allow=allow, temperature=0)]
        step = branch.last
        assert step is not None
        assert "".join(p.text for p in pieces) == step.text
        results = [result for piece in pieces for result in piece.results]
        assert tuple(r.token for r in results) == step.tokens
        assert tuple(r.top for r in results) == step.tops
        for token, top in zip(step.tokens, step.tops, strict=True):
            seen = await other.peek(3)
            assert top == tuple(zip(seen.tokens, seen.logps, strict=True))
            await other.force([token])
        again = root.fork()
        assert (await again.force(step.tokens, top=3)).tops == step.tops
        assert (await root.fork().extend(2)).tops == ()

    on_engine(program)


@pytest.mark.parametrize("allow", [None, regex("[a-f ]{4,12}")])
def test_whoever_watches_a_run_is_told_every_step_and_changes_nothing(
    allow: Constraint | None,
) -> None:
    told: list[tuple[str, Piece]] = []

    async def program(engine: Engine) -> list[Step]:
        steps = []
        for watch in (None, lambda branch, piece: told.append((branch.id, piece))):
            root = engine.open(PROMPT, seed=3, run=Run(seed=3, watch=watch))
            told.clear()
            grown = await asyncio.gather(
                *(b.extend(12, allow=allow, until="e", keep=False) for b in root.fork(3))
            )
            steps.append([replace(step, usage=Usage()) for step in grown])
        assert steps[0] == steps[1]
        return steps[1]

    for i, step in enumerate(on_engine(program)):
        pieces = [piece for name, piece in told if name == f"0.{i}"]
        assert "".join(piece.text for piece in pieces) == step.text
        results = [result for piece in pieces for result in piece.results]
        assert tuple(result.token for result in results) == step.tokens
        assert tuple(result.logp for result in results) == step.logps


def test_who_asks_for_pieces_gets_them_also_when_the_run_is_watched() -> None:
    async def program(engine: Engine) -> None:
        told: list[Piece] = []
        run = Run(watch=lambda _, piece: told.append(piece))
        branch = engine.open(PROMPT, run=run)
        assert [piece async for piece in branch.pieces(12)] == told != []

    on_engine(program)


def test_penalties_and_bias_shape_the_draw_not_the_model() -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        free = await root.fork().extend(6, temperature=0)
        banned = {free.tokens[0]: -100.0}
        other = await root.fork().extend(1, temperature=0, bias=banned)
        assert other.tokens[0] != free.tokens[0]
        assert other.logps[0] < free.logps[0]
        once = await root.fork().extend(40, temperature=0, frequency_penalty=100.0)
        assert len(set(once.tokens)) == len(once.tokens)
        once = await root.fork().extend(40, temperature=0, presence_penalty=100.0)
        assert len(set(once.tokens)) == len(once.tokens)
        seen = set(engine.encode(PROMPT))
        fresh = await root.fork().extend(20, temperature=0, repetition_penalty=100.0)
        assert not seen & set(fresh.tokens)

    on_engine(program)


def test_peek_tells_the_whole_distribution() -> None:
    async def program(engine: Engine) -> None:
        branch = engine.open(PROMPT)
        vocab = engine.core.decoder.config.vocab
        tip = await branch.peek(vocab, hidden=True)
        assert sorted(tip.tokens) == list(range(vocab))
        assert list(tip.logps) == sorted(tip.logps, reverse=True)
        assert math.fsum(map(math.exp, tip.logps)) == pytest.approx(1, abs=1e-5)
        entropy = -math.fsum(math.exp(p) * p for p in tip.logps)
        assert tip.entropy == pytest.approx(entropy, abs=1e-4)
        assert tip.hidden.shape == (engine.core.decoder.config.hidden,)
        assert (await branch.peek(3)).tokens == tip.tokens[:3]

    on_engine(program)


def test_the_models_own_end_stops_a_step() -> None:
    async def program(engine: Engine) -> None:
        branch = engine.open(PROMPT)
        step = await branch.extend(9, bias={256: 100.0})
        assert (step.tokens, step.text, step.stop) == ((256,), "", "end")

    on_engine(program)


def test_steps_stop_at_the_end_of_the_context() -> None:
    async def program(engine: Engine) -> None:
        branch = engine.open("x" * (engine.core.capacity - 3))
        step = await branch.extend(10, bias=LETTERS)
        assert (len(step.tokens), step.stop) == (3, "limit")
        step = await branch.extend(10)
        assert (len(step.tokens), step.stop) == (0, "limit")
        with pytest.raises(ContextError, match="does not fit"):
            await branch.force("y")
        with pytest.raises(ContextError, match="does not fit"):
            engine.open("x" * engine.core.capacity)

    on_engine(program, pages=4)


def test_a_dropped_branch_ends_what_is_pending_on_it() -> None:
    async def program(engine: Engine) -> None:
        branch = engine.open(PROMPT)
        work = asyncio.create_task(branch.extend(4000))
        await asyncio.sleep(0.01)
        branch.drop()
        branch.drop()
        step = await work
        assert step.stop == "dead"
        assert branch.run.budget.spent_tokens == branch.run.prompt_tokens + len(step.tokens)
        assert branch.text.startswith(step.text)
        with pytest.raises(InputError, match="dropped"):
            branch.fork()
        with pytest.raises(InputError, match="dropped"):
            _ = branch.tokens
        with pytest.raises(InputError, match="dropped"):
            await branch.extend(1)

    on_engine(program)


def test_a_dropped_branch_keeps_its_text_whatever_the_tree_becomes() -> None:
    async def program(engine: Engine) -> None:
        root = engine.open(PROMPT)
        left = root.fork()
        await left.extend(6, bias=LETTERS)
        text = left.text
        twin = left.fork(at=Mark(left.id, left.mark.position - 1))
        left.drop()
        await twin.force("another word")
        assert left.text == text

    on_engine(program)


def test_a_trace_that_breaks_does_not_keep_branches_alive() -> None:
    class Full:
        def note(self, event: str, **_: object) -> None:
            if event == "drop":
                raise ResourceError("the disk is full")

    engine = make_engine("llama", "native")
    work = Run(trace=Full())
    engine.open(PROMPT, run=work).fork(5)
    with pytest.raises(ResourceError, match="disk"):
        work.drop_all()
    assert not work.live
    assert not engine.core.tree.roots


BAD: dict[str, Any] = {
    "limit of 0": lambda b: b.extend(0),
    "negative temperature": lambda b: b.extend(1, temperature=-1),
    "NaN temperature": lambda b: b.extend(1, temperature=float("nan")),
    "top_p of 0": lambda b: b.extend(1, top_p=0),
    "top_p above 1": lambda b: b.extend(1, top_p=1.5),
    "negative top_k": lambda b: b.extend(1, top_k=-1),
    "min_p above 1": lambda b: b.extend(1, min_p=2),
    "bias of an unknown token": lambda b: b.extend(1, bias={300: 1.0}),
    "infinite bias": lambda b: b.extend(1, bias={3: math.inf}),
    "an empty stop text": lambda b: b.extend(1, until=["a", ""]),
    "an unknown token": lambda b: b.force([300]),
    "a token that is text": lambda b: b.force(["a"]),
    "peek at nothing": lambda b: b.peek(0),
    "peek at too much": lambda b: b.peek(301),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_and_disturbs_nothing(what: str) -> None:
    async def program(engine: Engine) -> None:
        branch = engine.open(PROMPT)
        call: Coroutine[Any, Any, Any] = BAD[what](branch)
        with pytest.raises(InputError):
            await call
        assert branch.run.budget.spent_tokens == len(PROMPT)
        assert (await branch.extend(1)).stop in ("limit", "end")

    on_engine(program)


def test_bad_opens_and_forks_are_refused() -> None:
    async def program(engine: Engine) -> None:
        for prompt in ("", [], [300], [-1], [True]):
            with pytest.raises(InputError):
                engine.open(prompt)
        for seed in (-1, 2**64):
            with pytest.raises(InputError, match="seed"):
                engine.open("a", seed=seed)
        branch = engine.open("a")
        for n in (0, -1, 10**6):
            with pytest.raises(InputError, match="number of forks"):
                branch.fork(n)
        work = asyncio.create_task(branch.extend(50))
        await asyncio.sleep(0)
        with pytest.raises(InputError, match="another operation is pending"):
            await branch.extend(1)
        await work

    on_engine(program)


def test_one_engine_serves_one_event_loop_at_a_time() -> None:
    engine = make_engine("llama", "native")

    async def program() -> tuple[int, ...]:
        return (await engine.open(PROMPT, seed=4).extend(5)).tokens

    assert run(engine, program()) == run(engine, program())

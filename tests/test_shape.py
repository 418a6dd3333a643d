"""Constraints and blends: what may come, what it weighs, and that nothing else changes."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from anabranch.backends.base import F32, Draws
from anabranch.backends.reference import ReferenceBackend
from anabranch.engine.constraints import Predicate, draw_allowed
from anabranch.engine.grammar import choice, json_schema, lark, regex, substring
from anabranch.errors import InputError
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.run import Run
from anabranch.program.types import Step
from tests.engines import make_engine, run
from tests.scripted import ask, scripted


class Anything:
    """Every token passes: in a mask, or tested one at a time."""

    def __init__(self, masks: bool) -> None:
        self.masks = masks

    def start(self, tokenizer: Any, written: Sequence[int]) -> Anything:
        self.vocab = tokenizer.vocab_size
        return self

    def mask(self) -> Any:
        return np.ones(self.vocab, np.bool_) if self.masks else None

    def test(self, token: int) -> bool:
        return True

    def next(self, token: int) -> Anything:
        return self

    def done(self) -> bool:
        return True


def letters(weights: Mapping[str, float], length: int = 3) -> dict[str, float]:
    """All words of a length over independent letters."""
    words = {"": 1.0}
    for _ in range(length):
        words = {w + c: p * q for w, p in words.items() for c, q in weights.items()}
    return words


async def extend(engine, seed=0, limit=8, **options) -> Step:  # type: ignore[no-untyped-def]
    branch = ask(engine, "?", Run(seed=seed))
    try:
        return await branch.extend(limit, **options)
    finally:
        branch.run.drop_all()


# ---- nothing changes where nothing is asked ----------------------------------------------------


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_rule_that_allows_everything_changes_no_bit(name: str) -> None:
    async def program() -> None:
        for seed in range(5):
            root = engine.open("once upon a time", seed=seed)
            options = {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.1}
            plain = await root.fork().extend(12, **options)
            root._forks = 0  # the same key again
            shaped = []
            for masks in (True, False):
                shaped.append(await root.fork().extend(12, allow=Anything(masks), **options))
                root._forks = 0
            blend = root.fork()
            blended = await blend.extend(12, blend={blend: 1.0, root.fork(): 0.0}, **options)
            for step in (*shaped, blended):
                assert step.tokens == plain.tokens
                assert step.logps == plain.logps
                assert step.entropies == plain.entropies
            assert shaped[0].logq == blended.logq == plain.logq
            root.run.drop_all()

    engine = make_engine(name=name)
    run(engine, program())


# ---- masks -------------------------------------------------------------------------------------


def test_a_masked_step_weighs_what_its_rule_lets_through() -> None:
    """The weight is the allowed mass at each place, so its logarithm adds up to the text's."""
    engine = scripted(letters({"a": 0.5, "b": 0.3, "c": 0.2}))
    step = run(engine, extend(engine, allow=regex("[ab]c[abc]")))
    assert re.fullmatch("[ab]c[abc]", step.text)
    assert step.stop == "complete"
    assert step.logw == pytest.approx(math.log(0.8 * 0.2), abs=1e-5)
    assert step.logp == pytest.approx(step.logq + step.logw, abs=1e-5)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (regex(r"-?\d{2}"), r"-?\d{2}"),
        (choice(["yes", "no", 'per"haps\\']), r"yes|no|per\"haps\\"),
        (lark('start: "(" start ")" | "x"'), r"\(*x\)*"),
        (substring("the cat sat"), r"[the cas]+"),
        (json_schema({"type": "boolean"}), "true|false"),
    ],
)
def test_texts_keep_to_their_grammar(rule, text: str) -> None:  # type: ignore[no-untyped-def]
    engine = scripted(lambda prompt, reply: dict.fromkeys("the cats ()x-019", 1.0))
    for seed in range(8):
        step = run(engine, extend(engine, seed, 40, allow=rule))
        assert re.fullmatch(text, step.text) or step.stop == "limit"
        if step.stop == "limit":
            continue
        assert step.stop in ("complete", "end")


def test_a_rule_goes_on_where_it_stood_in_a_fork() -> None:
    async def program() -> None:
        root = ask(engine, "?", Run(seed=3))
        rule, start = regex("ab(c|d)e"), root.mark
        await root.extend(2, allow=rule)
        steps = [await fork.extend(8, allow=rule, since=start) for fork in root.fork(6)]
        assert root.text == "ab"
        assert {step.text for step in steps} <= {"ce", "de"}
        assert all(step.stop == "complete" for step in steps)
        with pytest.raises(InputError, match="breaks the grammar"):
            await root.extend(1, allow=regex("x"), since=start)
        root.run.drop_all()

    engine = scripted(lambda prompt, reply: dict.fromkeys("abcde", 1.0))
    run(engine, program())


def test_a_rule_that_leaves_nothing_is_stuck_and_weighs_nothing() -> None:
    engine = scripted(lambda prompt, reply: {"a": 1.0})
    step = run(engine, extend(engine, allow=Predicate(lambda text: len(text) < 3, lambda t: False)))
    assert (step.text, step.stop, step.logw) == ("aa", "stuck", -math.inf)


@pytest.mark.parametrize("rule", [regex("(["), lark("start: nothing"), json_schema({"type": 3})])
def test_a_grammar_that_cannot_be_read_says_so(rule) -> None:  # type: ignore[no-untyped-def]
    engine = scripted({"a": 1.0})
    with pytest.raises(InputError, match="grammar"):
        run(engine, extend(engine, allow=rule))


def test_a_grammar_too_complex_to_go_on_with_says_so() -> None:
    engine = scripted({"a": 1.0})
    with pytest.raises(InputError, match="too complex"):
        run(engine, extend(engine, allow=regex("(a{1000}){1000}")))
    assert run(engine, extend(engine)).text == "a"


def test_a_predicate_that_raises_fails_its_branch_alone() -> None:
    def broken(text: str) -> bool:
        raise RuntimeError("mine")

    async def program() -> None:
        good, bad = ask(engine, "?", Run()), ask(engine, "?", Run())
        steps = await asyncio.gather(
            good.extend(3), bad.extend(3, allow=Predicate(broken)), return_exceptions=True
        )
        assert isinstance(steps[0], Step)
        assert isinstance(steps[1], RuntimeError)
        assert (await bad.extend(1)).tokens  # nothing is left pending
        for branch in (good, bad):
            branch.run.drop_all()

    engine = scripted({"abc": 1.0})
    run(engine, program())


# ---- adaptive weighted rejection sampling ------------------------------------------------------


class Among:
    """A state that tests tokens one at a time."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = set(tokens)

    def mask(self) -> None:
        return None

    def test(self, token: int) -> bool:
        return token in self.tokens

    def next(self, token: int) -> Among:
        return self

    def done(self) -> bool:
        return False


def draws(key: int, temperature: float = 1.0) -> Draws:
    one, none = np.ones(1, np.float32), np.zeros(1, np.int32)
    empty = np.zeros(0, np.float32)
    return Draws(
        none, none - 1, np.array([key], np.uint64), none, one * temperature, none, one, one * 0,
        np.zeros(2, np.int32), np.zeros(0, np.int32), empty, empty,
    )  # fmt: skip


@pytest.mark.parametrize(("allowed", "temperature"), [((1, 3), 1.6), ((0,), 1.0), ((3,), 1.0)])
def test_rejected_draws_estimate_the_mass_without_bias(
    allowed: tuple[int, ...], temperature: float
) -> None:
    """E[weight, token = x] is p(x) for every x that passes: the weights are proper."""
    p = np.array([0.55, 0.25, 0.15, 0.05])
    scores: F32 = np.log(p).astype(np.float32)
    count = 1500
    weighed = np.zeros((count, 4))
    for key in range(count):
        drawn = draw_allowed(
            ReferenceBackend(), scores, draws(key, temperature), Among(*allowed), frozenset()
        )
        assert drawn is not None
        weighed[key, drawn.token] = math.exp(scores[drawn.token] - drawn.logq)
    mean, error = weighed.mean(0), weighed.std(0) / math.sqrt(count)
    expected = np.where(np.isin(np.arange(4), allowed), p, 0)
    assert np.all(np.abs(mean - expected) <= 4 * error + 1e-6)


def test_the_likeliest_token_that_passes_is_taken_at_temperature_0() -> None:
    scores: F32 = np.log(np.array([0.5, 0.2, 0.3], np.float32))
    drawn = draw_allowed(ReferenceBackend(), scores, draws(1, 0.0), Among(1, 2), frozenset())
    assert drawn is not None
    assert drawn.token == 2


# ---- blends ------------------------------------------------------------------------------------


async def pair(engine, seed: int, tokens: int | None = None) -> tuple[Branch, Branch]:  # type: ignore[no-untyped-def]
    budget = Run(seed=seed, budget=Budget(tokens))
    return ask(engine, "with", budget), ask(engine, "without", budget)


def two_minds(prompt: str, reply: str) -> Mapping[str, float]:
    return {"a": 0.7, "b": 0.3} if "without" in prompt else {"a": 0.2, "b": 0.8}


def test_a_blend_is_drawn_from_the_product_of_powers() -> None:
    """Context-aware decoding: log p = 1.5 log p(with) - 0.5 log p(without), token by token."""

    async def program() -> None:
        count: Counter[str] = Counter()
        for seed in range(300):
            context, plain = await pair(engine, seed)
            step = await context.extend(2, blend={context: 1.5, plain: -0.5})
            count.update(step.text)
            assert plain.text == context.text == step.text
            assert step.logp == pytest.approx(sum(math.log(with_[c]) for c in step.text), abs=1e-4)
            assert step.logw == pytest.approx(2 * math.log(sum(target.values())), abs=1e-4)
            context.run.drop_all()
        share = target["a"] / sum(target.values())
        assert abs(count["a"] / 600 - share) < 4 * math.sqrt(share * (1 - share) / 600)

    engine, with_, without = scripted(two_minds), two_minds("", ""), two_minds("without", "")
    target = {c: with_[c] ** 1.5 * without[c] ** -0.5 for c in "ab"}
    run(engine, program())


def test_a_blend_charges_all_and_cuts_all_back() -> None:
    async def program() -> None:
        context, plain = await pair(engine, 0, 400)
        before = context.run.budget.spent_tokens
        step = await context.extend(9, blend={context: 1.0, plain: 0.5}, until="b", keep=False)
        assert plain.text == context.text == step.text
        assert "b" not in step.text
        spent = context.run.budget.spent_tokens - before
        assert spent == 2 * (len(step.tokens) + 1)
        assert context.run.usage.sampled_tokens == len(step.tokens) + 1
        context.run.drop_all()

    engine = scripted(two_minds)
    run(engine, program())


def test_a_blend_and_a_rule_go_together() -> None:
    async def program() -> None:
        context, plain = await pair(engine, 5)
        step = await context.extend(4, blend={context: 1.0, plain: 1.0}, allow=regex("b{4}"))
        assert (step.text, step.stop) == ("bbbb", "complete")
        assert step.logw == pytest.approx(4 * math.log(0.8 * 0.3), abs=1e-4)
        context.run.drop_all()

    engine = scripted(two_minds)
    run(engine, program())


def test_a_budget_that_ends_within_a_blend_is_never_overspent() -> None:
    async def program() -> None:
        context, plain = await pair(engine, 0, 40)
        left = context.run.budget.left_tokens
        step = await context.extend(400, blend={context: 1.0, plain: 1.0})
        assert (step.stop, len(step.tokens)) == ("budget", int(left) // 2)
        assert context.run.budget.left_tokens >= 0
        context.run.drop_all()

    engine = scripted(two_minds)
    run(engine, program())


def test_a_branch_dropped_from_a_running_blend_ends_it() -> None:
    async def program() -> None:
        context, plain = await pair(engine, 0)
        growing = asyncio.ensure_future(context.extend(1000, blend={context: 1.0, plain: 1.0}))
        while len(plain.text) < 3:
            await asyncio.sleep(0)
        with pytest.raises(InputError, match="pending"):
            await plain.extend(1)
        plain.drop()
        step = await growing
        assert step.stop == "dead"
        assert (await context.extend(1)).stop == "limit"
        context.run.drop_all()

    engine = scripted(two_minds)
    run(engine, program())


def test_a_cancelled_blend_leaves_its_branches_free_and_alike() -> None:
    async def program() -> None:
        context, plain = await pair(engine, 0)
        growing = asyncio.ensure_future(context.extend(1000, blend={context: 1.0, plain: 1.0}))
        while len(plain.text) < 3:
            await asyncio.sleep(0)
        growing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await growing
        assert context.text == plain.text
        assert (await plain.extend(1)).stop == "limit"
        context.run.drop_all()

    engine = scripted(two_minds)
    run(engine, program())


def test_blends_that_make_no_sense_are_refused() -> None:
    async def program() -> None:
        context, plain = await pair(engine, 0)
        stranger = ask(engine, "else", Run())
        for blend in ({plain: 1.0}, {context: math.nan}, {context: 1.0, stranger: 1.0}):
            with pytest.raises(InputError):
                await context.extend(1, blend=blend)
        plain.drop()
        with pytest.raises(InputError, match="dropped"):
            await context.extend(1, blend={context: 1.0, plain: 1.0})
        for branch in (context, stranger):
            branch.run.drop_all()

    engine = scripted(two_minds)
    run(engine, program())

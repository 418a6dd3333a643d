"""Judges on scripted models: what they say where it is known exactly, and what they must not do."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import InputError
from anabranch.program.budget import Budget
from anabranch.program.engine import Engine
from anabranch.program.registry import Part
from anabranch.program.run import Run
from anabranch.program.types import Problem, Thought
from anabranch.reason.registry import parse as parse_strategy
from anabranch.reason.solve import think
from anabranch.verify import equality, registry
from anabranch.verify.equality import numeric, symbolic
from anabranch.verify.registry import UNKNOWN, Judge, judges, parse, rate
from anabranch.verify.rollout import rollout
from anabranch.verify.value import Head
from tests.engines import run as run_checked
from tests.scripted import Rule, ask, replies, scripted

SUM = Problem("2+2?")


class World:
    """A run of a scripted model with thoughts put onto branches of one root."""

    def __init__(
        self, rule: Rule | Mapping[str, float], *, tokens: int | None = None, seed: int = 0
    ) -> None:
        self.engine = scripted(rule)
        self.run = Run(seed=seed, budget=Budget(tokens))
        self.root = ask(self.engine, SUM.text, self.run)

    async def thought(self, text: str, answer: str | None = None, *, done: bool = True) -> Thought:
        """A candidate of the run with this text, and this answer."""
        branch = self.root.fork()
        step = await branch.force(text) if text else None
        thought = Thought(
            branch,
            answer=answer,
            done=done,
            text=text,
            logp=step.logp if step else 0.0,
            tokens=len(step.tokens) if step else 0,
        )
        self.run.thoughts.append(thought)
        return thought

    def __call__(self, program: Callable[[], Awaitable[object]]) -> None:
        """Run a test and recount the tree."""

        async def checked() -> None:
            try:
                await program()
            finally:
                self.run.drop_all()

        run_checked(self.engine, checked())
        assert self.run.budget.tokens is None or self.run.budget.spent_tokens <= (
            self.run.budget.tokens
        )


def made(text: str) -> Judge:
    judge: Judge = parse(text).make()
    return judge


def opinion(said: Mapping[str, float], otherwise: float = 0.5) -> Rule:
    """A model that answers a verdict on a text ending in a word with P(Yes) of that word.

    The last turn asks; the reply before it is the thought (or none).
    """

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        body = prompt.partition("2+2?")[2]
        yes = next((p for word, p in said.items() if word in body), otherwise)
        return replies({"Yes": yes, "No": 1 - yes})(prompt, reply)

    return rule


# ---- laws of every judge -------------------------------------------------------------------------

NAMES = [entry.name for entry in judges()]
TEXTS = {"value": "value(head={head!r})", "reward": 'reward(model="other")'}
"""How to type a judge that needs more than its name."""

SAYING = {"Yes": 0.4, "No": 0.3, "(A)": 0.2, "5": 0.1}


LAWS = [TEXTS.get(name, name) for name in NAMES]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A value head for the scripted model."""
    path = tmp_path_factory.mktemp("judges") / "head.npz"
    Head(np.full(260, 0.01), 0.1).save(path)
    return path


def test_every_judge_says_where_it_comes_from() -> None:
    for entry in judges():
        assert entry.paper
        assert entry.summary.endswith(".")
        for parameter in entry.parameters.values():
            checked = parameter.check(parameter.default)
            assert isinstance(parameter.limits, Part) or checked == parameter.default


@pytest.mark.parametrize("text", LAWS)
@settings(max_examples=8)
@given(extra=st.integers(0, 900), seed=st.integers(0, 2**32))
def test_a_judge_changes_no_branch_and_spends_no_more_than_there_is(
    text: str, extra: int, seed: int, head: Path
) -> None:
    world = World(SAYING, tokens=60 + extra, seed=seed)
    judge = made(text.format(head=str(head)))
    second = scripted({"Yes": 0.9, "No": 0.1})
    world.engine.loader = lambda name: second

    async def program() -> None:
        thoughts = [
            await world.thought("1 and 3\nmakes 4.", "4"),
            await world.thought("It is\n5.", "5"),
            await world.thought("It is 4.", "4"),
        ]
        if judge.partial:
            thoughts.append(await world.thought("Well", done=False))
        before = [(t.branch.tokens, t.branch.mark, replace(t)) for t in thoughts]
        live = set(world.run.live)
        ratings = await rate(judge, SUM, thoughts)
        assert len(ratings) == len(thoughts)
        assert all(0 <= rating <= 1 for rating in ratings)
        assert [(t.branch.tokens, t.branch.mark, t) for t in thoughts] == before
        assert world.run.live == live
        spent = world.run.budget.spent_tokens
        assert await rate(judge, SUM, thoughts) == ratings
        assert world.run.budget.spent_tokens == spent

    world(program)


@pytest.mark.parametrize("text", LAWS)
def test_the_seed_decides_what_a_judge_says(text: str, head: Path) -> None:
    def once() -> list[float]:
        world, found = World(SAYING, seed=7), list[float]()
        world.engine.loader = lambda name: scripted({"Yes": 0.9, "No": 0.1})

        async def program() -> None:
            thoughts = [await world.thought(f"1\n{n}.", str(n)) for n in (4, 5, 4)]
            found.extend(await rate(made(text.format(head=str(head))), SUM, thoughts))

        world(program)
        return found

    assert once() == once()


@pytest.mark.parametrize("text", LAWS)
def test_a_judge_of_dropped_branches_does_not_end_the_search(text: str, head: Path) -> None:
    world = World(SAYING)
    world.engine.loader = lambda name: scripted({"Yes": 0.9, "No": 0.1})

    async def program() -> None:
        thoughts = [await world.thought("So 4.", "4"), await world.thought("So 5.", "5")]
        thoughts[0].branch.drop()
        ratings = await rate(made(text.format(head=str(head))), SUM, thoughts)
        assert all(0 <= rating <= 1 for rating in ratings)

    world(program)


# ---- junk ----------------------------------------------------------------------------------------

JUNK = [[math.nan, 0.5], [0.5], [0.1, 0.2, 0.3], [2.0, 0.5], [-0.1, 0.5], ["1", 0.5], None, 5, "ab"]


@pytest.mark.parametrize("junk", JUNK)
def test_ratings_that_are_none_are_replaced_and_told(junk: object) -> None:
    world = World(SAYING)

    async def nonsense(problem: object, thoughts: object) -> list[float]:
        return junk  # type: ignore[return-value]

    async def program() -> None:
        thoughts = [await world.thought("a", "1"), await world.thought("b", "2")]
        assert await rate(Judge(nonsense, name="odd"), SUM, thoughts) == [UNKNOWN, UNKNOWN]
        (remark,) = world.run.remarks
        assert "odd" in remark
        assert "rated 0.5 instead" in remark

    world(program)


def test_a_judge_that_fails_does_not_end_the_search() -> None:
    world = World(SAYING)

    async def fails(problem: object, thoughts: object) -> list[float]:
        raise ZeroDivisionError("oh")

    async def program() -> None:
        thoughts = [await world.thought("a", "1")]
        assert await rate(Judge(fails, name="odd"), SUM, thoughts) == [UNKNOWN]
        assert world.run.remarks == [
            "the judge odd failed: ZeroDivisionError: oh; rated 0.5 instead"
        ]

    world(program)


def test_a_judge_of_ends_refuses_unfinished_thoughts() -> None:
    world = World(SAYING)

    async def program() -> None:
        with pytest.raises(InputError, match="rollout"):
            await rate(made("agreement"), SUM, [await world.thought("a", done=False)])

    world(program)


# ---- self_rating, p_true, verdict ----------------------------------------------------------------


def test_self_rating_is_the_probability_of_yes() -> None:
    world = World(opinion({"good": 0.9, "bad": 0.2}))

    async def program() -> None:
        thoughts = [await world.thought(text, "4") for text in ("good", "bad", "so so")]
        plain = await rate(made("self_rating(prior='none')"), SUM, thoughts)
        assert plain == pytest.approx([0.9, 0.2, 0.5], abs=1e-3)

    world(program)


def test_the_prior_is_what_is_said_of_an_empty_reply() -> None:
    world = World(opinion({"good": 0.9, "bad": 0.6}, otherwise=0.8))

    async def program() -> None:
        thoughts = [await world.thought(text, "4") for text in ("good", "bad", "so so")]
        ratings = await rate(made("self_rating"), SUM, thoughts)
        odds = [0.9 / 0.1 / 4, 0.6 / 0.4 / 4, 1.0]
        assert ratings == pytest.approx([o / (1 + o) for o in odds], abs=1e-3)

    world(program)


def test_the_expected_digit() -> None:
    world = World({"1": 0.25, "9": 0.5, "5": 0.25})

    async def program() -> None:
        thoughts = [await world.thought("x", "4")]
        judge = made("self_rating(scale='digits', prior='none')")
        assert await rate(judge, SUM, thoughts) == pytest.approx([0.5 * 1 + 0.25 * 0.5], abs=1e-3)

    world(program)


def test_p_true_reads_the_words_not_the_letters() -> None:
    """A model that takes (A) nine times out of ten whatever it says knows nothing: 1/2."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "Possible answer: 4\n" in prompt:
            true = "(A)" if "(A) True" in prompt else "(B)"
            false = "(B)" if true == "(A)" else "(A)"
            shown = 0.9 if "ideas:\n5\n" in prompt else 0.7
            return replies({true: shown, false: 1 - shown})(prompt, reply)
        return replies({"(A)": 0.9, "(B)": 0.1})(prompt, reply)

    world = World(rule)

    async def program() -> None:
        thoughts = [await world.thought("So 4", "4"), await world.thought("So 5", "5")]
        ratings = await rate(made("p_true"), SUM, [*thoughts, await world.thought("")])
        assert ratings == pytest.approx([0.9, 0.5, 0.0], abs=1e-3)
        alone = await rate(made("p_true(shown=0)"), SUM, thoughts)
        assert alone == pytest.approx([0.7, 0.5], abs=1e-3)

    world(program)


def test_a_verdict_thinks_first_if_told() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "Check this" not in prompt:
            return replies({"No": 1.0})(prompt, reply)
        assert (prompt + reply).count("Every step is right") <= 1
        if "Every step is right" in prompt or "Every step is right" in reply:
            return replies({"Yes": 1.0})(prompt, reply.rpartition(": ")[2])
        return replies({"Fine.": 1.0})(prompt, reply)

    world = World(rule)

    async def program() -> None:
        thoughts = [await world.thought("x", "4")]
        assert await rate(made("verdict"), SUM, thoughts) == [0.0]
        for tokens in (3, 50):  # cut short, and to its own end
            assert await rate(made(f"verdict(think={tokens})"), SUM, thoughts) == [1.0]

    world(program)


def test_repeat_averages_and_asks_anew() -> None:
    world = World(opinion({"x": 0.7}), seed=3)

    async def program() -> None:
        thoughts = [await world.thought("x", "4")]
        (share,) = await rate(made("repeat(judge=verdict, k=64)"), SUM, thoughts)
        assert share * 64 == round(share * 64)
        assert 0.48 < share < 0.92  # binomial(64, 0.7): outside once in ten thousand

    world(program)


# ---- agreement, rollout, checker -----------------------------------------------------------------


def test_agreement_counts_the_others() -> None:
    world = World(SAYING)

    async def program() -> None:
        first = await world.thought("4", "4")
        assert await rate(made("agreement"), SUM, [first]) == [UNKNOWN]
        thoughts = [await world.thought(a or "?", a) for a in ("4", "4", "5", None)]
        assert await rate(made("agreement"), SUM, thoughts) == [2 / 3, 2 / 3, 0, 0]

    world(program)


def test_a_rollout_with_a_check_estimates_the_chance_of_success() -> None:
    """Math-Shepherd's soft estimate, whose expectation is the chance of ending right."""
    table = {"A: The answer is 4.": 0.4, "A: The answer is 5.": 0.1}
    world = World({**table, "B: The answer is 4.": 0.1, "B: The answer is 5.": 0.4}, seed=5)
    problem = replace(SUM, check=lambda answer: answer == "4")

    async def program() -> None:
        thoughts = [await world.thought(text, done=False) for text in ("A", "B")]
        judge = made("rollout(n=64, judge=checker, temperature=1)")
        a, b = await rate(judge, problem, thoughts)
        # Binomial(64, 0.8) and (64, 0.2): three and a half standard deviations are 0.175.
        assert abs(a - 0.8) < 0.175
        assert abs(b - 0.2) < 0.175
        done = await world.thought("The answer is 4.", "4")
        assert await rate(judge, problem, [done]) == [1.0]

    world(program)


def test_a_rollout_without_a_check_counts_agreement() -> None:
    world = World({"A: The answer is 4.": 0.75, "B: The answer is 5.": 0.25})

    async def program() -> None:
        thoughts = [await world.thought(text, done=False) for text in ("A", "A:", "A: T", "B")]
        ratings = await rate(made("rollout(n=2)"), SUM, thoughts)
        # Two ends each; of the other seven, five say 4 with the first three, one says 5 with B.
        assert ratings == pytest.approx([5 / 7] * 3 + [1 / 7])

    world(program)


def test_a_short_rollout_is_rated_where_it_stops() -> None:
    world = World({"A\nb\nc\nd\ne": 1.0})
    seen: list[str] = []

    async def text(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        seen.extend(thought.text for thought in thoughts)
        return [0.25] * len(thoughts)

    async def program() -> None:
        thought = await world.thought("A\n", done=False)
        for steps in (1, 2, 9):
            judge = rollout(n=1, judge=Judge(text, name=f"text{steps}"), steps=steps)
            assert await rate(judge, SUM, [thought]) == [0.25]
        assert seen == ["A\nb\n", "A\nb\nc\n", "A\nb\nc\nd\ne"]
        assert thought.text == "A\n"

    world(program)


@given(left=st.integers(1, 300))
@settings(max_examples=20)
def test_rollouts_leave_half_of_the_budget(left: int) -> None:
    world = World({"A" + "x" * 500: 1.0}, tokens=6 + 2 + 2 + left)

    async def program() -> None:
        thoughts = [await world.thought("A", done=False) for _ in range(2)]
        before = world.run.budget.left_tokens
        assert (
            await rate(made("rollout(n=3)"), SUM, thoughts)
            == [(0 if before // 2 >= 6 else UNKNOWN)] * 2
        )
        assert before - world.run.budget.left_tokens <= before / 2

    world(program)


def test_the_check_of_the_problem() -> None:
    def check(answer: str) -> bool:
        return 8 / int(answer) == 2

    world = World(SAYING)

    async def program() -> None:
        thoughts = [await world.thought(t, a) for t, a in [("4", "4"), ("5", "5"), ("4", None)]]
        assert await rate(made("checker"), replace(SUM, check=check), thoughts) == [1, 0, 1]
        zero = [await world.thought("0", "0")]
        assert await rate(made("checker"), replace(SUM, check=check), zero) == [0]
        assert world.run.remarks == ["the problem's check failed: ZeroDivisionError; not accepted"]
        assert await rate(made("checker"), SUM, [await world.thought("4", "4")]) == [UNKNOWN]

    world(program)


def test_a_check_is_no_part_of_the_problem_itself() -> None:
    checked = replace(SUM, check=bool)
    assert checked == SUM
    assert hash(checked) == hash(SUM)
    assert repr(checked) == repr(SUM)


# ---- combinators ---------------------------------------------------------------------------------


def fixed(
    ratings: Mapping[str, float], name: str, *, partial: bool = True
) -> tuple[Judge, list[str]]:
    """A judge that says what a table says of a text, and what it was asked."""
    asked: list[str] = []

    async def table(problem: Problem, thoughts: object) -> list[float]:
        assert isinstance(thoughts, list)
        asked.extend(t.text for t in thoughts)
        return [ratings[t.text] for t in thoughts]

    return Judge(table, partial, name), asked


def combined(name: str, **parts: object) -> Judge:
    (entry,) = [entry for entry in judges() if entry.name == name]
    judge: Judge = entry.make(**parts)
    return judge


def test_a_cascade_asks_the_second_where_the_first_is_unsure() -> None:
    first, _ = fixed({"a": 0.1, "b": 0.2, "c": 0.5, "d": 0.8, "e": 0.9}, "first")
    second, asked = fixed({"c": 0.7}, "second")
    world = World(SAYING)

    async def program() -> None:
        thoughts = [await world.thought(text, "4") for text in "abcde"]
        judge = combined("cascade", first=first, second=second)
        assert await rate(judge, SUM, thoughts) == [0.1, 0.2, 0.7, 0.8, 0.9]
        assert asked == ["c"]

    world(program)


def test_stages_go_by_the_budget() -> None:
    process, _ = fixed({"a": 0.1, "b": 0.2, "c": 0.3}, "process")
    outcome, _ = fixed({"a": 0.9, "b": 0.8, "c": 0.7}, "outcome")
    ends, _ = fixed({"b": 0.6}, "ends", partial=False)
    world = World(SAYING, tokens=40)

    async def program() -> None:
        going, done = await world.thought("a", done=False), await world.thought("b", "4")
        judge = combined("stage", process=process, outcome=outcome, at=0.8)
        assert await rate(judge, SUM, [going, done]) == [0.1, 0.8]
        by_ends = combined("stage", process=process, outcome=ends, at=0.0)
        assert await rate(by_ends, SUM, [done, going]) == [0.6, 0.1]
        await world.root.force("x" * 26)
        later = await world.thought("c", done=False)
        assert await rate(judge, SUM, [later]) == [0.7]

    world(program)


def test_flexible_verdicts_are_slow_where_the_fast_disagree() -> None:
    rounds = iter([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1]])

    async def sampled(problem: Problem, thoughts: object) -> list[float]:
        return [float(rating) for rating in next(rounds)]

    slow, asked = fixed({"b": 0.3}, "slow")
    world = World(SAYING)

    async def program() -> None:
        thoughts = [await world.thought(text, "4") for text in "abc"]
        judge = combined("flex", fast=Judge(sampled, name="fast"), slow=slow, k=4, agree=0.75)
        assert await rate(judge, SUM, thoughts) == [1.0, 0.3, 0.25]
        assert asked == ["b"]

    world(program)


def test_flexible_allocation_lies_on_the_analytic_curve() -> None:
    """k fast verdicts of error rate f, agreement of all or one slow verdict of error rate s."""
    k, f, s, n = 3, 0.3, 0.1, 400
    right = {i: i % 2 == 0 for i in range(n)}
    world, asked = World(SAYING), 0

    draws = random.Random(1)

    async def fast(problem: Problem, thoughts: object) -> list[float]:
        assert isinstance(thoughts, list)
        return [float(right[t.visits] != (draws.random() < f)) for t in thoughts]

    async def slow(problem: Problem, thoughts: object) -> list[float]:
        nonlocal asked
        assert isinstance(thoughts, list)
        asked += len(thoughts)
        return [float(right[t.visits] != (draws.random() < s)) for t in thoughts]

    async def program() -> None:
        branches = world.root.fork(n)
        thoughts = [Thought(b, done=True, visits=i) for i, b in enumerate(branches)]
        judge = combined(
            "flex", fast=Judge(fast, name="f"), slow=Judge(slow, name="s"), k=k, agree=1.0
        )
        ratings = await rate(judge, SUM, thoughts)
        hits = sum((rating >= 0.5) == right[i] for i, rating in enumerate(ratings))
        agreed = (1 - f) ** k + f**k
        accuracy = (1 - f) ** k + (1 - agreed) * (1 - s)
        # Four standard deviations of a binomial.
        assert abs(asked / n - (1 - agreed)) < 4 * math.sqrt(agreed * (1 - agreed) / n)
        assert abs(hits / n - accuracy) < 4 * math.sqrt(accuracy * (1 - accuracy) / n)

    world(program)


# ---- process -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("mean", 0.7), ("product", 0.9 * 0.4 * 0.8), ("min", 0.4), ("last", 0.8)],
)
def test_process_rates_steps_where_they_end(aggregate: str, expected: float) -> None:
    base, asked = fixed({"one\n": 0.9, "one\ntwo\n\n": 0.4, "one\ntwo\n": 0.4,
                         "one\ntwo\n\nthree": 0.8, "one\nother": 0.5}, "base")  # fmt: skip
    world = World(SAYING)

    async def program() -> None:
        thought = await world.thought("one\ntwo\n\nthree", "4")
        judge = combined("process", judge=base, aggregate=aggregate, step="line")
        assert await rate(judge, SUM, [thought]) == pytest.approx([expected])
        assert len(asked) == 3

    world(program)


def test_process_rates_a_shared_step_once() -> None:
    base, asked = fixed({"one\n": 0.9, "one\na": 0.5, "one\nb": 0.4}, "base")
    world = World(SAYING)

    async def program() -> None:
        stem = world.root.fork()
        await stem.force("one\n")
        thoughts = []
        for text, fork in zip("ab", stem.fork(2), strict=True):
            await fork.force(text)
            thoughts.append(Thought(fork, text=fork.text))
        judge = combined("process", judge=base, aggregate="product", step="line")
        ratings = [(await rate(judge, SUM, [thought]))[0] for thought in thoughts]
        assert ratings == pytest.approx([0.45, 0.36])
        assert sorted(asked) == ["one\n", "one\na", "one\nb"]

    world(program)


def test_process_reads_a_reply_without_the_turns_before_it() -> None:
    base, asked = fixed({"zwölf\n": 0.5, "zwölf\nend": 0.8}, "base")
    world = World(SAYING)

    async def program() -> None:
        thought = await world.thought("first\ndräft\n\nRevise it.\nzwölf\nend", "4")
        thought.text = "zwölf\nend"
        judge = combined("process", judge=base, aggregate="product", step="line")
        assert await rate(judge, SUM, [thought]) == pytest.approx([0.4])
        assert asked == ["zwölf\n", "zwölf\nend"]

    world(program)


def test_process_needs_a_judge_of_steps() -> None:
    with pytest.raises(InputError, match="unfinished"):
        made("process(judge=agreement)")


# ---- reward --------------------------------------------------------------------------------------


def test_a_second_model_judges_and_is_loaded_once() -> None:
    loaded: list[str] = []
    second = scripted(
        lambda prompt, reply: replies({"Yes": 0.9, "No": 0.1} if "good" in prompt else {"No": 1.0})(
            prompt, reply
        )
    )
    world = World({"nothing": 1.0})

    def load(name: str) -> Engine:
        if not loaded:
            loaded.append(name)
        return second

    world.engine.loader = load

    async def program() -> None:
        judge = made('reward(model="my.gguf")')
        assert not loaded
        thoughts = [await world.thought("good", "4"), await world.thought("bad", "5")]
        spent = world.run.budget.spent_tokens
        assert await rate(judge, SUM, thoughts) == pytest.approx([0.9, 0.0], abs=1e-3)
        assert loaded == ["my.gguf"]
        assert world.run.budget.spent_tokens > spent
        assert world.run.live == {world.root, *(t.branch for t in thoughts)}

    world(program)


def test_a_reward_model_must_be_named_and_loadable() -> None:
    with pytest.raises(InputError, match="needs a model"):
        made("reward")
    with pytest.raises(InputError, match="not a text"):
        parse("reward(model=5)")
    world = World(SAYING)

    async def program() -> None:
        with pytest.raises(InputError, match="no other models"):
            await rate(made("reward(model='x')"), SUM, [await world.thought("a", "4")])

    world(program)


# ---- in a search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", ["self_rating", "rollout(n=2)", "verdict", "process"])
@settings(max_examples=6)
@given(tokens=st.integers(6, 900))
def test_beam_search_with_a_judge_keeps_to_its_budget(judge: str, tokens: int) -> None:
    engine, budget = scripted({"So\nthe answer is 4.": 0.6, "Well\nAnswer: 5": 0.4}), Budget(tokens)
    run = Run(budget=budget)
    named = parse_strategy(f"beam(width=2, fanout=2, judge={judge}, rounds=3)")
    answer = run_checked(
        engine, think(Problem("?"), lambda p, r: ask(engine, p.text, r), named, run, model="")
    )
    assert answer.answer  # type: ignore[attr-defined]
    assert budget.spent_tokens <= tokens
    assert not run.live


# ---- equality ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1/2", "0.50", True),
        ("$1,200", "1200 dollars", True),
        ("2 1/2", "2.5", True),
        ("50%", "50", True),
        ("1/3", "0.3333", False),
        ("four", "4", False),
        ("", "", False),
    ],
)
def test_equal_numbers(a: str, b: str, same: bool) -> None:
    assert numeric(a, b) is numeric(b, a) is same


@given(st.fractions(max_denominator=500), st.integers(1, 9))
def test_a_number_equals_itself_in_any_form(number: Fraction, factor: int) -> None:
    other = f"{number.numerator * factor}/{number.denominator * factor}"
    assert numeric(str(number), other)
    assert not numeric(str(number + 1), other)


def test_numbers_within_a_tolerance() -> None:
    assert numeric("3.14", "3.1416", 1e-3)
    assert not numeric("3.13", "3.1416", 1e-3)
    with pytest.raises(InputError):
        numeric("1", "1", math.nan)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("x+1", "1+x", True),
        ("\\frac{1}{2}", "0.5", True),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("(x-1)(x+1)", "x^2-1", True),
        ("x+1", "x-1", False),
        ("\\frac{1}{", "0.5", False),
        ("", "1", False),
        ("x^2y^2", "y^2x^2", True),
        ("(x^2)(y)^2", "y^2x^2", True),
        ("9^{9^{9^9}}", "1", False),
        ("9^9^9", "1", False),
        ("9^(9)^9", "1", False),
        ("9^{-{9}^{9}}", "1", False),
        ("2**99999999", "1", False),
        ("(9999)!", "1", False),
        ("(" * 5000, "1", False),
        ("x" * 100_000, "1", False),
        ("9^{9^{9^9}}", " 9^{9^{9^9}}", True),
    ],
)
def test_equal_formulas(a: str, b: str, same: bool) -> None:
    pytest.importorskip("math_verify")
    assert symbolic(a, b) is same


def test_a_formula_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    assert symbolic("x+1", "1+x")  # it is running
    monkeypatch.setattr(equality, "MAX_SECONDS", 0.3)
    began = time.monotonic()
    assert not symbolic("(a+b+c+d+e)^{60}", "(a+b+c+d-e)^{61}")
    assert time.monotonic() - began < 5
    monkeypatch.undo()
    assert symbolic("x+1", "1+x")  # by the next process
    assert equality._WORKER._process is not None
    equality._WORKER._process.kill()
    assert not symbolic("x+2", "2+x")  # it died under it
    assert symbolic("x+2", "2+x")


def test_formulas_without_the_package_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert symbolic("1/2", "0.5")
    with pytest.raises(InputError, match="pip install math-verify"):
        symbolic("x+1", "1+x")


def test_ask_forgets_and_rate_remembers() -> None:
    calls = 0

    async def counted(problem: Problem, thoughts: object) -> list[float]:
        nonlocal calls
        calls += 1
        return [calls / 10]

    world = World(SAYING)

    async def program() -> None:
        thoughts, judge = [await world.thought("a", "4")], Judge(counted, name="counted")
        assert await rate(judge, SUM, thoughts) == await rate(judge, SUM, thoughts) == [0.1]
        assert await registry.ask(judge, SUM, thoughts) == [0.2]

    world(program)

"""Strategies, the loops under them, and what programs derive from branches; on scripted models."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.engine.requests import Draw
from anabranch.errors import ContextError, InputError, ResourceError
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import choose, embed, fill, join, probe, say, score
from anabranch.program.engine import Engine
from anabranch.program.registry import Named, Part
from anabranch.program.run import Run
from anabranch.program.tasks import together
from anabranch.program.types import Answer, Problem, Thought
from anabranch.reason import folds
from anabranch.reason.kernels import population, sampler
from anabranch.reason.prompts import messages
from anabranch.reason.registry import parse, strategies
from anabranch.reason.solve import NO_ANSWER, conclude, think
from tests.engines import run as run_checked
from tests.scripted import Rule, ask, replies, scripted

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
PROMPT_TOKENS = 5
"""Tokens of `ask(engine, "?")`."""

METHODS = [*(method.name for method in strategies()), "particles(moves=2)"]


def solve(
    rule: Rule | Mapping[str, float] | Engine,
    strategy: str = "vote",
    *,
    seed: int = 0,
    budget: Budget | None = None,
    problem: str | Problem = "?",
    run: Run | None = None,
) -> Answer:
    """An answer by a scripted model; fails if a branch, page or request is left over."""
    engine = rule if isinstance(rule, Engine) else scripted(rule)
    run = run or Run(seed=seed, budget=budget)
    program = think(
        Problem(problem) if isinstance(problem, str) else problem,
        lambda p, run: ask(engine, p.text, run),
        parse(strategy),
        run,
        model="scripted",
    )
    try:
        return run_checked(engine, program)
    finally:
        assert not run.live
        assert run.budget.tokens is None or run.budget.spent_tokens <= run.budget.tokens


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["vote", " vote ( n = 16 ) ", "best(n=3, temperature=1)", "single(max_tokens=7)"]
)
def test_a_strategy_is_typed_again_from_its_text(text: str) -> None:
    named = parse(text)
    assert str(parse(str(named))) == str(named)
    assert parse(str(named)) == named


def test_canonical_text_names_every_parameter() -> None:
    assert (
        str(parse("vote(temperature=1, n=16)"))
        == "vote(n=16, temperature=1.0, top_p=1.0, max_tokens=512)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("vote(", "cannot be read"),
        ("vote(16)", "cannot be read"),
        ("vote(**{'n': 1})", "cannot be read"),
        ("vote(n=open('x'))", "n is not a whole number"),
        ("vote(n=1)(n=2)", "cannot be read"),
        ("a.vote()", "cannot be read"),
        ("vote(n=1, n=2)", "cannot be read"),
        ("\0", "cannot be read"),
        ("(" * 500, "cannot be read"),
        ("v" * 2000, "cannot be read"),
        ("voat", "did you mean vote"),
        ("vote(temprature=1)", "did you mean temperature"),
        ("single(n=2)", "unknown parameter of single"),
        ("vote(n=0)", r"\[1, 1024\]"),
        ("vote(n=1000000)", r"\[1, 1024\]"),
        ("vote(n=2.5)", "n is not a whole number"),
        ("vote(n=True)", "n is not a whole number"),
        ("vote(n='8')", "n is not a whole number"),
        ("vote(temperature=-1)", r"\[0, 10\]"),
        ("vote(temperature=1e999)", r"\[0, 10\]"),
        ("vote(top_p=0)", r"\(0, 1\]"),
    ],
)
def test_what_is_no_strategy_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


@given(st.text())
def test_any_text_is_a_strategy_or_an_input_error(text: str) -> None:
    try:
        assert isinstance(parse(text), Named)
    except InputError:
        return


def test_every_method_says_where_it_comes_from() -> None:
    for method in strategies():
        assert method.paper
        assert method.summary.endswith(".")
        for parameter in method.parameters.values():
            checked = parameter.check(parameter.default)
            assert isinstance(parameter.limits, Part) or checked == parameter.default


# ---- laws of every method ------------------------------------------------------------------------


def evidence(answer: Answer) -> object:
    """What must be the same again; branches count the roots of their own run only."""
    return answer.answer, answer.text, answer.confidence, answer.candidates


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**64 - 1))
def test_the_seed_decides_everything(name: str, seed: int) -> None:
    assert evidence(solve(TWO, name, seed=seed)) == evidence(solve(TWO, name, seed=seed))


def test_the_company_of_all_other_methods_changes_nothing() -> None:
    async def program() -> list[Answer]:
        return await asyncio.gather(
            *(
                think(
                    Problem("?"),
                    lambda p, run: ask(engine, p.text, run),
                    parse(name),
                    Run(seed=seed),
                    model="scripted",
                )
                for seed, name in enumerate(METHODS)
            )
        )

    engine = scripted(TWO, pages=4096)
    for seed, (name, answer) in enumerate(
        zip(METHODS, run_checked(engine, program()), strict=True)
    ):
        assert evidence(answer) == evidence(solve(TWO, name, seed=seed)), name


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25)
@given(tokens=st.integers(PROMPT_TOKENS, 400))
def test_no_budget_is_overspent_or_ends_without_an_answer(name: str, tokens: int) -> None:
    budget = Budget(tokens)
    answer = solve(TWO, name, budget=budget)
    assert budget.spent_tokens <= tokens
    assert answer.answer
    assert 0 <= answer.confidence <= 1
    usage = answer.usage
    charged = usage.prompt_tokens + usage.sampled_tokens + usage.forced_tokens
    assert charged == budget.spent_tokens
    assert usage.kept_tokens <= usage.sampled_tokens
    if answer.answer == NO_ANSWER:
        assert "nothing was written" in answer.notes
    if tokens >= PROMPT_TOKENS + 512:
        assert answer.answer in ("4", "5")


@pytest.mark.parametrize("name", METHODS)
def test_time_that_is_up_gives_what_there_is(name: str) -> None:
    clock = iter(range(10**6))
    answer = solve(TWO, name, budget=Budget(seconds=20, clock=lambda: float(next(clock))))
    assert answer.answer
    assert "the budget was used up" in answer.notes


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_too_small_for_the_prompt_is_the_callers_fault(name: str) -> None:
    with pytest.raises(InputError, match="does not cover the prompt"):
        solve(TWO, name, budget=Budget(PROMPT_TOKENS - 1))


@pytest.mark.parametrize("name", METHODS)
def test_cancelled_thinking_leaves_nothing_but_its_thoughts(name: str) -> None:
    engine, run, named = scripted({"abc" * 1000: 1.0}), Run(), parse(name)

    async def program() -> None:
        thinking = asyncio.create_task(
            think(Problem("?"), lambda p, run: ask(engine, p.text, run), named, run, model="")
        )
        while not any(len(branch.text) > 20 for branch in run.live):
            await asyncio.sleep(0)
        thinking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await thinking
        assert not run.live

    run_checked(engine, program())
    answer = conclude(Problem("?"), named, run, model="", notes=["interrupted"])
    assert answer.text.startswith("abcabc")
    assert answer.notes[0] == "interrupted"


@pytest.mark.parametrize("name", METHODS)
def test_a_failure_after_words_is_a_note_and_before_them_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, draws = scripted(TWO), 0
    accept = Draw.accept

    def failing(request: Draw, result: object) -> None:
        nonlocal draws
        draws += 1
        accept(request, result)  # type: ignore[arg-type]
        if draws == 12:
            if request not in engine.core.requests.values():  # under a constraint, drawn one by one
                raise ResourceError("no room")
            engine.core._finish(request, ResourceError("no room"))

    monkeypatch.setattr(Draw, "accept", failing)
    failed = solve(engine, name)
    assert failed.notes[0] == "stopped early: no room"
    assert failed.text
    with pytest.raises(ContextError):
        solve(engine, name, problem="?" * 100_000)


# ---- single, vote, best --------------------------------------------------------------------------


def test_single_takes_the_likeliest_thought() -> None:
    answer = solve(TWO, "single")
    assert (answer.answer, answer.confidence) == ("4", 1.0)
    assert answer.text == "So the answer is 4."
    assert answer.usage.kept_tokens == answer.usage.sampled_tokens == len(answer.text) + 1


def test_vote_counts_thoughts() -> None:
    answer = solve(TWO, "vote(n=64, temperature=1)", seed=5)
    votes = [candidate.answer for candidate in answer.candidates]
    assert len(votes) == 64
    assert answer.confidence == votes.count(answer.answer) / 64
    assert answer.answer == "4"
    # Binomial(64, 0.6): outside 26..50 once in ten thousand.
    assert 26 <= votes.count("4") <= 50
    assert answer.usage.kept_tokens == votes.count("4") * (len(answer.text) + 1)


def test_the_prompt_and_equal_thoughts_are_computed_once() -> None:
    usage = solve(TWO, "vote(n=32)").usage
    distinct = sum(len(text) + 1 for text in TWO)
    assert usage.computed_tokens <= PROMPT_TOKENS + distinct
    assert usage.sampled_tokens > 5 * distinct


def test_best_prefers_the_likeliest_per_token() -> None:
    # Each branch of the long one is likelier per token, although its sum is lower.
    table = {"The answer is 1. It is so sure and certain and long": 0.3, "The answer is 2.": 0.35,
             "The answer is 3.": 0.35}  # fmt: skip
    answer = solve(table, "best(n=40, temperature=1)")
    assert answer.answer == "1"
    weights = {c.answer: c.weight for c in answer.candidates}
    assert weights["1"] > weights["2"] >= weights["3"] > 0
    assert sum(weights.values()) == pytest.approx(1)


def test_a_tight_budget_buys_whole_thoughts_one_after_another() -> None:
    length = len("The answer is 7.") + 1
    answer = solve(
        {"The answer is 7.": 1.0},
        f"vote(n=10, max_tokens={length})",
        budget=Budget(PROMPT_TOKENS + 3 * length + 5),
    )
    done = [candidate for candidate in answer.candidates if candidate.done]
    assert [candidate.answer for candidate in done] == ["7"] * 3
    assert answer.answer == "7"


def test_thoughts_without_an_answer_lower_the_confidence() -> None:
    answer = solve({"The answer is 4.": 0.5, "I do not know": 0.5}, "vote(n=20, temperature=1)")
    readable = sum(candidate.answer == "4" for candidate in answer.candidates)
    assert answer.answer == "4"
    assert answer.confidence == readable / 20 < 1


def test_unfinished_thoughts_give_what_can_be_read_off_them() -> None:
    answer = solve({"We have 3 and 5 makes 8 and so on": 1.0}, "single(max_tokens=23)",
                   problem="How many?")  # fmt: skip
    assert answer.answer == "8"
    assert "the answer is a guess from unfinished thoughts" in answer.notes
    assert "1 of 1 thoughts did not come to an end" in answer.notes


def test_a_text_without_an_answer_is_the_answer() -> None:
    answer = solve({"Roses are RED.": 1.0}, "vote(n=3)")
    assert answer.answer == answer.text == "Roses are RED."
    assert answer.confidence == 1.0


def test_an_empty_reply_is_no_answer() -> None:
    answer = solve({"": 1.0}, "vote(n=3)")
    assert (answer.answer, answer.text, answer.confidence) == (NO_ANSWER, "", 0.0)


def test_prompts() -> None:
    (asked,) = messages(Problem("Which?", choices=("red", "blue")))
    assert "A) red\nB) blue" in asked["content"]
    system, user = messages(Problem("Which?", system="Be brief."))
    assert (system["content"], user["content"]) == ("Be brief.", "Which?")
    for wrong in (Problem(" "), Problem("?", choices=("x",) * 27)):
        with pytest.raises(InputError):
            messages(wrong)


# ---- folds ---------------------------------------------------------------------------------------

ANSWERS = st.sampled_from(["1", "2", "3", None])


@st.composite
def thought_lists(draw: st.DrawFn) -> list[Thought]:
    branch = object()
    pairs = draw(st.lists(st.tuples(ANSWERS, st.floats(-50, 0), st.integers(0, 20))))
    return [Thought(branch, answer=a, logp=p, tokens=n) for a, p, n in pairs]  # type: ignore[arg-type]


@pytest.mark.parametrize("fold", [folds.majority, folds.best])
@given(thoughts=thought_lists())
def test_weights_are_shares_heaviest_first(fold: object, thoughts: list[Thought]) -> None:
    assert callable(fold)
    weights = fold(thoughts)
    assert {answer for answer, _ in weights} == {t.answer for t in thoughts} - {None}
    values = [weight for _, weight in weights]
    assert values == sorted(values, reverse=True)
    assert not values or sum(values) == pytest.approx(1)


def test_ties_go_to_the_likelier_then_the_first() -> None:
    def thought(answer: str, logp: float) -> Thought:
        return Thought(None, answer=answer, logp=logp, tokens=1)  # type: ignore[arg-type]

    assert folds.majority([thought("a", -2), thought("b", -1)])[0][0] == "b"
    assert folds.majority([thought("a", -1), thought("b", -1)])[0][0] == "a"
    assert folds.majority([thought("b", -1), thought("a", -9), thought("a", -9)])[0][0] == "a"


# ---- population ----------------------------------------------------------------------------------


def test_population_with_a_rule_of_selection_is_beam_search() -> None:
    """Two steps of one letter, keep the likelier two: finds "bd", which greedy misses."""
    engine = scripted({"ac": 0.26, "ad": 0.26, "bd": 0.4, "bc": 0.08})
    run = Run(seed=1)

    async def widest(thoughts: list[Thought]) -> list[Thought]:
        best: dict[str, Thought] = {}
        for thought in thoughts:
            best.setdefault(thought.text, thought)
        kept = sorted(best.values(), key=lambda thought: -thought.logp)[:2]
        copies = [
            Thought(t.branch.fork(), t, logp=t.logp, tokens=t.tokens, text=t.text)
            for t in kept for _ in range(7) if not t.done
        ]  # fmt: skip
        return [*kept, *copies]

    async def program() -> list[Thought]:
        root = ask(engine, "?", run)
        start = [Thought(branch) for branch in root.fork(16)]
        advance = sampler(Problem("?"), temperature=1.0)
        beams = await population(start, advance, widest, limit=1, rounds=2)
        assert len(run.live) == len({id(t.branch) for t in beams}) + 1
        assert {id(t) for t in run.thoughts} >= {id(t) for t in beams if t not in start}
        run.drop_all()
        return beams

    beams = run_checked(engine, program())
    assert beams[0].text == "bd"
    assert math.exp(beams[0].logp) == pytest.approx(0.4, rel=1e-3)


@given(left=st.integers(1, 60), n=st.integers(1, 12))
def test_all_get_the_same_share_of_a_short_budget(left: int, n: int) -> None:
    engine, run = scripted({"x" * 200: 1.0}), Run(budget=Budget(PROMPT_TOKENS + left))

    async def program() -> list[int]:
        start = [Thought(branch) for branch in ask(engine, "?", run).fork(n)]
        thoughts = await population(start, sampler(Problem("?")), limit=10)
        run.drop_all()
        return [thought.tokens for thought in thoughts]

    share = min(10, max(1, left // n))
    assert run_checked(engine, program()) == [share] * min(n, left) + [0] * max(0, n - left)


# ---- derived operations --------------------------------------------------------------------------


def derived(rule: Rule | Mapping[str, float], program: object, budget: int | None = None) -> object:
    """Run `program(root)` and recount the tree."""
    engine = scripted(rule)
    run = Run(budget=Budget(budget))
    assert callable(program)

    async def checked() -> object:
        root = ask(engine, "?", run)
        try:
            return await program(root)
        finally:
            run.drop_all()

    return run_checked(engine, checked())


def test_scores_are_exact_and_change_nothing() -> None:
    async def program(root: Branch) -> None:
        before = root.tokens
        yes, no = await score(root, ["yes", "no"])
        assert (yes, no) == pytest.approx((math.log(0.75), math.log(0.25)), abs=1e-4)
        mean_yes, _ = await score(root, ["yes", "no"], norm="mean")
        assert mean_yes == pytest.approx(math.log(0.75) / 3, abs=1e-4)
        assert await score(root, ["yes", "no"], prior=root) == [0.0, 0.0]
        assert root.tokens == before
        assert root.run.live == {root}

    derived({"yes": 0.75, "no": 0.25}, program)


def test_choose_appends_the_best_option() -> None:
    async def program(root: Branch) -> None:
        choice, shares = await choose(root, ["no", "yes"])
        assert (choice, root.text) == ("yes", "yes")
        assert shares == pytest.approx({"no": 0.25, "yes": 0.75}, abs=1e-4)

    derived({"yes": 0.75, "no": 0.25}, program)


def test_a_budget_for_some_options_scores_none() -> None:
    async def program(root: Branch) -> None:
        assert await score(root, ["yes", "no"]) == [-math.inf, -math.inf]
        choice, shares = await choose(root, ["no", "yes"])
        assert choice == "no"
        assert shares == {"no": 0.5, "yes": 0.5}

    derived({"yes": 0.75, "no": 0.25}, program, budget=PROMPT_TOKENS + 4)


@pytest.mark.parametrize("options", [[], [""], "yes", ["a", "a"]])
def test_options_that_are_none_are_refused(options: list[str]) -> None:
    async def program(root: Branch) -> None:
        with pytest.raises(InputError):
            await score(root, options)
        with pytest.raises(InputError):
            await score(root, ["a"], norm="max")  # type: ignore[arg-type]

    derived(TWO, program)


def test_probe_asks_without_a_trace_on_the_branch() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        said = reply.partition("Sure? ")[2]
        return replies({"yes": 0.9, "no": 0.1})(prompt, said) if "Sure" in reply else {"I": 1.0}

    async def program(root: Branch) -> None:
        assert await probe(root, "Sure? ", limit=3) == "yes"
        shares = await probe(root, "Sure? ", ["yes", "no"])
        assert shares["yes"] == pytest.approx(0.9, abs=1e-3)
        assert root.text == ""
        assert root.run.live == {root}

    derived(rule, program)


def test_join_starts_where_branches_part() -> None:
    async def program(root: Branch) -> None:
        await root.force("So ")
        left, right = root.fork(2)
        await root.force("much for the root")
        await left.force("left")
        deep = right.fork()
        await deep.force("right")
        joined = await join([left, deep], lambda texts: " and ".join(sorted(texts)))
        assert joined.text == "So left and right"
        inner = await join([deep, right], "|".join)
        assert inner.text == "So right|"
        again = await join([left, deep], lambda texts: texts[0], at=left.mark)
        assert again.text == "So left"
        with pytest.raises(InputError, match="nothing"):
            await join([], "".join)
        stranger = ask(root.engine, "!", root.run)
        with pytest.raises(InputError, match="share no ancestor"):
            await join([left, stranger], "".join)
        root.run.drop_all()

    derived(TWO, program)


def test_say_closes_a_turn_and_reuses_the_conversation() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        text = f"turn {prompt.count('turn')}"
        return {text[len(reply) :]: 1.0}

    async def program(root: Branch) -> None:
        engine = root.engine
        await root.extend(3)  # cut short
        await say(root, "b")
        await root.extend()
        assert root.tokens[-1] in engine.tokenizer.ends
        await say(root, "c")
        talk = [("user", "?"), ("assistant", "tur"), ("user", "b"), ("assistant", "turn 0"),
                ("user", "c")]  # fmt: skip
        same = engine.tokenizer.chat([{"role": r, "content": c} for r, c in talk])
        assert root.tokens == same

    derived(rule, program)


def test_fill_writes_a_template() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if reply.endswith("Name: "):
            return {"Ada\n": 1.0}
        if reply.endswith("old: "):
            return {"yes": 0.1, "no": 0.9}
        return {"da\n"["da\n".find(reply[-1:]) + 1 :] if reply[-1:] in "da" else "da\n": 1.0}

    async def program(root: Branch) -> None:
        filled = await fill(
            root, "Name: {name}\n{{old}} old: {old}.", {"old": ["yes", "no"]}, temperature=0.0
        )
        assert filled == {"name": "Ada", "old": "no"}
        assert root.text == "Name: Ada\n{old} old: no."

    derived(rule, program)


@pytest.mark.parametrize("template", ["{}", "{a}{a}", "{a:d}", "{a!r}", "{a", "{a.b}", "{0}"])
def test_templates_with_bad_holes_are_refused(template: str) -> None:
    async def program(root: Branch) -> None:
        with pytest.raises(InputError):
            await fill(root, template)
        with pytest.raises(InputError, match="not there"):
            await fill(root, "{a}", {"b": ["x"]})

    derived(TWO, program)


@given(st.integers(0, 30))
def test_fill_stops_with_the_budget(extra: int) -> None:
    async def program(root: Branch) -> None:
        filled = await fill(root, "Say: {a}, {b}", {"b": ["x", "y"]}, limit=8)
        assert list(filled) in ([], ["a"], ["a", "b"])

    derived({"Say: hello, x": 1.0}, program, budget=PROMPT_TOKENS + extra)


def test_embed_reports_the_hidden_state() -> None:
    engine = scripted(TWO)
    state = run_checked(engine, embed(engine, "abca"))
    assert state[ord("a")] == 2
    assert state.shape == (260,)


def test_together_cancels_the_rest_when_one_fails() -> None:
    async def program(root: Branch) -> None:
        one, two = root.fork(2)

        async def fail() -> None:
            while len(two.tokens) < PROMPT_TOKENS + 3:
                await asyncio.sleep(0)
            raise ResourceError("no room")

        with pytest.raises(ResourceError):
            await together([fail(), one.extend(), two.extend(1000)])
        await two.extend(1)  # nothing is pending on it
        root.run.drop_all()

    derived({"x" * 5000: 1.0}, program)


def test_temporary_branches_go_when_the_caller_is_cancelled() -> None:
    async def program(root: Branch) -> None:
        for work in (
            score(root, ["y" * 500, "z" * 500]),
            probe(root, "q" * 500),
            join([root], lambda texts: "j" * 500),
        ):
            task = asyncio.ensure_future(work)
            while root.run.live == {root}:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert root.run.live == {root}

    derived(TWO, program)

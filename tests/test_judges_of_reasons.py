"""Judges that read the reasoning itself: premises cited, and results that solutions share."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.program.budget import Budget
from anabranch.program.run import Run
from anabranch.program.types import Problem, Thought
from anabranch.verify.graph import propagate, results
from anabranch.verify.natural_program import Statement, context, majority, statements
from anabranch.verify.registry import UNKNOWN, parse, rate
from tests.engines import run as run_checked
from tests.scripted import Rule, ask, replies, scripted

# ---- natural_program -----------------------------------------------------------------------------

QUESTION = "Ann has 3 pens. Bob has 4. How many have they?"
CHAIN = "#4. Together 3 + 4 = 7 (by #1 #2)\n#5. The answer is 7. (by #3, #4)"


def test_statements_and_what_they_cite() -> None:
    premises, steps = statements(QUESTION, CHAIN)
    assert [p.text for p in premises] == ["Ann has 3 pens.", "Bob has 4.", "How many have they?"]
    assert [(s.number, s.text, s.premises) for s in steps] == [
        (4, "Together 3 + 4 = 7", (1, 2)),
        (5, "The answer is 7.", (3, 4)),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no number (by #1)", [(4, (1,))]),
        ("#4. a\n\n#4. again (by #4)", [(4, None), (5, (4,))]),
        ("#9. a (by #8 #9)", [(9, None)]),  # cites nothing that there is
        ("#4 a (by #1 and #2).", [(4, (1, 2))]),
        ("#4.", []),
        ("", []),
    ],
)
def test_lines_out_of_form(text: str, expected: list[tuple[int, tuple[int, ...] | None]]) -> None:
    _, steps = statements(QUESTION, text)
    assert [(s.number, s.premises) for s in steps] == expected


def test_a_step_is_shown_what_it_cites_and_nothing_else() -> None:
    premises, steps = statements(QUESTION, CHAIN)
    shown = context(premises, steps, steps[0])
    assert "Ann" in shown
    assert "How many" not in shown
    assert "7." not in shown
    bare, others = statements(QUESTION, "A step\nAnother")
    assert context(bare, others, others[1]).count("Bob") == 1
    assert "A step" in context(bare, others, others[1])


def test_minimal_premises_are_much_shorter() -> None:
    question = " ".join(f"Fact number {i} says something." for i in range(1, 41))
    chain = "\n".join(f"#{i}. Step (by #{i - 1} #{i - 40})" for i in range(41, 61))
    premises, steps = statements(question, chain)

    def shown(some: list[Statement]) -> int:
        texts = (context(premises, steps, step).partition("\n\nStep:")[0] for step in some)
        return sum(map(len, texts))

    # The paper's point: contexts a fifth to a tenth as long.
    whole = [step._replace(premises=None) for step in steps]
    assert shown(whole) > 10 * shown(steps)


@given(st.floats(0, 1), st.integers(1, 25))
def test_the_majority_of_exact_verdicts(chance: float, votes: int) -> None:
    value = majority(chance, votes)
    assert 0 <= value <= 1
    assert value + majority(1 - chance, votes) == pytest.approx(1)
    assert majority(chance, 1) == pytest.approx(chance)
    assert majority(chance, 3) == pytest.approx(chance**3 + 3 * chance**2 * (1 - chance))


def rated(rule: Rule, texts: list[str], *, votes: int = 1, tokens: int | None = None) -> Run:
    """A run in which a natural program judge has rated texts; ratings end up in `scores`."""
    engine, run = scripted(rule), Run(budget=Budget(tokens))
    problem = Problem(QUESTION)

    async def program() -> None:
        root = ask(engine, QUESTION, run)
        for branch, text in zip(root.fork(len(texts)), texts, strict=True):
            run.thoughts.append(Thought(branch, text=text, answer="7", done=True))
        judge = parse(f"natural_program(votes={votes})").make()
        ratings = await rate(judge, problem, run.thoughts)
        for thought, rating in zip(run.thoughts, ratings, strict=True):
            thought.scores = (rating,)
        run.drop_all()

    run_checked(engine, program())
    return run


def strict(prompt: str, reply: str) -> Mapping[str, float]:
    """Believes sums that it can see the terms of, and nothing else."""
    right = "Step: Together 3 + 4 = 7" in prompt and "Ann" in prompt and "Bob" in prompt
    sure = 0.9 if right or "Step: The answer is 7" in prompt else 0.2
    return replies({"Yes": sure, "No": 1 - sure})(prompt, reply)


def test_a_chain_is_worth_the_chance_that_all_steps_pass() -> None:
    wrong = CHAIN.replace("= 7 (", "= 8 (")
    run = rated(strict, [CHAIN, wrong, ""])
    assert [t.scores[0] for t in run.thoughts] == pytest.approx([0.81, 0.18, UNKNOWN], abs=1e-3)
    assert run.remarks == []
    three = rated(strict, [CHAIN], votes=3).thoughts[0].scores[0]
    assert three == pytest.approx((0.9**3 + 3 * 0.81 * 0.1) ** 2, abs=1e-3)


def test_steps_without_citations_are_told() -> None:
    run = rated(strict, ["Together 3 + 4 = 7"])
    assert run.thoughts[0].scores[0] == pytest.approx(0.9, abs=1e-3)
    assert any("cite no premises" in remark for remark in run.remarks)


def test_a_shared_step_is_asked_about_once() -> None:
    once, twice = (rated(strict, [CHAIN] * n).budget.spent_tokens for n in (1, 2))
    assert once == twice


def test_a_longer_chain_asks_about_its_new_step_only() -> None:
    engine, run = scripted(strict), Run()

    async def program() -> None:
        root, judge = ask(engine, QUESTION, run), parse("natural_program(votes=1)").make()
        spent = []
        for text in (CHAIN.splitlines()[0], CHAIN):
            before = run.budget.spent_tokens
            thought = Thought(root.fork(), text=text)
            await thought.branch.force(text)
            (rating,) = await rate(judge, Problem(QUESTION), [thought])
            spent.append(run.budget.spent_tokens - before - len(text))
        assert rating == pytest.approx(0.81, abs=1e-3)
        premises, steps = statements(QUESTION, CHAIN)
        shown = [len(context(premises, steps, step)) for step in steps]
        assert spent[1] - spent[0] == shown[1] - shown[0]
        run.drop_all()

    run_checked(engine, program())


@pytest.mark.parametrize("tokens", [60, 150, 330])
def test_a_budget_for_some_steps_leaves_the_chain_unknown(tokens: int) -> None:
    run = rated(strict, [CHAIN], tokens=tokens)
    assert run.thoughts[0].scores[0] == UNKNOWN
    assert any("could not ask" in remark for remark in run.remarks)
    assert run.budget.spent_tokens <= tokens


# ---- graph ---------------------------------------------------------------------------------------


def test_results_are_numbers_behind_equals_signs() -> None:
    assert results("3 * 4 = 12, and 12+1=13.0 pens; 1,200/2 = $600. x = y; 50 % = 1/2") == {
        "12", "13", "600", "1/2"
    }  # fmt: skip


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 9))
def test_without_shared_results_it_is_the_vote(lengths: list[int], rounds: int) -> None:
    paths: list[set[str | None]] = [
        {f"{i}.{j}" for j in range(length)} for i, length in enumerate(lengths)
    ]
    assert propagate(paths, rounds) == pytest.approx([1 / len(paths)] * len(paths))


def test_a_path_of_shared_results_weighs_more() -> None:
    # Support of a, b: 2/3; of c, d: 1/3. Paths: 2/3, 2/3, 1/3; their shares: 0.4, 0.4, 0.2.
    assert propagate([{"a", "b"}, {"a", "b"}, {"c", "d"}], 1) == pytest.approx([0.4, 0.4, 0.2])


def test_the_judge_gives_an_answer_its_share_of_support() -> None:
    engine, run = scripted({"x": 1.0}), Run()
    texts = [("2*3=6, so 6+1=7", "7"), ("3+3=6, so 7", "7"), ("2+3=5, so 5+1=6", "6"), ("?", None)]

    async def program() -> list[float]:
        root = ask(engine, "?", run)
        thoughts = [
            Thought(branch, text=text, answer=answer, done=True)
            for branch, (text, answer) in zip(root.fork(4), texts, strict=True)
        ]
        ratings = await rate(parse("graph(rounds=1)").make(), Problem("?"), thoughts)
        run.drop_all()
        return ratings

    assert run_checked(engine, program()) == pytest.approx([0.8, 0.8, 0.2, 0.0])


def test_shared_results_beat_the_vote_when_there_are_few_solutions() -> None:
    """Right solutions pass through the same results; every mistake leads somewhere of its own,
    and then to one of two popular wrong answers."""
    draws, wins = random.Random(3), {"vote": 0.0, "graph": 0.0}
    for _ in range(400):
        paths: list[set[str | None]] = []
        answers = []
        for _ in range(5):
            if draws.random() < 0.4:
                paths.append({"a", "b", "c"})
                answers.append("right")
            else:
                paths.append({"a", *(str(draws.random()) for _ in range(2))})
                answers.append(draws.choice(["wrong", "wrong", "worse"]))
        for name, weights in (("vote", [1.0] * 5), ("graph", propagate(paths, 4))):
            totals: dict[str, float] = {}
            for answer, weight in zip(answers, weights, strict=True):
                totals[answer] = totals.get(answer, 0.0) + weight
            best = [a for a, t in totals.items() if t > max(totals.values()) - 1e-9]
            wins[name] += ("right" in best) / len(best)
    # Paired on the same solutions; their difference has a standard error below 10 of 400.
    assert wins["graph"] - wins["vote"] > 40

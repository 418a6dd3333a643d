"""Methods that hand the solving to a program."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from anabranch.program.budget import Budget
from anabranch.program.types import Problem
from anabranch.reason.formalise import fenced, outcome_read
from anabranch.reason.induction import examples, inducer
from anabranch.reason.linc import sentences, spoken, vocabulary
from tests.scripted import Rule, replies
from tests.test_reason import solve


def block(code: str) -> str:
    return f"```python\n{code}\n```"


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\nx = 1\nprint(x)\n```\nDone.", "x = 1\nprint(x)"),
        ("```\nx\n```\n```\ny\n```", "x"),
        ("```python\nx = 1", "x = 1"),
        ("print(1)\n", "print(1)"),
    ],
)
def test_the_code_of_a_reply(text: str, code: str) -> None:
    assert fenced(text) == code


@pytest.mark.parametrize(
    ("value", "problem", "answer"),
    [
        ("42", Problem("?"), "42"),
        ("first\n7/2", Problem("?"), "7/2"),
        ("0.30000000000000004", Problem("?"), "0.3"),
        ("19.999999999999996", Problem("?"), "20"),
        ("The total is 42 dollars", Problem("How many dollars?"), "42"),
        ("Paris", Problem("Which city?"), "paris"),
        ("B", Problem("?", choices=("red", "blue")), "B"),
        ("blue", Problem("?", choices=("red", "blue")), "B"),
        ("None at all", Problem("?", kind="number"), None),
    ],
)
def test_the_answer_of_an_outcome(value: str, problem: Problem, answer: str | None) -> None:
    assert outcome_read(value, problem) == answer


# ---- pal -----------------------------------------------------------------------------------------

PROGRAMS = {block("print(2 + 2)"): 0.5, block("print(2 + 3)"): 0.2, block("print(2 / 0)"): 0.3}


def test_programs_vote_and_those_that_fail_abstain() -> None:
    answer = solve(PROGRAMS, "pal(n=64, retries=0, temperature=1)", seed=3)
    found = [candidate.answer for candidate in answer.candidates]
    assert answer.answer == "4"
    assert answer.confidence == found.count("4") / 64
    # Binomial(64, 0.5) and (64, 0.3): outside of these once in ten thousand.
    assert 17 <= found.count("4") <= 47
    assert 6 <= found.count(None) <= 34
    assert set(found) == {"4", "5", None}
    assert "ZeroDivisionError" in answer.notes[0]


def test_the_text_shows_program_and_answer() -> None:
    answer = solve({block("print(6 * 7)"): 1.0}, "pal(n=1)")
    assert answer.text == block("print(6 * 7)") + "\n\nThe answer is 42."


def test_a_program_is_corrected_by_what_went_wrong() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        right = "ZeroDivisionError: division by zero" in prompt
        return replies({block("print(4)" if right else "print(2 / 0)"): 1.0})(prompt, reply)

    answer = solve(rule, "pal(n=3, retries=1)")
    assert (answer.answer, answer.confidence, answer.notes) == ("4", 1.0, ())
    failed = solve(rule, "pal(n=3, retries=0)")
    assert "3 of 3 translations could not be solved" in failed.notes[0]


def test_one_program_that_works_leaves_everything_as_it_was() -> None:
    table = {block("print(4)"): 0.2, block("print(2 / 0)"): 0.8}
    answers = [
        solve(table, f"pal(n=12, retries=0, temperature=1, fallback='{fallback}')", seed=4)
        for fallback in ("vote", "none")
    ]
    assert answers[0].candidates == answers[1].candidates
    assert answers[0].notes == answers[1].notes
    assert {candidate.answer for candidate in answers[0].candidates} == {"4", None}


def test_a_stated_answer_without_a_program_does_not_vote() -> None:
    table = {"The answer is 9.": 0.9, block("print(4)"): 0.1}
    answer = solve(table, "pal(n=40, retries=0, temperature=1)", seed=1)
    assert answer.answer == "4"
    assert answer.confidence < 0.5


def test_a_tight_budget_buys_whole_programs() -> None:
    program = block("print(4)")
    alone = solve({program: 1.0}, "pal(n=1, retries=0)").usage
    prompt = alone.prompt_tokens
    answer = solve(
        {program: 1.0},
        "pal(n=9, retries=0, max_tokens=40)",
        budget=Budget(prompt + 2 * alone.sampled_tokens + 3),
    )
    assert [c.answer for c in answer.candidates if c.done] == ["4", "4"]


def test_without_the_budget_for_its_prompt_it_thinks_plainly() -> None:
    answer = solve({"The answer is 4.": 1.0}, "pal(n=1, max_tokens=20)", budget=Budget(60))
    assert answer.answer == "4"
    assert any("did not cover" in note for note in answer.notes)


# ---- linc ----------------------------------------------------------------------------------------

STORY = "Every cat is a pet. Tom is a cat. True or false: Tom is a pet."


def translations(table: Mapping[str, Mapping[str, float]]) -> Rule:
    """A reply to each sentence, whatever came before it."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        sentence = max(table, key=prompt.rfind)
        return replies(table[sentence])(prompt, reply)

    return rule


FAITHFUL = {
    "Every cat is a pet.": {"all x. (Cat(x) -> Pet(x))": 1.0},
    "Tom is a cat.": {"Cat(tom)": 1.0},
    "Tom is a pet.": {"Pet(tom)": 1.0},
}


def test_a_prover_decides_what_was_translated() -> None:
    answer = solve(translations(FAITHFUL), "linc(n=2)", problem=STORY)
    assert (answer.answer, answer.confidence) == ("true", 1.0)
    assert answer.text.splitlines()[:3] == ["all x. (Cat(x) -> Pet(x))", "Cat(tom)", "Pet(tom)"]


def test_translations_vote_and_what_settles_nothing_abstains() -> None:
    rule = translations(
        {**FAITHFUL, "Tom is a cat.": {"Cat(tom)": 0.6, "-Pet(tom)": 0.2, "-Cat(tom)": 0.2}}
    )
    answer = solve(rule, "linc(n=20, temperature=1)", problem=STORY, seed=2)
    found = [candidate.answer for candidate in answer.candidates]
    assert answer.answer == "true"
    assert set(found) == {"true", "false", None}
    # Binomial(20, 0.6) and (20, 0.2): outside of these twice in ten thousand.
    assert found.count("true") >= 4
    assert found.count(None) <= 12
    unknown = STORY.replace("True or false", "True, false or unknown")
    asked = solve(rule, "linc(n=12, temperature=1)", problem=unknown, seed=2)
    assert {c.answer for c in asked.candidates} == {"true", "false", "unknown"}


def test_no_translation_is_unreadable() -> None:
    rule = translations({s: {"Tom loves (cats": 0.5, "-" * 60: 0.5} for s in FAITHFUL})
    answer = solve(rule, "linc(n=6, temperature=1, max_tokens=24)", problem=STORY)
    assert all("cannot read" not in note and "expected" not in note for note in answer.notes)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Problem("Tom is a cat. True or false: Tom is red."), ["true", "false", None]),
        (Problem("Tom is red. Is Tom red?"), ["yes", "no", None]),
        (Problem("Tom is red. Is Tom red? Say unknown if so."), ["true", "false", "unknown"]),
        (Problem("Tom is red.", choices=("True", "False", "Uncertain")), ["A", "B", "C"]),
        (Problem("Is Tom red?", choices=("No", "Yes")), ["B", "A", None]),
    ],
)
def test_verdicts_in_the_words_of_the_problem(problem: Problem, said: list[str | None]) -> None:
    assert [spoken(verdict, problem) for verdict in ("true", "false", "unknown")] == said


def test_sentences_and_names() -> None:
    assert sentences(Problem(STORY)) == ["Every cat is a pet.", "Tom is a cat.", "Tom is a pet."]
    assert sentences(Problem("?")) == ["?"]
    predicates, terms = vocabulary(["Every", "cat", "Tom"])
    assert (predicates, terms) == (["Cat", "Tom"], ["cat", "tom", "x", "y", "z"])


# ---- collaborative -------------------------------------------------------------------------------


def chains_and_programs(right: float, faithful: float) -> Rule:
    """Chains are right so often; a program says the same so often, or something else."""
    chains = {"The answer is 4.": right, "The answer is 5.": 1 - right}

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "program" not in prompt:
            return replies(chains)(prompt, reply)
        says = 4 if "is 4." in prompt else 5
        table = {block(f"print({says})"): faithful, block("print(7)"): 1 - faithful}
        return replies(table)(prompt, reply)

    return rule


def test_a_chain_counts_only_with_a_program_that_agrees() -> None:
    """Wrong chains are common here, and programs refute them."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        chains = {"The answer is 4.": 0.3, "The answer is 5.": 0.7}
        if "program" not in prompt:
            return replies(chains)(prompt, reply)
        return replies({block("print(2 + 2)"): 1.0})(prompt, reply)

    answer = solve(rule, "collaborative(n=12, temperature=1)", seed=4)
    assert (answer.answer, answer.confidence) == ("4", 1.0)
    assert {c.answer for c in answer.candidates} == {"4", "5"}
    assert solve(rule, "vote(n=12, temperature=1)", seed=4).answer == "5"


def test_precision_of_agreement_is_the_bayes_value() -> None:
    answer = solve(chains_and_programs(0.6, 0.5), "collaborative(n=100, temperature=1)", seed=1)
    weights = {c.branch: c.weight for c in answer.candidates if c.weight}
    # Agreement is as likely for right as for wrong chains here: the shares stay 0.6 and 0.4.
    right = {c.weight for c in answer.candidates if c.answer == "4"}.pop()
    assert weights
    # About 50 agree; a share of them is within 4 standard errors of 0.6.
    assert abs(right - 0.6) < 4 * (0.24 / 50) ** 0.5


def test_when_no_program_agrees_the_chains_vote() -> None:
    answer = solve(chains_and_programs(0.8, 0.0), "collaborative(n=8, temperature=0)")
    assert answer.answer == "4"
    assert any("no chain" in note for note in answer.notes)


# ---- induction -----------------------------------------------------------------------------------

PAIRS = "Find the rule: 2 -> 4; 3 -> 9; 5 -> ?"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PAIRS, ([("2", "4"), ("3", "9")], "5")),
        ("abc -> cba\nde => ed\nfgh ->", ([("abc", "cba"), ("de", "ed")], "fgh")),
        ("2 -> 4; 3 -> 9", None),
        ("5 -> ?", None),
        ("2 -> ; 3 -> 9; 5 -> ?", None),
        ("What is 2 + 2?", None),
    ],
)
def test_examples_in_a_problem(text: str, found: object) -> None:
    assert examples(Problem(text)) == found


@pytest.mark.parametrize(
    ("pairs", "asked", "function", "value"),
    [
        ([("2", "4")], "3", "x * x", "9"),
        ([("abc", "cba")], "de", "x[::-1]", "ed"),
        ([("[1,2]", "[2,1]")], "[3,4,5]", "x[::-1]", "[5, 4, 3]"),
        ([('"07"', "70")], "012", "x[::-1]", "210"),
        ([("2", "4")], "3", "x + 1", None),
        ([("2", "4")], "3", "undefined", None),
    ],
)
def test_functions_count_if_they_fit_the_examples(
    pairs: list[tuple[str, str]], asked: str, function: str, value: str | None
) -> None:
    solver = inducer(pairs, asked)
    assert asyncio.run(solver(f"print('noise')\ndef f(x): return {function}")).value == value


def functions(table: Mapping[str, float]) -> dict[str, float]:
    return {block(f"def f(x):\n    return {body}"): p for body, p in table.items()}


def test_only_rules_that_fit_vote() -> None:
    answer = solve(
        functions({"x * x": 0.3, "x + 2": 0.5, "3 * x": 0.2}),
        "solver_learner(n=24, retries=0, temperature=1)",
        problem=PAIRS,
    )
    assert answer.answer == "25"
    assert {c.answer for c in answer.candidates} == {"25", None}
    assert "f(3) is 5, not 9" in answer.notes[0] or "f(2) is 6, not 4" in answer.notes[0]


def test_a_rule_is_corrected_by_the_example_it_misses() -> None:
    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        body = "x * x" if "f(3) is 5, not 9" in prompt else "x + 2"
        return replies(functions({body: 1.0}))(prompt, reply)

    assert solve(rule, "solver_learner(n=1)", problem=PAIRS).answer == "25"


@pytest.mark.parametrize("name", ["solver_learner", "hypothesis_search"])
def test_without_examples_it_thinks_plainly(name: str) -> None:
    answer = solve({"The answer is 4.": 1.0}, f"{name}(n=2)", problem="What is 2 + 2?")
    assert answer.answer == "4"
    assert "there are no examples `input -> output` to learn from" in answer.notes


def test_every_different_idea_is_implemented() -> None:
    """The right idea is the rarer one: only its programs fit."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "function f" not in prompt:
            return replies({"Add two.\n": 0.8, "Square it.\n": 0.2})(prompt, reply)
        body = "x * x" if "Square" in prompt else "x + 2"
        return replies(functions({body: 1.0}))(prompt, reply)

    strategy = "hypothesis_search(n=24, keep={}, programs=2, retries=0, temperature=1)"
    both = solve(rule, strategy.format(2), problem=PAIRS)
    assert both.answer == "25"
    assert [c.answer for c in both.candidates].count("25") == 2
    likeliest = solve(rule, strategy.format(1), problem=PAIRS)
    assert "2 of 2 translations could not be solved" in likeliest.notes[0]


# ---- when nothing can be solved ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem"),
    [("pal", "?"), ("linc", STORY), ("solver_learner", PAIRS), ("hypothesis_search", PAIRS)],
)
def test_where_no_translation_can_be_solved_chains_of_thought_vote(name: str, problem: str) -> None:
    """A program's text may have a number in it, which is no answer."""
    broken = "(" * 60 if name == "linc" else "9 /"  # too long for a formula; no program

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if prompt.strip() == problem:
            return replies({"The answer is 4.": 0.7, "Answer: 5": 0.3})(prompt, reply)
        return replies({broken: 1.0})(prompt, reply)

    note = "no translation could be solved: chains of thought vote"
    answer = solve(rule, f"{name}(n=9)", problem=problem, seed=1)
    votes = [candidate.answer for candidate in answer.candidates]
    assert set(votes) == {"4", "5"}
    assert len(votes) == 9
    assert answer.confidence == votes.count("4") / 9
    assert note in answer.notes
    alone = solve(rule, f"{name}(n=9, fallback='none')", problem=problem, seed=1)
    assert note not in alone.notes
    assert not any("answer" in candidate.text.lower() for candidate in alone.candidates)


# ---- tactics -------------------------------------------------------------------------------------


def route(word: str, solution: str, *, blank: str = "") -> Rule:
    """Prefers one way to solve, and can write one solution."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        if "best way" not in prompt:
            return replies({solution: 1.0})(prompt, reply)
        likely = word if "?\n\nWhat" in prompt else blank or word
        others = dict.fromkeys(("program", "equations", "logic", "constraints", "words"), 0.02)
        return replies({**others, likely: 0.9})(prompt, reply)

    return rule


@pytest.mark.parametrize(
    ("word", "solution", "answer"),
    [
        ("program", block("print(6 * 7)"), "42"),
        ("equations", "x + 3 = 10\n6 * x", "42"),
        ("constraints", block("(declare-const answer Int)(assert (= answer 42))"), "42"),
        ("words", "The answer is 42.", "42"),
        ("logic", "Tom(tom) | -Tom(tom)", "yes"),
    ],
)
def test_the_chosen_tactic_solves(word: str, solution: str, answer: str) -> None:
    rule = route(word, solution, blank="words" if word != "words" else "logic")
    assert solve(rule, "tactics(n=2, tries=1)", problem="Is Tom Tom?").answer == answer


def test_what_is_likely_without_the_problem_does_not_count() -> None:
    rule = route("logic", "The answer is 42.", blank="logic")

    def leaning(prompt: str, reply: str) -> Mapping[str, float]:
        found = dict(rule(prompt, reply))
        if "?\n\nWhat" in prompt and "best way" in prompt and not reply:
            found["words"] = 0.2  # ten times what it is without the problem
        return found

    assert solve(leaning, "tactics(n=2, tries=1)", problem="Is Tom Tom?").answer == "42"


def test_the_next_tactic_follows_one_that_fails() -> None:
    rule = route("program", "The answer is 42.", blank="logic")
    answer = solve(rule, "tactics(n=2, tries=5, retries=0)")
    assert answer.answer == "42"
    assert "the answer is a guess from unfinished thoughts" not in answer.notes

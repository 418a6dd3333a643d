"""Methods that hand the solving to a program."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from anabranch.program.budget import Budget
from anabranch.program.types import Problem
from anabranch.reason.formalise import fenced, outcome_read
from tests.scripted import replies
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
    assert any("budget did not cover" in note for note in answer.notes)

"""Reading answers: what counts as one, which differ only in form, and text meant to hurt."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.program.answers import extract, normalise, normalise_number, normalise_text
from anabranch.program.types import Problem

MATHS = Problem("How many apples?")
OPEN = Problem("What is the capital of France?")
CHOICE = Problem("Which?", choices=("red apple", "green", "blue"))

EXACT, WHOLE = Problem("x", kind="exact"), Problem("x", kind="whole")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("The final answer is: \\(\\boxed{42}\\).", "42"),
        ("so \\boxed{\\frac{3}{6}} it is", "1/2"),
        ("\\boxed{\\text{none}}", "none"),
        ("\\boxed{x^{2}+{1}} and more", "x^{2}+{1"),
        ("work\n#### 1,234.0", "1234"),
        ("Answer: $5", "5"),
        ("**Answer:** 50%", "50"),
        ("Answer:\n\n42", "42"),
        ("The answer is 3.5 km. That is 2 miles.", "3.5"),
        ("The answer is 42 apples, because 6 * 7 = 42", "42"),
        ("The answer is x = 5.", "5"),
        ("The answer is 2 + 2 = 4.", "4"),
        ("The answer is −5 degrees", "-5"),
        ("The answer is ５", "5"),
        ("The answer is .5.", "0.5"),
        ("The answer is -$3", "-3"),
        ("The answer is 1 1/2", "3/2"),
        ("The answer is 1.5e3", "1500"),
        ("The answer is 5 (five).", "5"),
        ("The answer is \\$1,234.50.", "1234.5"),
        ("The answer to the question is 12.", "12"),
        ("The answer is 2 or 3.", "2 or 3"),
        ("The answer is 10:30.", "10:30"),
        ("The answer is St. Louis. It is a city.", "st. louis"),
        ("The answer is 1, no: the answer is 2.", "2"),
        ("The answer is 7. The answer is", "7"),
        ("The answer isn't clear. It costs 12 * 7 = $84.", "84"),
        ("It was 5 in 1999.", "1999"),
        ("None at all", None),
        ("The answer", None),
        ("", None),
    ],
)
def test_number_problem(text: str, answer: str | None) -> None:
    assert extract(text, MATHS) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is A, the 3.", "A, the 3"),
        ("Answer: **13, 12**", "13, 12"),
        (r"So \boxed{(1 + 2) * (3 + 4)}", "(1 + 2) * (3 + 4)"),
        ("The answer is: `2**3 = 8`.", "2**3 = 8"),
        ("The answer is\n  AB  AC", "AB AC"),
        ("The answer is " + "AB, " * 500 + "AC", "AB, " * 500 + "AC"),
        ("It is 7.", None),
    ],
)
def test_an_exact_answer_is_taken_as_it_stands(text: str, answer: str | None) -> None:
    assert extract(text, EXACT) == answer


def test_a_whole_text_is_its_own_answer_once_it_is_finished() -> None:
    text = "\n    return 5  # The answer is 7.\n\n"
    assert extract(text, WHOLE) == "    return 5  # The answer is 7."
    assert extract(text, WHOLE, done=False) is None
    assert extract(" \n", WHOLE) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is the Eiffel Tower!", "eiffel tower"),
        ("Yes, 17 is prime.", "yes"),
        ("Paris, founded 250 BC.", None),
        ("The answer is **Paris**.", "paris"),
    ],
)
def test_open_problem(text: str, answer: str | None) -> None:
    assert extract(text, OPEN) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (B).", "B"),
        ("Answer: c", "C"),
        ("The answer is green.", "B"),
        ("The answer is B. green", "B"),
        ("The answer is a blue one", None),
        ("The answer is A because it is red", "A"),
        ("The answer is D.", None),
        ("I think B) fits", "B"),
        ("blue", None),
    ],
)
def test_choice_problem(text: str, answer: str | None) -> None:
    assert extract(text, CHOICE) == answer


def test_unfinished_text_answers_only_what_it_states() -> None:
    assert extract("First, 3 * 4 = 12", MATHS, done=False) is None
    assert extract("The answer is 12. But", MATHS, done=False) == "12"


def test_code_has_no_last_number() -> None:
    assert extract("```python\nx = 3\n```", Problem("Reverse 3 items")) is None


@given(st.decimals(-(10**9), 10**9, allow_nan=False, places=2))
def test_one_number_in_many_forms(number: Decimal) -> None:
    forms = [f"{number}", f"{number:,}", f"{number}0", f"{number} km", f"{number}%", f" {number} "]
    if number >= 0:
        forms += [f"${number:,}", f"+{number}", f"00{number}"]
    found = {normalise_number(form) for form in forms}
    assert len(found) == 1
    assert Decimal(found.pop() or "") == number


@given(st.integers(-1000, 1000), st.integers(1, 1000), st.integers(1, 50))
def test_fractions_are_reduced(above: int, below: int, factor: int) -> None:
    plain = normalise_number(f"{above * factor}/{below * factor}")
    assert plain == str(Fraction(above, below))


PLAIN = st.text(st.characters(exclude_characters="\\*`"), max_size=300)  # no LaTeX, no Markdown


@given(PLAIN, st.sampled_from([MATHS, OPEN, CHOICE, EXACT, WHOLE, Problem("x", kind="number")]))
def test_normal_form_is_a_fixed_point(text: str, problem: Problem) -> None:
    once = normalise(text, problem)
    if once is not None:
        assert normalise(once, problem) == once


@given(st.text())
def test_text_form_ignores_case_articles_and_edges(text: str) -> None:
    plain = normalise_text(text)
    assert normalise_text(f"  The {text}! ") == normalise_text(f"the {text}")
    assert normalise_text(plain) == plain


@given(st.text(alphabet="answer is:#\\boxed{}0123456789.,/$%-=() \n²é٣"), st.booleans())
def test_any_text_can_be_read(text: str, done: bool) -> None:
    for problem in (MATHS, OPEN, CHOICE, EXACT, WHOLE):
        answer = extract(text, problem, done=done)
        assert answer is None or answer


@pytest.mark.parametrize(
    "piece",
    ["9", "9,", "1,234", "1/", "٣", "\\boxed{", "{", "answer is ", "answer:\n", "answer to ", "#",
     "- ", "-$ ", "a ", "(A", "\n", ".", "\\frac{", "e9", "\\text{", "**"],
)  # fmt: skip
def test_megabytes_of_anything_are_read_at_once(piece: str) -> None:
    # Quadratic time would take hours here.
    hostile = piece * (2_000_000 // len(piece))
    for problem in (MATHS, OPEN, CHOICE, Problem(hostile)):
        for text in (f"The answer is {hostile}", hostile):
            answer = extract(text, problem)
            assert answer is None or 0 < len(answer) <= len(text)


def test_huge_numbers_and_exponents_stay_text() -> None:
    assert normalise_number("9" * 5000) is None
    assert normalise_number("1e999") is None
    assert normalise_number("1/0") is None
    assert set(extract("The answer is " + "9" * 5000, MATHS) or "") == {"9"}

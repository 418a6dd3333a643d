"""Tasks: the same problems from the same seed, with answers that are right and can be read."""

from __future__ import annotations

import re

import pytest

from anabranch.errors import InputError
from anabranch.program.answers import extract
from anabranch.tasks.registry import Posed, problems, tasks

NAMES = [entry.name for entry in tasks()]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_and_the_place_decide_a_problem(name: str) -> None:
    some, more = problems(name, 20, seed=3), problems(name, 40, seed=3)
    assert some == more[:20]
    assert problems(name, 20, seed=4) != some
    shown = problems(name, 20, seed=3, examples=4)
    assert [one.answer for one in shown] == [one.answer for one in some]
    bank = shown[0].problem.examples
    assert len(bank) == 4
    assert all(one.problem.examples == bank for one in shown)
    assert bank != problems(name, 1, seed=4, examples=4)[0].problem.examples
    assert len({posed.problem.text for posed in more}) > 20


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_in_words_is_read_as_the_right_one(name: str) -> None:
    posed: Posed
    for posed in problems(name, 200):
        read = extract(f"So, step by step.\nThe answer is {posed.answer}.", posed.problem)
        assert read is not None
        assert posed.check(read), posed
        assert not posed.check("4711")


def test_arithmetic_and_equations_are_right() -> None:
    for posed in problems("arithmetic(digits=3)", 200):
        sum_ = re.fullmatch(r"What is (.*)\?", posed.problem.text)
        assert sum_ is not None
        assert eval(sum_[1]) == int(posed.answer)
    for posed in problems("equations", 200):
        left, right = posed.problem.text.removeprefix("Solve for x: ").split("=")
        sides = [
            eval(re.sub(r"(\d+)x", r"\1 * x", s), {"x": int(posed.answer)}) for s in (left, right)
        ]
        assert sides[0] == sides[1], posed


def test_deductions_follow_from_their_rules() -> None:
    for posed in problems("deduction(hops=4)", 200):
        text = posed.problem.text
        is_a = dict(re.findall(r"Every (\w+) is an? (\w+)\.", text))
        has = {k: (not n, t) for k, n, t in re.findall(r"Every (\w+) is (not )?(\w+)\.", text)}
        name, kind = re.search(r"(\w+) is a (\w+)\. True", text).groups()  # type: ignore[union-attr]
        negated, trait = re.search(rf": {name} is (not )?(\w+)\.", text).groups()  # type: ignore[union-attr]
        while has.get(kind, (None, None))[1] != trait:
            kind = is_a[kind]
        assert (has[kind][0] != bool(negated)) == (posed.answer == "true"), posed


def test_both_truths_are_asked_for() -> None:
    true = sum(posed.answer == "true" for posed in problems("deduction", 400))
    assert 150 < true < 250


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean arithmetic"):
        problems("arithmetics", 1)

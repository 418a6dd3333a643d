"""Particle methods against targets that a scripted table lets us enumerate."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine import grammar
from anabranch.program.run import Run
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.constrained import asked_for, constrained
from anabranch.reason.particles import particles
from anabranch.reason.resample import by_share, normalised, systematic
from anabranch.reason.sharpen import sharpen
from anabranch.verify.registry import Judge
from tests.scripted import ask, scripted

PROBLEM = Problem("?", kind="number")


def shares_of(table: Mapping[str, float], make: Any, runs: int, **options: Any) -> dict[str, float]:
    """Mean shares of answers over seeds."""
    total: dict[str, float] = defaultdict(float)

    async def program() -> None:
        for seed in range(runs):
            run = Run(seed=seed)
            strategy: Strategy = make(**options)
            root = ask(engine, "?", run)
            for answer, share in by_share(await strategy(PROBLEM, root, run.budget)):
                total[answer] += share / runs
            run.drop_all()

    engine = scripted(table)
    asyncio.run(program())
    return total


def target_of(table: Mapping[str, float], weight: Any) -> dict[str, float]:
    """Exact shares of answers, each text weighed by `weight(text, probability)`."""
    total: dict[str, float] = defaultdict(float)
    for text, p in table.items():
        total[text.split()[-1].rstrip(".")] += weight(text, p)
    return {answer: w / sum(total.values()) for answer, w in total.items()}


def distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Total variation."""
    return sum(abs(a.get(k, 0) - b.get(k, 0)) for k in {*a, *b}) / 2


# ---- systematic resampling ---------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 0.999999))
def test_everybody_gets_its_due_rounded_up_or_down(weights: list[float], u: float) -> None:
    shares = normalised([math.log(w) if w else -math.inf for w in weights])
    copies = systematic(shares, u)
    assert sum(copies) == len(shares)
    for share, count in zip(shares, copies, strict=True):
        assert abs(count - share * len(shares)) < 1 + 1e-9


def test_copies_are_right_on_average() -> None:
    shares, draws = [0.5, 0.3, 0.15, 0.05], 4000
    drawn = [systematic(shares, (i + 0.5) / draws) for i in range(draws)]
    for i, share in enumerate(shares):
        assert sum(copies[i] for copies in drawn) / draws == pytest.approx(4 * share, abs=2e-3)


# ---- the filter --------------------------------------------------------------------------------

STEPS = {
    "a\nc\nThe answer is 1.": 0.30,
    "a\nd\nThe answer is 2.": 0.30,
    "b\nc\nThe answer is 2.": 0.10,
    "b\nThe answer is 3.": 0.30,
}
WORTH = {"a": 0.2, "b": 0.9, "c": 0.6, "d": 0.3}


def worth_of(text: str) -> float:
    """What the judge says of a text's last line."""
    return WORTH.get(text.strip().splitlines()[-1], 0.5)


async def judge_lines(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
    return [worth_of(thought.text) for thought in thoughts]


@pytest.mark.parametrize("potential", ["probability", "odds"])
@pytest.mark.parametrize("ess", [1.0, 0.5])
def test_the_filter_finds_the_posterior(potential: str, ess: float) -> None:
    """Texts weigh p times the product of their steps' potentials, enumerated."""

    def weight(text: str, p: float) -> float:
        ratings = [WORTH.get(line, 0.5) for line in text.splitlines()]
        worth = [r / (1 - r) if potential == "odds" else r for r in ratings]
        return p * math.prod(worth)

    judge = Judge(judge_lines, name="lines")
    options: Any = {"judge": judge, "potential": potential, "ess": ess, "n": 24}
    found = shares_of(STEPS, particles, 25, **options)
    exact, prior = target_of(STEPS, weight), target_of(STEPS, lambda text, p: p)
    assert distance(found, exact) < 0.06
    assert distance(prior, exact) > 0.2


def test_a_judge_of_all_alike_leaves_the_model() -> None:
    async def alike(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        return [0.5] * len(thoughts)  # odds of 1

    found = shares_of(STEPS, particles, 25, judge=Judge(alike, name="alike"), n=24)
    assert distance(found, target_of(STEPS, lambda text, p: p)) < 0.06


# ---- rules and powers --------------------------------------------------------------------------

NUMBERS = {"17": 0.02, "18": 0.02, "1x": 0.56, "25": 0.2, "26": 0.2}
"""Half of the model begins with 1, though little that follows is a number."""


def test_a_rule_holds_for_texts_as_a_whole() -> None:
    options: Any = {"regex": r"\d\d", "step_tokens": 1}
    exact = target_of({t: p for t, p in NUMBERS.items() if t.isdigit()}, lambda text, p: p)
    alone = shares_of(NUMBERS, constrained, 80, n=1, **options)
    many = shares_of(NUMBERS, constrained, 12, n=24, **options)
    assert distance(alone, exact) > 0.3  # token by token, the narrow way is taken too often
    assert distance(many, exact) < 0.12


def test_a_power_sharpens_texts_not_tokens() -> None:
    """The likeliest first token leads into many unlikely texts; the power sees through it."""
    table = {f"1{c}": 0.1 for c in "012345"} | {"20": 0.4}
    exact = target_of(table, lambda text, p: p**3)
    found = shares_of(table, sharpen, 12, n=24, alpha=3.0, step_tokens=1)
    assert exact["20"] > 0.9
    assert distance(found, exact) < 0.12


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (sharpen, {"step_tokens": 16, "alpha": 1.0}),
        (constrained, {"step_tokens": 4, "regex": r"The answer is \d+\."}),
        (particles, {"step_tokens": 15, "judge": Judge(judge_lines, name="lines")}),
    ],
)
def test_a_step_that_ends_within_a_number_does_not_end_the_thought(make: Any, options: Any) -> None:
    table = {"The answer is 12345.": 0.5, "The answer is 67890.": 0.5}
    found = shares_of(table, make, 2, n=8, **options)
    assert set(found) == {"12345", "67890"}
    assert sum(found.values()) == pytest.approx(1)


def test_the_rule_follows_from_the_problem() -> None:
    assert asked_for(Problem("?", choices=("red", "blue"))) == grammar.choice(("red", "blue"))
    assert asked_for(PROBLEM) != asked_for(Problem("?"))

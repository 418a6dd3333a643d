"""Strategies whose target is a product of prompts, or a sum over thoughts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from anabranch.program.budget import Budget
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem
from anabranch.reason.prompts import messages
from anabranch.reason.registry import parse
from anabranch.reason.solve import think
from tests.engines import run
from tests.scripted import Rule, scripted

QUESTION = Problem("Where is Paris?", context="In this tale Paris is in Italy.", kind="text")
ITALY, FRANCE = "The answer is Italy.", "The answer is France."


def solve(rule: Rule, problem: Problem, strategy: str, **options: Any) -> Answer:
    engine, program = scripted(rule), Run(**options)
    return run(
        engine,
        think(
            problem,
            lambda p, r: engine.open(messages(p), seed=r.seed, run=r),
            parse(strategy),
            program,
            model="scripted",
        ),
    )


def going(texts: Mapping[str, float], reply: str) -> Mapping[str, float]:
    on = {t[len(reply) :]: p for t, p in texts.items() if t.startswith(reply)}
    return on or {"": 1.0}


def by_heart(prompt: str, reply: str) -> Mapping[str, float]:
    """Knows better than its context, if not quite as surely."""
    italy = 0.45 if "tale" in prompt else 0.1
    return going({ITALY: italy, FRANCE: 1 - italy}, reply)


@pytest.mark.parametrize(("alpha", "answer"), [(0, "france"), (0.5, "italy"), (2, "italy")])
def test_the_context_wins_over_what_is_known_by_heart(alpha: float, answer: str) -> None:
    """0.45 ** 1.5 / 0.1 ** 0.5 is more than 0.55 ** 1.5 / 0.9 ** 0.5."""
    solved = solve(by_heart, QUESTION, f"grounded(alpha={alpha})")
    assert solved.answer == answer


def test_a_problem_without_a_context_is_solved_as_it_is() -> None:
    solved = solve(by_heart, Problem("Where is Paris?", kind="text"), "grounded")
    assert solved.answer == "france"
    assert any("no context" in note for note in solved.notes)


def test_a_word_must_seem_right_to_each_expert() -> None:
    """Each alone prefers a word of its own; together the one that both can live with."""

    def rule(prompt: str, reply: str) -> Mapping[str, float]:
        own = "The answer is 1." if "mathematician" in prompt else "The answer is 3."
        other = "The answer is 3." if "mathematician" in prompt else "The answer is 1."
        return going({own: 0.55, "The answer is 2.": 0.4, other: 0.05}, reply)

    problem = Problem("?", kind="number")
    assert solve(rule, problem, "experts(roles=1, temperature=0)").answer == "3"
    assert solve(rule, problem, "experts(roles=2, temperature=0)").answer == "2"


def doubtful(prompt: str, reply: str) -> Mapping[str, float]:
    """One thought in four is sure of A; the others lean to B."""
    if "\n" not in reply:
        return going({"sure\n": 0.25, "maybe\n": 0.75}, reply)
    thought, _, rest = reply.partition("\n")
    a = 0.95 if thought == "sure" else 0.4
    return going({"\nThe answer is A": a, "\nThe answer is B": 1 - a}, rest)


@pytest.mark.parametrize(
    ("total", "weight"), [("mixture", 0.5375), ("max", 0.95 / 1.55), ("min", 0.4 / 0.45)]
)
def test_options_are_summed_over_thoughts(total: str, weight: float) -> None:
    """A is 0.95 under a quarter of the thoughts and 0.4 under the others; B is the rest."""
    problem = Problem("?", kind="choice", choices=("yes", "no"))
    got = solve(doubtful, problem, f"thinksum(n=64, total={total}, temperature=1)")
    weights = {c.answer: c.weight for c in got.candidates}
    assert weights["A"] == pytest.approx(weight, abs=0.08 if total == "mixture" else 1e-3)
    assert weights["A"] + weights["B"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["grounded(n=3)", "experts(n=3)", "thinksum"])
def test_no_blend_overspends(name: str) -> None:
    for tokens in (240, 300, 700):
        budget = Budget(tokens)
        problem = Problem("Where?", context="Here.", choices=("a", "b"), kind="choice")
        solved = solve(by_heart, problem, name, budget=budget)
        assert solved.answer
        assert budget.spent_tokens <= tokens

"""Examples like the problem, solved by the model: which are shown, and what they may cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from anabranch.program.budget import Budget
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem
from anabranch.reason.medprompt import alike
from tests.scripted import replies
from tests.test_reason import solve
from tests.test_refinement import Events

# Alike in their letters, which is what a scripted model's states are made of.
BANK = {"aaaa bb": "1", "aaaa cc": "2", "zzzz yyyy": "3", "xxxx wwww": "4", "aaaa dd": "5"}
WRONG = "aaaa cc"
"""The model solves all of these but this."""


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """Solves what is asked last; the problem itself only after examples, which it counts."""
    asked = prompt.rpartition("\n\n")[0].rpartition("\n")[2]
    known = next((answer for text, answer in BANK.items() if asked.endswith(text)), None)
    if known is not None:
        return replies({f"So. The answer is {9 if asked.endswith(WRONG) else known}.": 1.0})(
            prompt, reply
        )
    return replies({f"The answer is {10 + prompt.count('So. The answer')}.": 1.0})(prompt, reply)


def ask(
    strategy: str, tokens: int | None = None, bank: Mapping[str, str] = BANK
) -> tuple[Answer, list[str]]:
    """The answer, and the examples that were shown, the first one first."""
    events, examples = Events("examples"), tuple((Problem(t), a) for t, a in bank.items())
    problem = Problem("aaaa ee", kind="number", examples=examples)
    answer = solve(rule, strategy, problem=problem, run=Run(budget=Budget(tokens), trace=events))
    shown = events.seen[0]["shown"] if events.seen else []
    assert isinstance(shown, list)
    return answer, [text.partition("\n")[0] for text in shown]


def test_likeness_is_the_cosine_about_the_mean() -> None:
    # Mean (1, 1): the first is (1, 0), the others (-1, 0), (0, 2) and (0, -2).
    found = alike([(2, 1), (0, 1), (1, 3), (1, -1)])
    assert found == [-1.0, 0.0, 0.0]
    found = alike([(4, 0), (2, 2), (0, 4), (2, 2)])
    assert found[1] == pytest.approx(-1.0)
    assert alike([(1, 1), (1, 1)]) == [0.0]  # nothing to tell them apart


def test_the_nearest_examples_that_the_model_solves_are_shown() -> None:
    answer, shown = ask("medprompt(k=2)")
    assert sorted(shown) == ["aaaa bb", "aaaa dd"]
    assert answer.answer == "12"  # two solved examples stood before it
    assert len(answer.candidates) == 5
    assert all(candidate.answer == "12" for candidate in answer.candidates)  # no example's answer
    answer, shown = ask("medprompt(k=5)")
    assert sorted(shown) == sorted(set(BANK) - {WRONG})
    assert answer.answer == "14"
    answer, shown = ask("medprompt(k=0)")
    assert (answer.answer, shown) == ("10", [])


def test_no_solved_example_leaves_a_plain_vote() -> None:
    answer, shown = ask("medprompt", bank={WRONG: "2"})
    assert (answer.answer, shown) == ("10", [])
    assert any("plain vote" in note for note in answer.notes)


def test_examples_and_shuffled_options_go_together() -> None:
    """The model has seen that colours of the sky are right, wherever they stand."""

    def seen(prompt: str, reply: str) -> Mapping[str, float]:
        last = prompt.rpartition("Which")[2]
        right = next((letter for letter in "AB" if f"{letter}) blue" in last), "A")
        shown = prompt.count("Which") > 1 or "sea" in last
        return replies({f"The answer is {right if shown else 'A'}.": 1.0})(prompt, reply)

    example = Problem("Which is the sea?", kind="choice", choices=("red", "blue"))
    problem = Problem("Which is the sky?", kind="choice", choices=("red", "blue"),
                      examples=((example, "B"),))  # fmt: skip
    answer = solve(seen, "medprompt(shuffles=6)", problem=problem)
    assert (answer.answer, answer.confidence) == ("B", 1.0)
    assert solve(seen, "medprompt(shuffles=6, k=0)", problem=problem, seed=1).confidence < 1.0


def test_examples_take_no_more_than_half_of_any_budget() -> None:
    told = set[str]()
    for tokens in range(11, 1600, 31):
        answer, shown = ask("medprompt(k=2, max_tokens=24)", tokens)
        usage = answer.usage
        assert usage.prompt_tokens + usage.sampled_tokens + usage.forced_tokens <= tokens
        assert answer.answer == (str(10 + len(shown)) if tokens > 40 else answer.answer)
        told.update(note for note in answer.notes if "example" in note)
    assert "the budget did not cover a look at the examples" in told
    assert "the budget covered 0 of 2 examples" in told
    assert ask("medprompt(k=2, max_tokens=24)", 10**4)[1]
    assert math.isfinite(ask("medprompt(k=2)")[0].confidence)


def test_an_example_that_fits_no_context_or_is_the_problem_itself_is_passed_over() -> None:
    answer, shown = ask("medprompt(k=2)", bank={"a" * 70_000: "1", "aaaa ee": "10", "aaaa bb": "1"})
    assert (answer.answer, shown) == ("11", ["aaaa bb"])

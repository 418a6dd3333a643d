"""Methods that spend where it pays, on models whose replies make the saving exact."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.reason.adaptive import lead
from tests.test_reason import solve
from tests.test_refinement import talk

FOUR, FIVE = "So the answer is 4.", "Now the answer is 5."


# ---- adaptive ------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_lead_is_the_mass_of_the_beta_posterior(first: int, second: int) -> None:
    steps = 4000
    xs = [(i + 0.5) / steps for i in range(steps)]
    density = [x**first * (1 - x) ** second for x in xs]
    assert lead(first, second) == pytest.approx(
        math.fsum(density[steps // 2 :]) / math.fsum(density), abs=1e-5
    )


def test_adaptive_stops_early_where_all_agree_and_gives_the_votes_answer() -> None:
    vote = solve({FOUR: 1.0}, "vote(n=16)")
    easy = solve({FOUR: 1.0}, "adaptive(n=16, batch=1)")
    assert easy.answer == vote.answer == "4"
    assert len(easy.candidates) == 4  # 1 - 2**-4 < 0.95 <= 1 - 2**-5
    assert 4 * easy.usage.sampled_tokens == vote.usage.sampled_tokens


@pytest.mark.parametrize("seed", range(12))
def test_adaptive_is_the_beginning_of_the_vote_up_to_where_it_is_decided(seed: int) -> None:
    table = {FOUR: 0.6, FIVE: 0.4}
    long = solve(table, "vote(n=12)", seed=seed)
    short = solve(table, "adaptive(n=12, batch=1)", seed=seed)
    votes = {c.branch: c.answer for c in long.candidates}
    order = sorted(votes, key=lambda name: int(name.rpartition(".")[2]))
    said = [votes[name] for name in order]
    assert {c.branch: c.answer for c in short.candidates}.items() <= votes.items()
    for k in range(1, 13):
        counts = sorted((said[:k].count("4"), said[:k].count("5")))
        if counts[1] - counts[0] > 12 - k or lead(counts[1], counts[0]) >= 0.95:
            break
    assert len(short.candidates) == k


def test_adaptive_spends_all_samples_where_none_has_an_answer() -> None:
    answer = solve({"I do not know": 1.0}, "adaptive(n=7, batch=3, confidence=0)")
    assert len(answer.candidates) == 7


# ---- divide --------------------------------------------------------------------------------------


def test_divide_spends_more_only_where_the_samples_disagree() -> None:
    easy = solve({FOUR: 1.0}, "divide(n=3, more=9)")
    assert (easy.answer, len(easy.candidates)) == ("4", 3)
    split = {"The answer is 4.": 1 / 3, "The answer is 5.": 1 / 3, "The answer is 6.": 1 / 3}
    hard = solve(
        talk({"?": split, "One of these": FIVE}), "divide(n=3, more=9, threshold=0.7)", seed=3
    )
    assert (hard.answer, len(hard.candidates), hard.confidence) == ("5", 9, 1.0)


@pytest.mark.parametrize("second", ["filter", "prior", "both", "plain"])
def test_the_second_pass_sees_what_was_voted_for(second: str) -> None:
    seen: set[str] = set()

    def rule(prompt: str, reply: str) -> dict[str, float]:
        if "?\n" in prompt:
            seen.add(prompt)
        return dict(talk({"?": {FOUR: 0.5, FIVE: 0.5}})(prompt, reply))

    answer = solve(rule, f"divide(n=8, more=4, threshold=0.9, second='{second}')", seed=1)
    assert len(answer.candidates) == (12 if second == "plain" else 4)
    asked = "".join(seen)
    assert ("One of these is right: 4, 5." in asked) == (second in ("filter", "both"))
    both = f"One attempt:\n{FOUR}" in asked and f"One attempt:\n{FIVE}" in asked
    assert both == (second in ("prior", "both"))


def test_a_second_pass_without_answers_leaves_the_first() -> None:
    table = {"?": {FOUR: 0.6, FIVE: 0.4}, "One of these": "I cannot tell"}
    answer = solve(talk(table), "divide(n=8, more=4, threshold=0.9)", seed=1)
    assert len(answer.candidates) == 8
    assert "the second pass found no answer: the first votes" in answer.notes

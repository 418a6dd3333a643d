"""The crowd model against enumeration, and against crowds drawn from it."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.bench.top_two import top_two
from anabranch.errors import InputError

OPTIONS = 4
FEW = [["a", "a", "b", "c"], ["b", "a", "b", None], ["d", "d", "d", "d"], ["a", "b", "b", "a"]]


def test_what_is_said_of_a_problem_is_its_posterior() -> None:
    """Every right answer, runner-up and q, one by one, under the reliabilities found."""
    results, reliability = top_two(FEW, options=OPTIONS)
    for row, result in zip(FEW, results, strict=True):
        mass: dict[tuple[str, str], float] = {}
        doubt: dict[tuple[str, str], float] = {}
        for right, second in itertools.permutations("abcd", 2):
            for q in np.linspace(0.5, 1, 51):
                chance = 1.0
                for vote, p in zip(row, reliability, strict=True):
                    said = q if vote == right else 1 - q if vote == second else 0
                    chance *= 1 if vote is None else p * said + (1 - p) / OPTIONS
                key = right, second if second in row else ""
                mass[key] = mass.get(key, 0) + chance
                doubt[key] = doubt.get(key, 0) + chance * (1 - q)
        total = sum(mass.values())
        answers = {a: sum(m for (r, _), m in mass.items() if r == a) / total for a in "abcd"}
        assert result.answer == max(answers, key=lambda a: answers[a])
        assert result.confidence == pytest.approx(answers[result.answer])
        pair = result.answer, result.runner_up or ""
        assert mass[pair] == max(m for (right, _), m in mass.items() if right == result.answer)
        assert result.confusion == pytest.approx(doubt[pair] / mass[pair])


def crowd(seed: int, reliability: list[float], clear: list[float]) -> tuple[list[list[str]], str]:
    """Votes of a crowd as the model has it, and the right answers."""
    rng = random.Random(seed)
    rows, rights = [], ""
    for q in clear:
        right, second = rng.sample("abcd", 2)
        rights += right
        informed = [right if rng.random() < q else second for _ in reliability]
        rows.append([
            vote if rng.random() < p else rng.choice("abcd")
            for vote, p in zip(informed, reliability, strict=True)
        ])  # fmt: skip
    return rows, rights


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_of_guessers_does_not_outvote_those_who_know(seed: int) -> None:
    """4 of 20 know; 200 problems, half of them easy."""
    reliability, clear = [0.9] * 4 + [0.05] * 16, [0.95, 0.6] * 100
    rows, rights = crowd(seed, reliability, clear)
    results, found = top_two(rows, options=OPTIONS)
    right = sum(result.answer == a for result, a in zip(results, rights, strict=True))
    most = [Counter(row).most_common(1)[0][0] for row in rows]
    majority = sum(vote == a for vote, a in zip(most, rights, strict=True))
    assert right >= majority + 10
    assert max(found[4:]) < 0.4 < 0.75 < min(found[:4])
    # The posterior knows how often it is right: standard error 0.03.
    assert sum(result.confidence for result in results) / 200 == pytest.approx(right / 200, abs=0.1)


def test_many_voters_of_one_mind_are_believed() -> None:
    (result,), _ = top_two([["a"] * 3000], options=2)
    assert (result.answer, result.runner_up) == ("a", None)
    assert result.confidence == pytest.approx(1)
    assert result.confusion < 0.03


def test_difficulty_is_how_torn_those_are_who_know() -> None:
    clear = [0.95, 0.6] * 60
    rows, _ = crowd(0, [0.8] * 30, clear)
    confusion = [result.confusion for result in top_two(rows, options=OPTIONS)[0]]
    assert np.corrcoef(confusion, [1 - q for q in clear])[0, 1] > 0.8
    assert np.mean(confusion[::2]) < 0.15 < 0.3 < np.mean(confusion[1::2])


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from(["x", "y", "z", None]), min_size=n, max_size=n), min_size=1
        )
    )
)
def test_any_votes_have_a_result(rows: list[list[str | None]]) -> None:
    results, reliability = top_two(rows)
    assert all(0 < p < 1 for p in reliability)
    for row, result in zip(rows, results, strict=True):
        assert result.answer in row or set(row) == {None}
        assert result.runner_up is None or result.runner_up in row
        assert result.runner_up is None or result.runner_up != result.answer
        assert 0 <= result.confusion <= 0.5
        assert 0 <= result.confidence <= 1 + 1e-9


@pytest.mark.parametrize("rows", [[], [[]], [["a"], ["a", "b"]]])
def test_votes_that_are_no_table_are_refused(rows: list[list[str]]) -> None:
    with pytest.raises(InputError):
        top_two(rows)


def test_more_answers_than_options_are_refused() -> None:
    with pytest.raises(InputError, match="options"):
        top_two([["a", "b", "c"]], options=2)

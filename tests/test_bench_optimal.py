"""Frontiers by brute force; choices by difficulty on simulated runs whose best choice is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.bench.optimal import choose, frontier
from anabranch.errors import InputError

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(POINTS)
def test_the_frontier_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    kept = frontier([cost for cost, _ in points], [right for _, right in points])

    def beaten(i: int) -> bool:
        cost, right = points[i]
        return any(c <= cost and r >= right and (c, r) != (cost, right) for c, r in points)

    assert sorted(kept) == [i for i in range(len(points)) if not beaten(i)]
    assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)


def runs(problems: int, seed: int = 0) -> dict[str, list[Any]]:
    """Voting is better on easy problems, search on hard ones; a third is good and dear."""
    chances = {"vote": (0.9, 0.2), "beam": (0.6, 0.6), "dear": (1.0, 1.0)}
    prices, draws = {"vote": 100, "beam": 120, "dear": 9000}, np.random.default_rng(seed)
    columns = "conditions", "problems", "levels", "tokens", "right"
    table: dict[str, list[Any]] = {column: [] for column in columns}
    for problem in range(problems):
        for name, chance in chances.items():
            row = name, problem, problem % 2, prices[name], draws.random() < chance[problem % 2]
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
    return table


def test_each_difficulty_gets_its_condition_and_held_out_problems_agree() -> None:
    found = choose(**runs(400), budget=200)
    assert found is not None
    assert [choice.condition for choice in found.choices] == ["vote", "beam"]
    assert found.fixed == "beam"
    assert found.held_out.low <= 0.75 <= found.held_out.high
    assert found.gain.low > 0.05
    assert found.gain.low <= 0.15 <= found.gain.high
    assert found.tokens == pytest.approx(110)
    easy, hard = (choice.held_out for choice in found.choices)
    assert easy is not None
    assert hard is not None
    assert easy.low <= 0.9 <= easy.high
    assert hard.low <= 0.6 <= hard.high


def test_a_budget_bounds_what_is_chosen() -> None:
    table = runs(60)
    rich = choose(**table, budget=10000)
    assert rich is not None
    assert {choice.condition for choice in rich.choices} == {rich.fixed} == {"dear"}
    assert rich.gain == (0, 0, 0, 0.5)
    assert choose(**table, budget=50) is None
    poor = choose(**table, budget=100)
    assert poor is not None
    assert {choice.condition for choice in poor.choices} == {"vote"}


def test_what_is_held_out_takes_no_part_in_choosing() -> None:
    """With nothing but coins, choosing finds a lucky condition; held-out accuracy stays a half."""
    draws, shares, lucky = np.random.default_rng(0), [], []
    for seed in range(40):
        conditions = [f"c{i}" for i in range(30) for _ in range(40)]
        right = draws.random(1200) < 0.5
        found = choose(
            conditions, list(range(40)) * 30, [0] * 1200, [1] * 1200, right, budget=1, seed=seed
        )
        assert found is not None
        lucky.append(right.reshape(30, 40).mean(1).max())
        shares.append(found.held_out.value)
    assert np.mean(lucky) > 0.6
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)  # standard error 0.012


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(InputError, match="hold some out"):
        choose(["a"], [1], [0], [1], [True], budget=1)

"""Frontiers by brute force; choices by difficulty on simulated runs whose best choice is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.bench.optimal import _Runs, choose, frontier
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


def test_easy_problems_pay_for_hard_ones() -> None:
    """The dear condition fits the budget on half of the problems."""
    found = choose(**runs(200), budget=5000)
    assert found is not None
    assert [choice.condition for choice in found.choices] == ["vote", "dear"]
    assert found.fixed == "beam"
    assert found.tokens == pytest.approx(4550)
    assert found.gain.low > 0.2


@pytest.mark.parametrize("seed", range(40))
def test_a_choice_by_level_is_never_worse_than_one_for_all_and_near_the_best(seed: int) -> None:
    """Every assignment of 4 conditions to 3 levels, by brute force."""
    draws = np.random.default_rng(seed)
    cost, chance = draws.integers(1, 100, (4, 3)), draws.random((4, 3))
    cells = list(itertools.product(range(4), range(3), range(5)))
    right = [draws.random() < chance[c, level] for c, level, _ in cells]
    accuracy = np.reshape(right, (4, 3, 5)).mean(2)
    budget = float(draws.uniform(20, 80))
    columns = [np.array(column) for column in zip(*cells, strict=True)]
    runs = _Runs(
        columns[0], columns[1], cost[columns[0], columns[1]].astype(float),
        np.array(right, float), 4, 3,
    )  # fmt: skip
    found = runs.chosen(np.ones(60, np.bool_), budget)
    levels = np.arange(3)
    values = {
        pick: (accuracy[pick, levels].mean(), cost[pick, levels].mean())
        for pick in itertools.product(range(4), repeat=3)
    }
    fixed = [values[c, c, c] for c in range(4) if values[c, c, c][1] <= budget]
    if found is None:
        assert not fixed
        return
    got, spent = values[tuple(found.by_level.tolist())]
    assert spent <= budget
    assert got >= max(value for value, _ in fixed) - 1e-12
    # The hull leaves at most one step of one level unbought.
    best = max(value for value, price in values.values() if price <= budget)
    assert got >= best - 1 / 3 - 1e-12


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

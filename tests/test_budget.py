"""Budgets cannot be overspent, whatever is reserved, settled and shared in whatever order."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import InputError
from anabranch.program.budget import Budget


@given(
    tokens=st.integers(1, 500),
    acts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 200), st.floats(0.01, 1))),
)
def test_never_overspent(tokens: int, acts: list[tuple[int, int, float]]) -> None:
    budget = Budget(tokens)
    parts = [budget]
    open_ = []
    for kind, amount, fraction in acts:
        part = parts[amount % len(parts)]
        if kind == 0:
            granted = part.reserve(amount)
            assert 0 <= granted <= amount
            open_.append((part, granted))
        elif kind == 1 and open_:
            holder, granted = open_.pop(amount % len(open_))
            holder.settle(granted, int(granted * fraction))
        elif kind == 2:
            parts.append(part.share(fraction))
        for each in parts:
            assert each.spent_tokens <= (math.inf if each.tokens is None else each.tokens)
            assert each.left_tokens >= 0
    for holder, granted in open_:
        holder.settle(granted, granted)
    assert budget.spent_tokens <= tokens


def test_time_is_shared_and_ends() -> None:
    now = [0.0]
    budget = Budget(seconds=10, clock=lambda: now[0])
    assert budget.left_seconds == 10
    budget.start()
    now[0] = 4
    half = budget.share(0.5)
    assert (budget.left_seconds, half.left_seconds) == (6, 3)
    now[0] = 7
    assert half.over
    assert half.reserve(5) == 0
    assert not budget.over
    now[0] = 11
    assert budget.over
    assert budget.left_seconds == 0


def test_without_limits_everything_is_granted() -> None:
    budget = Budget()
    assert budget.reserve(10**9) == 10**9
    assert not budget.over
    assert budget.share(0.5).tokens is None


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(0, None), (-5, None), (None, 0), (None, -1), (None, math.nan)]
)
def test_nonsense_is_refused(tokens: int | None, seconds: float | None) -> None:
    with pytest.raises(InputError, match="budget in"):
        Budget(tokens, seconds)


@pytest.mark.parametrize("fraction", [0, -1, 1.5, math.nan])
def test_shares_are_parts(fraction: float) -> None:
    with pytest.raises(InputError, match="share of a budget"):
        Budget(10).share(fraction)

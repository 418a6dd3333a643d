"""Which condition to run at which difficulty, for a budget of tokens; and which are dominated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anabranch.bench.intervals import Difference, Estimate, codes, difference, share
from anabranch.errors import InputError, check_range

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def frontier(cost: Sequence[float], accuracy: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, cheapest first.

    A point stays out when another is at least as good in both and better in one.
    """
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -accuracy[i]))
    kept: list[int] = []
    for i in order:
        equal = kept and (cost[i], accuracy[i]) == (cost[kept[-1]], accuracy[kept[-1]])
        if equal or not kept or accuracy[i] > accuracy[kept[-1]]:
            kept.append(i)
    return kept


@dataclass(frozen=True)
class Choice:
    """What to run on problems of one difficulty.

    Attributes:
        level: of difficulty.
        condition: chosen on all problems, to be used on new ones.
        held_out: accuracy on problems that did not take part in choosing.
    """

    level: int
    condition: str
    held_out: Estimate | None


@dataclass(frozen=True)
class Optimal:
    """Choices for each difficulty.

    Attributes:
        choices: by level, lowest first.
        fixed: the best single condition for all difficulties.
        fixed_held_out: accuracy of choosing one condition, on problems that took no part in it.
        held_out: the same of choosing by difficulty.
        tokens: mean tokens it spends on them.
        gain: that accuracy minus the one of a single condition chosen in the same way.
    """

    choices: tuple[Choice, ...]
    fixed: str
    fixed_held_out: Estimate
    held_out: Estimate
    tokens: float
    gain: Difference


def choose(
    conditions: Sequence[str],
    problems: Sequence[Any],
    levels: Any,
    tokens: Any,
    right: Any,
    *,
    budget: float,
    folds: int = 2,
    seed: int = 0,
) -> Optimal | None:
    """The compute-optimal choice per difficulty, tested on held-out problems.

    (Snell et al. 2024, Scaling LLM test-time compute optimally, section 3.2; cross-fitted in two
    folds as there.) Departure: the budget is of mean tokens over all problems, so easy ones may
    pay for hard ones, where the paper gives every problem the same number of samples.

    Args:
        conditions, problems, levels, tokens, right: `[n]` runs; levels are whole numbers, and a
            problem has one.
        budget: mean tokens to spend on a problem.
        folds: parts of the problems; each is held out once.

    Returns:
        None when no single condition fits the budget on all problems, or on all but one fold.

    Raises:
        InputError: fewer problems than folds.
    """
    check_range("folds", folds, 2, 100)
    names = list(dict.fromkeys(conditions))
    index = {name: i for i, name in enumerate(names)}
    where = np.array([index[name] for name in conditions], np.int64)
    which, levels = codes(problems), np.asarray(levels, np.int64)
    count = int(which.max(initial=-1)) + 1
    if count < folds:
        raise InputError("too few problems to hold some out", got=count, allowed=f"{folds} or more")
    tokens, right = np.asarray(tokens, np.float64), np.asarray(right, np.float64)
    level_names, level_of = np.unique(levels, return_inverse=True)
    runs = _Runs(where, level_of, tokens, right, len(names), len(level_names))
    final = runs.chosen(np.ones(len(where), np.bool_), budget)
    if final is None:
        return None
    fold = (np.random.default_rng(seed).permutation(count) % folds)[which]
    by_level, single = np.zeros(len(where), np.bool_), np.zeros(len(where), np.bool_)
    for k in range(folds):
        found = runs.chosen(fold != k, budget)
        if found is None:
            return None
        by_level |= (fold == k) & (where == found.by_level[level_of])
        single |= (fold == k) & (where == found.fixed)
    ours, base = _means(by_level, which, right, count), _means(single, which, right, count)
    both = ~np.isnan(ours) & ~np.isnan(base)
    if not both.any():
        return None
    choices = []
    for i, level in enumerate(level_names):
        tested = by_level & (level_of == i)
        accuracy = share(right[tested], which[tested]) if tested.any() else None
        choices.append(Choice(int(level), names[final.by_level[i]], accuracy))
    return Optimal(
        tuple(choices),
        names[final.fixed],
        share(right[single], which[single]),
        share(right[by_level], which[by_level]),
        float(tokens[by_level].mean()),
        difference(ours[both], base[both]),
    )


@dataclass(frozen=True)
class _Chosen:
    """Conditions by level, and the best one for all levels."""

    by_level: I64
    fixed: int


@dataclass(frozen=True)
class _Runs:
    """Runs, as columns."""

    where: I64
    level_of: I64
    tokens: F64
    right: F64
    conditions: int
    levels: int

    def chosen(self, among: npt.NDArray[np.bool_], budget: float) -> _Chosen | None:
        """The most accurate conditions whose mean tokens on these runs fit the budget, ties to the
        cheaper; None when no single condition does."""
        cell = self.where[among] * self.levels + self.level_of[among]
        shape, size = (self.conditions, self.levels), self.conditions * self.levels
        runs = np.bincount(cell, minlength=size).reshape(shape)
        right = np.bincount(cell, self.right[among], size).reshape(shape) / np.maximum(runs, 1)
        cost = np.bincount(cell, self.tokens[among], size).reshape(shape) / np.maximum(runs, 1)
        weights = runs.sum(0) / runs.sum()
        complete = np.all(runs[:, weights > 0] > 0, axis=1)  # ran at every level there is
        fixed_cost, fixed_right = cost @ weights, right @ weights
        fits = [i for i in range(self.conditions) if complete[i] and fixed_cost[i] <= budget]
        if not fits:
            return None
        fixed = min(fits, key=lambda i: (-fixed_right[i], fixed_cost[i]))
        best = np.full(self.levels, fixed, np.int64)
        value = float(fixed_right[fixed]), -float(fixed_cost[fixed])
        scored = np.where(runs > 0, right, -np.inf)
        columns = np.flatnonzero(weights)
        for price in _prices(right, cost):
            # The last key sorts first: the highest worth, then the cheaper.
            ranked = np.lexsort((cost, price * cost - scored), axis=0)[0]
            spent = float((cost[ranked, np.arange(self.levels)] * weights)[columns].sum())
            got = float((right[ranked, np.arange(self.levels)] * weights)[columns].sum())
            if spent <= budget and (got, -spent) > value:
                best, value = ranked, (got, -spent)
        return _Chosen(np.where(weights > 0, best, fixed), fixed)


def _prices(right: F64, cost: F64) -> F64:
    """Prices of a token, in accuracy, at which the best condition of some level changes, and some
    between: one price for all levels finds every choice on the upper hull of accuracy over cost."""
    gained = right[:, None] - right[None]
    saved = cost[:, None] - cost[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = gained / saved
    slopes = np.unique(slopes[np.isfinite(slopes) & (slopes > 0)])
    between = (slopes[1:] + slopes[:-1]) / 2
    return np.concatenate([[0.0], slopes, between, slopes[-1:] * 2])


def _means(chosen: npt.NDArray[np.bool_], which: I64, right: F64, count: int) -> F64:
    """Accuracy by problem over the chosen runs; NaN without any."""
    runs = np.bincount(which[chosen], minlength=count)
    sums = np.bincount(which[chosen], right[chosen], minlength=count)
    means: F64 = np.where(runs > 0, sums / np.maximum(runs, 1), np.nan)
    return means

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
        condition: the most accurate within the budget on all problems; None when none is.
        held_out: accuracy on problems that did not take part in choosing.
    """

    level: int
    condition: str | None
    held_out: Estimate | None


@dataclass(frozen=True)
class Optimal:
    """Choices for each difficulty.

    Attributes:
        choices: by level, lowest first.
        fixed: the best single condition for all difficulties.
        held_out: accuracy of choosing by difficulty, on problems that took no part in it.
        tokens: mean tokens it spends on them.
        gain: that accuracy minus the one of a single condition chosen in the same way.
    """

    choices: tuple[Choice, ...]
    fixed: str
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

    For each level, the most accurate condition whose mean tokens there fit the budget, ties to the
    cheaper one (Snell et al. 2024, Scaling LLM test-time compute optimally, section 3.2; cross-
    fitted in two folds as there). Departure: a budget bounds mean tokens, not how many samples.

    Args:
        conditions, problems, levels, tokens, right: `[n]` runs; levels are whole numbers, and a
            problem has one.
        budget: mean tokens to spend on a problem.
        folds: parts of the problems; each is held out once.

    Returns:
        None when no single condition fits the budget everywhere.

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
    fold = (np.random.default_rng(seed).permutation(count) % folds)[which]
    runs = _Runs(where, levels, tokens, right, len(names), budget)
    everything = np.ones(len(where), np.bool_)
    fixed = runs.best(everything)
    if fixed is None:
        return None
    # How each run fares if its condition is the one that the other folds chose for it.
    by_level, single = np.zeros(len(where), np.bool_), np.zeros(len(where), np.bool_)
    for k in range(folds):
        seen, tested = fold != k, fold == k
        alone = runs.best(seen)
        single |= tested & (where == (fixed if alone is None else alone))
        for level in np.unique(levels):
            chosen = runs.best(seen & (levels == level))
            chosen = alone if chosen is None else chosen
            by_level |= (
                tested & (levels == level) & (where == (fixed if chosen is None else chosen))
            )
    ours, base = _means(by_level, which, right, count), _means(single, which, right, count)
    both = ~np.isnan(ours) & ~np.isnan(base)
    if not both.any():
        return None
    choices = []
    for level in np.unique(levels):
        own = levels == level
        best = runs.best(own)
        tested = own & by_level
        choices.append(
            Choice(
                int(level),
                None if best is None else names[best],
                share(right[tested], which[tested]) if tested.any() else None,
            )
        )
    return Optimal(
        tuple(choices),
        names[fixed],
        share(right[by_level], which[by_level]),
        float(tokens[by_level].mean()),
        difference(ours[both], base[both]),
    )


@dataclass(frozen=True)
class _Runs:
    """Runs, as columns."""

    where: I64
    levels: I64
    tokens: F64
    right: F64
    conditions: int
    budget: float

    def best(self, among: npt.NDArray[np.bool_]) -> int | None:
        """The most accurate condition within the budget on these runs."""
        found = []
        for i in range(self.conditions):
            own = among & (self.where == i)
            if own.any() and (cost := self.tokens[own].mean()) <= self.budget:
                found.append((-self.right[own].mean(), cost, i))
        return min(found)[2] if found else None


def _means(chosen: npt.NDArray[np.bool_], which: I64, right: F64, count: int) -> F64:
    """Accuracy by problem over the chosen runs; NaN without any."""
    runs = np.bincount(which[chosen], minlength=count)
    sums = np.bincount(which[chosen], right[chosen], minlength=count)
    means: F64 = np.where(runs > 0, sums / np.maximum(runs, 1), np.nan)
    return means

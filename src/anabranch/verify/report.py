"""How far a judge can be trusted: measured on solutions of which it is known who is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anabranch.program.types import Problem, Thought
from anabranch.verify.records import Record, RootOf, by_problem, replay
from anabranch.verify.registry import UNKNOWN, Judge, rate

F64 = npt.NDArray[np.float64]

BINS = 10
"""Of equal width, in which ratings are compared with the share that is right."""

RESAMPLES = 1000
"""Draws of the problems, with replacement, behind an interval."""


@dataclass(frozen=True)
class Bin:
    """Thoughts with similar ratings: how many, their mean rating, and the share that is right."""

    count: int
    rating: float
    right: float


@dataclass(frozen=True)
class Report:
    """A judge's ratings against the truth.

    Attributes:
        judge: the judge, as it could be typed again.
        count, right: thoughts rated, and how many of them are right.
        auc: chance that a right thought is rated above a wrong one (ties count half); None when
            there are only right or only wrong ones. 0.5 is worth nothing.
        auc_low, auc_high: 95% interval of that, from drawing the problems anew.
        auc_within: likewise, of right and wrong thoughts of the same problem: what a search gains.
        calibration_error: mean distance of ratings from the share that is right, over `bins`.
        brier: mean squared distance of ratings from the truth.
        unknown: share of thoughts of which it said nothing (rated exactly 0.5).
        tokens: charged per thought, for the judge alone.
        bins: ratings against truth, lowest first, empty ones left out.
        remarks: what went wrong on the way.
    """

    judge: str
    count: int
    right: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    auc_within: float | None
    calibration_error: float
    brier: float
    unknown: float
    tokens: float
    bins: tuple[Bin, ...]
    remarks: tuple[str, ...] = ()


async def measure(
    judges: Sequence[Judge],
    records: Sequence[Record],
    root_of: RootOf,
    *,
    at: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Report]:
    """Have judges rate records, the records of each problem together.

    Args:
        at: how much of each text they see, as a share of its tokens.
        progress: told of problems done, and of all.

    Raises:
        InputError: a judge may not rate unfinished thoughts, and `at` makes them so.
    """
    groups = by_problem(records)
    problems = np.empty(len(records), np.int64)
    ratings = np.empty((len(judges), len(records)))
    spent, remarks = [0] * len(judges), [dict[str, None]() for _ in judges]
    for g, group in enumerate(groups):
        problems[group] = g
        async with replay([records[i] for i in group], root_of, at=at, seed=seed) as thoughts:
            for j, judge in enumerate(judges):
                found, tokens, told = await _rate(judge, records[group[0]].problem, thoughts)
                ratings[j, group] = found
                spent[j] += tokens
                remarks[j].update(dict.fromkeys(told))
        progress(g + 1, len(groups))
    right = np.array([record.right for record in records])
    return [
        report(judge.name, row, right, problems, tokens=total / len(records), remarks=tuple(told))
        for judge, row, total, told in zip(judges, ratings, spent, remarks, strict=True)
    ]


async def _rate(
    judge: Judge, problem: Problem, thoughts: Sequence[Thought]
) -> tuple[list[float], int, list[str]]:
    """Ratings, tokens they cost, and remarks made meanwhile."""
    run = thoughts[0].branch.run
    before, run.remarks = run.budget.spent_tokens, []
    found = await rate(judge, problem, thoughts)
    return found, run.budget.spent_tokens - before, run.remarks


def report(
    judge: str,
    ratings: Any,
    right: Any,
    problems: Any = None,
    *,
    tokens: float = 0.0,
    remarks: tuple[str, ...] = (),
) -> Report:
    """What ratings say of a judge.

    Args:
        ratings: `[n]` in [0, 1].
        right: `[n]` bool.
        problems: `[n]` which problem each belongs to; default: each to its own.
    """
    ratings, right = np.asarray(ratings, np.float64), np.asarray(right, np.bool_)
    problems = np.arange(len(ratings)) if problems is None else np.asarray(problems)
    bins = _bins(ratings, right)
    low, high = _interval(ratings, right, problems)
    return Report(
        judge=judge,
        count=len(ratings),
        right=int(right.sum()),
        auc=auc(ratings, right),
        auc_low=low,
        auc_high=high,
        auc_within=_auc_within(ratings, right, problems),
        calibration_error=sum(b.count * abs(b.rating - b.right) for b in bins) / len(ratings),
        brier=float(np.mean((ratings - right) ** 2)),
        unknown=float(np.mean(ratings == UNKNOWN)),
        tokens=tokens,
        bins=bins,
        remarks=remarks,
    )


def auc(ratings: F64, right: npt.NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve by ranks, ties half; None without both kinds."""
    wins, pairs = _wins(ratings, right)
    return wins / pairs if pairs else None


def _wins(ratings: F64, right: npt.NDArray[np.bool_]) -> tuple[float, int]:
    """Pairs of a right and a wrong thought, and how many of them the right one wins."""
    wrong = np.sort(ratings[~right])
    good = ratings[right]
    below = np.searchsorted(wrong, good, "left").sum()
    upto = np.searchsorted(wrong, good, "right").sum()
    return float(below + upto) / 2, len(wrong) * len(good)


def _auc_within(ratings: F64, right: npt.NDArray[np.bool_], problems: Any) -> float | None:
    wins, pairs = 0.0, 0
    for problem in np.unique(problems):
        own = problems == problem
        won, met = _wins(ratings[own], right[own])
        wins, pairs = wins + won, pairs + met
    return wins / pairs if pairs else None


def _interval(
    ratings: F64, right: npt.NDArray[np.bool_], problems: Any
) -> tuple[float | None, float | None]:
    """Percentile bootstrap over problems: solutions of one problem are not independent."""
    groups = [np.flatnonzero(problems == problem) for problem in np.unique(problems)]
    draws = np.random.default_rng(0)
    areas = []
    alone = np.concatenate(groups) if len(groups) == len(ratings) else None
    for _ in range(RESAMPLES):
        picked = draws.integers(len(groups), size=len(groups))
        drawn = np.concatenate([groups[i] for i in picked]) if alone is None else alone[picked]
        area = auc(ratings[drawn], right[drawn])
        if area is not None:
            areas.append(area)
    if not areas or len(groups) < 2:
        return None, None
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def _bins(ratings: F64, right: npt.NDArray[np.bool_]) -> tuple[Bin, ...]:
    index = np.minimum((ratings * BINS).astype(np.int64), BINS - 1)
    found = []
    for i in np.unique(index):
        own = index == i
        found.append(Bin(int(own.sum()), float(ratings[own].mean()), float(right[own].mean())))
    return tuple(found)

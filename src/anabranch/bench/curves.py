"""Accuracy as problems grow harder, and as answers grow longer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anabranch.bench.intervals import Estimate, codes, share
from anabranch.errors import InputError

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """Runs of like difficulty or length: where they lie, how many, and how often they are right."""

    at: float
    count: int
    right: Estimate


def by_level(at: Any, right: Any, problems: Any = None) -> list[Level]:
    """Accuracy at each value of `at`, lowest first.

    Args:
        at: `[n]` difficulty of each run.
        right: `[n]` bool.
        problems: `[n]` which problem each run is of.
    """
    at, right = np.asarray(at, np.float64), np.asarray(right, np.float64)
    problems = np.arange(len(at)) if problems is None else np.asarray(problems)
    return [
        Level(float(x), int((at == x).sum()), share(right[at == x], problems[at == x]))
        for x in np.unique(at)
    ]


# ---- difficulty ----------------------------------------------------------------------------------


def collapse(levels: Sequence[Level]) -> float | None:
    """The difficulty at which accuracy has fallen to half of what it is at the easiest level.

    Read off the likeliest curve that never rises (isotonic regression by pooling adjacent
    violators), straight between levels: no shape is assumed, and one lucky level moves little.
    None where accuracy stays above that, or is 0 from the start. (Shojaee et al. 2025, The illusion
    of thinking, section 4, speak of collapse without a rule for where it lies.)

    Args:
        levels: lowest first, as from `by_level`.
    """
    pools: list[list[float]] = []  # right, runs, levels
    for level in levels:
        pools.append([level.right.value * level.count, level.count, 1])
        while len(pools) > 1 and pools[-1][0] * pools[-2][1] >= pools[-2][0] * pools[-1][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    curve = [right / runs for right, runs, many in pools for _ in range(int(many))]
    half = curve[0] / 2 if curve else 0.0
    for i in range(1, len(curve)):
        if curve[i] <= half < curve[i - 1]:
            before, after = levels[i - 1].at, levels[i].at
            return before + (after - before) * (curve[i - 1] - half) / (curve[i - 1] - curve[i])
    return None


def per_move(moves: Any, right: Any) -> float:
    """Accuracy p of a single move, if all of a solution's moves must be right: p^moves is solved.

    The likeliest p. With it the curve over the number of moves is known; runs that fall faster do
    more than err at a constant rate (Shojaee et al. 2025, section 4.4).

    Args:
        moves: `[n]` above 0.

    Raises:
        InputError: no runs, or one without moves.
    """
    moves, right = np.asarray(moves, np.float64), np.asarray(right, np.bool_)
    if not moves.size or (moves <= 0).any():
        raise InputError("every run needs moves", allowed="numbers above 0")
    if right.all() or not right.any():
        return float(right.all())
    # With p = exp(-x) the slope of the log-likelihood falls strictly in p: halve until it is 0.
    low, high = 0.0, 1e3
    for _ in range(200):
        x = (low + high) / 2
        gain = (moves[~right] / np.expm1(np.minimum(x * moves[~right], 700))).sum()
        low, high = (x, high) if gain > moves[right].sum() else (low, x)
    return math.exp(-(low + high) / 2)


# ---- length --------------------------------------------------------------------------------------

BINS = 5


@dataclass(frozen=True)
class Lengths:
    """Accuracy against length.

    Attributes:
        levels: fifths of the samples by length, shortest first, at their mean length.
        slope: change of accuracy when a sample of the same problem is twice as long; None where no
            problem has samples of different lengths.
        p_value: chance of a slope at least as far down if length meant nothing.
    """

    levels: tuple[Level, ...]
    slope: float | None
    p_value: float | None


def against_length(lengths: Any, right: Any, problems: Any) -> Lengths:
    """Whether longer thoughts are worse (overthinking), problem by problem.

    Hard problems are answered at length *and* wrong, which says nothing about length. So the slope
    is taken within problems: least squares on the log of length with one intercept a problem. The
    test is Mantel's (1963, Chi-square tests with one degree of freedom, section 4): the mean and
    variance of the slope are those of permuting lengths within problems, its law is taken as
    normal. Departure from Balachandran et al. 2025, Inference-time scaling for complex tasks,
    section 5, who compare means.

    Args:
        lengths: `[n]` tokens of each sample, above 0.
        right: `[n]` bool.
        problems: `[n]` which problem each is of.
    """
    lengths, right = np.asarray(lengths, np.float64), np.asarray(right, np.float64)
    problems = codes(problems)
    if not lengths.size or (lengths <= 0).any():
        raise InputError("every sample needs a length", allowed="tokens above 0")
    logs = _centred(np.log2(lengths), problems)
    marks = _centred(right, problems)
    levels = _fifths(lengths, right, problems)
    spread = float(logs @ logs)
    if spread < 1e-12:
        return Lengths(levels, None, None)
    sizes = np.bincount(problems)
    products = np.bincount(problems, logs**2) * np.bincount(problems, marks**2)
    variance = float((products / np.maximum(sizes - 1, 1)).sum())
    found = float(logs @ marks)
    p_value = math.erfc(-found / math.sqrt(2 * variance)) / 2 if variance > 0 else 1.0
    return Lengths(levels, found / spread, p_value)


def _centred(values: F64, groups: npt.NDArray[np.int64]) -> F64:
    means = np.bincount(groups, values) / np.bincount(groups)
    centred: F64 = values - means[groups]
    return centred


def _fifths(lengths: F64, right: F64, problems: npt.NDArray[np.int64]) -> tuple[Level, ...]:
    parts = np.array_split(np.argsort(lengths, kind="stable"), min(BINS, len(lengths)))
    return tuple(
        Level(float(lengths[own].mean()), len(own), share(right[own], problems[own]))
        for own in parts
    )

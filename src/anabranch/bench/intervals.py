"""How sure a share, a mean, or a difference of two is. All intervals are of 95%.

Runs of one problem under several seeds are not independent; problems are. So everything here takes
`problems`, which problem each value belongs to, and treats those as clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anabranch.errors import InputError

F64 = npt.NDArray[np.float64]

Z = 1.959963984540054
"""Standard errors on each side."""

RESAMPLES = 2000
"""Draws of the problems, with replacement, behind a bootstrap interval."""

_CELLS = 1 << 22  # resampling weights held at once


class Estimate(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference, its 95% interval, and the share of resamples in which it is above 0."""

    value: float
    low: float
    high: float
    above: float


def wilson(successes: Any, count: Any) -> tuple[Any, Any]:
    """Wilson's interval of a share (Wilson 1927), of numbers or of arrays alike.

    Args:
        successes, count: of independent trials, not necessarily whole; `count` above 0.
    """
    share = successes / count
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = np.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    half = half * Z / (1 + Z * Z / count)
    return middle - half, middle + half


def share(right: Any, problems: Any = None) -> Estimate:
    """How often something is right, with Wilson's interval.

    With several runs a problem, the count in Wilson's formula is the effective one: that of
    independent runs with the variance that runs clustered by problem have (Korn and Graubard 1998,
    Confidence intervals for proportions with small expected number of positive counts, section 2;
    the variance as in Miller 2024, Adding error bars to evals, section 2.2). Where all runs agree
    no variance shows, and each problem counts once.

    Args:
        right: `[n]` in [0, 1]; graded scores are allowed.
        problems: `[n]` which problem each belongs to; default: each to its own.

    Raises:
        InputError: nothing to count.
    """
    sums, sizes = _clusters(right, problems)
    count, mean = float(sizes.sum()), float(sums.sum() / sizes.sum())
    if sizes.max() > 1:
        clusters = len(sums)
        spread = float(((sums - mean * sizes) ** 2).sum()) / count**2
        spread *= clusters / max(1, clusters - 1)
        count = min(count, mean * (1 - mean) / spread) if spread > 0 else float(clusters)
    low, high = wilson(mean * count, count)
    return Estimate(mean, max(0.0, float(low)), min(1.0, float(high)))


def mean(values: Any, problems: Any = None, *, seed: int = 0) -> Estimate:
    """A mean with its interval from drawing the problems anew (percentile bootstrap).

    Raises:
        InputError: no values.
    """
    sums, sizes = _clusters(values, problems)
    low, high = np.quantile(_resampled(sums, sizes, seed), [0.025, 0.975])
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high))


def difference(ours: Any, base: Any, problems: Any = None, *, seed: int = 0) -> Difference:
    """Mean paired difference with its interval from drawing the problems anew.

    Args:
        ours, base: `[n]` values of the same runs (problem and seed) under two conditions.
        problems: `[n]` which problem each pair belongs to; default: each to its own.

    Raises:
        InputError: not as many of one as of the other, or none.
    """
    ours, base = np.asarray(ours, np.float64), np.asarray(base, np.float64)
    if ours.shape != base.shape:
        raise InputError("values do not pair", got=f"{len(ours)} and {len(base)}")
    sums, sizes = _clusters(ours - base, problems)
    means = _resampled(sums, sizes, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    above = float(np.mean(means > 0) + np.mean(means == 0) / 2)
    return Difference(float(sums.sum() / sizes.sum()), float(low), float(high), above)


def _clusters(values: Any, problems: Any) -> tuple[F64, F64]:
    """Sum and count of values, by problem."""
    values = np.asarray(values, np.float64)
    if not values.size:
        raise InputError("there is nothing to average", fix="give at least one value")
    if problems is None:
        return values, np.ones_like(values)
    index = codes(problems)
    if len(index) != len(values):
        raise InputError("one problem per value is needed", got=f"{len(index)} and {len(values)}")
    return np.bincount(index, values).astype(np.float64), np.bincount(index).astype(np.float64)


def codes(names: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """`[n]` whole numbers from 0, equal where names are, in order of first occurrence."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _resampled(sums: F64, sizes: F64, seed: int) -> F64:
    """Means of `RESAMPLES` draws of all clusters with replacement.

    Only how often each kind of cluster is drawn matters, and of kinds there are few.
    """
    kinds, counts = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)
    draws, clusters = np.random.default_rng(seed), len(sums)
    means: list[F64] = []
    rows = max(1, _CELLS // len(kinds))
    for first in range(0, RESAMPLES, rows):
        many = min(rows, RESAMPLES - first)
        drawn = draws.multinomial(clusters, counts / clusters, size=many) @ kinds
        means.append(drawn[:, 0] / drawn[:, 1])
    return np.concatenate(means)

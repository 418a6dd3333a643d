"""Whether the same runs come out the same under other conditions: threads, batch, machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Repeats:
    """How far two or more takes of the same runs lie apart.

    Attributes:
        runs: how many there are.
        identical: share of them that are the same in all takes, to the last token.
        first: index of the token at which each run that differs does so first, lowest first.
        accuracies: of each take.
        flips: share of the runs that are right in one take and wrong in another.
    """

    runs: int
    identical: float
    first: tuple[int, ...]
    accuracies: tuple[float, ...]
    flips: float

    @property
    def spread(self) -> float:
        """Highest minus lowest accuracy."""
        return max(self.accuracies) - min(self.accuracies)


def divergence(one: Sequence[Any], other: Sequence[Any]) -> int | None:
    """Index of the first token (or letter) at which two texts differ; None if they are the same.

    (Yuan et al. 2025, Give me FP32 or give me death?, section 3: Div_Index.)
    """
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return None if len(one) == len(other) else min(len(one), len(other))


def compare(texts: Sequence[Sequence[Sequence[Any]]], right: Sequence[Sequence[bool]]) -> Repeats:
    """Compare takes of the same runs.

    Args:
        texts: `[takes][runs]` what each run wrote, as tokens or text.
        right: `[takes][runs]` whether it was right.
    """
    firsts = []
    for takes in zip(*texts, strict=True):
        apart = [divergence(takes[0], other) for other in takes[1:]]
        firsts.append(min((i for i in apart if i is not None), default=None))
    differ = sorted(i for i in firsts if i is not None)
    marks = np.array(right, np.bool_)
    return Repeats(
        runs=len(firsts),
        identical=1 - len(differ) / len(firsts),
        first=tuple(differ),
        accuracies=tuple(map(float, marks.mean(1))),
        flips=float((marks.any(0) & ~marks.all(0)).mean()),
    )

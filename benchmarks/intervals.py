"""How sure a share, or a difference of two, is."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share: 95% by default."""
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half *= z / (1 + z * z / count)
    return middle - half, middle + half


def difference(ours: Sequence[bool], base: Sequence[bool]) -> tuple[float, float, float]:
    """Mean paired difference, and its 95% interval by bootstrap."""
    pairs = [a - b for a, b in zip(ours, base, strict=True)]
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
    return statistics.fmean(pairs), means[50], means[1949]

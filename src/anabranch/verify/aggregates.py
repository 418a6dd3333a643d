"""One rating of a path from the ratings of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Aggregate = Callable[[Sequence[float]], float]
"""One rating of a path from the ratings of its steps."""

AGGREGATES: dict[str, Aggregate] = {
    "mean": lambda scores: sum(scores) / len(scores),
    "product": math.prod,
    "min": min,
    "last": lambda scores: scores[-1],
}
"""By the last rating alone, more search finds what fools the judge: mean or product are safer."""

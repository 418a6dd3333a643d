"""Sequential Monte Carlo: thoughts as weighted particles, resampled when few carry the weight."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

from anabranch.backends.philox import philox
from anabranch.program.types import Thought
from anabranch.reason.folds import tally
from anabranch.reason.kernels import Select, spread

Weigh = Callable[[list[Thought]], Awaitable[None]]
"""Adds to `logw` of thoughts what their last step is worth beyond its own importance weight."""

_STREAM = (0xF1, 1)
"""Counter words that no other random number uses."""


def resampling(ess: float, weigh: Weigh | None = None) -> Select:
    """A `select` for `population` that keeps as many thoughts as it is given.

    A thought's `logw` is its weight since it was last resampled: `Step.logw`, which corrects for
    what was sampled from, and what `weigh` adds. When the effective sample size (sum w)² / sum w²
    falls below `ess` of the thoughts, they are resampled systematically and weigh the same again.
    `Thought.total` holds their shares. One that has come to its end takes no more steps, so its
    weight stays as it is.
    """
    settled: dict[int, Thought] = {}
    rounds = 0

    async def select(thoughts: list[Thought]) -> list[Thought]:
        nonlocal settled, rounds
        rounds += 1
        if weigh is not None:
            await weigh([t for t in thoughts if id(t) not in settled])
        shares = normalised([t.logw for t in thoughts])
        for thought, share in zip(thoughts, shares, strict=True):
            thought.total = share
        if 1 / sum(share * share for share in shares) < ess * len(thoughts):
            thoughts = _resampled(thoughts, shares, rounds)
        settled = {id(t): t for t in thoughts if t.done}
        return thoughts

    return select


def _resampled(thoughts: list[Thought], shares: list[float], rounds: int) -> list[Thought]:
    seed = thoughts[0].branch.run.seed
    uniform = (philox(seed, (rounds, 0, *_STREAM))[0] + 0.5) / 2**32
    chosen: list[Thought] = []
    for thought, copies in zip(thoughts, systematic(shares, uniform), strict=True):
        chosen += spread(thought, copies) if copies > 1 else [thought] * copies
    for thought in chosen:
        thought.total, thought.logw = 1 / len(chosen), 0.0
    return chosen


def systematic(shares: Sequence[float], uniform: float) -> list[int]:
    """How many copies each gets, as many in all as there are: floor or ceil of their due.

    Systematic resampling (Carpenter, Clifford and Fearnhead 1999): one random number, and points
    at equal distances from it.
    """
    copies, total, taken, count = [], 0.0, 0, len(shares)
    for i, share in enumerate(shares):
        total += share
        upto = count if i == count - 1 else min(count, math.ceil(total * count - uniform))
        copies.append(max(0, upto - taken))
        taken = max(taken, upto)
    return copies


def normalised(logs: Sequence[float]) -> list[float]:
    """Shares from logarithms of weights; equal ones when all weigh nothing."""
    top = max(logs)
    if top == -math.inf:
        return [1 / len(logs)] * len(logs)
    weights = [math.exp(log - top) for log in logs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def by_share(thoughts: Sequence[Thought]) -> list[tuple[str, float]]:
    """The posterior over answers: the sum of the particles' shares."""
    return tally(thoughts, lambda thought: thought.total, sum)

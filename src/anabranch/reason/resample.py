"""Sequential Monte Carlo: thoughts as weighted particles, resampled when few carry the weight."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import accumulate

from anabranch.backends.philox import philox
from anabranch.program.types import Problem, Thought
from anabranch.reason.folds import tally
from anabranch.reason.kernels import Select, judge_steps, spread
from anabranch.verify.registry import Judge

Weigh = Callable[[list[Thought]], Awaitable[None]]
"""Adds to `logw` of thoughts what their last step is worth beyond its own importance weight."""

POTENTIALS: dict[str, Callable[[float], float]] = {
    "odds": lambda r: r / (1 - r) if r < 1 else math.inf,
    "probability": lambda r: r,
}
"""What a rating is worth as a weight. Odds are what the published code takes."""

MOST = 1e6
"""Largest weight of one step, and one over the smallest: a judge who is sure may be wrong."""

_STREAM = (0xF1, 1)
"""Counter words that no other random number uses."""


def judged(judge: Judge, problem: Problem, potential: str) -> Weigh:
    """Weigh steps by what a judge says of them."""

    async def weigh(thoughts: list[Thought]) -> None:
        before = [len(thought.scores) for thought in thoughts]
        await judge_steps(judge, problem, thoughts)
        for thought, known in zip(thoughts, before, strict=True):
            for rating in thought.scores[known:]:
                worth = POTENTIALS[potential](rating)
                thought.logw += math.log(min(MOST, max(1 / MOST, worth)))

    return weigh


def resampling(
    ess: float, weigh: Weigh | None = None, *, sweep: int = 0, keep_first: bool = False
) -> Select:
    """A `select` for `population` that keeps as many thoughts as it is given.

    A thought's `logw` is its weight since it was last resampled: `Step.logw`, which corrects for
    what was sampled from, and what `weigh` adds. When the effective sample size (sum w)² / sum w²
    falls below `ess` of the thoughts, they are resampled systematically and weigh the same again.
    `Thought.total` holds their shares. One that has come to its end takes no more steps, so its
    weight stays as it is; when all have, nothing is resampled any more.

    Args:
        sweep: which random numbers to resample with, for a program that filters several times.
        keep_first: the first thought stays the first, whatever it weighs, and every other place is
            drawn by itself: the conditional filter that particle Gibbs needs.
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
        going_on = not all(thought.done for thought in thoughts)
        if going_on and 1 / sum(share * share for share in shares) < ess * len(thoughts):
            seed = thoughts[0].branch.run.seed
            if keep_first:
                draws = (uniform(seed, rounds, sweep, i) for i in range(1, len(thoughts)))
                copies = independent(shares, draws)
                copies[0] += 1
            else:
                copies = systematic(shares, uniform(seed, rounds, sweep))
            thoughts = _resampled(thoughts, copies)
        settled = {id(t): t for t in thoughts if t.done}
        return thoughts

    return select


def uniform(seed: int, rounds: int, sweep: int = 0, place: int = 0) -> float:
    """A random number in (0, 1) of its own for every place of every round of every sweep."""
    words = philox(seed, (rounds, sweep << 16 | place, *_STREAM))
    return (words[0] + 0.5) / 2**32


def _resampled(thoughts: list[Thought], copies: list[int]) -> list[Thought]:
    chosen: list[Thought] = []
    for thought, count in zip(thoughts, copies, strict=True):
        chosen += spread(thought, count) if count > 1 else [thought] * count
        thought.total = 0.0  # lest one that is done counts beside its copies
    for thought in chosen:
        thought.total, thought.logw = 1 / len(chosen), 0.0
    return chosen


def systematic(shares: Sequence[float], point: float) -> list[int]:
    """How many copies each gets, as many in all as there are: floor or ceil of their due.

    Systematic resampling (Carpenter, Clifford and Fearnhead 1999): one random number, and points
    at equal distances from it.
    """
    copies, total, taken, count = [], 0.0, 0, len(shares)
    for i, share in enumerate(shares):
        total += share
        upto = count if i == count - 1 else min(count, math.ceil(total * count - point))
        copies.append(max(0, upto - taken))
        taken = max(taken, upto)
    return copies


def independent(shares: Sequence[float], points: Iterable[float]) -> list[int]:
    """How many copies each gets when every random number draws one by itself."""
    borders = list(accumulate(shares))
    copies = [0] * len(shares)
    for point in points:
        copies[min(bisect_right(borders, point * borders[-1]), len(shares) - 1)] += 1
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

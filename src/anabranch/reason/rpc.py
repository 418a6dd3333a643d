"""Perplexity consistency: an answer weighs what its texts are likely, not how often they came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, OneOf, Range, Samples, Temperature, strategy
from anabranch.reason.resample import by_share, normalised

ROUNDS = 100
"""Of expectation maximisation; it ends sooner when nothing moves."""

_LEAST = 1e-300
"""Of shares that have underflowed, which still have a logarithm."""


@strategy(
    "rpc",
    paper="Zhou et al. 2025, Bridging internal probability and self-consistency, section 4",
    summary="n chains; an answer weighs the probabilities of its distinct texts, poor ones pruned.",
    cost="n solutions side by side",
    use="Instead of vote at small n.",
    fold=by_share,
)
def rpc(
    *,
    n: Samples = 16,
    norm: Annotated[str, OneOf(("mean", "sum"))] = "mean",
    prune: Annotated[int, Range(0, 1)] = 1,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Sum the probability of every distinct text once: sampling it again tells nothing new.

    `norm="mean"` takes the mean token log-probability, as the authors' code does; "sum" the whole
    text's, as their theory does. Pruning fits a mixture of two Weibull distributions and drops a
    text that is likelier of the lower one and below the average.

    Departures: the mixture is fitted by the moments of logarithms instead of maximum likelihood;
    the lower component is the one whose texts are less likely on average, as the mean of a fitted
    distribution runs away when its texts lie orders of magnitude apart.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        root.engine.require("logprobs")
        thoughts = await sample(problem, root, n, max_tokens, temperature=temperature)
        voices = [thought for thought in thoughts if thought.answer is not None and thought.tokens]
        distinct = list({thought.text: thought for thought in reversed(voices)}.values())[::-1]
        if not distinct:
            return thoughts
        logs = [t.logp / (t.tokens if norm == "mean" else 1) for t in distinct]
        shares = normalised(logs)
        kept = unlikely_pruned(shares) if prune else [True] * len(shares)
        for thought, share, keep in zip(distinct, shares, kept, strict=True):
            thought.total = share if keep else 0.0
        return distinct

    return run


def unlikely_pruned(values: Sequence[float]) -> list[bool]:
    """Which of several shares stay, by a mixture of two Weibull distributions."""
    values = [max(value, _LEAST) for value in values]
    if len(values) < 4 or max(values) == min(values):
        return [True] * len(values)
    mean = sum(values) / len(values)
    high = [float(value > mean) for value in values]  # membership of the upper component
    for _ in range(ROUNDS):
        weight = min(0.8, max(0.2, sum(high) / len(high)))
        upper, lower = _Weibull(values, high), _Weibull(values, [1 - h for h in high])
        before, high = high, []
        for value in values:
            a, b = weight * upper.density(value), (1 - weight) * lower.density(value)
            high.append(a / (a + b) if a + b else float(value > mean))
        if max(abs(a - b) for a, b in zip(before, high, strict=True)) < 1e-9:
            break
    low = [1 - h for h in high]
    if _average(values, high) < _average(values, low):
        high = low
    return [h >= 0.5 or value >= mean for h, value in zip(high, values, strict=True)]


def _average(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean; 0 without weight."""
    total = sum(weights)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / total if total else 0.0


class _Weibull:
    """A Weibull distribution by the moments of weighted logarithms."""

    def __init__(self, values: Sequence[float], weights: Sequence[float]) -> None:
        logs = [math.log(value) for value in values]
        mean = _average(logs, weights)
        spread = _average([(x - mean) ** 2 for x in logs], weights)
        # The logarithm has variance pi^2 / 6 / shape^2 and mean log(scale) - gamma / shape.
        self.shape = math.pi / math.sqrt(6 * max(spread, 1e-6))
        self.log_scale = mean + 0.5772156649015329 / self.shape

    def density(self, value: float) -> float:
        """At a positive value."""
        power = self.shape * (math.log(value) - self.log_scale)
        if power > 700:
            return 0.0
        return self.shape / value * math.exp(power - math.exp(power))

"""Adaptive consistency: stop sampling once the vote is all but decided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Samples, Share, Temperature, TopP, strategy


@strategy(
    "adaptive",
    paper="Aggarwal et al. 2023, Let's sample step by step: adaptive-consistency, section 3",
    summary="A vote that stops as soon as one more sample would hardly change it.",
    cost="2 to n solutions, few where they agree",
    use="Instead of vote, when easy and hard problems come mixed.",
    fold=majority,
)
def adaptive(
    *,
    n: Samples = 16,
    batch: Samples = 2,
    confidence: Share = 0.95,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Samples come `batch` at a time, at most `n`, until the leader is safe.

    Departures: more than one sample at a time, as they share their passes; it also stops when the
    samples that are left could not change the winner; thoughts without an answer do not count.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        thoughts: list[Thought] = []
        while len(thoughts) < n and not budget.over:
            size = min(batch, n - len(thoughts))
            thoughts += await sample(
                problem, root, size, max_tokens, temperature=temperature, top_p=top_p
            )
            if decided(thoughts, confidence, n - len(thoughts)):
                break
        return thoughts

    return run


def decided(thoughts: Sequence[Thought], confidence: float, left: int) -> bool:
    """Whether the vote's leader is safe from the runner-up, with `left` samples to come."""
    counts = Counter(t.answer for t in thoughts if t.answer is not None)
    first, second = (*(count for _, count in counts.most_common(2)), 0, 0)[:2]
    return first - second > left or (first > 0 and lead(first, second) >= confidence)


def lead(first: int, second: int) -> float:
    """Probability that the leader of a vote is the likelier answer of the two.

    The share of the first among the two is Beta(first + 1, second + 1) after a uniform prior. Its
    mass above one half is, exactly, the chance of at most `first` heads in one toss more than there
    are votes.
    """
    tosses = first + second + 1
    heads = sum(math.comb(tosses, k) for k in range(first + 1))
    return float(heads / (1 << tosses))

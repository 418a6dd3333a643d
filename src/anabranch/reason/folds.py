"""From candidates to answers with weights: how a set of thoughts makes up its mind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from anabranch.program.types import Thought
from anabranch.verify.aggregates import AGGREGATES


def mean_logp(thought: Thought) -> float:
    """Mean log-probability per sampled token, nats; minus infinity for an empty thought."""
    return thought.logp / thought.tokens if thought.tokens else -math.inf


def majority(thoughts: Sequence[Thought]) -> list[tuple[str, float]]:
    """One thought, one vote (Wang et al. 2022, section 2).

    Ties go to the answer with the likeliest single thought (highest mean log-probability), then to
    the one given first.
    """
    return tally(thoughts, lambda thought: 1.0, sum)


def best(thoughts: Sequence[Thought]) -> list[tuple[str, float]]:
    """The answer of the likeliest thought, by mean log-probability per token.

    An answer weighs as much as its best thought's probability per token, so the weights tell how
    close the runners-up came.
    """
    return tally(thoughts, lambda thought: math.exp(mean_logp(thought)), max)


def tally(
    thoughts: Sequence[Thought],
    weigh: Callable[[Thought], float],
    combine: Callable[[Iterable[float]], float],
) -> list[tuple[str, float]]:
    """Answers, heaviest first, with their share of the weight; thoughts without one abstain."""
    groups: dict[str, list[Thought]] = {}
    for thought in thoughts:
        if thought.answer is not None:
            groups.setdefault(thought.answer, []).append(thought)
    weights = {answer: combine(map(weigh, group)) for answer, group in groups.items()}
    likeliest = {answer: max(map(mean_logp, group)) for answer, group in groups.items()}
    order = sorted(groups, key=lambda answer: (weights[answer], likeliest[answer]), reverse=True)
    total = sum(weights.values())
    return [(answer, weights[answer] / total if total else 1 / len(order)) for answer in order]


def rating(thought: Thought, aggregate: str = "mean") -> float:
    """A thought's rating over its path; 0 before the first."""
    return AGGREGATES[aggregate](thought.scores) if thought.scores else 0.0


def by_rating(thoughts: Sequence[Thought], aggregate: str = "mean") -> list[tuple[str, float]]:
    """The answer of the best rated thought."""
    return tally(thoughts, lambda thought: rating(thought, aggregate), max)


def weighted(thoughts: Sequence[Thought], aggregate: str = "mean") -> list[tuple[str, float]]:
    """One thought, a vote of its rating over its path (Li et al. 2023, section 3.2)."""
    return tally(thoughts, lambda thought: rating(thought, aggregate), sum)


def by_cost(thoughts: Sequence[Thought]) -> list[tuple[str, float]]:
    """The answer of the cheapest path; one weighs exp(-cost), the cost yet to come included."""
    return tally(thoughts, lambda t: math.exp(-estimate(t)), max)


def estimate(thought: Thought) -> float:
    """What a path costs so far, and what its last rating says is still to come: f = g + h."""
    return thought.cost + hope(thought)


def hope(thought: Thought) -> float:
    """h: what the last rating leaves open; 1 before the first."""
    return 1 - rating(thought, "last")


def latest(thoughts: Sequence[Thought]) -> list[tuple[str, float]]:
    """The answer of the last draft: each outweighs all that came before it together."""
    halves = {id(thought): 0.5**i for i, thought in enumerate(reversed(thoughts))}
    return tally(thoughts, lambda thought: halves[id(thought)], sum)

"""Solutions as one graph: what many of them pass through supports those that do."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated

from anabranch.program.answers import normalise_number
from anabranch.program.registry import Range
from anabranch.program.types import Problem, Thought
from anabranch.verify.agreement import finished
from anabranch.verify.registry import Judge, judge

MAX_READ = 1 << 15
"""How much of a text's end is read, in characters."""

# A result is what stands behind an equals sign: "3 * 4 = 12".
_RESULT = re.compile(
    r"=\s{0,4}([-+−]?[$€£]?(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.\d{1,20})?(?:/\d{1,20})?)"
)


@judge(
    "graph",
    paper="Cao 2023, GraphReason: enhancing reasoning capabilities of language models through a "
    "graph-based verification approach",
    summary="An answer's share of the support that solutions lend each other by shared results.",
)
def graph(*, rounds: Annotated[int, Range(1, 100)] = 4) -> Judge:
    """All finished thoughts of the run and those rated with them form one graph, by the results
    that they state on the way (`... = 12`); with no result in common this is the share of votes.

    Departures: support is propagated a few rounds, where the paper trains a graph network; nodes
    are results, the last answer left out, since it is what is voted on.
    """

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        known = finished(thoughts)
        paths = [results(thought.text) - {thought.answer} for thought in known]
        support = propagate(paths, rounds)
        votes: dict[str | None, float] = {}
        for thought, weight in zip(known, support, strict=True):
            votes[thought.answer] = votes.get(thought.answer, 0.0) + weight
        return [min(1.0, votes.get(thought.answer, 0.0)) for thought in thoughts]

    return Judge(rate, partial=False)


def results(text: str) -> set[str | None]:
    """The numbers that a text computes, each in its shortest form."""
    found = _RESULT.findall(text[-MAX_READ:])
    return {number for raw in found if (number := normalise_number(raw)) is not None}


def propagate(paths: Sequence[set[str | None]], rounds: int) -> list[float]:
    """Weights of paths that sum to 1.

    A node's support is the weight of the paths through it; a path's next weight is the mean support
    of its nodes, or its own weight where it has none.
    """
    weights = [1 / len(paths)] * len(paths) if paths else []
    for _ in range(rounds):
        support: dict[Hashable, float] = {}
        for path, weight in zip(paths, weights, strict=True):
            for node in path:
                support[node] = support.get(node, 0.0) + weight
        raw = [_mean(path, support, own) for path, own in zip(paths, weights, strict=True)]
        weights = [weight / sum(raw) for weight in raw]
    return weights


def _mean(path: set[str | None], support: Mapping[Hashable, float], own: float) -> float:
    # Sorted: sums of floats must not depend on the order of a set.
    nodes = sorted(support[node] for node in path)
    return sum(nodes) / len(nodes) if nodes else own

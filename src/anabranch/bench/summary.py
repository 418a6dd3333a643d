"""What records amount to: accuracy with its interval, costs, gains, and who is on the frontier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from anabranch.bench.attempts import Attempt, brief, common, places, right, used
from anabranch.bench.intervals import Difference, Estimate, difference, mean, share
from anabranch.bench.optimal import frontier
from anabranch.errors import InputError
from anabranch.reason.registry import parse

FAIR = (0.2, 0.8)
"""Tasks that the first condition solves this often leave room for gains and for losses."""

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Line:
    """One condition, over all tasks or on one.

    Attributes:
        task: "" for all.
        gain: accuracy minus that of the first condition, paired by problem and seed; None for
            itself, or where they have nothing in common.
        sampled, charged, computed, passes, seconds: means for a problem. Charged are tokens of the
            prompt, sampled and forced; computed includes what was computed again; seconds are its
            share of the passes' time.
        flops: 2 x parameters x computed tokens, attention left out; None if parameters are unknown.
        prefix: prefix accuracy, the mean share of steps before the first wrong one; None where
            steps cannot be checked.
        problems, failed: how many, and how many of them without an answer.
        cheapest: in what no other is both at least as accurate and as cheap: "tokens" (charged),
            "time".
    """

    model: str
    strategy: str
    budget: str
    task: str
    accuracy: Estimate
    gain: Difference | None
    sampled: float
    charged: float
    computed: float
    passes: float
    seconds: float
    flops: float | None
    prefix: Estimate | None
    problems: int
    failed: int
    cheapest: tuple[str, ...] = ()


def condition(attempt: Attempt) -> Key:
    """Model, strategy and budget."""
    return attempt.model, attempt.strategy, attempt.budget


def by_condition(attempts: Iterable[Attempt]) -> dict[Key, list[Attempt]]:
    """In order of first occurrence."""
    groups: dict[Key, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(condition(attempt), []).append(attempt)
    return groups


def paired(ours: Sequence[Attempt], base: Sequence[Attempt]) -> Difference | None:
    """Accuracy of ours minus that of the base, over the problems and seeds that both have."""
    known = {(attempt.place, attempt.seed): attempt.right for attempt in base}
    both = [attempt for attempt in ours if (attempt.place, attempt.seed) in known]
    if not both:
        return None
    other = [known[attempt.place, attempt.seed] for attempt in both]
    return difference(right(both), other, places(both))


def measure(own: Sequence[Attempt], base: Sequence[Attempt], *, task: str = "") -> Line:
    """What a condition's attempts amount to, beside those of another."""
    model, strategy, budget = condition(own[0])
    computed = float((used(own, "computed_tokens") + used(own, "recomputed_tokens")).mean())
    size = own[0].parameters
    return Line(
        model=model,
        strategy=strategy,
        budget=budget,
        task=task,
        accuracy=share(right(own), places(own)),
        gain=None if own is base else paired(own, base),
        sampled=float(used(own, "sampled_tokens").mean()),
        charged=float(used(own, "charged_tokens").mean()),
        computed=computed,
        passes=float(used(own, "passes").mean()),
        seconds=float(used(own, "seconds").mean()),
        flops=None if size is None else 2.0 * size * computed,
        prefix=_prefix(own),
        problems=len(own),
        failed=sum(attempt.failed for attempt in own),
    )


def marked(lines: Sequence[Line]) -> list[Line]:
    """The same, with who is on the frontier."""
    accuracy = [line.accuracy.value for line in lines]
    costs = {"tokens": [line.charged for line in lines], "time": [line.seconds for line in lines]}
    best = {name: set(frontier(cost, accuracy)) for name, cost in costs.items()}
    return [
        replace(line, cheapest=tuple(name for name in best if i in best[name]))
        for i, line in enumerate(lines)
    ]


def lines(attempts: Sequence[Attempt], *, task: str = "") -> list[Line]:
    """One line for each condition, the first of which is the base; with the frontier.

    Where conditions have not tried the same problems, only those count that all have tried.

    Args:
        task: this one only.

    Raises:
        InputError: there is nothing that all have tried.
    """
    groups = by_condition(a for a in attempts if not task or a.task == task)
    if not groups:
        return []
    groups = common(groups)
    base = next(iter(groups.values()))
    if not base:
        raise InputError(
            "the conditions were not tried on the same problems", fix="compare two of them"
        )
    return marked([measure(own, base, task=task) for own in groups.values()])


def _prefix(own: Sequence[Attempt]) -> Estimate | None:
    known = [attempt for attempt in own if attempt.prefix is not None]
    return mean([a.prefix for a in known], places(known)) if known else None


def fair_gains(attempts: Sequence[Attempt]) -> dict[Key, tuple[list[str], Difference]]:
    """Mean gains over the tasks that the first condition solves neither rarely nor nearly always.

    Returns:
        For each other condition those of the tasks that it has tried, and its gain over all their
        problems.
    """
    groups = by_condition(attempts)
    base = next(iter(groups.values()))
    fair = []
    for task in dict.fromkeys(attempt.task for attempt in base):
        solved = right([attempt for attempt in base if attempt.task == task]).mean()
        if FAIR[0] <= solved <= FAIR[1]:
            fair.append(task)
    among = [a for a in base if a.task in fair]
    gains = {}
    for key, own in groups.items():
        gain = None if own is base else paired(own, among)
        if gain is not None:
            gains[key] = [task for task in fair if any(a.task == task for a in own)], gain
    return gains


def short(strategy: str) -> str:
    """A strategy for readers: what stands at its default left out."""
    return brief(strategy, parse)

"""Which strategy to take for a task and a budget, and what to expect of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anabranch.bench.attempts import Attempt, on_task, places, right, used
from anabranch.bench.intervals import Estimate, share
from anabranch.bench.optimal import choose
from anabranch.bench.summary import by_condition
from anabranch.errors import InputError, unknown_name


@dataclass(frozen=True)
class Recommendation:
    """What to take.

    Attributes:
        task: "" for all tasks of the records.
        strategy: with its parameters.
        budget: the limit it was measured under, "" for none.
        tokens: mean tokens that it was charged for a problem.
        expected: accuracy to expect, with its 95% interval.
        considered: how many conditions fit the budget.
        problems: on which this rests.
    """

    model: str
    task: str
    strategy: str
    budget: str
    tokens: float
    expected: Estimate
    considered: int
    problems: int


@dataclass(frozen=True)
class Trial:
    """A recommendation from one half of the problems, tried on the other half.

    Attributes:
        made: from the one half.
        seen: accuracy, on the other, of what it names.
        tokens: mean tokens charged there.
        holds: what was seen lies in the interval of what was expected.
    """

    made: Recommendation
    seen: Estimate
    tokens: float
    holds: bool


def recommend(
    attempts: Sequence[Attempt], task: str | None, budget: float, model: str | None = None
) -> Recommendation:
    """The condition that was the most accurate of those whose mean tokens fit the budget.

    The best of many looks better than it is (the winner's curse), so its own accuracy is not what
    is reported. Instead: choose on one half of the problems, see how that choice fares on the
    other half, and the other way round. The mean of both estimates the accuracy of choosing from
    half of the records, without bias; choosing from all of them, as is done for the answer, is on
    average no worse.

    Args:
        task: with its parameters, as it stands in the records; None: one condition for all tasks,
            of those that were tried on all of them.
        budget: mean tokens charged for a problem: prompt, sampled and forced.
        model: needed where the records hold several.

    Raises:
        InputError: the records do not know the task or the model, hold too few problems, or
            nothing fits the budget.
    """
    own = _own(attempts, task, model)
    tasks = list(dict.fromkeys(attempt.task for attempt in own))
    groups = [g for g in by_condition(own).values() if len({a.task for a in g}) == len(tasks)]
    if not groups:
        raise InputError("no condition was tried on every task of the records", fix="name a task")
    costs = [used(group, "charged_tokens").mean() for group in groups]
    fitting = [group for group, cost in zip(groups, costs, strict=True) if cost <= budget]
    if not fitting:
        raise InputError(
            "no condition of these records fits the budget",
            got=budget,
            allowed=f"{min(costs):.0f} tokens or more",
        )
    names = {id(attempt): str(i) for i, group in enumerate(fitting) for attempt in group}
    among = [attempt for group in fitting for attempt in group]
    found = choose(
        [names[id(attempt)] for attempt in among],
        [attempt.place for attempt in among],
        [tasks.index(attempt.task) for attempt in among],
        used(among, "charged_tokens"),
        right(among),
        budget=budget,
    )
    if found is None:
        raise InputError("no condition fits the budget on both halves of the problems", got=budget)
    best = fitting[int(found.fixed)]
    return Recommendation(
        model=best[0].model,
        task=task or "",
        strategy=best[0].strategy,
        budget=best[0].budget,
        tokens=float(used(best, "charged_tokens").mean()),
        expected=found.fixed_held_out,
        considered=len(fitting),
        problems=len(set(places(best))),
    )


def try_halves(
    attempts: Sequence[Attempt], task: str | None, budget: float, model: str | None = None
) -> list[Trial]:
    """Whether recommendations hold: made from every other problem, tried on the rest, and the other
    way round. Arguments and errors as those of `recommend`.
    """
    own = _own(attempts, task, model)
    trials = []
    for half in (0, 1):
        made = recommend([a for a in own if a.problem % 2 == half], task, budget, model)
        other = [a for a in own if a.problem % 2 != half]
        fresh = by_condition(other).get((made.model, made.strategy, made.budget))
        if not fresh:
            raise InputError("what one half recommends was never tried on the other half")
        seen = share(right(fresh), places(fresh))
        holds = made.expected.low <= seen.value <= made.expected.high
        trials.append(Trial(made, seen, float(used(fresh, "charged_tokens").mean()), holds))
    return trials


def _own(attempts: Sequence[Attempt], task: str | None, model: str | None) -> list[Attempt]:
    models = list(dict.fromkeys(attempt.model for attempt in attempts))
    if model is None and len(models) > 1:
        raise InputError("which model? the records hold several", allowed=", ".join(models))
    if model is not None and model not in models:
        raise unknown_name("model of these records", model, models)
    own = attempts if task is None else on_task(attempts, task)
    own = [attempt for attempt in own if model in (None, attempt.model)]
    if not own:
        raise InputError("the model was not tried on this task", got=model)
    return own

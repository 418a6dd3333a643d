"""Which strategy to take for a task and a budget, and what to expect of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anabranch.bench.attempts import Attempt, used
from anabranch.bench.intervals import Estimate
from anabranch.bench.optimal import choose
from anabranch.bench.summary import by_condition
from anabranch.errors import InputError, unknown_name


@dataclass(frozen=True)
class Recommendation:
    """What to take.

    Attributes:
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


def recommend(
    attempts: Sequence[Attempt], task: str, budget: float, model: str | None = None
) -> Recommendation:
    """The condition that was the most accurate of those whose mean tokens fit the budget.

    The best of many looks better than it is (the winner's curse), so its own accuracy is not what
    is reported. Instead: choose on one half of the problems, see how that choice fares on the
    other half, and the other way round. The mean of both estimates the accuracy of choosing from
    half of the records, without bias; choosing from all of them, as is done for the answer, is on
    average no worse.

    Args:
        task: with its parameters, as it stands in the records.
        budget: mean tokens charged for a problem: prompt, sampled and forced.
        model: needed where the records hold several.

    Raises:
        InputError: the records do not know the task or the model, hold too few problems, or
            nothing fits the budget.
    """
    models = list(dict.fromkeys(attempt.model for attempt in attempts))
    if model is None and len(models) > 1:
        raise InputError("which model? the records hold several", allowed=", ".join(models))
    if model is not None and model not in models:
        raise unknown_name("model of these records", model, models)
    tasks = dict.fromkeys(attempt.task for attempt in attempts)
    if task not in tasks:
        raise unknown_name("task of these records", task, tasks)
    own = [a for a in attempts if a.task == task and model in (None, a.model)]
    if not own:
        raise InputError("the model was not tried on this task", got=model)
    groups = list(by_condition(own).values())
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
        [attempt.problem for attempt in among],
        [0] * len(among),
        used(among, "charged_tokens"),
        [attempt.right for attempt in among],
        budget=budget,
    )
    if found is None:
        raise InputError("no condition fits the budget on both halves of the problems", got=budget)
    best = fitting[int(found.fixed)]
    return Recommendation(
        model=best[0].model,
        task=task,
        strategy=best[0].strategy,
        budget=best[0].budget,
        tokens=float(used(best, "charged_tokens").mean()),
        expected=found.held_out,
        considered=len(fitting),
        problems=len({attempt.problem for attempt in best}),
    )

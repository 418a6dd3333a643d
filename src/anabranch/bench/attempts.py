"""What analyses and reports read: one record for each time a strategy was tried on a problem."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, reduce
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from anabranch.bench.intervals import codes
from anabranch.bench.top_two import TopTwo, top_two
from anabranch.errors import InputError, unknown_name
from anabranch.program.registry import Named
from anabranch.program.types import Usage
from anabranch.reason import registry as strategies
from anabranch.tasks import registry as tasks
from anabranch.verify.report import Report, report

Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True)
class Sample:
    """One candidate of an attempt, and whether it is right."""

    answer: str | None
    right: bool
    text: str = ""
    weight: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Attempt:
    """One strategy tried on one problem with one seed.

    Attributes:
        task, problem: which problem, by the task's name and the problem's place in it.
        strategy, budget, model: under what condition; budget and model as text, may be empty.
        right: whether the answer is right.
        gold, question: the right answer, and what was asked.
        difficulty: as the task has it (digits, steps, moves); None: it has none.
        confidence: what the strategy thinks of its answer, in [0, 1].
        text: the text behind the answer.
        samples: every candidate.
        prefix: share of the steps before the first wrong one; None where steps are not checked.
        failed: there is no answer; the first note says why.
        parameters: of the model, that a token is multiplied with; None: not known.
        trace: path of the saved tree; empty: none was kept.
        take: which run of the bench it comes from, where the same runs were made more than once.
    """

    task: str
    problem: int
    strategy: str
    seed: int
    right: bool
    answer: str
    model: str = ""
    budget: str = ""
    gold: str = ""
    question: str = ""
    difficulty: float | None = None
    confidence: float = 0.0
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    trace: str = ""
    take: str = ""
    prefix: float | None = None
    failed: bool = False
    parameters: int | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The problem, as a key."""
        return self.task, self.problem

    @property
    def run(self) -> Hashable:
        """What is the same in every take."""
        return self.model, self.task, self.problem, self.strategy, self.budget, self.seed

    @property
    def pool(self) -> tuple[Sample, ...]:
        """Its candidates; where none was kept, its answer is the only one."""
        own = Sample(self.answer, self.right, self.text, 1.0, self.usage.sampled_tokens)
        return self.samples or (own,)


class Attempts:
    """Attempts by condition: a strategy with its parameters, a budget and a model.

    Attributes:
        all: every attempt, the first take of each run.
        by_condition: the same, by the condition's label, in order of first occurrence.
        alike: conditions can be compared: some problems were tried by all of them.
        comparable: by condition what all conditions have tried; everything where they are not
            alike.
        shown: strategies and tasks as readers see them: without what stands at its default.
        tasks: in order of first occurrence.
        series: tasks that differ in difficulty alone are one, in order of first occurrence.
        takes: by name, all attempts of each.
    """

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        if not attempts:
            raise InputError("there are no attempts to report on", fix="run the bench first")
        self.takes: dict[str, list[Attempt]] = {}
        first: dict[Hashable, Attempt] = {}
        for attempt in attempts:
            self.takes.setdefault(attempt.take, []).append(attempt)
            first.setdefault(attempt.run, attempt)
        self.all = list(first.values())
        self.tasks = list(dict.fromkeys(attempt.task for attempt in self.all))
        self.series = list(dict.fromkeys(map(series, self.tasks)))
        self.shown = _told_apart((a.strategy for a in self.all), strategies.parse)
        self.shown |= _told_apart(self.tasks, tasks.parse)
        self._several_models = len({attempt.model for attempt in self.all}) > 1
        self.by_condition: dict[str, list[Attempt]] = {}
        for attempt in self.all:
            self.by_condition.setdefault(self.label(attempt), []).append(attempt)

        shared = common(self.by_condition)
        self.alike = all(shared.values())
        self.comparable = shared if self.alike else self.by_condition

    def label(self, attempt: Attempt) -> str:
        """What tells its condition from the others."""
        parts = [self.shown[attempt.strategy], attempt.budget]
        if self._several_models:
            parts.append(attempt.model)
        return " · ".join(part for part in parts if part)

    @cached_property
    def crowd(self) -> tuple[dict[tuple[str, int], TopTwo], dict[str, float]]:
        """What all conditions together say of each problem, and how reliable each of them is.

        Every condition with every seed is a voter, task by task; the right answer is not looked at.
        """
        votes: dict[str, dict[tuple[str, int], dict[tuple[str, int], str]]] = {}
        for name, own in self.by_condition.items():
            for a in own:
                votes.setdefault(a.task, {}).setdefault(a.place, {})[name, a.seed] = a.answer
        found: dict[tuple[str, int], TopTwo] = {}
        reliability: dict[str, list[float]] = {}
        for by_place in votes.values():
            voters = list(dict.fromkeys(voter for row in by_place.values() for voter in row))
            table = [[row.get(voter) for voter in voters] for row in by_place.values()]
            results, known = top_two(table)
            found.update(zip(by_place, results, strict=True))
            for (name, _), value in zip(voters, known, strict=True):
                reliability.setdefault(name, []).append(value)
        return found, {name: statistics.fmean(values) for name, values in reliability.items()}

    @cached_property
    def reliability(self) -> dict[str, Report]:
        """Each condition's confidence against the truth, where its confidence says something."""
        found = {}
        for name, every in self.by_condition.items():
            own = confident(every)
            if own:
                ratings = [attempt.confidence for attempt in own]
                found[name] = report(name, ratings, right(own), codes(places(own)))
        return found

    def by_problem(self) -> dict[tuple[str, int], list[Attempt]]:
        """Attempts at each problem."""
        found: dict[tuple[str, int], list[Attempt]] = {}
        for attempt in self.all:
            found.setdefault(attempt.place, []).append(attempt)
        return found


@cache
def brief(text: str, parse: Callable[[str], Named]) -> str:
    """A strategy or task for readers: what stands at its default left out.

    One that is not known here (of another version, or a file that was not loaded) stays as it is.
    """
    try:
        return parse(text).short
    except InputError:
        return text


def _told_apart(texts: Iterable[str], parse: Callable[[str], Named]) -> dict[str, str]:
    """Each text for readers; in full where two would look the same."""
    found = {text: brief(text, parse) for text in dict.fromkeys(texts)}
    times = Counter(found.values())
    return {text: short if times[short] == 1 else text for text, short in found.items()}


@cache
def series(task: str) -> str:
    """The task without the parameter that makes it harder: what is the same at all difficulties.

    One that is not known here, as from a file of the user's own, is a series of its own.
    """
    try:
        named = tasks.parse(task)
    except InputError:
        return task
    harder = tasks.difficulty(named.entry)
    others = {k: v for k, v in named.values.items() if harder is None or k != harder.name}
    return Named(named.entry, others).short


def confident(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Attempts whose confidence says something: none where all have the same."""
    known = [attempt for attempt in attempts if 0 <= attempt.confidence <= 1]
    return known if len({attempt.confidence for attempt in known}) > 1 else []


def common(groups: Mapping[Label, list[Attempt]]) -> dict[Label, list[Attempt]]:
    """Of each condition's attempts those at problems and seeds that every condition has tried;
    empty lists where there is nothing."""
    runs = ({(a.place, a.seed) for a in group} for group in groups.values())
    shared = reduce(set.intersection, runs)
    return {key: [a for a in own if (a.place, a.seed) in shared] for key, own in groups.items()}


def on_task(attempts: Sequence[Attempt], task: str) -> list[Attempt]:
    """Those at one task, named as it stands in the records.

    Raises:
        InputError: there are none.
    """
    known = dict.fromkeys(attempt.task for attempt in attempts)
    if task not in known:
        raise unknown_name("task of these records", task, known)
    return [attempt for attempt in attempts if attempt.task == task]


def right(attempts: Sequence[Attempt]) -> npt.NDArray[np.bool_]:
    """`[n]` whether each is right."""
    return np.array([attempt.right for attempt in attempts], np.bool_)


def places(attempts: Sequence[Attempt]) -> list[tuple[str, int]]:
    """`[n]` the problem of each."""
    return [attempt.place for attempt in attempts]


def used(attempts: Sequence[Attempt], what: str) -> npt.NDArray[np.float64]:
    """`[n]` one field of `Usage`."""
    values: list[Any] = [getattr(attempt.usage, what) for attempt in attempts]
    return np.array(values, np.float64)

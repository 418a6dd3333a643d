"""Runs a grid: many problems at once on one engine, each kept as soon as it is finished."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anabranch import __version__
from anabranch.bench.attempts import Attempt, Sample
from anabranch.bench.environment import environment
from anabranch.bench.grid import Cell, Grid
from anabranch.bench.models import kernel, load_model, parameters
from anabranch.bench.records import Condition, Records, Row, Settings
from anabranch.errors import InputError, ResourceError, UnsupportedError
from anabranch.lm import LM
from anabranch.program.run import Run
from anabranch.program.types import Answer, Usage
from anabranch.tasks.registry import Posed

TOGETHER = 16
"""Problems at a time."""

SEEDS = 1 << 32
"""Problem i under seed s is thought about with seed s * SEEDS + i."""

Load = Callable[[str], LM]


@dataclass
class Column:
    """How far one cell of the grid is.

    Attributes:
        condition: as it is kept; None until its model is loaded.
        done: finished problems, `failed` of them without an answer.
        score, tokens, seconds: sums over those, tokens sampled; seconds of the machine.
        skipped: why it is not run, or "".
    """

    cell: Cell
    condition: Condition | None = None
    done: int = 0
    failed: int = 0
    score: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    skipped: str = ""

    @property
    def total(self) -> int:
        """Problems to finish."""
        return self.cell.problems * len(self.cell.seeds)

    def count(self, row: Row) -> None:
        """Add a finished problem."""
        self.done += 1
        self.failed += bool(row.error)
        self.score += row.score
        self.tokens += row.usage.sampled_tokens
        self.seconds += row.pass_seconds or row.usage.seconds


@dataclass(frozen=True)
class Job:
    """One problem under one condition."""

    column: Column
    condition: Condition
    posed: Posed
    problem: int
    seed: int


@dataclass
class Bench:
    """A grid under way.

    Args:
        records: where it is kept; what is finished there already is not run again.
        together: problems at a time.
        traces: a folder to save every tree in, or None.
        load: from a model's text to the model.
        watch: called whenever something has changed.

    Attributes:
        columns: one for each cell.
        notes: what a reader of the results should know.
    """

    grid: Grid
    records: Records
    together: int = TOGETHER
    traces: Path | None = None
    load: Load = load_model
    watch: Callable[[], None] = lambda: None
    columns: list[Column] = field(init=False)
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.columns = [Column(cell) for cell in self.grid.cells]
        self._posed = self.grid.posed()
        self._began: float | None = None
        self._spent = 0.0  # seconds of the machine, by finished problems of this session
        self._under_way: set[Run] = set()
        self._put_off: ResourceError | None = None

    def run(self) -> None:
        """Run what is not finished, model after model.

        Can be killed, interrupted and started again at any time.

        Raises:
            InputError: the records hold other problems under the same name.
            ResourceError: the disk is full; or some problems found too little memory and were put
                off, after the others are finished.
            ModelError: a model cannot be loaded.
        """
        told = environment()
        commits = {session.get("commit") for session in self.records.sessions()}
        if commits - {told["commit"]}:
            names = ", ".join(sorted(str(commit) for commit in commits - {told["commit"]}))
            self.notes.append(f"part of these records was made by other code: {names}")
        if self.traces is not None:
            try:
                self.traces.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"traces cannot be saved: {error.strerror}", got=str(self.traces)
                ) from None
        for model in self.grid.models:
            with self.load(model) as lm:
                columns = [column for column in self.columns if column.cell.model == model]
                jobs = self._jobs(lm, columns)
                if jobs:
                    here = {"model": lm.name, "together": self.together, **kernel(lm)}
                    session = self.records.begin({**told, **here})
                    self._began = self._began or time.monotonic()
                    lm.run(self._all(lm, jobs, session))
        if self._put_off is not None:
            raise self._put_off

    def left_seconds(self) -> float | None:
        """Estimate of the wall time until all is done; None before anything is known."""
        left = [self.left_seconds_of(column) for column in self.columns]
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) if known else None

    def left_seconds_of(self, column: Column) -> float | None:
        """Likewise, of the wall time that one column will take of it."""
        done = sum(c.done for c in self.columns)
        spent = self._spent + sum(run.cost.seconds for run in self._under_way)
        if self._began is None or not spent or not done or column.skipped:
            return None
        # More than 1 where programs do other things than passes.
        scale = (time.monotonic() - self._began) / spent
        mean = sum(c.seconds for c in self.columns) / done
        each = column.seconds / column.done if column.done else mean
        return scale * each * (column.total - column.done)

    def attempts(self) -> list[Attempt]:
        """What the records have of this grid by now; they may hold more than it asks for."""
        # Two cells may be one condition, written differently.
        columns = {c.condition.id: (c.condition, c.cell) for c in self.columns if c.condition}
        return [
            attempt
            for condition, cell in columns.values()
            for attempt in self.records.attempts([condition])
            if attempt.problem < cell.problems and attempt.seed in cell.seeds
        ]

    def _jobs(self, lm: LM, columns: Sequence[Column]) -> list[Job]:
        """What is left to do, so ordered that all columns grow together and prompts are shared."""
        jobs = []
        for column in columns:
            cell = column.cell
            column.condition = condition = self.records.condition(
                Settings(
                    model=lm.name,
                    fingerprint=lm.fingerprint,
                    parameters=parameters(lm),
                    strategy=cell.strategy,
                    budget=cell.budget,
                    task=cell.task,
                    problem_seed=cell.problem_seed,
                    version=__version__,
                )
            )
            if condition.skipped:  # what it lacked may be here now
                self.records.skip(condition, "")
            posed = self._posed[cell.task, cell.problem_seed]
            wanted = {(i, seed) for i in range(cell.problems) for seed in cell.seeds}
            for row in self.records.rows(condition):
                if (row.problem, row.seed) in wanted:
                    _check_same(self.records, cell, posed[row.problem], row)
                    column.count(row)
                    wanted.remove((row.problem, row.seed))
            jobs += [Job(column, condition, posed[i], i, seed) for i, seed in wanted]
        order = {id(column): place for place, column in enumerate(columns)}
        jobs.sort(key=lambda j: (j.problem, j.column.cell.task, j.seed, order[id(j.column)]))
        return jobs

    async def _all(self, lm: LM, jobs: Sequence[Job], session: int) -> None:
        """Work through the jobs, so many at a time."""
        waiting = iter(jobs)
        self.watch()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.together, len(jobs))):
                    group.create_task(self._work(lm, waiting, session))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _work(self, lm: LM, waiting: Iterator[Job], session: int) -> None:
        for job in waiting:
            key = job.condition, job.problem, job.seed
            if job.column.skipped or not self.records.claim(*key):
                continue
            try:
                if self.records.is_finished(*key):
                    continue
                row = await self._solve(lm, job)
                if row is not None:
                    self.records.add(job.condition, session, row)
                    job.column.count(row)
                    self._spent += row.pass_seconds or row.usage.seconds / self.together
            finally:
                self.records.release(*key)
            self.watch()

    async def _solve(self, lm: LM, job: Job) -> Row | None:
        """What came of a problem; None if it has to be put off."""
        posed, cell, runs = job.posed, job.column.cell, list[Run]()
        trace = None

        def begun(run: Run) -> None:
            runs.append(run)
            self._under_way.add(run)

        if self.traces is not None:
            name = f"{job.condition.settings.digest[:16]}-{job.problem}-{job.seed}.jsonl"
            trace = self.traces / name
        row = Row(
            problem=job.problem,
            seed=job.seed,
            digest=digest(posed),
            question=posed.problem.text,
            gold=posed.answer,
            trace="" if trace is None else str(trace),
        )
        try:
            answer = await lm.think(
                posed.problem,
                cell.strategy,
                budget=cell.budget,
                seed=job.seed * SEEDS + job.problem,
                trace=trace,
                # What a problem costs must not depend on what else is in the grid.
                scope=f"{job.condition.settings.digest} {job.problem} {job.seed}",
                on_start=begun,
            )
            row = _judged(row, posed, answer)
        except UnsupportedError as error:
            job.column.skipped = str(error)
            self.records.skip(job.condition, str(error))
            return None
        except ResourceError as error:  # no fault of the strategy: another day it goes well
            self._put_off = self._put_off or error
            return None
        except Exception as error:  # a method's fault is a finding, and the others go on
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            row = replace(row, error=f"{kind}{error}", usage=runs[0].usage if runs else Usage())
        finally:
            self._under_way.difference_update(runs)
        return replace(row, pass_seconds=runs[0].cost.seconds if runs else 0.0)


def digest(posed: Posed) -> str:
    """Of all that is asked and expected."""
    told = f"{posed.problem!r} {posed.answer!r}"
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()


def _judged(row: Row, posed: Posed, answer: Answer) -> Row:
    return replace(
        row,
        answer=answer.answer,
        text=answer.text,
        score=posed.score(answer.answer),
        prefix=posed.prefix(answer.text),
        confidence=answer.confidence,
        usage=answer.usage,
        samples=tuple(
            Sample(
                answer=candidate.answer,
                right=candidate.answer is not None and posed.check(candidate.answer),
                weight=candidate.weight,
                tokens=candidate.tokens,
            )
            for candidate in answer.candidates
        ),
        notes=answer.notes,
    )


def _check_same(records: Records, cell: Cell, posed: Posed, row: Row) -> None:
    if row.digest != digest(posed):
        raise InputError(
            f"the records hold another problem {row.problem} of {cell.task}",
            got=str(records.path),
            fix="the task has changed since: name another file",
        )

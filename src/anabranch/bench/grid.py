"""What is to be measured: models x strategies x budgets x tasks x seeds.

As a TOML file:

    models = ["qwen2.5-coder-0.5b"]     # as `anabranch solve --model` takes them, or "simulated"
    strategies = ["single", "vote(n=16)"]
    budgets = [2000, "unlimited"]       # tokens for a problem; may be left out
    tasks = ["arithmetic(digits=3)", "words"]
    problems = 50                       # of each task
    seeds = [0]                         # of the thinking; may be left out
    problem_seed = 0                    # of the problems; may be left out

    [[grid]]                            # as many as you like: what differs from the above
    strategies = ["beam(width=8)"]
    problems = 20

Where there are `[[grid]]` blocks, they are what is run, each with the keys above as defaults;
otherwise the keys above are.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from anabranch.bench.models import check_model
from anabranch.errors import InputError, check_range, unknown_name
from anabranch.program.registry import Named
from anabranch.reason.registry import parse
from anabranch.tasks.registry import Posed, problems
from anabranch.tasks.registry import parse as parse_task

MAX_BYTES = 1 << 20
"""Largest grid file."""

MAX_PROBLEMS = 100_000
"""Most of one task."""

UNLIMITED = "unlimited"

DEFAULTS: dict[str, Any] = {"budgets": [UNLIMITED], "seeds": [0], "problem_seed": 0, "problems": 50}
LISTS = ("models", "strategies", "tasks", "budgets", "seeds")
KEYS = (*LISTS, "problems", "problem_seed")

Where = Callable[[str, object], str]
"""From a key and a value to where it stands, for errors."""


@dataclass(frozen=True)
class Cell:
    """One condition on one task, and how much of it to run."""

    model: str
    strategy: str
    budget: int | None
    task: str
    problem_seed: int
    problems: int
    seeds: tuple[int, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """All but how much of it."""
        return self.model, self.strategy, self.budget, self.task, self.problem_seed


@dataclass(frozen=True)
class Grid:
    """Checked, and ready to run.

    Attributes:
        cells: without repetition, in the order given.
    """

    cells: tuple[Cell, ...]

    @property
    def models(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def attempts(self) -> int:
        """How many problems in all."""
        return sum(cell.problems * len(cell.seeds) for cell in self.cells)

    def posed(self) -> dict[tuple[str, int], list[Posed]]:
        """The problems, by task and seed, as many as any cell asks for."""
        most: dict[tuple[str, int], int] = {}
        for cell in self.cells:
            key = cell.task, cell.problem_seed
            most[key] = max(most.get(key, 0), cell.problems)
        return {(task, seed): problems(task, n, seed) for (task, seed), n in most.items()}


def read_grid(path: Path, instead: Mapping[str, Any] = MappingProxyType({})) -> Grid:
    """The grid of a file.

    Args:
        instead: values that replace those of the file, everywhere in it.

    Raises:
        InputError: it cannot be read, is no TOML, or asks for what there is not; says on which
            line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"the grid cannot be read: {error.strerror}", got=str(path)) from None
    if len(data) > MAX_BYTES:
        raise InputError("the grid is too large", got=str(path), allowed=f"{MAX_BYTES} bytes")
    try:
        text = data.decode()
        given = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    lines = text.splitlines()

    def where(key: str, value: object) -> str:
        """The first line with the value, else the first with the key."""
        for wanted in (str(value), key):
            for i, line in enumerate(lines):
                if wanted and wanted in line.partition("#")[0]:
                    return f"{path}, line {i + 1}"
        return str(path)

    return build_grid(given, where, instead)


def build_grid(
    given: Mapping[str, Any], where: Where, instead: Mapping[str, Any] = MappingProxyType({})
) -> Grid:
    """The grid of a table such as `read_grid` reads.

    Raises:
        InputError: as `read_grid`.
    """
    blocks = given.get("grid", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise InputError(f"{where('grid', '')}: grid is no block", fix="write [[grid]] above it")
    common = {key: value for key, value in given.items() if key != "grid"}
    cells: dict[tuple[object, ...], Cell] = {}
    for block in blocks or [{}]:
        for key in (*common, *block):
            if key not in KEYS:
                raise _at(where(key, key), unknown_name("key", key, (*KEYS, "grid")))
        for cell in _cells({**DEFAULTS, **common, **block, **instead}, where):
            twin = cells.get(cell.key, cell)
            cells[cell.key] = replace(
                cell,
                problems=max(cell.problems, twin.problems),
                seeds=tuple(dict.fromkeys((*twin.seeds, *cell.seeds))),
            )
    return Grid(tuple(cells.values()))


def _cells(values: Mapping[str, Any], where: Where) -> list[Cell]:
    """What one block amounts to, everything checked."""
    for key in LISTS:
        if not isinstance(values.get(key), list) or not values[key]:
            got = values.get(key)
            raise InputError(
                f"{where(key, key)}: {key} is no list", got=got, allowed=f"{key} = [...], not empty"
            )
    for key, low, high in (("problems", 1, MAX_PROBLEMS), ("problem_seed", 0, 2**31 - 1)):
        _whole(key, values[key], low, high, where)
    count, problem_seed = values["problems"], values["problem_seed"]
    models = _each("models", values, where, check_model)
    strategies = _each("strategies", values, where, lambda text: _made(parse(text)))
    tasks = _each("tasks", values, where, lambda text: _task(text, count, problem_seed))
    budgets = [
        None if value == UNLIMITED else _whole("budgets", value, 1, 2**53, where)
        for value in values["budgets"]
    ]
    seeds = tuple(_whole("seeds", value, 0, 2**31 - 1, where) for value in values["seeds"])
    return [
        Cell(str(model), str(strategy), budget, str(task), problem_seed, count, seeds)
        for model in models
        for strategy in strategies
        for budget in budgets
        for task in tasks
    ]


def _each(
    key: str, values: Mapping[str, Any], where: Where, check: Callable[[str], Named | None]
) -> Sequence[Named | str]:
    """The texts of a list as what they name, or themselves."""
    found: list[Named | str] = []
    for text in values[key]:
        if not isinstance(text, str):
            got = f"{key}: {text!r}"
            raise InputError(f"{where(key, text)}: not a text", got=got, allowed='"..."')
        try:
            found.append(check(text) or text)
        except InputError as error:
            raise _at(where(key, text), error) from None
    return found


def _made(named: Named) -> Named:
    """Itself, after an attempt to make it: some combinations show only then that they are wrong."""
    named.make()
    return named


def _task(text: str, count: int, seed: int) -> Named:
    problems(text, count, seed)
    return parse_task(text)


def _whole(key: str, value: object, low: int, high: int, where: Where) -> int:
    try:
        if not isinstance(value, int):
            other = f', or "{UNLIMITED}"' if key == "budgets" else ""
            raise InputError(
                f"{key}: not a whole number", got=value, allowed=f"{low:g} to {high:g}{other}"
            )
        check_range(key, value, low, high)
    except InputError as error:
        raise _at(where(key, value), error) from None
    return value


def _at(place: str, error: InputError) -> InputError:
    """The error with where it stands."""
    return InputError(
        f"{place}: {error.failed}", got=error.got, allowed=error.allowed, fix=error.fix
    )

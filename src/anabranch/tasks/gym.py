"""The generators of reasoning-gym, with their own scorers."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import random
import sys
from typing import Annotated, Any

from anabranch.errors import InputError, unknown_name
from anabranch.program.answers import normalise
from anabranch.program.registry import Range, Text
from anabranch.program.types import Problem
from anabranch.tasks.registry import Posed, Source, task
from anabranch.tools.isolated import limit_memory
from anabranch.tools.results import needs
from anabranch.verify.equality import Worker

_FORBIDDEN = (
    *("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "tempfile.", "urllib.", "ftplib."),
    *("pty.", "signal.", "webbrowser.", "http.", "smtplib.", "sqlite3.", "glob.", "code.__new__"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = {"os.listdir", "os.scandir", "os.walk"}  # what an import needs


@task(
    "gym",
    paper="Stojanovski et al. 2025, Reasoning Gym: Reasoning environments for reinforcement "
    "learning with verifiable rewards",
    summary="Any generator of reasoning-gym: gym(dataset='countdown', settings='min_numbers=3').",
    difficulty="level",
    counts="levels of the generator's curriculum; 0 leaves it as it comes",
)
def gym(
    *,
    dataset: Annotated[str, Text(60)] = "chain_sum",
    level: Annotated[int, Range(0, 20)] = 0,
    settings: Annotated[str, Text(400)] = "",
) -> Source:
    """Settings are fields of the generator's configuration: `min_terms=2, max_terms=3`. Levels
    above the highest of the curriculum are as the highest. Scores are the generator's own, some
    between 0 and 1; they are computed in a process of their own, since some evaluate the answer."""
    needs("reasoning_gym", "reasoning-gym", extra="bench")
    _generator(dataset, level, settings, 0)

    def pose(seed: int, place: int) -> Posed:
        # Generators add the place to the seed: near seeds would give the same problems.
        size = _size(dataset)
        begin = random.Random(f"{dataset} {seed} {place // size}").getrandbits(31)
        named = (dataset, level, settings, begin, place % size)
        with contextlib.redirect_stdout(io.StringIO()):  # some show their progress
            entry = _generator(*named[:-1])[named[-1]]
        gold = entry["answer"]
        whole = gold is None or "\n" in gold
        problem = Problem(
            entry["question"],
            system="Give the answer alone, in the form that is asked for." if whole else None,
            kind="whole" if whole else "exact",
        )
        right = normalise(gold or "", problem)

        def grade(answer: str) -> float:
            same = right is not None and normalise(answer, problem) == right
            return 1.0 if same else _score(named, answer)

        return Posed(problem, gold or "", grade=grade)

    return Source(pose)


def _score(named: tuple[Any, ...], answer: str) -> float:
    if not answer.strip():
        return 0.0
    try:
        return float(_WORKER.ask(json.dumps(named), answer) or 0)
    except ValueError:
        return 0.0


_WORKER = Worker(__name__)


def serve() -> None:
    """The worker's own loop: problems and answers in, scores out."""
    importlib.import_module("reasoning_gym")
    limit_memory()
    watched = False

    def watch(event: str, values: tuple[Any, ...]) -> None:
        # Scorers evaluate answers as Python. Nothing audited but reading may come of that.
        writes = event == "open" and bool(values[2] & _WRITING)
        if watched and (writes or (event.startswith(_FORBIDDEN) and event not in _HARMLESS)):
            raise PermissionError(event)

    sys.addaudithook(watch)
    said, sys.stdout = sys.stdout, io.StringIO()  # some scorers print
    for line in sys.stdin:
        if not line.strip():
            print("ready", file=said, flush=True)
            continue
        named, answer = json.loads(line)
        *parts, place = json.loads(named)
        score = 0.0
        try:
            made = _generator(*parts)
            entry = made[place]
            watched = True
            score = float(made.score_answer(answer, entry)) if "__" not in answer else 0.0
        except Exception:  # a scorer on a model's text
            score = 0.0
        finally:
            watched = False
        print(score, file=said, flush=True)


@functools.lru_cache(maxsize=64)
def _generator(dataset: str, level: int, settings: str, seed: int) -> Any:
    """A generator of reasoning-gym. Raises InputError."""
    factory = importlib.import_module("reasoning_gym.factory")
    importlib.import_module("reasoning_gym")
    if dataset not in factory.DATASETS:
        raise unknown_name("dataset of reasoning-gym", dataset, factory.DATASETS)
    _, config = factory.DATASETS[dataset]
    known = {f.name: f for f in dataclasses.fields(config) if f.name not in ("seed", "size")}
    values = _settings(settings)
    for name in values:
        if name not in known:
            raise unknown_name(f"setting of {dataset}", name, known)
    try:
        if level:
            if not factory.has_curriculum(dataset):
                allowed = "level 0, or a dataset with a curriculum"
                raise InputError(f"{dataset} has no curriculum", got=level, allowed=allowed)
            curriculum = factory.create_curriculum(dataset)
            curriculum.set_global_level(level - 1)
            made = curriculum.generate_configuration()
            values = {name: getattr(made, name) for name in known} | values
        return factory.create_dataset(dataset, **values, seed=seed)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        fields = ", ".join(
            f"{f.name}: {getattr(f.type, '__name__', f.type)}" for f in known.values()
        )
        raise InputError(
            f"reasoning-gym refuses these settings of {dataset}: {error}",
            got=settings,
            allowed=fields,
        ) from None


def _size(dataset: str) -> int:
    """How many problems one seed gives; some generators make all of them at once."""
    config = importlib.import_module("reasoning_gym.factory").DATASETS[dataset][1]
    return int(config.size)


def _settings(text: str) -> dict[str, Any]:
    """`a=1, b='x'` without evaluating anything."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        raise InputError(
            "the settings cannot be read", got=text, allowed="name=value, name=value"
        ) from None

"""Writes remote.md: `python docs/remote.py`. What methods need of an endpoint is watched while they
run, on a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anabranch.bench.scripted import scripted_engine
from anabranch.engine.requests import Draw, Look, Request
from anabranch.errors import AnabranchError
from anabranch.program.budget import Budget
from anabranch.program.engine import Engine
from anabranch.program.registry import Named, Part
from anabranch.program.run import Run
from anabranch.program.types import Problem
from anabranch.reason.prompts import messages
from anabranch.reason.registry import parse, strategies
from anabranch.reason.solve import think
from anabranch.verify.registry import judges

PLACE = "<!-- The rest is written by `python docs/remote.py`. -->\n"

NEEDS = {
    "resumes": "goes on with a reply",
    "logprobs": "log-probabilities",
    "scoring": "scores of given text",
    "constraints": "grammars",
    "blending": "blends",
    "hidden": "hidden states",
}

CONTEXT = "Anna owns a red car. Ben has 2 + 2 apples. Every car that is red is fast."
PROBLEMS = [
    Problem("What is 2 + 2?", examples=((Problem("What is 1 + 1?"), "2"),)),
    Problem("Is Anna's car fast?", context=CONTEXT, kind="choice", choices=("yes", "no")),
    Problem("True or false: Anna's car is fast.", context=CONTEXT),
]

REPLIES = {
    "First, 2 + 2.\nThat is 4.\n\nThe answer is 4.": 3.0,
    "It is 2 * 2.\n\nSo the answer is 5.": 2.0,
    "The car is red.\nEvery red car is fast.\n\nThe answer is A.": 2.0,
    "```python\nprint(2 + 2)\n```\n": 2.0,
    "def f(x):\n    return x\n": 1.0,
    "1. Find the sum.\n2. Check it.\n": 1.0,
    "Yes": 1.0,
    "No, step 1 is wrong.": 1.0,
    "7": 1.0,
    'It says "Anna owns a red car." The answer is A.': 2.0,
}


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """Replies of every kind, whatever is asked; what was given is gone on with by any of them."""
    going = {text[len(reply) :]: w for text, w in REPLIES.items() if text.startswith(reply)}
    return going or ({"": 1.0} if len(reply) > 400 else {"\nThe answer is 4.": 1.0, "": 1.0})


def watched(needs: set[str]) -> Engine:
    """A scripted engine that writes down what is asked of it."""
    engine: Any = scripted_engine(rule)
    perform, markers = engine.perform, range(257, 260)

    async def watch(request: Request, **options: Any) -> None:
        if isinstance(request, Draw) and request.cursor.path()[-1] not in markers:
            needs.add("resumes")
        if isinstance(request, Look):
            needs.add("hidden" if request.wants_hidden else "logprobs")
        await perform(request, **options)

    engine.require, engine.perform = needs.add, watch
    return engine  # type: ignore[no-any-return]


def needs_of(strategy: Named) -> tuple[set[str], int]:
    """What a strategy needs on any of the problems, and on how many it ran to an end."""
    needs, ended = set[str](), 0
    for problem in PROBLEMS:
        engine = watched(needs)

        async def program(problem: Problem = problem, engine: Engine = engine) -> None:
            await think(
                problem,
                lambda p, run: engine.open(messages(p), seed=run.seed, run=run),
                strategy,
                Run(seed=1, budget=Budget(6_000)),
                model="scripted",
            )

        try:
            asyncio.run(program())
            ended += 1
        except AnabranchError as error:
            print(f"{strategy.short}: {error}")
        finally:
            engine.close()
    return needs, ended


def table(kind: str, rows: Mapping[str, set[str]]) -> str:
    """One row for each name, a mark for each need."""
    head = f"| {kind} | {' | '.join(NEEDS.values())} |\n|---|{'---|' * len(NEEDS)}\n"
    marks = (
        (name, ("•" if need in needs else "" for need in NEEDS)) for name, needs in rows.items()
    )
    return head + "".join(f"| `{name}` | {' | '.join(found)} |\n" for name, found in marks)


def judged(name: str) -> Named:
    """A strategy that does nothing but ask a judge: of finished thoughts."""
    return parse(f"weighted(n=2, judge={name})")


def main() -> None:
    """Write the page, its text kept."""
    methods = {}
    for entry in strategies():
        methods[entry.name], ended = needs_of(parse(entry.name))
        print(f"{entry.name}: {sorted(methods[entry.name])}, {ended} runs", flush=True)
    rated = {}
    for entry in judges():
        if any(isinstance(p.limits, Part) for p in entry.parameters.values()):
            continue  # what its judges need
        rated[entry.name], ended = needs_of(judged(entry.name))
        print(f"{entry.name}: {sorted(rated[entry.name])}, {ended} runs", flush=True)
    path = Path(__file__).with_name("remote.md")
    text = path.read_text(encoding="utf-8").partition(PLACE)[0]
    tables = table("strategy", methods) + "\n" + table("judge", rated)
    path.write_text(text + PLACE + "\n" + tables, encoding="utf-8")


if __name__ == "__main__":
    main()

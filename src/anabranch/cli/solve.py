"""`anabranch solve`: think about a problem, watched, and say what came of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from anabranch.cli.app import app
from anabranch.cli.draw import clean, draw_tree, plain_console, snippet
from anabranch.cli.options import (
    DEFAULT_MODEL,
    KV,
    KeyEnv,
    Model,
    Offline,
    Seed,
    System,
    Threads,
    load_model,
)
from anabranch.cli.terminal import print_json
from anabranch.errors import InputError, check_range
from anabranch.program.budget import Budget
from anabranch.program.registry import Named
from anabranch.program.run import Run
from anabranch.program.trace import Trace, build_tree
from anabranch.program.types import Answer, Problem, Thought
from anabranch.reason.prompts import messages
from anabranch.reason.registry import parse
from anabranch.reason.solve import conclude

if TYPE_CHECKING:
    from anabranch.lm import LM
    from anabranch.program.branch import Branch

PERIOD = 0.125
"""Seconds between two looks at a program."""

LIVE_BRANCHES = 8
"""Most branches shown while it thinks."""


@app.command()
def solve(
    problem: Annotated[
        str, typer.Argument(metavar="PROBLEM", help="The question; - reads it from stdin.")
    ],
    model: Model = DEFAULT_MODEL,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            "-s",
            help="E.g. vote(n=16, temperature=0.8). `anabranch strategies` lists them all.",
        ),
    ] = "vote",
    n: Annotated[int | None, typer.Option("-n", help="The strategy's n: thoughts to have.")] = None,
    temperature: Annotated[float | None, typer.Option(help="The strategy's temperature.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one thought.")] = None,
    budget: Annotated[int | None, typer.Option(help="Most tokens of all thoughts.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Most seconds to think.")] = None,
    system: System = None,
    seed: Seed = 0,
    threads: Threads = None,
    kv: KV = "f32",
    trace: Annotated[Path | None, typer.Option(help="Save the tree to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the answer.")] = False,
    offline: Offline = False,
    key_env: KeyEnv = "ANABRANCH_API_KEY",
) -> None:
    """Answer a problem by thinking in branches."""
    given = {"n": n, "temperature": temperature, "max_tokens": max_tokens}
    named = parse(strategy).change(**{k: v for k, v in given.items() if v is not None})
    question = Problem(_read_problem(problem), system=system)
    messages(question)  # fails on what cannot be asked, before anything is loaded
    check_range("seed", seed, 0, 2**64 - 1)
    limit = Budget(budget, seconds)
    _check_writable(trace)
    with (
        load_model(
            model, threads=threads, kv=kv, offline=offline, key_env=key_env, quiet=quiet
        ) as lm,
        Trace() if trace is None else lm.trace(trace, named, limit, seed) as log,
        _view(as_json, quiet) as view,
    ):
        answer, interrupted = _think(lm, question, named, limit, seed, log, view)
    if as_json:
        print_json(_as_json(answer))
    elif quiet:
        print(clean(answer.answer))
    else:
        _print_outcome(answer, log)
    if interrupted:
        raise typer.Exit(130)


def _read_problem(given: str) -> str:
    try:
        text = sys.stdin.buffer.read().decode() if given == "-" else given
        text.encode()
    except UnicodeError:
        raise InputError("the problem is not valid UTF-8", fix="convert it first") from None
    return text.strip()


def _check_writable(path: Path | None) -> None:
    """Fail before the model is loaded, not after."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(
            "the trace cannot be written", got=str(path), fix="name a file in an existing folder"
        )


# ---- thinking, watched -------------------------------------------------------------------------


class View(AbstractContextManager["View"]):
    """What a watcher sees of a program under way. This one shows nothing."""

    def look(self, run: Run) -> None:
        """Show how far it is."""

    def __exit__(self, *exc: object) -> None:
        """Clear away what must not stay."""


class Lines(View):
    """A line for every thought that has come to its end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._told: set[str] = set()

    def look(self, run: Run) -> None:
        for thought in run.thoughts:
            if thought.done and thought.branch.id not in self._told:
                self._told.add(thought.branch.id)
                self.console.print(_line(thought))


class Screen(View):
    """Figures, and what the branches are writing, redrawn in place and gone at the end."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._width = console.width

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def look(self, run: Run) -> None:
        under_way = [t.branch for t in run.thoughts if not t.done and t.branch.live]
        lines = [
            Text(f"{branch.id}  {snippet(branch.text, self._width - 10)}", "dim", no_wrap=True)
            for branch in under_way[:LIVE_BRANCHES]
        ]
        self._live.update(Group(_figures(run), *lines), refresh=True)


def _think(
    lm: LM,
    problem: Problem,
    strategy: Named,
    budget: Budget,
    seed: int,
    log: Trace,
    view: View,
) -> tuple[Answer, bool]:
    """The answer, and whether Ctrl-C cut the thinking short."""
    runs: list[Run] = []

    async def program() -> Answer:
        watcher = asyncio.create_task(_watch(view, runs))
        try:
            return await lm.think(
                problem, strategy, budget=budget, seed=seed, trace=log, on_start=runs.append
            )
        finally:
            watcher.cancel()

    try:
        answer, interrupted = lm.run(program()), False
    except KeyboardInterrupt:
        if not runs:
            raise
        answer = conclude(problem, strategy, runs[0], model=lm.name, notes=["interrupted"])
        if not answer.text:
            raise
        interrupted = True
    view.look(runs[0])
    return answer, interrupted


async def _watch(view: View, runs: list[Run]) -> None:
    while True:
        for run in runs:
            view.look(run)
        await asyncio.sleep(PERIOD)


def _view(as_json: bool, quiet: bool) -> View:
    console = plain_console(stderr=as_json)
    if quiet:
        return View()
    return Screen(console) if console.is_terminal and not as_json else Lines(console)


def _line(thought: Thought) -> Text:
    answer = snippet(thought.answer) if thought.answer is not None else "no answer"
    return Text(f"{thought.branch.id}  {thought.tokens} tokens  {answer}")


def _figures(run: Run) -> Text:
    """One line of figures, and one of answers if there are some."""
    thoughts, usage, budget = run.thoughts, run.usage, run.budget
    done = sum(thought.done for thought in thoughts)
    under_way = sum(map(_under_way, run.live))
    sampled = usage.sampled_tokens + under_way
    parts = [f"{len(thoughts) - done} branches thinking, {done} done", f"{sampled:,} tokens"]
    parts.append(f"{sampled / max(usage.seconds, 1e-3):.0f} tokens/s")
    if budget.tokens is not None:
        parts.append(f"{budget.tokens - budget.spent_tokens - under_way:,} tokens left")
    if budget.seconds is not None:
        parts.append(f"{budget.left_seconds:.0f} s left")
    parts.append(f"{usage.seconds:.0f} s")
    figures = Text(" · ".join(parts), "bold", no_wrap=True)
    answers = Counter(t.answer for t in thoughts if t.done and t.answer is not None)
    if answers:
        found = ", ".join(f"{snippet(a, 20)} ×{count}" for a, count in answers.most_common(5))
        figures.append(f"\nanswers so far: {found}", "green")
    return figures


def _under_way(branch: Branch) -> int:
    """Tokens sampled by a step that has not ended yet."""
    begun = branch.last.end if branch.last else branch.parent and branch.parent.mark
    return branch.mark.position - begun.position if begun else 0


# ---- the outcome -------------------------------------------------------------------------------


def _as_json(answer: Answer) -> dict[str, object]:
    usage = dataclasses.asdict(answer.usage)
    seconds = usage.pop("seconds")
    return {
        "answer": answer.answer,
        "text": answer.text,
        "confidence": answer.confidence,
        "strategy": answer.strategy,
        "model": answer.model,
        "seed": answer.seed,
        "usage": usage,
        "seconds": round(seconds, 3),
    }


def _print_outcome(answer: Answer, log: Trace) -> None:
    console, usage = plain_console(), answer.usage
    console.print(draw_tree(build_tree(log.header, log.events)))
    if answer.text != answer.answer:
        console.print(Text(f"\n{clean(answer.text)}", "dim"))
    console.print(Text(f"\nAnswer: {clean(answer.answer)}", "bold"))
    agreeing = sum(c.answer == answer.candidates[0].answer for c in answer.candidates)
    console.print(
        f"confidence {answer.confidence:.2f}, {agreeing} of {len(answer.candidates)} thoughts agree"
    )
    console.print(
        f"sampled {usage.sampled_tokens:,} tokens ({usage.kept_tokens:,} towards the answer), "
        f"prompt {usage.prompt_tokens:,}, computed {usage.computed_tokens:,}, "
        f"cached {usage.cached_tokens:,}, {usage.passes:,} passes, {usage.seconds:.1f} s"
    )
    console.print(Text(f"{answer.strategy}, {clean(answer.model)}, seed {answer.seed}", "dim"))
    for note in answer.notes:
        console.print(Text(f"note: {clean(note)}", "yellow"))

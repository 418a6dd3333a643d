"""`anabranch bench` and `recommend`: which way of thinking is worth its compute, and how sure."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from anabranch.bench.attempts import Attempt, brief, on_task, places, right, used
from anabranch.bench.grid import DEFAULTS, Grid, build_grid, read_grid
from anabranch.bench.intervals import Difference, Estimate, difference, share
from anabranch.bench.models import load_model
from anabranch.bench.recommend import Recommendation, try_halves
from anabranch.bench.recommend import recommend as recommend_from
from anabranch.bench.records import Records, merged
from anabranch.bench.report import write_report
from anabranch.bench.runner import TOGETHER, Bench, Column
from anabranch.bench.summary import (
    FAIR,
    Key,
    Line,
    by_condition,
    fair_gains,
    lines,
    short,
)
from anabranch.cli.app import app
from anabranch.cli.options import KV, Offline, Threads
from anabranch.cli.terminal import print_json, print_table, show_progress
from anabranch.errors import (
    AnabranchError,
    InputError,
    UnsupportedError,
    check_range,
    unknown_name,
)
from anabranch.reason.registry import parse as parse_strategy
from anabranch.tasks.registry import parse as parse_task

RECORDS = Path("records.db")

PERIOD = 30.0
"""Seconds between lines of progress where there is no terminal."""

REDRAW = 0.5
"""Seconds between two looks of a terminal."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kept = Annotated[Path, typer.Option("--records", "-r", help="What `anabranch bench` kept.")]


class _RunByDefault(TyperGroup):
    """`bench grid.toml` means `bench run grid.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the word in where there is none."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=_RunByDefault, no_args_is_help=True, help="Measure strategies on tasks, and compare them."
)
app.add_typer(group, name="bench")


@group.command("run")
def run_grid(
    grid: Annotated[
        Path | None, typer.Argument(help="A TOML file; flags replace what it says.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help='As for solve, or "simulated". Several times if wanted.'
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="Likewise; the others are compared with the first."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="E.g. arithmetic(digits=3).")
    ] = None,
    budget: Annotated[
        list[int] | None, typer.Option("--budget", "-b", help="Most tokens for a problem.")
    ] = None,
    problems: Annotated[
        int | None, typer.Option(help=f"Of each task; {DEFAULTS['problems']} if not told.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seeds", help="Of the thinking; several times if wanted.")
    ] = None,
    problem_seed: Annotated[int | None, typer.Option(help="Of the problems.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where it is kept, and goes on if there is some.")
    ] = RECORDS,
    traces: Annotated[Path | None, typer.Option(help="Save every tree in this folder.")] = None,
    page: Annotated[
        bool,
        typer.Option(
            "--report/--no-report", help="End with a page and figures in OUT's name + -report."
        ),
    ] = True,
    together: Annotated[int, typer.Option(help="Problems at a time.")] = TOGETHER,
    threads: Threads = None,
    kv: KV = "f32",
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Run a grid of models, strategies, budgets and tasks. Killed or interrupted, it goes on from
    where it was when it is started again."""
    check_range("together", together, 1, 1024)
    given = {
        "models": model,
        "strategies": strategy,
        "tasks": task,
        "budgets": budget,
        "problems": problems,
        "seeds": seeds,
        "problem_seed": problem_seed,
    }
    wanted = _grid(grid, {key: value for key, value in given.items() if value is not None})
    options = {"threads": threads, "kv": kv, "offline": offline}

    with Records(out, create=True) as records:
        bench = Bench(wanted, records, together=together, traces=traces)
        with _watched(bench, quiet=as_json) as load:
            bench.load = lambda text: load(text, options)
            stopped: BaseException | None = None
            try:
                bench.run()
            except (KeyboardInterrupt, AnabranchError) as error:
                stopped = error  # told after what there is by now
        attempts = bench.attempts()
        skipped = [c for c in bench.columns if c.skipped]
        sessions = records.sessions()
    if as_json:
        print_json(_results(attempts, skipped, bench.notes, sessions))
    else:
        if attempts:
            _print_results(attempts)
        for column in skipped:
            print(f"skipped: {short(column.cell.strategy)}, {column.cell.task}: {column.skipped}")
        for note in bench.notes:
            print(f"note: {note}")
        print(f"kept in {out}", file=sys.stderr)
    if stopped is not None:
        raise stopped
    if page and attempts and not as_json:
        _page(attempts, out.with_name(f"{out.stem}-report"), sessions)


def _page(attempts: Sequence[Attempt], folder: Path, sessions: Sequence[Mapping[str, Any]]) -> None:
    try:
        for path in write_report(attempts, folder, provenance=merged(sessions)):
            print(path)
    except UnsupportedError as error:  # the results are kept, and a page can be made later
        print(f"note: no page: {error}")


def _grid(path: Path | None, flags: Mapping[str, Any]) -> Grid:
    if path is not None:
        return read_grid(path, flags)
    for key, flag in (("models", "model"), ("strategies", "strategy"), ("tasks", "task")):
        if key not in flags:
            raise InputError("nothing says what to run", fix=f"name a grid file, or give --{flag}")
    return build_grid(flags, lambda key, value: f"the flags for {key}")


# ---- watching ----------------------------------------------------------------------------------


@contextmanager
def _watched(bench: Bench, *, quiet: bool) -> Iterator[Callable[..., Any]]:
    """Show how far it is, on stderr: a table in a terminal, else a line now and then.

    Yields what loads models meanwhile, which shows its own progress.
    """
    console = Console(stderr=True)
    told = time.monotonic()
    # Refreshed by a thread of its own, so also during a long pass.
    table = Live(
        console=console,
        get_renderable=lambda: _progress(bench),
        refresh_per_second=1 / REDRAW,
        transient=True,
    )
    shown = console.is_terminal and not quiet

    def line() -> None:
        nonlocal told
        if time.monotonic() - told >= PERIOD:
            told = time.monotonic()
            print(_figures(bench), file=sys.stderr, flush=True)

    def load(text: str, options: Mapping[str, Any]) -> Any:
        table.stop()
        with show_progress() as progress:
            lm = load_model(text, progress=progress, **options)
        if shown:
            table.start(refresh=True)
        return lm

    if not shown:
        bench.watch = line
    try:
        yield load
    finally:
        table.stop()
    if not shown:
        print(_figures(bench), file=sys.stderr, flush=True)


def _figures(bench: Bench) -> str:
    done, total = sum(c.done for c in bench.columns), bench.grid.attempts
    failed = sum(c.failed for c in bench.columns)
    left = bench.left_seconds()
    parts = [f"{done:,} of {total:,} problems"]
    parts += [f"{failed} failed"] * bool(failed)
    parts += [f"about {_duration(left)} left"] * (left is not None and done < total)
    return ", ".join(parts)


def _progress(bench: Bench) -> Table:
    """A row for each condition, a column for each task."""
    tasks = list(dict.fromkeys(column.cell.task for column in bench.columns))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", caption=_figures(bench))
    for name in ("strategy", *(_short_task(task) for task in tasks), "done", "left"):
        table.add_column(name, no_wrap=name != "strategy")
    rows: dict[tuple[object, ...], dict[str, Column]] = {}
    for column in bench.columns:
        cell = column.cell
        rows.setdefault((cell.model, cell.strategy, cell.budget), {})[cell.task] = column
    several = len(bench.grid.models) > 1
    for (model, strategy, budget), own in rows.items():
        name = _name((str(model), str(strategy), "" if budget is None else f"{budget} tokens"))
        cells = [_rate(own.get(task)) for task in tasks]
        done, total = sum(c.done for c in own.values()), sum(c.total for c in own.values())
        left = [bench.left_seconds_of(c) for c in own.values()]
        known = [seconds for seconds in left if seconds is not None]
        table.add_row(
            Text(f"{name}, {model}" if several else name),
            *cells,
            f"{done}/{total}",
            _duration(sum(known)) if known else "",
        )
    return table


def _rate(column: Column | None) -> str:
    if column is None or not (column.done or column.skipped):
        return ""
    return "skipped" if column.skipped else f"{column.score / column.done:.0%}"


# ---- results -----------------------------------------------------------------------------------


def _print_results(attempts: Sequence[Attempt]) -> None:
    """Tables by task, the frontier, and the mean gains."""
    groups = by_condition(attempts)
    several = len({model for model, _, _ in groups}) > 1
    tasks = list(dict.fromkeys(attempt.task for attempt in attempts))
    for task in tasks if len(tasks) > 1 else ():
        print(f"{_short_task(task)}\n")
        _print_lines(_lines(attempts, task), several)
        print()
    found = _lines(attempts)
    base = _label(next(iter(groups)), several)
    if found:
        print("all\n")
        _print_lines(found, several)
        print()
    print(f"With 95% intervals; gains are paired with {base}. Means for a problem: tokens charged")
    print(
        "(prompt, sampled, forced); seconds, its share of the time of passes; FLOPs, 2 x parameters"
    )
    print("x computed tokens, attention left out. Best by tokens or by time: nothing that takes no")
    print("more of them is as accurate: the frontier.")
    missing = sum(map(len, groups.values())) - sum(line.problems for line in found)
    if found and missing:
        print(f"note: {missing} results are left out above, as not all strategies have them")
    gains = fair_gains(attempts)
    for key, (fair, gain) in gains.items():
        print(f"{_label(key, several)}: {_points(gain)} over {', '.join(map(_short_task, fair))}")
    if gains:
        print(f"(tasks of which {base} solves {FAIR[0]:.0%} to {FAIR[1]:.0%})")


def _lines(attempts: Sequence[Attempt], task: str = "") -> list[Line]:
    try:
        return lines(attempts, task=task)
    except InputError as error:
        print(f"note: {task or 'over all tasks'}: {error}")
        return []


def _print_lines(found: Sequence[Line], several: bool) -> None:
    """What fits into a terminal; in a pipe, all there is."""
    few = Console().is_terminal
    rows = [
        (
            _percent(line.accuracy),
            "" if line.gain is None else _points(line.gain),
            f"{line.charged:.0f}",
            f"{line.seconds:.3g}",
            *(() if few else _more(line)),
            ", ".join(line.cheapest),
            _label((line.model, line.strategy, line.budget), several),
        )
        for line in found
    ]
    more = (
        () if few else ("sampled", "computed", "passes", "GFLOPs", "prefix", "problems", "failed")
    )
    print_table(("accuracy", "gain", "tokens", "seconds", *more, "best by", "strategy"), rows)


def _percent(value: Estimate) -> str:
    return f"{100 * value.value:.1f}% ({100 * value.low:.0f} to {100 * value.high:.0f})"


def _more(line: Line) -> tuple[str, ...]:
    return (
        f"{line.sampled:.0f}",
        f"{line.computed:.0f}",
        f"{line.passes:.0f}",
        "unknown" if line.flops is None else f"{line.flops / 1e9:.0f}",
        "" if line.prefix is None else f"{line.prefix.value:.1%}",
        f"{line.problems}",
        f"{line.failed}",
    )


def _label(key: Key, several: bool) -> str:
    return f"{_name(key)}, {key[0]}" if several else _name(key)


def _name(key: Key) -> str:
    """Strategy and budget, for readers."""
    return ", ".join(part for part in (short(key[1]), key[2]) if part)


def _short_task(task: str) -> str:
    return brief(task, parse_task)


def _points(gain: Difference) -> str:
    return f"{100 * gain.value:+.1f} ({100 * gain.low:+.0f} to {100 * gain.high:+.0f})"


def _results(
    attempts: Sequence[Attempt],
    skipped: Sequence[Column],
    notes: Sequence[str],
    sessions: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    told: dict[str, Any] = {"sessions": list(sessions), "notes": list(notes)}
    told |= {"conditions": [], "tasks": []}
    told["skipped"] = [
        {"strategy": c.cell.strategy, "task": c.cell.task, "reason": c.skipped} for c in skipped
    ]
    if not attempts:
        return told
    for task in ("", *dict.fromkeys(attempt.task for attempt in attempts)):
        try:
            found = lines(attempts, task=task)
        except InputError as error:
            told["notes"].append(f"{task or 'over all tasks'}: {error}")
            continue
        told["tasks" if task else "conditions"] += map(_plain, found)
    told["gains"] = [
        dict(zip(("model", "strategy", "budget"), key, strict=True))
        | {"tasks": fair, "gain": gain._asdict()}
        for key, (fair, gain) in fair_gains(attempts).items()
    ]
    return told


def _plain(line: Line) -> dict[str, Any]:
    told = dataclasses.asdict(line)
    told["accuracy"] = line.accuracy._asdict()
    told["prefix"] = None if line.prefix is None else line.prefix._asdict()
    told["gain"] = None if line.gain is None else line.gain._asdict()
    return told


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


# ---- comparing ---------------------------------------------------------------------------------


@group.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A file of records, or a strategy.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
    records: Kept = RECORDS,
    task: Annotated[str | None, typer.Option("--task", "-t", help="On this task alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which of two is better, and how sure one can be: paired, by task and in all.

    p(A > B) is the share of resamplings of the problems in which A is ahead (ties count half).
    """
    ours, base = _sides(a, b, records)
    if task is not None:
        ours = on_task(ours, str(parse_task(task)))
    found = []
    for name in (*dict.fromkeys(attempt.task for attempt in ours), ""):
        mine, theirs = ({x.run: x for x in s if not name or x.task == name} for s in (ours, base))
        shared = [run for run in mine if run in theirs]
        if shared:
            found.append(
                _comparison(name, [mine[run] for run in shared], [theirs[run] for run in shared])
            )
    if not found:
        raise InputError("the two have no problem in common", fix="run both on the same grid")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            _short_task(row["task"]) if row["task"] else "all",
            _percent(Estimate(**row["a"])),
            _percent(Estimate(**row["b"])),
            _points(Difference(**row["difference"])),
            f"{row['difference']['above']:.3f}",
            f"{row['a_tokens']:.0f}",
            f"{row['b_tokens']:.0f}",
            f"{row['problems']}",
        )
        for row in found
    ]
    columns = ("task", "A", "B", "A - B, points", "p(A > B)", "A tokens", "B tokens", "problems")
    print_table(columns, rows)
    print(f"\n{_verdict(found[-1])}")


def _sides(a: str, b: str, records: Path) -> tuple[list[Attempt], list[Attempt]]:
    if Path(a).is_file() and Path(b).is_file():
        sides = []
        for path in (a, b):
            with Records(path) as kept:
                sides.append(kept.attempts())
        models = [{attempt.model for attempt in side} for side in sides]
        if models[0] != models[1]:
            if max(map(len, models)) > 1:
                names = ["; ".join(sorted(own)) for own in models]
                raise InputError("the files hold different sets of models", got=" and ".join(names))
            sides = [[dataclasses.replace(x, model="") for x in side] for side in sides]
        return sides[0], sides[1]
    with Records(records) as kept:
        attempts = kept.attempts()
    found = []
    for text in (a, b):
        name = str(parse_strategy(text))
        known = list(dict.fromkeys(attempt.strategy for attempt in attempts))
        if name not in known:
            raise unknown_name("strategy of these records", short(name), map(short, known))
        found.append([dataclasses.replace(x, strategy="") for x in attempts if x.strategy == name])
    return found[0], found[1]


def _comparison(task: str, mine: Sequence[Attempt], theirs: Sequence[Attempt]) -> dict[str, Any]:
    both = difference(right(mine), right(theirs), places(mine))
    return {
        "task": task,
        "a": share(right(mine), places(mine))._asdict(),
        "b": share(right(theirs), places(theirs))._asdict(),
        "difference": both._asdict(),
        "a_tokens": float(used(mine, "charged_tokens").mean()),
        "b_tokens": float(used(theirs, "charged_tokens").mean()),
        "problems": len(set(places(mine))),
    }


def _verdict(row: Mapping[str, Any]) -> str:
    gap = Difference(**row["difference"])
    if gap.low <= 0 <= gap.high:
        return f"not decided: A - B is {_points(gap)} points"
    better = "A" if gap.value > 0 else "B"
    return f"{better} is better: A - B is {_points(gap)} points, p(A > B) = {gap.above:.3f}"


# ---- recommending ------------------------------------------------------------------------------


@app.command()
def recommend(
    budget: Annotated[
        int, typer.Option("--budget", "-b", help="Mean tokens for a problem, prompt and all.")
    ],
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="E.g. arithmetic(digits=3); else for all.")
    ] = None,
    records: Kept = RECORDS,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Where the records hold several.")
    ] = None,
    halves: Annotated[
        bool, typer.Option("--halves", help="Also make it from half the problems; try the rest.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Which strategy to take for a budget, from what `anabranch bench` kept.

    The accuracy to expect is measured on problems that took no part in choosing.
    """
    check_range("budget", budget, 1, 2**53)
    wanted = None if task is None else str(parse_task(task))
    with Records(records) as kept:
        attempts = kept.attempts()
    found = recommend_from(attempts, wanted, budget, model)
    trials = try_halves(attempts, wanted, budget, model) if halves else []
    if as_json:
        told = _plain_recommendation(found)
        if halves:
            told["halves"] = [
                {
                    **dataclasses.asdict(trial),
                    "made": _plain_recommendation(trial.made),
                    "seen": trial.seen._asdict(),
                }
                for trial in trials
            ]
        print_json(told)
        return
    print(_taken(found))
    print(
        f"expect {_percent(found.expected)} on {_short_task(found.task) or 'all tasks'} with "
        f"{found.model}, for {found.tokens:.0f} tokens a problem"
    )
    print(
        f"chosen from {found.considered} conditions that fit, on {found.problems} problems; "
        "the accuracy is that of such a choice on problems held out"
    )
    for trial in trials:
        print(
            f"from half of them: {_taken(trial.made)}, expect {_percent(trial.made.expected)}; "
            f"the other half has {_percent(trial.seen)}, {'inside' if trial.holds else 'outside'}"
        )


def _taken(found: Recommendation) -> str:
    return _name((found.model, found.strategy, found.budget))


def _plain_recommendation(found: Recommendation) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "expected": found.expected._asdict()}

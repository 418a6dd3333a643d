"""`anabranch fit-judge` and `judge-report`: make a judge from records, and see whom to trust."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.cli.app import app
from anabranch.cli.options import (
    DEFAULT_MODEL,
    KV,
    Model,
    Offline,
    Seed,
    Threads,
    load_model,
)
from anabranch.cli.terminal import print_json, print_table, show_count
from anabranch.errors import InputError
from anabranch.program.run import Run
from anabranch.program.types import Problem
from anabranch.reason.prompts import messages
from anabranch.verify.records import RootOf, read_records
from anabranch.verify.registry import parse
from anabranch.verify.report import Report, measure
from anabranch.verify.value import fit_to

if TYPE_CHECKING:
    from anabranch.lm import LM
    from anabranch.program.branch import Branch

_RECORDS = (
    "JSON lines with problem, text (a solution), and right (true or false) or gold (the answer)."
)

Records = Annotated[Path, typer.Argument(metavar="RECORDS", help=_RECORDS)]


@app.command()
def fit_judge(
    records: Records,
    out: Annotated[Path, typer.Option("--out", "-o", help="The head, a file to write (.npz).")],
    model: Model = DEFAULT_MODEL,
    ends_only: Annotated[
        bool, typer.Option("--ends-only", help="Fit to ends of solutions, not of all their lines.")
    ] = False,
    threads: Threads = None,
    kv: KV = "f32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    offline: Offline = False,
) -> None:
    """Fit a value head to a model's own hidden states; use it as judge=value(head="...")."""
    known = read_records(records)
    if len({record.right for record in known}) < 2:
        raise InputError("the solutions are all right or all wrong", fix="give both kinds")
    folder = out.absolute().parent
    if out.is_dir() or not os.access(out if out.exists() else folder, os.W_OK):
        raise InputError("the head cannot be written", got=str(out), fix="name a file in a folder")
    with load_model(model, threads=threads, kv=kv, offline=offline, quiet=as_json) as lm:
        boundary = None if ends_only else "\n"
        with show_count("problems read", quiet=as_json) as progress:
            fitting = fit_to(
                known,
                _roots(lm),
                boundary=boundary,
                fingerprint=lm.fingerprint,
                progress=progress,
            )
            head, states = lm.run(fitting)
    head.save(out)
    if as_json:
        print_json({"head": str(out), "records": len(known), "states": states, "auc": head.auc})
    else:
        print(f"{out}: fitted to {states} states of {len(known)} solutions")
        print(f"AUC on problems held out: {_number(head.auc)}")


@app.command()
def judge_report(
    records: Records,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", "-j", help="May be given several times. `anabranch judges` lists them all."
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    at: Annotated[float, typer.Option(help="Share of each solution that is shown.")] = 1.0,
    seed: Seed = 0,
    threads: Threads = None,
    kv: KV = "f32",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    offline: Offline = False,
) -> None:
    """How well judges tell right solutions from wrong ones. An AUC of 0.5 is worth nothing.

    Take other solutions than those that a judge was fitted to.
    """
    known = read_records(records)
    asked = [parse(text).make() for text in judge or ("likelihood", "self_rating")]
    with (
        load_model(model, threads=threads, kv=kv, offline=offline, quiet=as_json) as lm,
        show_count("problems judged", quiet=as_json) as progress,
    ):
        measuring = measure(asked, known, _roots(lm), at=at, seed=seed, progress=progress)
        reports = lm.run(measuring)
    if as_json:
        print_json([dataclasses.asdict(report) for report in reports])
        return
    first = reports[0]
    print(f"{first.count} solutions, {first.right} of them right")
    columns = (
        "AUC",
        "95% interval",
        "within",
        "calibration",
        "Brier",
        "unknown",
        "tokens",
        "judge",
    )
    print_table(columns, [_row(report) for report in reports])
    for report in reports:
        for remark in report.remarks:
            print(f"{report.judge}: {remark}")


def _roots(lm: LM) -> RootOf:
    def root(problem: Problem, run: Run) -> Branch:
        return lm.engine.open(messages(problem), seed=run.seed, run=run)

    return root


def _row(report: Report) -> tuple[str, ...]:
    return (
        _number(report.auc),
        f"{_number(report.auc_low)} to {_number(report.auc_high)}",
        _number(report.auc_within),
        _number(report.calibration_error),
        _number(report.brier),
        f"{report.unknown:.0%}",
        f"{report.tokens:.0f}",
        report.judge,
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"

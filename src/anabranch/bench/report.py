"""All that the bench found, as one page that needs nothing else, and as files for other programs.

What models wrote is shown, never obeyed: it is escaped in HTML, rid of what steers text, cut where
it is long, and enters the page's script as data; the page allows no script but its own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anabranch.bench import plots
from anabranch.bench.analyses import analyse, findings
from anabranch.bench.attempts import Attempt, Attempts
from anabranch.bench.intervals import Difference, Estimate
from anabranch.bench.tables import Column, Table, plain, written
from anabranch.errors import AnabranchError, InputError, ResourceError
from anabranch.program.clean import clean
from anabranch.program.trace import read_trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TEXT, MAX_SAMPLE, MAX_BRANCH = 4000, 1200, 400
"""Longest texts of an answer, a candidate and a branch on the page, in characters."""

MAX_BRANCHES = 300
"""Of one tree on the page."""

MAX_DETAIL = 24_000_000
"""Characters of texts on the page; from there on problems are listed without them."""


def write_report(
    attempts: Sequence[Attempt],
    folder: Path | str,
    *,
    title: str = "Which way of thinking is worth its compute",
    provenance: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write `report.html`, `report.json` (the same tables), `frontier.png` and `frontier.svg`.

    Args:
        folder: made if it is not there; files of these names are replaced.
        provenance: what brings the runs back: versions, machine, command.

    Returns:
        The files written.

    Raises:
        InputError: there are no attempts, or the folder cannot be made.
        ResourceError: a file cannot be written.
        UnsupportedError: matplotlib is not installed.
    """
    grouped, folder = Attempts(attempts), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder cannot be made: {error.strerror}", got=str(folder), fix="name another one"
        ) from error
    tables = analyse(grouped)
    words = findings(grouped)
    told = {key: str(value) for key, value in (provenance or {}).items()}
    found = {
        "title": title,
        "provenance": told,
        "findings": words,
        "tables": {table.key: table.as_json() for table in tables},
    }
    figures = plots.figures(grouped)
    page = render(grouped, tables, figures, words, title=title, provenance=told)
    files = {
        "report.html": page.encode(),
        "report.json": (json.dumps(found, indent=2, allow_nan=False) + "\n").encode(),
        "frontier.png": plots.as_file(figures["conditions"], "png"),
        "frontier.svg": plots.as_file(figures["conditions"], "svg"),
    }
    return [_save(folder / name, content) for name, content in files.items()]


def _save(path: Path, content: bytes) -> Path:
    """Write a file as a whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ResourceError(
            f"the report cannot be written: {error.strerror}",
            got=str(path),
            fix="make room, or name another folder",
        ) from error
    return path


# ---- the page ------------------------------------------------------------------------------------


_FIGURES = {
    "conditions": "Accuracy against tokens and seconds",
    "coverage": "Coverage against the number of candidates",
    "calibration": "Accuracy against confidence",
    "complexity": "Accuracy against difficulty",
}


def render(
    attempts: Attempts,
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
    words: Sequence[str],
    *,
    title: str,
    provenance: Mapping[str, str],
) -> str:
    """The page as text."""
    style, script = _resource("report.css"), _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    drawn = {
        key: f"<figure>{plots.inline(figure, key, _FIGURES[key])}</figure>"
        for key, figure in figures.items()
    }
    sections = [_section(table, drawn.get(table.key, "")) for table in tables]
    links = [(table.key, table.title) for table in tables]
    links += [("problems", "Problem by problem"), ("provenance", "How this was made")]
    nav = "".join(f'<a href="#{key}">{_escape(name)}</a>' for key, name in links)
    lead = "".join(f"<li>{_escape(line)}</li>" for line in words)
    models = ", ".join(dict.fromkeys(a.model for a in attempts.all if a.model))
    count = (
        f"{len(attempts.by_condition)} conditions, {len(attempts.by_problem()):,} problems, "
        f"{len(attempts.all):,} attempts"
    )
    about = _escape(" · ".join(part for part in (models, count) if part))
    data, remark = _data(attempts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{_escape(title)}</h1>
<p class="muted">{about}</p>
<ul class="lead">{lead}</ul>
<nav aria-label="Sections">{nav}</nav>
</header>
<main>
{"".join(sections)}
{_problems(attempts, remark)}
{_provenance(attempts, provenance)}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return resources.files("anabranch.bench").joinpath(name).read_text(encoding="utf-8")


def _escape(text: object) -> str:
    return html.escape(clean(str(text)))


def _section(table: Table, figure: str) -> str:
    heads = "".join(map(_head, table.columns))
    rows = "".join(
        "<tr>" + "".join(map(_cell, row, table.columns, _shades(table, row))) + "</tr>"
        for row in table.rows
    )
    name = "sortable heat" if table.heat else "sortable"
    title = _escape(table.title)
    return f"""<section id="{table.key}">
<h2>{title}</h2>
<p class="about">{_escape(table.about)}</p>
{figure}
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="{name}">
<thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table></div>
</section>
"""


def _head(column: Column) -> str:
    kind = ' class="text"' if column.kind == "text" else ""
    about = f' title="{_escape(column.about)}"' if column.about else ""
    name = _escape(_cut(column.name, 40)).replace("(", "<wbr>(")
    return f'<th scope="col"{kind}><button type="button"{about}>{name}</button></th>'


def _shades(table: Table, row: Sequence[Any]) -> Iterable[float | None]:
    for value in row:
        yield value.value if table.heat and isinstance(value, Estimate) else None


def _cell(value: Any, column: Column, shade: float | None) -> str:
    key = plain(value)
    if isinstance(key, dict):
        key = key["value"]
    if isinstance(value, (Estimate, Difference)):
        first, _, rest = written(value, column.kind).partition(" ")
        inside = f'{_escape(first)}<span class="interval">{_escape(rest.strip("()"))}</span>'
    else:
        inside = _escape(_cut(written(value, column.kind), 60))
    sort = "" if key is None else key
    style = f' style="--v:{shade:.3f}"' if shade is not None else ""
    tag, scope = ("th", ' scope="row"') if column.name == "condition" else ("td", "")
    kind = ' class="text"' if column.kind == "text" else ""
    return f'<{tag}{scope}{kind}{style} data-v="{_escape(_cut(str(sort), 200))}">{inside}</{tag}>'


def _problems(attempts: Attempts, remark: str) -> str:
    tasks = "".join(
        f'<option value="{_escape(task)}">{_escape(_cut(attempts.shown[task], 40))}</option>'
        for task in attempts.tasks
    )
    return f"""<section id="problems">
<h2>Problem by problem</h2>
<p class="about">Choose a problem to see every answer, its candidates, and the tree where one was
kept. {_escape(remark)}</p>
<div class="filters">
<select id="task" aria-label="Task"><option value="">all tasks</option>{tasks}</select>
<select id="outcome" aria-label="Outcome"><option value="all">all outcomes</option>
<option value="mixed">solved by some</option><option value="none">solved by none</option>
<option value="every">solved by all</option></select>
<input id="search" type="search" placeholder="search questions" aria-label="Search questions">
<span id="count" class="muted" role="status"></span>
</div>
<div class="drill"><div class="list" id="list" aria-label="Problems"></div>
<div id="detail" aria-live="polite"></div></div>
<noscript><p>The list of problems needs scripts; the tables above do not.</p></noscript>
</section>
"""


def _provenance(attempts: Attempts, provenance: Mapping[str, str]) -> str:
    told = dict(provenance)
    for name, own in attempts.by_condition.items():
        first = own[0]
        parts = (first.strategy, first.budget, first.model)
        told[name] = ", ".join(part for part in parts if part)
    rows = "".join(
        f"<dt>{_escape(_cut(key, 80))}</dt><dd>{_escape(_cut(value, 2000))}</dd>"
        for key, value in told.items()
    )
    return f"""<section id="provenance">
<h2>How this was made</h2>
<p class="about">Every run can be made again from its seed: the same model, strategy, problem and
seed give the same tokens.</p>
<dl>{rows}</dl>
</section>
"""


# ---- problem by problem --------------------------------------------------------------------------


def _data(attempts: Attempts) -> tuple[str, str]:
    """What the page's script reads, as JSON that cannot end its element; and what was left out."""
    index = {name: i for i, name in enumerate(attempts.by_condition)}
    crowd = attempts.crowd[0] if len(index) > 1 else {}
    room, bare, problems = MAX_DETAIL, 0, []
    for place, own in attempts.by_problem().items():
        runs = [_run(attempt, index[attempts.label(attempt)]) for attempt in own]
        size = sum(_size(run) for run in runs)
        if size > room:
            runs = [run | {"text": "", "samples": [], "tree": None} for run in runs]
            bare += 1
        else:
            room -= size
        result = crowd.get(place)
        problems.append(
            {
                "task": clean(place[0]),
                "name": _cut(attempts.shown[place[0]], 40),
                "number": place[1],
                "question": _cut(own[0].question, MAX_SAMPLE),
                "gold": _cut(own[0].gold, 200),
                "crowd": result
                and {
                    "answer": _cut(result.answer or "nothing", 200),
                    "runner_up": result.runner_up and _cut(result.runner_up, 200),
                    "confidence": result.confidence,
                },
                "runs": runs,
            }
        )
    names = [_cut(name, 80) for name in index]
    text = json.dumps({"conditions": names, "problems": problems}, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    remark = f"To keep the page small, {bare} problems come without texts." if bare else ""
    return text, remark


def _run(attempt: Attempt, condition: int) -> dict[str, Any]:
    return {
        "condition": condition,
        "seed": attempt.seed,
        "right": bool(attempt.right),
        "answer": _cut(attempt.answer, 200),
        "confidence": _finite(attempt.confidence) or 0.0,
        "tokens": attempt.usage.sampled_tokens,
        "seconds": _finite(attempt.usage.seconds) or 0.0,
        "text": _cut(attempt.text, MAX_TEXT),
        "notes": [_cut(note, 300) for note in attempt.notes],
        "samples": [
            {
                "answer": None if sample.answer is None else _cut(sample.answer, 200),
                "right": bool(sample.right),
                "weight": _finite(sample.weight) or 0.0,
                "tokens": sample.tokens,
                "text": _cut(sample.text, MAX_SAMPLE),
            }
            for sample in attempt.samples
        ],
        "tree": _tree(attempt.trace) if attempt.trace else None,
    }


def _tree(path: str) -> dict[str, Any]:
    """A saved tree, or why there is none."""
    try:
        tree = read_trace(path)
    except AnabranchError as error:
        return {"fault": _cut(str(error), 300)}
    branches = list(tree.branches.values())
    # What leads to the answer comes first when there is no room for all; order is kept.
    chosen = {b.id for b in sorted(branches, key=lambda b: not b.kept)[:MAX_BRANCHES]}
    return {
        "left_out": len(branches) - len(chosen),
        "branches": [
            {
                "id": _cut(branch.id, 60),
                "parent": None if branch.parent is None else _cut(branch.parent, 60),
                "tokens": branch.sampled_tokens,
                "logp": None if branch.mean_logp is None else _finite(branch.mean_logp),
                "answer": None if branch.answer is None else _cut(branch.answer, 100),
                "kept": branch.kept,
                "dropped": branch.dropped and _cut(branch.dropped, 60),
                "text": _cut(branch.text, MAX_BRANCH),
            }
            for branch in branches
            if branch.id in chosen
        ],
    }


def _size(run: Mapping[str, Any]) -> int:
    """Characters of a run's texts, nearly."""
    size = len(run["text"]) + sum(len(sample["text"]) + 80 for sample in run["samples"])
    return size + sum(
        len(branch["text"]) + 120 for branch in (run["tree"] or {}).get("branches", ())
    )


def _cut(text: str, most: int) -> str:
    """The beginning of a text, made harmless, and a word on what is missing."""
    if len(text) <= most:
        return clean(text)
    return f"{clean(text[:most])} … ({len(text) - most:,} characters more)"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

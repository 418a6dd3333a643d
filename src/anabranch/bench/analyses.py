"""From attempts to tables: one function an analysis, listed in `ANALYSES`.

An analysis that has nothing to say of these attempts (one seed, no difficulty) returns None.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anabranch.bench import flaws, repeats
from anabranch.bench.attempts import (
    Attempt,
    Attempts,
    Sample,
    confident,
    places,
    right,
    series,
    used,
)
from anabranch.bench.bounds import bounds
from anabranch.bench.coverage import PowerLaw, fit_power_law, ks, pass_at_k
from anabranch.bench.curves import Level, against_length, by_level, collapse, per_move
from anabranch.bench.holdout import Guard
from anabranch.bench.intervals import Estimate, codes, difference, mean, share
from anabranch.bench.optimal import choose
from anabranch.bench.summary import marked, measure, paired
from anabranch.bench.tables import Column, Table, written
from anabranch.errors import InputError

SURE = 0.5
"""Confidence from which an answer counts as accepted by its own strategy."""

LEVELS = 3
"""Of difficulty, by thirds of the problems, among which choices are made."""

# ---- accuracy and cost ---------------------------------------------------------------------------


def conditions(attempts: Attempts) -> Table:
    """Accuracy and cost of each condition."""
    base, first = next(iter(attempts.comparable.items()))
    lines = [measure(own, first) for own in attempts.comparable.values()]
    if attempts.alike:
        lines = marked(lines)
        over = "Means per attempt at what every condition has tried"
    else:
        over = "Means per attempt, of different problems, so that there is no frontier"
    guard = Guard()
    rows = [
        (
            name,
            line.accuracy,
            line.gain,
            _guarded(guard, own),
            line.charged,
            line.computed,
            line.passes,
            line.seconds,
            None if line.flops is None else line.flops / 1e9,
            line.prefix,
            len(set(places(own))),
            " and ".join(line.cheapest),
        )
        for (name, own), line in zip(attempts.comparable.items(), lines, strict=True)
    ]
    return Table(
        "conditions",
        "Accuracy and cost",
        f"{over}; 95% intervals treat problems, not attempts, as independent. Gains "
        f"are paired by problem and seed with {base}. The frontier holds what nothing cheaper "
        f"matches, in tokens or in time.",
        (
            Column("condition"),
            Column("accuracy", "share"),
            Column("gain", "points", f"percentage points over {base}"),
            Column(
                "guarded",
                "share",
                "accuracy on one half of the problems, or where the other half disagrees the one "
                "there, with a little noise: the best of many conditions looks better than it is",
            ),
            Column("tokens", "count", "charged: of the prompt, sampled and forced"),
            Column("computed", "count", "tokens run through the model"),
            Column("passes", "count", "forward passes taken part in"),
            Column("seconds", "number", "its share of the time of passes"),
            Column("GFLOPs", "count", "2 x parameters x computed tokens, attention left out"),
            Column("prefix", "share", "share of the steps before the first wrong one"),
            Column("problems", "count"),
            Column("frontier"),
        ),
        rows,
    )


def _guarded(guard: Guard, own: Sequence[Attempt]) -> float | None:
    """What the guard says of a condition's accuracy; the halves are even and odd problems."""
    halves = [[a.right for a in own if a.problem % 2 == odd] for odd in (0, 1)]
    if not all(halves):
        return None
    try:
        return min(1.0, max(0.0, guard.mean(*halves)))
    except InputError:  # its budget is used up
        return None


def by_task(attempts: Attempts) -> Table:
    """Accuracy of each condition on each task."""
    rows = []
    for name, own in attempts.by_condition.items():
        cells: list[Any] = [name]
        for task in attempts.tasks:
            on_task = [attempt for attempt in own if attempt.task == task]
            cells.append(share(right(on_task), places(on_task)) if on_task else None)
        rows.append(cells)
    return Table(
        "tasks",
        "Task by task",
        "Accuracy, shaded by value.",
        (Column("condition"), *(Column(attempts.shown[task], "share") for task in attempts.tasks)),
        rows,
        heat=True,
    )


def findings(attempts: Attempts) -> list[str]:
    """What the accuracies say in words: who leads, who may be as good, and which of them is
    cheapest."""
    if not attempts.alike:
        return ["The conditions were tried on different problems: see them task by task."]
    ranked = sorted(attempts.comparable.items(), key=lambda item: -right(item[1]).mean())
    best, own = ranked[0]
    tokens = {name: float(used(got, "charged_tokens").mean()) for name, got in ranked}
    found = share(right(own), places(own))
    told = [
        f"{best} is right most often: {written(found, 'share')} at {tokens[best]:,.0f} tokens "
        "a problem."
    ]
    if len(ranked) == 1:
        return told
    behind = {name: paired(own, got) for name, got in ranked[1:]}
    near = [name for name, gap in behind.items() if gap is None or gap.low <= 0]
    if not near:
        return [*told, "It is better than every other condition, beyond chance."]
    told.append(f"These runs cannot tell it from {_listed(near)}.")
    cheapest = min([best, *near], key=lambda name: tokens[name])
    if cheapest != best:
        told.append(f"The cheapest of them is {cheapest}: {tokens[cheapest]:,.0f} tokens.")
    return told


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


# ---- samples -------------------------------------------------------------------------------------


def pools(own: Sequence[Attempt]) -> dict[tuple[str, int], list[Sample]]:
    """The candidates of each problem, those of all seeds together."""
    found: dict[tuple[str, int], list[Sample]] = {}
    for attempt in own:
        found.setdefault(attempt.place, []).extend(attempt.pool)
    return found


def coverage_curve(own: Sequence[Attempt]) -> list[tuple[int, Estimate]]:
    """Coverage at 1, 2, 4, ... samples, up to as many as every problem has."""
    samples = list(pools(own).values())
    counts = [sum(sample.right for sample in pool) for pool in samples]
    drawn = [len(pool) for pool in samples]
    return [(k, mean(pass_at_k(counts, drawn, k))) for k in ks(min(drawn))]


def power_law(curve: Sequence[tuple[int, Estimate]]) -> PowerLaw | None:
    """The power law through a coverage curve."""
    return fit_power_law([k for k, _ in curve], [covered.value for _, covered in curve])


def coverage(attempts: Attempts) -> Table | None:
    """What samples hold, and what the strategy makes of them."""
    rows = []
    for name, own in attempts.by_condition.items():
        curve = coverage_curve(own)
        if curve[-1][0] < 2:
            continue
        limits = np.array([bounds(*_marks(attempt.pool)) for attempt in own])
        gap = difference(limits[:, 3], right(own), places(own))
        law = power_law(curve)
        fitted = (law.a, law.b, max(map(abs, law.residuals))) if law else (None, None, None)
        selected = float(right(own).mean())
        rows.append(
            (name, curve[-1][0], *map(float, limits.mean(0)), selected, gap, curve[-1][1], *fitted)
        )
    if not rows:
        return None
    return Table(
        "coverage",
        "What samples hold",
        "Ways to choose among the candidates of one attempt, and the gap between the best there "
        "is and the one that was chosen. Coverage is the chance that one of k candidates, of all "
        "seeds, is right; exp(a·k^b) is fitted to it. Candidates of a search are not independent.",
        (
            Column("condition"),
            Column("k", "count"),
            Column("worst", "share"),
            Column("mean", "share"),
            Column("majority", "share"),
            Column("best", "share"),
            Column("selected", "share"),
            Column("gap", "points", "best minus selected"),
            Column("coverage", "share", "at k"),
            Column("a", "number"),
            Column("b", "number"),
            Column("residual", "points", "largest distance of the fit from the measurement"),
        ),
        rows,
    )


def _marks(pool: Sequence[Sample]) -> tuple[list[str | None], list[bool]]:
    return [sample.answer for sample in pool], [sample.right for sample in pool]


# ---- confidence ----------------------------------------------------------------------------------


def calibration(attempts: Attempts) -> Table | None:
    """How far confidence can be trusted."""
    rows = []
    for name, found in attempts.reliability.items():
        own = confident(attempts.by_condition[name])
        area = None
        if found.auc is not None and found.auc_low is not None and found.auc_high is not None:
            area = Estimate(found.auc, found.auc_low, found.auc_high)
        stated = statistics.fmean(attempt.confidence for attempt in own)
        rows.append(
            (name, stated, float(right(own).mean()), found.calibration_error, found.brier, area)
        )
    if not rows:
        return None
    return Table(
        "calibration",
        "Confidence",
        "What strategies think of their answers, against the truth. An area of 0.5 is worth "
        "nothing.",
        (
            Column("condition"),
            Column("confidence", "share", "mean"),
            Column("accuracy", "share"),
            Column("calibration error", "share", "expected, over ten bins of equal width"),
            Column("Brier score", "number"),
            Column("AUC", "number", "chance that a right answer is the more confident one"),
        ),
        rows,
    )


def retries(attempts: Attempts) -> Table | None:
    """What asking again until the strategy is sure could reach."""
    rows = []
    for name in attempts.reliability:
        own = confident(attempts.by_condition[name])
        accepted = [attempt.confidence >= SURE for attempt in own]
        if len(set(accepted)) < 2:
            continue
        true, false = flaws.rates(accepted, right(own), codes(places(own)))
        if true is None or false is None:
            continue
        verifier = flaws.Verifier(true.value, false.value)
        chances = _solve_rates(own)
        after = verifier.after(chances, [1, 5])[0]
        best = verifier.best_tries(chances, most=100)[0]
        rows.append((name, true, false, *map(float, after), verifier.ceiling(chances), best))
    if not rows:
        return None
    return Table(
        "retries",
        "Asking again until it is sure",
        f"The strategy's own confidence, from {SURE:.0%} on, as a verifier that errs: whatever it "
        "wrongly accepts bounds what any number of tries can reach.",
        (
            Column("condition"),
            Column("true positives", "share", "right answers accepted"),
            Column("false positives", "share", "wrong answers accepted"),
            Column("1 try", "share"),
            Column("5 tries", "share"),
            Column("ceiling", "share", "with any number of tries"),
            Column("best tries", "count", "where a wrong answer costs what a right one is worth"),
        ),
        rows,
    )


def _solve_rates(own: Sequence[Attempt]) -> list[float]:
    """Accuracy by problem; one for all where fewer than 4 seeds make that a coin."""
    marks: dict[tuple[str, int], list[bool]] = {}
    for attempt in own:
        marks.setdefault(attempt.place, []).append(attempt.right)
    if min(map(len, marks.values())) < 4:
        return [float(right(own).mean())]
    return [statistics.fmean(found) for found in marks.values()]


# ---- difficulty ----------------------------------------------------------------------------------


def by_difficulty(own: Sequence[Attempt], name: str) -> list[Level]:
    """Accuracy in a series of tasks by their difficulty; empty with fewer than two levels."""
    known = [a for a in own if a.difficulty is not None and series(a.task) == name]
    if len({attempt.difficulty for attempt in known}) < 2:
        return []
    at = [attempt.difficulty for attempt in known]
    return by_level(at, right(known), codes(places(known)))


def complexity(attempts: Attempts) -> Table | None:
    """Where each condition collapses as problems grow harder."""
    rows = []
    for task in attempts.series:
        for name, own in attempts.by_condition.items():
            levels = by_difficulty(own, task)
            if not levels:
                continue
            known = [
                (a.difficulty, a.right) for a in own if a.difficulty and series(a.task) == task
            ]
            single = per_move(*zip(*known, strict=True)) if levels[0].at > 0 else None
            ends = levels[0].right, levels[-1].right
            rows.append((task, name, len(levels), *ends, collapse(levels), single))
    if not rows:
        return None
    return Table(
        "complexity",
        "As problems grow harder",
        "Collapse: the difficulty at which accuracy has fallen to half of what it is at the "
        "easiest level. Per move: the accuracy of one move if a difficulty of d meant d moves, "
        "all of which must be right.",
        (
            Column("task"),
            Column("condition"),
            Column("levels", "count"),
            Column("easiest", "share"),
            Column("hardest", "share"),
            Column("collapse", "number"),
            Column("per move", "share"),
        ),
        rows,
    )


def voters(attempts: Attempts) -> Table | None:
    """How reliable the conditions find each other."""
    if len(attempts.by_condition) < 3:
        return None
    results, reliability = attempts.crowd
    solved = {
        place: [a.answer for a in own if a.right] for place, own in attempts.by_problem().items()
    }
    agreed = [results[place].answer in answers for place, answers in solved.items() if answers]
    told = (
        f" They agree on the right answer in {statistics.fmean(agreed):.0%} of the problems that "
        "any of them solves."
        if agreed
        else ""
    )
    rows = [
        (name, reliability[name], float(right(own).mean()))
        for name, own in attempts.by_condition.items()
    ]
    return Table(
        "voters",
        "Who is to be relied on",
        "What the answers alone show, without knowing the right ones: the chance that a condition "
        "does not merely guess, from how it agrees with all others." + told,
        (Column("condition"), Column("reliability", "share"), Column("accuracy", "share")),
        rows,
    )


def optimal(attempts: Attempts) -> Table | None:
    """What to run at which difficulty for a budget, tested on problems held out."""
    groups = attempts.comparable
    tried = set(places([a for own in groups.values() for a in own]))
    if not attempts.alike or len(groups) < 2 or len(tried) < 4 * LEVELS:
        return None
    results, _ = attempts.crowd
    order = sorted(tried, key=lambda place: results[place].confusion)
    level = {place: i * LEVELS // len(order) for i, place in enumerate(order)}
    runs = [(name, attempt) for name, own in groups.items() for attempt in own]
    tokens = used([attempt for _, attempt in runs], "charged_tokens")
    means = {name: float(used(own, "charged_tokens").mean()) for name, own in groups.items()}
    rows: list[tuple[Any, ...]] = []
    for budget in sorted(set(means.values())):
        found = choose(
            [name for name, _ in runs],
            [attempt.place for _, attempt in runs],
            [level[attempt.place] for _, attempt in runs],
            tokens,
            [attempt.right for _, attempt in runs],
            budget=budget,
        )
        if found is None:
            continue
        chosen = [choice.condition for choice in found.choices]
        row = (budget, *chosen, found.held_out, found.tokens, found.fixed, found.gain)
        if not rows or row[1:5] != rows[-1][1:5] or found.fixed != rows[-1][-2]:
            rows.append(row)
    if not rows:
        return None
    return Table(
        "optimal",
        "What to run at which difficulty",
        "Difficulty is read off the answers of all conditions (how torn those are who do not "
        "guess), not off the right ones. Accuracies are of problems that took no part in choosing.",
        (
            Column("budget", "count", "mean tokens sampled a problem"),
            Column("easy"),
            Column("middle"),
            Column("hard"),
            Column("accuracy", "share", "on problems held out"),
            Column("tokens", "count", "really spent"),
            Column("best for all"),
            Column("gain", "points", "over one condition for all, chosen in the same way"),
        ),
        rows,
    )


# ---- length, repeats -----------------------------------------------------------------------------


def lengths(attempts: Attempts) -> Table | None:
    """Whether longer thoughts are worse."""
    rows = []
    for name, own in attempts.by_condition.items():
        samples = [(p, s) for p, pool in pools(own).items() for s in pool if s.tokens > 0]
        if not samples:
            continue
        found = against_length(
            [s.tokens for _, s in samples], [s.right for _, s in samples], [p for p, _ in samples]
        )
        if found.slope is None or len(found.levels) < 2:
            continue
        first, last = found.levels[0], found.levels[-1]
        rows.append((name, first.at, first.right, last.at, last.right, found.slope, found.p_value))
    if not rows:
        return None
    return Table(
        "lengths",
        "As thoughts grow longer",
        "Candidates by length. The slope compares candidates of the same problem, as hard "
        "problems are both long and wrong; p is the chance of so steep a fall if length meant "
        "nothing.",
        (
            Column("condition"),
            Column("short", "count", "mean tokens of the shortest fifth"),
            Column("accuracy when short", "share"),
            Column("long", "count", "mean tokens of the longest fifth"),
            Column("accuracy when long", "share"),
            Column("slope", "points", "percentage points for twice the length"),
            Column("p", "p"),
        ),
        rows,
    )


def repeated(attempts: Attempts) -> Table | None:
    """Whether the same runs came out the same in every take."""
    takes = [{a.run: a for a in own} for own in attempts.takes.values()]
    shared = [run for run in takes[0] if all(run in take for take in takes)]
    if len(takes) < 2 or not shared:
        return None
    groups: dict[str, list[Any]] = {}
    for run in shared:
        groups.setdefault(attempts.label(takes[0][run]), []).append(run)
    rows = []
    for name, runs in groups.items():
        texts = [[take[run].text or take[run].answer for run in runs] for take in takes]
        found = repeats.compare(texts, [[take[run].right for run in runs] for take in takes])
        first = statistics.median(found.first) if found.first else None
        rows.append((name, found.runs, found.identical, first, found.flips, found.spread))
    names = ", ".join(take or "the first" for take in attempts.takes)
    return Table(
        "repeats",
        "The same again",
        f"Runs with the same seed in several takes: {names}.",
        (
            Column("condition"),
            Column("runs", "count"),
            Column("identical", "share"),
            Column("parts at", "count", "median letter at which texts that differ do so first"),
            Column("flips", "share", "right in one take and wrong in another"),
            Column("spread", "points", "highest minus lowest accuracy"),
        ),
        rows,
    )


ANALYSES: tuple[Callable[[Attempts], Table | None], ...] = (
    conditions,
    by_task,
    coverage,
    calibration,
    retries,
    complexity,
    optimal,
    voters,
    lengths,
    repeated,
)


def analyse(attempts: Attempts) -> list[Table]:
    """Every analysis that has something to say."""
    found = (analysis(attempts) for analysis in ANALYSES)
    return [table for table in found if table is not None]

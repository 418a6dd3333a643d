"""Curves of the bench, drawn by matplotlib: for files, and for the page that holds them all.

Nothing global is touched: figures are made without pyplot, and settings hold while one is saved.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from anabranch.bench.analyses import (
    by_difficulty,
    coverage_curve,
    power_law,
)
from anabranch.bench.attempts import Attempt, Attempts, places, right, used
from anabranch.bench.intervals import Estimate, share
from anabranch.bench.optimal import frontier
from anabranch.errors import UnsupportedError
from anabranch.program.clean import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAGE = "#1d1d20", "#74747b", "#d9d9de", "#fefefe"
COLOURS = (
    "#2f6db3", "#c8641e", "#2f8a5b", "#a03c78", "#8a6d1b", "#5b57b8", "#b23a3a", "#24808a",
)  # fmt: skip
"""On white; the page gives each of them a name, and another value on black."""

_SCALE = 1.4  # pixels of the page to a point of a figure
_MOST_CURVES = 10  # in a figure; tables have them all
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anabranch",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
}
_UNITS = {"charged_tokens": "tokens per problem", "seconds": "seconds per problem"}


def frontiers(attempts: Attempts) -> Figure:
    """Accuracy against tokens and against seconds, with intervals; conditions of one strategy are
    joined, and what nothing cheaper matches is joined by a step line."""
    with _style():
        figure = _figure(10.4, 4.6)
        axes = figure.subplots(1, 2, sharey=True)
        colours = _families(attempts)
        names = [
            _frontier(axis, attempts, cost, colours)
            for axis, cost in zip(axes, _UNITS, strict=True)
        ]
        axes[0].set_ylabel("accuracy")
        # Names are placed once nothing moves any more.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axis, labels in zip(axes, names, strict=True):
            _place_labels(axis, labels)
        return figure


_Label = tuple[float, float, str, str]
"""Where a point is, what it is called, and its colour."""


def _frontier(axis: Axes, attempts: Attempts, cost: str, colours: dict[str, str]) -> list[_Label]:
    """Draw one panel; returns the names it still needs."""
    points: dict[str, tuple[float, Estimate]] = {}
    for name, own in attempts.comparable.items():
        spent = float(used(own, cost).mean())
        points[name] = max(spent, 1e-3), share(right(own), places(own))
    for family, colour in colours.items():
        mine = sorted(points[name] for name in points if _family(attempts, name) == family)
        across = [spent for spent, _ in mine]
        values = [found.value for _, found in mine]
        spans = [
            [found.value - found.low for _, found in mine],
            [found.high - found.value for _, found in mine],
        ]
        axis.errorbar(
            across, values, yerr=spans, color=colour, marker="o", markersize=5,
            linewidth=1.2, elinewidth=1, alpha=0.95,
        )  # fmt: skip
    if attempts.alike:
        at = list(points.values())
        edge = [at[i] for i in frontier([x for x, _ in at], [y.value for _, y in at])]
        axis.step(
            [*(spent for spent, _ in edge), max(spent for spent, _ in at)],
            [*(found.value for _, found in edge), edge[-1][1].value],
            where="post", color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1,
        )  # fmt: skip
    _logarithmic(axis)
    axis.set_xlabel(f"{_UNITS[cost]} (log)")
    axis.margins(x=0.22, y=0.1)
    _percent(axis)
    return [
        (spent, found.value, _short(name), colours[_family(attempts, name)])
        for name, (spent, found) in points.items()
    ]


def _place_labels(axis: Axes, labels: Sequence[_Label]) -> None:
    """Write names beside points, moved up or down until none covers another."""
    figure: Any = axis.figure
    scale = figure.dpi / 72
    points = [axis.transData.transform((x, y)) for x, y, _, _ in labels]
    reach = 4 * scale
    taken: list[tuple[float, ...]] = [
        (x - reach, y - reach, x + reach, y + reach) for x, y in points
    ]
    for x, y, text, colour in sorted(labels, key=lambda label: -label[1]):
        left, middle = axis.transData.transform((x, y))
        width, height = 5.2 * scale * len(text), 10.5 * scale
        for shift in sorted((k * 6 for k in range(-12, 13)), key=abs):
            for side in (1, -1):
                start = left + 7 * scale if side > 0 else left - 7 * scale - width
                box = (start, middle + (shift - 5) * scale, start + width, 0.0)
                box = (*box[:3], box[1] + height)
                if not any(_overlap(box, other) for other in taken) and _inside(axis, box):
                    break
            else:
                continue
            break
        else:
            continue  # no room: the table has its name
        taken.append(box)
        axis.annotate(
            text, (x, y), xytext=(7 * side, shift), textcoords="offset points", color=colour,
            fontsize=8.5, va="center", ha="left" if side > 0 else "right", zorder=3,
            bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 0.8},
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.7} if shift else None,
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inside(axis: Axes, box: tuple[float, ...]) -> bool:
    area = axis.get_window_extent()
    across = area.x0 <= box[0] and box[2] <= area.x1
    return bool(across and area.y0 <= box[1] and box[3] <= area.y1)


def coverages(attempts: Attempts) -> Figure | None:
    """Coverage over samples with its power law, and what the strategy selected."""
    curves = {name: coverage_curve(own) for name, own in attempts.by_condition.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 2}
    if not curves:
        return None
    with _style():
        figure = _figure(6.4, 3.9)
        axis = figure.subplots()
        for name, look in _looks(attempts, curves).items():
            curve = curves[name]
            at, values = [k for k, _ in curve], [found.value for _, found in curve]
            colour = look["color"]
            axis.fill_between(
                at, [e.low for _, e in curve], [e.high for _, e in curve], color=colour, alpha=0.08
            )
            law = power_law(curve)
            axis.plot(at, values, "o" if law else "o-", color=colour, markersize=4)
            if law is not None:
                fine = [at[-1] ** (i / 60) for i in range(61)]
                axis.plot(fine, law.at(fine), linewidth=1.2, **look)
            chosen = float(right(attempts.by_condition[name]).mean())
            drawn = min(len(attempt.pool) for attempt in attempts.by_condition[name])
            axis.plot([drawn], [chosen], "x", color=colour, markersize=5)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("candidates (log); ×: accuracy of what the strategy selected")
        axis.set_ylabel("coverage")
        _percent(axis)
        _legend(figure, axis)
        return figure


def _looks(attempts: Attempts, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of the most accurate conditions among those named: a colour a strategy,
    the same in all figures, and dashes where it occurs with several parameters."""
    colours, seen = _families(attempts), Counter[str]()
    looks: dict[str, dict[str, Any]] = {}
    for name, _ in _ranked(attempts):
        family = _family(attempts, name)
        if name in names and len(looks) < _MOST_CURVES:
            dashes = _DASHES[seen[family] % len(_DASHES)]
            looks[name] = {"color": colours[family], "linestyle": dashes, "label": _short(name)}
            seen[family] += 1
    return looks


def _legend(figure: Figure, axis: Axes, columns: int = 0) -> None:
    """The conditions drawn, beside one panel, or below several in so many columns."""
    handles, names = axis.get_legend_handles_labels()
    lines: list[Any] = list(handles)
    style: dict[str, Any] = {"frameon": False, "handlelength": 2.6}
    if columns:
        figure.legend(lines, names, loc="outside lower center", ncols=columns, **style)
    else:
        figure.legend(lines, names, loc="outside right center", **style)


def calibrations(attempts: Attempts) -> Figure | None:
    """How often answers are right, by how confident the strategy was of them."""
    found = {name: told.bins for name, told in attempts.reliability.items()}
    if not found:
        return None
    with _style():
        figure = _figure(5.2, 3.9)
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)))
        for name, look in _looks(attempts, found).items():
            bins = found[name]
            axis.plot(
                [b.rating for b in bins], [b.right for b in bins],
                marker="o", markersize=4, linewidth=1.2, **look,
            )  # fmt: skip
        axis.set_xlim(-0.03, 1.03)
        axis.set_xlabel("confidence")
        axis.set_ylabel("accuracy")
        axis.set_ylim(-0.03, 1.05)
        _percent(axis)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _legend(figure, axis)
        return figure


def complexities(attempts: Attempts) -> Figure | None:
    """Accuracy over difficulty, a panel for each series of tasks."""
    curves = {
        task: {
            name: levels
            for name, own in attempts.by_condition.items()
            if (levels := by_difficulty(own, task))
        }
        for task in attempts.series
    }
    curves = {task: found for task, found in curves.items() if found}
    if not curves:
        return None
    with _style():
        columns = min(3, len(curves))
        rows = -(-len(curves) // columns)
        figure = _figure(3.5 * columns, 2.8 * rows)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        looks = _looks(attempts, {name for found in curves.values() for name in found})
        for panel, (task, found) in zip(panels, curves.items(), strict=False):
            for name, look in looks.items():
                if name in found:
                    panel.plot(
                        [level.at for level in found[name]],
                        [level.right.value for level in found[name]],
                        marker="o", markersize=4, linewidth=1.2, **look,
                    )  # fmt: skip
            panel.set_title(_short(task))
            panel.set_ylim(-0.03, 1.05)
            panel.xaxis.get_major_locator().set_params(integer=True)
            _percent(panel)
        for panel in panels[len(curves) :]:
            panel.set_visible(False)
        _legend(figure, panels[0], columns=2 + columns)
        return figure


def _ranked(attempts: Attempts) -> list[tuple[str, list[Attempt]]]:
    return sorted(attempts.by_condition.items(), key=lambda item: -right(item[1]).mean())


# ---- saving --------------------------------------------------------------------------------------


def figures(attempts: Attempts) -> dict[str, Figure]:
    """Every figure there is data for, by the key of the table it goes with.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    drawn = {
        "conditions": frontiers,
        "coverage": coverages,
        "calibration": calibrations,
        "complexity": complexities,
    }
    found = {key: draw(attempts) for key, draw in drawn.items()}
    return {key: figure for key, figure in found.items() if figure is not None}


def as_file(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """A figure as a file, on white."""
    return _rendered(figure, kind, dpi=160, facecolor="white")


def inline(figure: Figure, name: str, label: str) -> str:
    """A figure as SVG for a page whose style sheet names the colours.

    Args:
        name: sets the ids of this figure apart from those of others on the page.
        label: what it shows, for those who cannot see it.
    """
    text = _rendered(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'(?<= id=")|(?<=="#)|(?<=url\(#)', f"{name}-", text)
    names = {INK: "ink", MUTED: "muted", LINE: "line", PAGE: "page"}
    names |= {colour: f"c{i}" for i, colour in enumerate(COLOURS)}
    for colour, word in names.items():
        text = text.replace(colour, f"var(--{word})")
    width = round(_SCALE * 72 * figure.get_figwidth())
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    told = f'role="img" aria-label="{label}" style="max-width:{width}px"'
    return text.replace("<svg", f"<svg {told}", 1)


def _rendered(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with _style():
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, metadata=metadata, **options)
    return file.getvalue()


def _style() -> Any:
    matplotlib = _matplotlib()
    return matplotlib.rc_context(_SETTINGS)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UnsupportedError(
            "curves need matplotlib", fix="pip install 'anabranch[bench]'"
        ) from None
    return matplotlib


def _figure(width: float, height: float) -> Figure:
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _logarithmic(axis: Axes) -> None:
    """Ticks at 1, 2, 3 and 5 times powers of ten, written as people write numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _percent(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value < 1.001 else "")
    axis.grid(visible=False, axis="x")


def _family(attempts: Attempts, name: str) -> str:
    """The strategy without its parameters and budget."""
    return attempts.by_condition[name][0].strategy.partition("(")[0]


def _families(attempts: Attempts) -> dict[str, str]:
    """A colour for each strategy, those on the frontier first, then the most accurate; grey when
    colours run out."""
    ranked = _ranked(attempts)
    cost = [float(used(own, "charged_tokens").mean()) for _, own in ranked]
    best = frontier(cost, [float(right(own).mean()) for _, own in ranked])
    order = [ranked[i][0] for i in best[::-1]] + [name for name, _ in ranked]
    names = dict.fromkeys(_family(attempts, name) for name in order)
    palette = [*COLOURS, *[MUTED] * len(names)]
    return dict(zip(names, palette, strict=False))


def _short(name: str, most: int = 28) -> str:
    line = clean(" ".join(name.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"

"""Draw what `engine.py --peers --json FILE` wrote: `plot.py FILE PICTURE` (needs matplotlib)."""

import json
import re
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main(figures: str, picture: str) -> None:
    with open(figures) as file:
        record = json.load(file)
    models = record["models"]
    sheet, axes = pyplot.subplots(len(models), 4, figsize=(20, 4.5 * len(models)), squeeze=False)
    for line, (name, model) in zip(axes, models.items(), strict=True):
        rates(line[0], name, model["rows"])
        times(line[1], model["rows"])
        prefixes = [curve for curve in model["curves"] if curve.startswith("prefix")]
        growth(line[2], model["curves"], prefixes, "tokens of shared prefix")
        growth(line[3], model["curves"], ["branches", "depth"], "branches; forks above the branch")
    sheet.suptitle(f"{record['machine']}, {record['commit']}")
    sheet.tight_layout()
    sheet.savefig(picture, dpi=100)


def rates(axis: Any, name: str, rows: list[dict[str, Any]]) -> None:
    """Decode speed by branches, a line for each engine."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["unit"] == "tokens/s" and (count := re.match(r"(\d+) branch", row["what"])):
            for engine, rate in row["figures"].items():
                lines.setdefault(engine, []).append((int(count[1]), rate))
    for engine, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), "o-", label=engine)
    finish(axis, f"{short(name)}: branches under 256 tokens", "branches", "tokens/s", lines)


def times(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Wall time of tree work and of long prompts, a bar for each engine."""
    works = [row for row in rows if row["unit"] == "s" and row["point"] in (3, 4)]
    engines = sorted({engine for row in works for engine in row["figures"]})
    for i, engine in enumerate(engines):
        at = [k + i / (len(engines) + 1) for k in range(len(works))]
        axis.bar(
            at,
            [row["figures"].get(engine, 0) for row in works],
            1 / (len(engines) + 1),
            label=engine,
        )
    axis.set_xticks(range(len(works)), [row["what"] for row in works], fontsize=6)
    axis.set_yscale("log")
    finish(axis, "wall time", "", "s", works)


def growth(axis: Any, curves: dict[str, Any], names: list[str], unit: str) -> None:
    """Our time of a step by size."""
    for name in names:
        xs, ys = zip(*curves.get(name, [(0, 0)]), strict=True)
        axis.plot(xs, [1e3 * y for y in ys], "o-", label=name)
    axis.set_ylim(bottom=0)
    finish(axis, "anabranch: growth", unit, "ms a step", names)


def finish(axis: Any, title: str, across: str, up: str, drawn: Any) -> None:
    axis.set_title(title)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    if drawn:
        axis.legend(fontsize=7)


def short(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".gguf")


if __name__ == "__main__":
    main(*sys.argv[1:])

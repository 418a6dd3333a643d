"""Tables that print, sort and turn into JSON alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from anabranch.bench.intervals import Difference, Estimate

Kind = Literal["text", "share", "points", "count", "number", "p"]
"""How a column is written: as it is, in percent, in percentage points with a sign, in whole
numbers, with three digits, or as a p-value."""


@dataclass(frozen=True)
class Column:
    """A column's name, how its values are written, and what it means where the name is short."""

    name: str
    kind: Kind = "text"
    about: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        key: its name in JSON and in links.
        about: what a reader has to know, in a sentence or two.
        heat: shade its shares by value.
    """

    key: str
    title: str
    about: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]] = field(default_factory=list)
    heat: bool = False

    def as_json(self) -> list[dict[str, Any]]:
        """One object a row; an interval is an object of its own; None for what is unknown."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, map(plain, row), strict=True)) for row in self.rows]


def plain(value: Any) -> Any:
    """A cell as JSON has it."""
    if isinstance(value, (Estimate, Difference)):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def written(value: Any, kind: Kind) -> str:
    """A cell for a reader."""
    if value is None:
        return "–"
    if isinstance(value, (Estimate, Difference)):
        inner = f"{_figure(value.low, kind)} to {_figure(value.high, kind)}"
        return f"{_figure(value.value, kind)} ({inner})"
    return _figure(value, kind)


def _figure(value: Any, kind: Kind) -> str:
    return str(value) if kind == "text" else _number(value, kind).replace("-", "−")


def _number(value: float, kind: Kind) -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if kind == "share":
        return f"{100 * value:.1f}%"
    if kind == "points":
        return f"{100 * value:+.1f}"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"

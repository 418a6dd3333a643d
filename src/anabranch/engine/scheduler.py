"""Which waiting requests run in the next pass: pure policy, no tensor, no clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Waiting:
    """What a policy may know of one request.

    Attributes:
        ticket: order of arrival, unique.
        rows: rows it still needs before its next token.
        started: it has rows in the tree that would be lost if it were not continued.
        priority: higher first.
        deadline: seconds on the engine's clock, `inf` for none.
    """

    ticket: int
    rows: int
    started: bool
    priority: float
    deadline: float


@dataclass(frozen=True)
class Grant:
    """Leave to run up to `rows` rows for a request in the next pass."""

    ticket: int
    rows: int


class Policy(Protocol):
    """Turns a snapshot of what waits into grants, in the order pages are handed out."""

    def plan(self, waiting: Sequence[Waiting], rows: int) -> list[Grant]:
        """At most `rows` rows in all, at least one when anything waits."""
        ...


class DecodeFirst:
    """Continuous batching with chunked prefill (Sarathi-Serve, Agrawal et al. 2024, section 4).

    Requests that need one row are served first, so that a long prompt never stalls running
    branches; what is left of the pass is filled with chunks of prompts. Inside each class:
    priority, then deadline, then arrival; of equal priority, prompts that were begun come first.
    `prefill_share` of a pass is kept for prompts while any wait, so that many running branches
    cannot starve them.
    """

    def __init__(self, prefill_share: float = 0.25) -> None:
        self.prefill_share = prefill_share

    def plan(self, waiting: Sequence[Waiting], rows: int) -> list[Grant]:
        """See `Policy.plan`."""
        order = sorted(waiting, key=lambda w: (-w.priority, w.deadline, w.ticket))
        short = [w for w in order if w.rows <= 1]
        long = [w for w in order if w.rows > 1]
        reserved = min(int(rows * self.prefill_share), sum(w.rows for w in long))
        grants = [Grant(w.ticket, w.rows) for w in short[: rows - reserved]]
        left = rows - len(grants)
        for item in sorted(long, key=lambda w: (-w.priority, not w.started)):
            if left == 0:
                break
            grants.append(Grant(item.ticket, min(left, item.rows)))
            left -= grants[-1].rows
        return grants

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
        group: whose it is: those who share the engine fairly.
        served: rows that the group has had, since it last had nothing to do counted from the least
            of those that had.
        had: rows that its program has had.
    """

    ticket: int
    rows: int
    started: bool
    priority: float
    deadline: float
    group: str = ""
    served: float = 0.0
    had: int = 0


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


class FairShare:
    """Equal rows for every group that waits, and short passes for those who have just begun.

    Rows of a pass are shared out max-min (Bertsekas and Gallager 1992, Data networks, section
    6.5.2): nobody gets more than it can use, and what that leaves is shared again. Where rows do
    not divide, the group that has had the least comes first. Inside a group, programs that have
    just begun come first (feedback queues: Corbato et al. 1962, An experimental time-sharing
    system), so that short ones need not wait for long ones; half is kept for the others, who would
    starve if new ones kept coming. Apart from that the order is that of the policy underneath. A
    higher priority comes before all groups.

    Args:
        crowded: rows of a pass while more than one group waits. More rows make a pass longer, for
            those too who have only one in it. In a group alone, while some have just begun and some
            have not: likewise, or twice what the former can use if that is more.
        begun: rows that a program has had when it no longer counts as one that has just begun.
    """

    def __init__(self, inside: Policy | None = None, *, crowded: int = 32, begun: int = 32) -> None:
        self.inside = inside or DecodeFirst()
        self.crowded, self.begun = crowded, begun

    def plan(self, waiting: Sequence[Waiting], rows: int) -> list[Grant]:
        """See `Policy.plan`."""
        groups: dict[str, list[Waiting]] = {}
        for item in waiting:
            groups.setdefault(item.group, []).append(item)
        new, old = self._by_age(waiting)
        if len(groups) == 1 and not (new and old):
            return self.inside.plan(waiting, rows)
        grants: list[Grant] = []
        left = min(rows, self.crowded if len(groups) > 1 else max(self.crowded, 2 * demand(new)))
        for priority in sorted({item.priority for item in waiting}, reverse=True):
            level = [[i for i in items if i.priority == priority] for items in groups.values()]
            level = sorted(
                filter(None, level), key=lambda items: (items[0].served, items[0].ticket)
            )
            shares = share_out([demand(items) for items in level], left)
            for items, share in zip(level, shares, strict=True):
                grants += self._of_group(items, share)
            left -= sum(shares)
        return grants

    def _of_group(self, items: Sequence[Waiting], rows: int) -> list[Grant]:
        """Grants for all of so many rows."""
        new, old = self._by_age(items)
        odd = int(items[0].served) % 2  # of an odd number, or of one row, each has its turn
        of_old = min(demand(old), (rows + odd) // 2 if new else rows)
        of_new = min(demand(new), rows - of_old)
        return [
            grant
            for some, part in ((new, of_new), (old, rows - of_new))
            if part
            for grant in self.inside.plan(some, part)
        ]

    def _by_age(self, items: Sequence[Waiting]) -> tuple[list[Waiting], list[Waiting]]:
        """Those that have just begun, and the others."""
        new = [item for item in items if item.had < self.begun]
        return new, [item for item in items if item.had >= self.begun]


def demand(items: Sequence[Waiting]) -> int:
    """Rows that they can use."""
    return sum(max(1, item.rows) for item in items)


def share_out(wanted: Sequence[int], rows: int) -> list[int]:
    """Max-min fair shares: what cannot be divided goes to the first."""
    shares = [0] * len(wanted)
    short = [i for i, want in enumerate(wanted) if want]
    while short and rows >= len(short):
        level = rows // len(short)
        for i in short:
            part = min(wanted[i] - shares[i], level)
            shares[i] += part
            rows -= part
        short = [i for i in short if shares[i] < wanted[i]]
    for i in short[:rows]:
        shares[i] += 1
    return shares

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
        groups: whose it is: those who share the engine fairly, from the widest group to its own.
        served: rows that each of these has had, since it last had nothing to do counted from the
            least of those beside it that had.
    """

    ticket: int
    rows: int
    started: bool
    priority: float
    deadline: float
    groups: tuple[str, ...] = ("",)
    served: tuple[int, ...] = (0,)


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
    """Equal rows for every group that waits, and short passes while several do.

    Rows of a pass are shared out max-min (Bertsekas and Gallager 1992, Data networks, section
    6.5.2): nobody gets more than it can use, and what that leaves is shared again. Where rows do
    not divide, the group that has had the least comes first. What a group gets is shared out
    likewise between the groups in it (hierarchical fair queueing, Bennett and Zhang 1996). Inside
    the smallest the order is that of the policy underneath. A higher priority comes before all
    groups.

    Args:
        crowded: rows of a pass while more than one group waits. More rows make a pass longer, for
            those too who have only one in it.
    """

    def __init__(self, inside: Policy | None = None, *, crowded: int = 32) -> None:
        self.inside = inside or DecodeFirst()
        self.crowded = crowded

    def plan(self, waiting: Sequence[Waiting], rows: int) -> list[Grant]:
        """See `Policy.plan`."""
        if len({item.groups for item in waiting}) == 1:
            return self.inside.plan(waiting, rows)
        rows = min(rows, self.crowded)
        grants: list[Grant] = []
        for priority in sorted({item.priority for item in waiting}, reverse=True):
            level = [item for item in waiting if item.priority == priority]
            granted = self._share(level, rows, 0)
            rows -= sum(grant.rows for grant in granted)
            grants += granted
        return grants

    def _share(self, items: Sequence[Waiting], rows: int, depth: int) -> list[Grant]:
        """Share rows out between the groups at a depth, and on inside each."""
        if rows == 0:
            return []
        groups: dict[tuple[str, ...], list[Waiting]] = {}
        for item in items:
            groups.setdefault(item.groups[: depth + 1], []).append(item)
        if len(groups) == 1:
            deeper = any(len(item.groups) > depth + 1 for item in items)
            return self._share(items, rows, depth + 1) if deeper else self.inside.plan(items, rows)
        order = sorted(
            groups.values(),
            key=lambda each: (each[0].served[depth : depth + 1], each[0].ticket),
        )
        shares = share_out([sum(max(1, item.rows) for item in each) for each in order], rows)
        return [
            grant
            for each, share in zip(order, shares, strict=True)
            for grant in self._share(each, share, depth + 1)
        ]


def lineage(group: str) -> tuple[str, ...]:
    """The groups that a group is in, from the widest to itself: slashes part them."""
    parts = group.split("/")
    return tuple("/".join(parts[: i + 1]) for i in range(len(parts)))


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

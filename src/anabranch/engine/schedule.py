"""Turning grants into the rows of one pass: whose tokens, which pages, and whose pages instead.

Pages are handed out in the order of the grants. When they run short, cached nodes that no cursor
needs go first, least recently used first, leaves before their parents; then the pages of cursors
that stand later in that order (preemption): their tokens stay and are computed again when their
turn comes. A request never takes pages from one that stands before it, and its own path, once
compacted, takes no more pages than its tokens need: so the first always advances.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from anabranch.backends.base import PAGE_SLOTS, Batch
from anabranch.engine.requests import Request
from anabranch.engine.scheduler import Waiting
from anabranch.engine.tree import Node, TokenTree


@dataclass(eq=False)
class Item:
    """Consecutive rows of one path in a pass.

    Attributes:
        node: holds the last row.
        begin, end: positions of the rows.
        store: a chunk to compute; False: rows whose keys are there already, looked at again.
        known: position before which the rows had been computed once already.
        payers: who is charged for the rows up to which position, ascending.
        wants: who needs the logits of which row.
    """

    node: Node
    begin: int
    end: int
    store: bool
    known: int
    payers: list[tuple[Request, int]] = field(default_factory=list)
    wants: list[tuple[Request, int]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.end - self.begin


def snapshot(request: Request, served: float = 0.0) -> Waiting:
    """What the policy sees of a request: the rows to compute and to look at again.

    Args:
        served: rows that the request's group has had.
    """
    end = request.todo[-1] + 1
    frontier, started = end, False
    for node in request.cursor.node.ancestry():
        if node.frontier < min(node.end, end):
            frontier = node.frontier
        if node.computed:
            started = True
            break
    again = bisect_left(request.todo, frontier)
    return Waiting(
        request.ticket,
        end - frontier + again,
        started,
        request.priority,
        request.deadline,
        request.group,
        served,
        request.total.computed + request.total.recomputed,
    )


class Schedule:
    """The rows of the pass being prepared.

    Args:
        tree: takes pages and nodes from it.
        copy_page: copies one page's contents, source to target.
    """

    def __init__(self, tree: TokenTree, copy_page: Callable[[int, int], None]) -> None:
        self.tree = tree
        self.copy_page = copy_page
        self.items: dict[tuple[Node, int, bool], Item] = {}
        self.evicted = self.preempted = 0
        self._kept: set[Node] = set()
        self._victims: list[tuple[bool, int, int, Node]] | None = None
        self._order = itertools.count()

    def add(self, request: Request, rows: int, rank: int) -> None:
        """Give up to `rows` rows to a request; `rank` grows with its importance."""
        for above in itertools.takewhile(
            lambda n: n not in self._kept, request.cursor.node.ancestry()
        ):
            self._kept.add(above)
            above.used = rank
        node = self._frontier(request)
        computed = node.frontier if node is not None else request.todo[-1] + 1
        again = _leading_run(request.todo[: bisect_left(request.todo, computed)], rows)
        if again:
            self._look(request, again)
        if node is not None and rows > len(again):
            self._chunk(request, node, rows - len(again))

    def _frontier(self, request: Request) -> Node | None:
        """The first node on the path with a token to compute for this request."""
        end = request.todo[-1] + 1
        first = None
        for node in request.cursor.node.ancestry():
            if node.frontier < min(node.end, end):
                first = node
            if node.computed:
                break
        return first

    def _look(self, request: Request, rows: Sequence[int]) -> None:
        begin, end = rows[0], rows[-1] + 1
        node = request.cursor.node.at(rows[-1])
        again = Item(node, begin, end, False, end, [(request, end)])
        item = self.items.setdefault((node, begin, False), again)
        item.wants += [(request, row) for row in rows if row < item.end]

    def _chunk(self, request: Request, node: Node, rows: int) -> None:
        begin = node.frontier
        reach = min(node.end, request.todo[-1] + 1, begin + rows)
        item = self.items.get((node, begin, True))
        if item is None or item.end < reach:
            reach = self._find_pages(request, node, reach)
            if item is None and reach <= begin:
                return
            if item is None:
                item = Item(node, begin, begin, True, node.start + node.known)
                self.items[node, begin, True] = item
            if reach > item.end:
                item.end = reach
                item.payers.append((request, reach))
                self.tree.allocate(node, reach, self.copy_page)
        todo = request.todo
        served = todo[bisect_left(todo, begin) : bisect_left(todo, item.end)]
        item.wants += [(request, row) for row in served]

    def _find_pages(self, request: Request, node: Node, reach: int) -> int:
        """Make room for the node's tokens before `reach`; returns how far the pages go."""
        wanted = self.tree.pages_wanted(node, reach)
        if wanted > self.tree.pool.free:
            self._reclaim(wanted)
            if self.tree.pool.free < wanted:
                self.tree.compact(request.cursor.node)
        while reach > node.frontier and self.tree.pages_wanted(node, reach) > self.tree.pool.free:
            reach = (reach - 1) // PAGE_SLOTS * PAGE_SLOTS
        return reach

    def _reclaim(self, wanted: int) -> None:
        if self._victims is None:
            self._victims = []
            for node in self.tree.nodes():
                self._offer(node)
        while self._victims and self.tree.pool.free < wanted:
            node = heapq.heappop(self._victims)[-1]
            if not self._takeable(node):
                continue
            above = node.parent
            if node.pins:
                self.preempted += 1
            else:
                self.evicted += 1
            self.tree.evict(node)
            if above is not None:
                self._offer(above)

    def _takeable(self, node: Node) -> bool:
        return (
            bool(node.pages)
            and node not in self._kept
            and not any(child.pages for child in node.children.values())
        )

    def _offer(self, node: Node) -> None:
        if self._takeable(node):
            assert self._victims is not None
            entry = (node.pins > 0, node.used, next(self._order), node)
            heapq.heappush(self._victims, entry)


def build_batch(items: Sequence[Item]) -> Batch:
    """The arrays of a pass, one sequence per item, in the order given.

    Lists first: at one branch, numpy on arrays of one is most of what a pass costs in Python.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    tables = [item.node.table() for item in items]
    for item, table in zip(items, tables, strict=True):
        tokens += item.node.path(item.begin, item.end)
        positions += range(item.begin, item.end)
        if not item.store:
            slots += [-1] * item.rows
            continue
        first = item.begin // PAGE_SLOTS
        starts = (table[first : (item.end - 1) // PAGE_SLOTS + 1] * PAGE_SLOTS).tolist()
        slots += [
            starts[p // PAGE_SLOTS - first] + p % PAGE_SLOTS for p in range(item.begin, item.end)
        ]
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        slots=np.array(slots, np.int32),
        row_starts=np.array([0, *itertools.accumulate(i.rows for i in items)], np.int32),
        tables=np.concatenate(tables) if len(tables) > 1 else tables[0],
        table_starts=np.array([0, *itertools.accumulate(map(len, tables))], np.int32),
    )


def _leading_run(rows: Sequence[int], limit: int) -> Sequence[int]:
    """The consecutive rows at the front, at most `limit`."""
    count = 0
    while count < min(limit, len(rows)) and rows[count] == rows[0] + count:
        count += 1
    return rows[:count]

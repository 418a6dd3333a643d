"""From what branches want to passes over the model, and back.

A *pass* is one forward over a mixed batch. It has three stages, so that a slow computation never
holds the thread on which programs fork and drop:

    prepare()   on the caller's thread: choose rows, take pages, build arrays
    compute()   anywhere: model and sampler on those arrays; touches no tree
    commit()    on the caller's thread: results into the tree and to the requests

Work belongs to nodes, not to requests: two requests that wait for the same tokens are served by the
same rows, whether they arrived together or not.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anabranch.backends.base import F32, I32, PAGE_SLOTS, Batch, Draws
from anabranch.engine.pages import PagePool
from anabranch.engine.requests import (
    Cost,
    Draw,
    Look,
    Peeked,
    Read,
    Request,
    Result,
    Sampling,
    Score,
)
from anabranch.engine.schedule import Item, Schedule, build_batch, snapshot
from anabranch.engine.scheduler import DecodeFirst, Policy
from anabranch.engine.tree import Node, TokenTree
from anabranch.errors import AnabranchError, ModelError
from anabranch.models.decoder import Decoder

LOGIT_ROWS = 64
"""Rows of logits computed at a time: bounds their memory, not their number."""

TIP_BYTES = 64 << 20
"""Bytes of logits kept for positions where cursors rest."""

PLAIN = Sampling()


@dataclass(eq=False)
class Want:
    """One request's claim on the logits of one row, and what came of it.

    Attributes:
        where: which row of the pass's logits.
    """

    request: Request
    row: int
    where: int
    result: Result | Peeked | F32 | AnabranchError | None = None


@dataclass(eq=False)
class Pass:
    """One forward pass: what it computes, for whom, and what came out.

    Attributes:
        rows: rows of the batch whose logits are wanted.
        wants: claims on them, by `where` ascending.
        cached: claims on logits that are kept already, `cached_logits`, by `where` ascending.
        resting: positions where cursors stay: their logits are kept, by node and position.
        seconds: that computing it took.
    """

    items: list[Item]
    batch: Batch | None
    rows: I32
    wants: list[Want]
    cached: list[Want]
    cached_logits: list[F32]
    resting: dict[tuple[Node, int], int]
    tips: dict[tuple[Node, int], F32] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def row_count(self) -> int:
        """Rows to compute."""
        return len(self.batch.tokens) if self.batch is not None else 0


@dataclass
class Stats:
    """Counters since the engine started.

    Attributes:
        passes, rows: forward passes, and rows in them.
        recomputed_rows: of these, rows that had been computed before.
        evicted_nodes, preempted_nodes: nodes whose pages were taken, without and with live cursors.
    """

    passes: int = 0
    rows: int = 0
    recomputed_rows: int = 0
    evicted_nodes: int = 0
    preempted_nodes: int = 0


class EngineCore:
    """Token tree, scheduler and model: the synchronous heart of the engine. Not thread-safe.

    Args:
        decoder: the model.
        pages: KV pages to keep.
        policy: which requests run next; default: `DecodeFirst`.
    """

    def __init__(self, decoder: Decoder, *, pages: int, policy: Policy | None = None) -> None:
        self.decoder = decoder
        self.policy: Policy = policy or DecodeFirst()
        self.tree = TokenTree(PagePool(pages))
        self.cache = decoder.cache(pages)
        self.stats = Stats()
        self.requests: dict[int, Request] = {}
        self._served: dict[str, float] = {}
        self._draws = DrawBuilder()
        self._tickets = itertools.count()
        self._tips: OrderedDict[tuple[Node, int], None] = OrderedDict()
        self._most_tips = max(1, TIP_BYTES // (4 * decoder.config.vocab))

    @property
    def capacity(self) -> int:
        """Longest path, in tokens, that model and pages allow."""
        return min(self.decoder.config.context, len(self.tree.pool) * PAGE_SLOTS)

    # ---- requests ------------------------------------------------------------------------------

    def submit(
        self,
        request: Request,
        *,
        priority: float = 0.0,
        deadline: float = math.inf,
        group: str = "",
    ) -> None:
        """Queue a request; it runs in the passes that follow."""
        request.ticket = next(self._tickets)
        request.priority, request.deadline, request.group = priority, deadline, group
        self._enter(group)
        self.requests[request.ticket] = request

    def _enter(self, group: str) -> None:
        """A group that had nothing to do has saved up nothing meanwhile (Goyal et al. 1996,
        Start-time fair queueing, section 2)."""
        if any(request.group == group for request in self.requests.values()):
            return  # found at once, mostly: this runs for every request
        active = {request.group for request in self.requests.values()}
        least = min((self._served[other] for other in active), default=0.0)
        # Those who wait for nothing are as good as new, so nothing is kept of them.
        self._served = {other: self._served[other] - least for other in active}
        self._served[group] = 0.0

    def cancel(self, request: Request) -> None:
        """Forget a request. Rows under way are computed and charged, their results ignored."""
        self.requests.pop(request.ticket, None)

    def _finish(self, request: Request, error: Exception | None = None) -> None:
        if self.requests.pop(request.ticket, None) is not None:
            request.error = error
            request.finish()

    # ---- prepare -------------------------------------------------------------------------------

    def prepare(self) -> Pass | None:
        """Choose what to compute next; None when nothing waits."""
        for request in list(self.requests.values()):
            if request.expired():
                self._finish(request)
        if not self.requests:
            return None
        cached, logits = self._kept_tips()
        served = {want.request.ticket for want in cached}
        schedule = Schedule(self.tree, self._copy_page)
        try:
            self._choose(schedule, [r for r in self.requests.values() if r.ticket not in served])
            items = list(schedule.items.values())
            assert items or cached, "the first grant fits into the pages, whatever holds them"
            return self._assemble(items, cached, logits)
        except BaseException:
            self._abandon(schedule.items.values())
            raise

    def _kept_tips(self) -> tuple[list[Want], list[F32]]:
        """Claims that need no row: their logits were kept. Those at one place share them."""
        places: dict[tuple[Node, int], list[Request]] = {}
        for request in self.requests.values():
            cursor = request.cursor
            if isinstance(request, Draw | Read) and cursor.position in cursor.node.tips:
                places.setdefault((cursor.node, cursor.position), []).append(request)
        wants = [
            Want(request, position - 1, where)
            for where, ((_, position), requests) in enumerate(places.items())
            for request in requests
        ]
        return wants, [node.tips[position] for node, position in places]

    def _choose(self, schedule: Schedule, queue: Sequence[Request]) -> None:
        """Fill the next pass with what the policy grants."""
        if not queue:
            return
        waiting = [snapshot(r, self._served[r.group]) for r in queue]
        grants = self.policy.plan(waiting, self.decoder.max_rows)
        self.tree.clock += len(grants)
        for order, grant in enumerate(grants):
            schedule.add(self.requests[grant.ticket], grant.rows, self.tree.clock - order)
        self.stats.evicted_nodes += schedule.evicted
        self.stats.preempted_nodes += schedule.preempted

    def _copy_page(self, source: int, target: int) -> None:
        self.decoder.backend.copy_page(self.cache, source, target)

    def _assemble(self, items: list[Item], cached: list[Want], cached_logits: list[F32]) -> Pass:
        """Lay out the pass. Items are ordered by page table, so that shared pages meet."""
        if len(items) > 1:
            items.sort(key=lambda item: item.node.table().tobytes())
        wants: list[Want] = []
        rows: list[int] = []
        resting: dict[tuple[Node, int], int] = {}
        standing: dict[Node, Counter[int]] = {}
        first = 0
        for item in items:
            for row, claims in _by_row(item.wants):
                where = len(rows)
                rows.append(first + row - item.begin)
                wants += [Want(request, row, where) for request in claims]
                holder = item.node.at(row)
                if holder not in standing:
                    standing[holder] = Counter(cursor.position for cursor in holder.cursors)
                leaving = sum(isinstance(request, Draw | Read) for request in claims)
                if standing[holder][row + 1] > leaving:
                    resting[holder, row + 1] = where
            first += item.rows
        batch = build_batch(items) if items else None
        return Pass(items, batch, np.asarray(rows, np.int32), wants, cached, cached_logits, resting)

    # ---- compute -------------------------------------------------------------------------------

    def compute(self, work: Pass) -> None:
        """Run the model and the sampler. Writes nothing but `work` and KV pages."""
        if work.batch is not None:
            hidden = self.decoder.run(work.batch, self.cache)
            for low in range(0, len(work.rows), LOGIT_ROWS):
                high = min(low + LOGIT_ROWS, len(work.rows))
                logits = self.decoder.logits(hidden, work.rows[low:high])
                block = [want for want in work.wants if low <= want.where < high]
                self._serve(logits, low, block)
                for want in block:
                    if isinstance(want.request, Look):
                        row = work.rows[want.where : want.where + 1]
                        want.result = self._peek(logits[want.where - low], hidden, row, want)
                for key, where in work.resting.items():
                    if low <= where < high:
                        work.tips[key] = logits[where - low].copy()
        for low in range(0, len(work.cached_logits), LOGIT_ROWS):
            logits = np.stack(work.cached_logits[low : low + LOGIT_ROWS])
            block = [want for want in work.cached if low <= want.where < low + LOGIT_ROWS]
            self._serve(logits, low, block)

    def _serve(self, logits: F32, low: int, wants: Sequence[Want]) -> None:
        """Draw, score and copy from a block of logits whose first row is `low`."""
        self._draw(logits, low, [w for w in wants if isinstance(w.request, Draw | Score)])
        for want in wants:
            if isinstance(want.request, Read):
                want.result = logits[want.where - low].copy()
            elif want.request.top and isinstance(want.result, Result):
                results = self._likeliest(logits[want.where - low], want)
                top = tuple((result.token, result.logp) for result in results)
                want.result = want.result._replace(top=top)

    def _peek(self, logits: F32, hidden: F32, row: I32, want: Want) -> Peeked | AnabranchError:
        request = want.request
        assert isinstance(request, Look)
        results = self._likeliest(logits, want)
        if not results:
            return ModelError("the model gave no usable distribution", got=f"row {want.row}")
        state = self.decoder.normed(hidden, row)[0].copy() if request.wants_hidden else None
        tokens, logps = zip(*((result.token, result.logp) for result in results), strict=True)
        return Peeked(tokens, logps, results[0].entropy, state)

    def _likeliest(self, logits: F32, want: Want) -> list[Result]:
        """What the model says of a row's likeliest tokens; nothing if it cannot be drawn from."""
        scores = [
            Want(Score(want.request.cursor, want.row + 1, [token]), want.row, 0)
            for token in likeliest(logits, want.request.top)
        ]
        self._draw(logits[None], 0, scores)
        results = [s.result for s in scores if isinstance(s.result, Result)]
        return results if len(results) == len(scores) else []

    def _draw(self, logits: F32, low: int, wants: Sequence[Want]) -> None:
        """Draw or score; a row that cannot be drawn from fails alone."""
        if not wants:
            return
        try:
            drawn = self.decoder.backend.draw(logits, self._draws.of(wants, low))
        except ValueError as error:
            if len(wants) > 1:
                for want in wants:
                    self._draw(logits, low, [want])
            else:
                wants[0].result = ModelError(
                    "the model gave no usable distribution", got=str(error)
                )
            return
        columns = (drawn.token, drawn.logp, drawn.logq, drawn.entropy)
        for want, values in zip(
            wants, zip(*map(np.ndarray.tolist, columns), strict=True), strict=True
        ):
            want.result = Result(*values)

    # ---- commit --------------------------------------------------------------------------------

    def commit(self, work: Pass) -> None:
        """Take a computed pass into the tree, and hand its results to the requests."""
        for item in work.items:
            for node in _nodes(item):
                self.tree.settle(node)
        self._count(work)
        for (node, position), logits in work.tips.items():
            self._keep_tip(node, position, logits)
        for want in itertools.chain(work.wants, work.cached):
            if want.request.ticket in self.requests:
                self._deliver(want)

    def fail(self, work: Pass, error: AnabranchError) -> None:
        """Give up a pass whose computation failed: its requests fail, nothing else changes."""
        self._abandon(work.items)
        for want in itertools.chain(work.wants, work.cached):
            self._finish(want.request, error)
        for item in work.items:
            for request, _ in item.payers:
                self._finish(request, error)

    def fail_all(self, error: AnabranchError) -> None:
        """Fail everything that waits."""
        for request in list(self.requests.values()):
            self._finish(request, error)

    def _abandon(self, items: Iterable[Item]) -> None:
        for item in items:
            for node in _nodes(item):
                self.tree.abandon(node)

    def _count(self, work: Pass) -> None:
        parties: dict[int, Cost] = {}
        for item in work.items:
            begin = item.begin
            for request, end in item.payers:
                again = min(end, max(begin, item.known)) - begin
                self.stats.rows += end - begin
                if request.group in self._served:
                    self._served[request.group] += end - begin
                self.stats.recomputed_rows += again
                for cost in (request.cost, request.total):
                    cost.computed += end - begin - again
                    cost.recomputed += again
                    cost.seconds += work.seconds * (end - begin) / work.row_count
                    parties[id(cost)] = cost
                begin = end
        if work.items:
            self.stats.passes += 1
            for want in work.wants:
                for cost in (want.request.cost, want.request.total):
                    parties[id(cost)] = cost
        for cost in parties.values():
            cost.passes += 1

    def _keep_tip(self, node: Node, position: int, logits: F32) -> None:
        holder = node.at(position - 1)
        if holder.pins and holder.frontier >= position:
            holder.tips[position] = logits
            self._tips[holder, position] = None
        while len(self._tips) > self._most_tips:
            (old, place), _ = self._tips.popitem(last=False)
            old.at(place - 1).tips.pop(place, None)  # a split may have moved it up

    def _deliver(self, want: Want) -> None:
        request, result = want.request, want.result
        if isinstance(result, AnabranchError):
            self._finish(request, result)
            return
        try:
            if isinstance(request, Look):
                assert isinstance(result, Peeked)
                request.accept(result)
            elif isinstance(result, Result):
                if isinstance(request, Draw):
                    merged = self.tree.append(request.cursor, [result.token])
                    request.cost.cached += merged
                    request.total.cached += merged
                    request.accept(result)
                elif isinstance(request, Score):
                    request.accept(want.row, result)
            elif isinstance(request, Read):
                assert isinstance(result, np.ndarray)
                request.accept(result)
        except Exception as error:  # the fault of who asked, so theirs alone
            self._finish(request, error)
        if request.done:
            self._finish(request)


def likeliest(logits: F32, top: int) -> list[int]:
    """The `top` tokens of the highest logits, highest first."""
    top = min(top, len(logits))
    # Ties go to the smaller id, at the border too, where argpartition keeps any of them.
    least = np.partition(logits, -top)[-top]
    ids = np.flatnonzero(logits >= least)
    chosen: list[int] = ids[np.argsort(-logits[ids], kind="stable")][:top].tolist()
    return chosen


def _nodes(item: Item) -> list[Node]:
    """The nodes whose chunk an item is, from below: a split may have spread it over several, and
    what lay behind the chunk may have left the tree."""
    path = itertools.takewhile(lambda n: n.end > item.begin, item.node.ancestry())
    return [node for node in path if node.pending > node.computed]


def _by_row(wants: Sequence[tuple[Request, int]]) -> list[tuple[int, list[Request]]]:
    """Claims grouped by row, rows ascending."""
    groups: dict[int, list[Request]] = {}
    for request, row in wants:
        groups.setdefault(row, []).append(request)
    return sorted(groups.items())


class DrawBuilder:
    """Builds the sampler's arrays for draws and scores on one block of logits.

    Most of them change only with the set of requests: they are kept from pass to pass.
    """

    def __init__(self) -> None:
        self._samplings: list[Sampling] = []
        self._fixed: dict[str, Any] = {}

    def of(self, wants: Sequence[Want], low: int) -> Draws:
        """`low` is the first row of the block."""
        samplings = [w.request.sampling if isinstance(w.request, Draw) else PLAIN for w in wants]
        known = len(samplings) == len(self._samplings) and all(
            map(operator.is_, samplings, self._samplings)
        )
        if not known or any(s.edits_path for s in samplings):
            self._samplings, self._fixed = samplings, _fixed(wants, samplings)
        return Draws(
            row=np.array([w.where - low for w in wants], np.int32),
            given=np.array([w.request.given.get(w.row, -1) for w in wants], np.int32),
            key=np.array([w.request.cursor.key for w in wants], np.uint64),
            position=np.array([w.row + 1 for w in wants], np.int32),
            **self._fixed,
        )


def _fixed(wants: Sequence[Want], samplings: Sequence[Sampling]) -> dict[str, Any]:
    """The fields of `Draws` that follow from the samplings, and from the paths they edit."""
    edits = [w.request.edits() if isinstance(w.request, Draw) else [] for w in wants]
    flat = list(itertools.chain.from_iterable(edits))
    return {
        "temperature": np.array([s.temperature for s in samplings], np.float32),
        "top_k": np.array([s.top_k for s in samplings], np.int32),
        "top_p": np.array([s.top_p for s in samplings], np.float32),
        "min_p": np.array([s.min_p for s in samplings], np.float32),
        "edit_starts": np.cumsum([0, *map(len, edits)], dtype=np.int32),
        "edit_token": np.array([e.token for e in flat], np.int32),
        "edit_scale": np.array([e.scale for e in flat], np.float32),
        "edit_shift": np.array([e.shift for e in flat], np.float32),
    }

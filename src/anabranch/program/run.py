"""What one program has to spend, what it has used, and where it is written down."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from anabranch.engine.requests import Cost
from anabranch.program.budget import Budget
from anabranch.program.types import Mark, Piece, Thought, Usage

if TYPE_CHECKING:
    from anabranch.program.branch import Branch


class Log(Protocol):
    """Where events go: a `Trace`, or nothing."""

    def note(self, event: str, **fields: object) -> None:
        """Record one event."""
        ...


Watch = Callable[["Branch", Piece], None]
"""What is told of steps while they are written, as by `Branch.pieces`; it must not raise."""


class Run:
    """One program under way: every branch it opens or forks belongs to it.

    Attributes:
        watch: told of every step of its branches while it is written; None: nobody looks.
        scope: its prompts share computed prefixes with programs of the same scope only.
        group: whose it is, where programs share an engine fairly.
        priority, deadline: of its branches, see `Engine.open`; the deadline is a time on Python's
            monotonic clock, in seconds, `inf` for none.
        live: its branches that have not been dropped.
        thoughts: its candidates so far, kept up to date by the strategy: what there is if it ends
            now.
        cost: rows and passes so far.
        ratings: what judges, by name, have said of places.
        remarks: what a reader of the answer should know.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        budget: Budget | None = None,
        trace: Log | None = None,
        watch: Watch | None = None,
        scope: str = "",
        group: str = "",
        priority: float = 0.0,
        deadline: float = math.inf,
    ) -> None:
        self.seed, self.scope, self.group, self.watch = seed, scope, group, watch
        self.priority, self.deadline = priority, deadline
        self.budget = budget or Budget()
        self.budget.start()
        self.trace = trace
        self.live: set[Branch] = set()
        self.thoughts: list[Thought] = []
        self.cost = Cost()
        self.ratings: dict[tuple[str, Mark], float] = {}
        self.remarks: list[str] = []
        self.prompt_tokens = self.sampled_tokens = self.forced_tokens = 0
        self.roots = itertools.count()
        self._began = time.monotonic()

    @property
    def usage(self) -> Usage:
        """Totals so far; `kept_tokens` is known only to who chooses the answer."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            sampled_tokens=self.sampled_tokens,
            forced_tokens=self.forced_tokens,
            computed_tokens=self.cost.computed,
            cached_tokens=self.cost.cached,
            recomputed_tokens=self.cost.recomputed,
            passes=self.cost.passes,
            seconds=time.monotonic() - self._began,
        )

    def note(self, event: str, **fields: object) -> None:
        """Record one event, if anybody listens."""
        if self.trace is not None:
            self.trace.note(event, **fields)

    def remark(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def drop_all(self, reason: str = "") -> None:
        """Drop every branch that is still alive, also when writing that down fails."""
        with ExitStack() as stack:
            for branch in self.live:
                stack.callback(branch.drop, reason)

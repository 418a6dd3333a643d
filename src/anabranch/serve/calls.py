"""One request of a client, whatever route it takes: whose it is, and what it has used so far.

The request under way is found by `current()`, in its own tasks and in those that they start, so
that routes need not hand it on. Programs are made by `new_run`, which counts what they use.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from anabranch.program.run import Run
from anabranch.program.trace import Trace
from anabranch.serve.keys import Account
from anabranch.serve.metrics import Metrics
from anabranch.serve.wire import Turn

if TYPE_CHECKING:
    from anabranch.serve.spans import RequestSpan, Spans

_CURRENT: ContextVar[Call] = ContextVar("call")


class Meter:
    """What a program uses, each token charged once, whichever of its requests comes to it first."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._prompt = self._tokens = 0

    def take(self) -> tuple[int, int]:
        """Tokens of prompts, and drawn or given, since the last time."""
        prompt, tokens = self.run.prompt_tokens, self.run.sampled_tokens + self.run.forced_tokens
        new = prompt - self._prompt, tokens - self._tokens
        self._prompt, self._tokens = prompt, tokens
        return new

    @property
    def pending(self) -> int:
        """Tokens not taken yet, about: those of steps under way are known by their rows only."""
        cost = self.run.cost
        return max(0, cost.computed + cost.cached - self._prompt - self._tokens)


class Call:
    """A request.

    Args:
        on_end: told when nothing is under way any more. A request that goes on in the background
            may begin anew after that, and ends again.
        stopping: set when the server will wait for it no longer.
        traced: whether its trace is to be kept.
        behind: how far its priority is below that of its key.
        spans: where they are wanted.
        parents: headers that name the client's span.

    Attributes:
        priority: higher ones come first; `deadline`: when it is over, on Python's monotonic clock.
        model, strategy, seed: as far as it has come to that.
        status: of the response; `complete`: all of it was handed over.
        seconds: since it came; `first`: until the first text was there.
        finishes: why its choices ended.
        trace: of its strategy, where it is kept.
        pattern: of the routes that it is one of, as in `/v1/models/{name}`.
        prompt_tokens, tokens: used so far: of prompts, and drawn or given in replies.
        cached_tokens, reasoning_tokens: of the former, those that were in the tree already; of the
            latter, those that are not in the reply.
    """

    def __init__(
        self,
        account: Account,
        id: str,
        *,
        method: str = "",
        route: str = "",
        metrics: Metrics,
        on_end: Callable[[Call], None] = lambda call: None,
        stopping: asyncio.Event,
        traced: bool = False,
        behind: int = 0,
        spans: Spans | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        self.account, self.id, self.method, self.route = account, id, method, route
        self.stopping, self.traced = stopping, traced
        self.priority, self.deadline = account.priority - behind, math.inf
        self.trace: Trace | None = None
        self.parents, self.pattern = parents or {}, ""
        self.model = ""
        self.strategy: str | None = None
        self.seed: int | None = None
        self.status, self.complete = 200, False
        self.finishes: Counter[str] = Counter()
        self.prompt_tokens = self.tokens = self.cached_tokens = self.reasoning_tokens = 0
        self.first: float | None = None
        self._metrics, self._on_end = metrics, on_end
        self._began = time.monotonic()
        self._latest: dict[int, float] = {}
        self.meters: list[Meter] = []
        self._held = 0
        self._spans = spans
        self._span: RequestSpan | None = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until its deadline; `inf` without one."""
        return max(0.0, self.deadline - time.monotonic())

    def wants(self, turn: Turn | None) -> None:
        """When it wants to come, which its body tells. Told once."""
        if turn is not None:
            self.priority += turn.priority
            self.deadline = self._began + (turn.deadline or math.inf)

    @property
    def outcome(self) -> str | None:
        """Why it ended: of several reasons, the one that most choices had; None: wrote nothing."""
        return max(self.finishes, key=lambda reason: self.finishes[reason], default=None)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """For as long as it is."""
        self._held += 1
        if self._held == 1 and self._spans is not None:
            self._span = self._spans.begin(self)
        self.account.calls.add(self)
        try:
            yield
        finally:
            self.settle()
            self._held -= 1
            if not self._held:
                self._end()

    def _end(self) -> None:
        self.account.calls.discard(self)
        if self.generated:
            if not self.complete or self.status == 499:
                self.finishes["abort"] += 1
            elif self.status >= 400:
                self.finishes["error"] += 1
            for reason, count in (self.finishes or Counter(none=1)).items():
                self._metrics.finished.labels(self.model, reason).inc(count)
            self._metrics.whole.labels(self.model).observe(self.seconds)
        self._on_end(self)
        if self._span is not None:
            self._span.end(self)
            self._span = None
        self.meters.clear()
        self._latest.clear()
        self.trace = None
        self.finishes.clear()
        self.prompt_tokens = self.tokens = self.cached_tokens = self.reasoning_tokens = 0

    def note(self, event: str, **fields: object) -> None:
        """See `Log`: what its strategy does."""
        for log in (self.trace, self._span):
            if log is not None:
                log.note(event, **fields)

    def metered(self, **options: Any) -> Meter:
        """See `metered`."""
        account = self.account
        run = Run(
            scope=account.scope,
            group=account.group,
            priority=self.priority,
            deadline=self.deadline,
            **options,
        )
        return Meter(run)

    def use(self, meter: Meter) -> None:
        """It goes on with a program, and pays for what that uses meanwhile."""
        self.meters.append(meter)
        self.seed = meter.run.seed if self.seed is None else self.seed

    @property
    def generated(self) -> bool:
        """Whether it came to asking a model."""
        return bool(self.meters)

    def settle(self) -> None:
        """Count and charge what was used since the last time."""
        taken = [meter.take() for meter in self.meters]
        prompt, tokens = sum(each for each, _ in taken), sum(each for _, each in taken)
        self.prompt_tokens += prompt
        self.tokens += tokens
        if prompt or tokens:
            self.account.charge(prompt + tokens)
            self._metrics.prompt_tokens.labels(self.model).inc(prompt)
            self._metrics.tokens.labels(self.model).inc(tokens)

    def wrote(self, choice: int | None = None) -> None:
        """A text is there; of a choice, where these are written one token after the other."""
        now = time.monotonic()
        if self.first is None:
            self.first = now - self._began
            self._metrics.first.labels(self.model).observe(self.first)
        if choice is not None:
            if choice in self._latest:
                self._metrics.between.labels(self.model).observe(now - self._latest[choice])
            self._latest[choice] = now


def current() -> Call:
    """The request under way in this task."""
    return _CURRENT.get()


def begin(call: Call) -> None:
    """Let this task and those that it starts belong to a request."""
    _CURRENT.set(call)


def metered(**options: Any) -> Meter:
    """A program for the request under way and others, each of which is to `use` it: its key's cache
    scope and fair share are its own, and so is its turn.

    Args:
        options: as `Run` takes them.
    """
    return current().metered(**options)


def new_run(**options: Any) -> Run:
    """Likewise, for this request alone."""
    meter = metered(**options)
    current().use(meter)
    return meter.run

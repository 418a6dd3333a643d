"""One request of a client, whatever route it takes: whose it is, and what it has used so far.

The request under way is found by `current()`, in its own tasks and in those that they start, so
that routes need not hand it on. Programs are made by `new_run`, which counts what they use.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from anabranch.program.run import Run
from anabranch.serve.keys import Account

_CURRENT: ContextVar[Call] = ContextVar("call")


class Call:
    """A request.

    Args:
        on_end: told when nothing is under way any more. A request that goes on in the background
            may begin anew after that, and ends again.

    Attributes:
        model, strategy, seed: as far as it has come to that.
        began: seconds on the monotonic clock; `first`: when the first text was there.
        finishes: why its choices ended.
        prompt_tokens, tokens: used so far: of prompts, and drawn or given in replies.
    """

    def __init__(
        self, account: Account, id: str, route: str, on_end: Callable[[Call], None]
    ) -> None:
        self.account, self.id, self.route, self._on_end = account, id, route, on_end
        self.model = ""
        self.strategy: str | None = None
        self.seed: int | None = None
        self.status = 200
        self.finishes: Counter[str] = Counter()
        self.prompt_tokens = self.tokens = 0
        self.began = time.monotonic()
        self.first: float | None = None
        self._runs: list[Run] = []
        self._held = 0

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """For as long as it is."""
        self._held += 1
        self.account.calls.add(self)
        try:
            yield
        finally:
            self.settle()
            self._held -= 1
            if not self._held:
                self.account.calls.discard(self)
                self._on_end(self)
                self._runs.clear()
                self.finishes.clear()
                self.prompt_tokens = self.tokens = 0

    def new_run(self, **options: Any) -> Run:
        """See `new_run`."""
        run = Run(scope=self.account.scope, group=self.account.group, **options)
        self._runs.append(run)
        self.seed = run.seed if self.seed is None else self.seed
        return run

    @property
    def pending(self) -> int:
        """Tokens not charged yet, about: those of steps under way are known by their rows only."""
        rows = sum(run.cost.computed + run.cost.cached for run in self._runs)
        return max(0, rows - self.prompt_tokens - self.tokens)

    def settle(self) -> None:
        """Charge the account with what was used since the last time."""
        prompt = sum(run.prompt_tokens for run in self._runs)
        tokens = sum(run.sampled_tokens + run.forced_tokens for run in self._runs)
        self.account.charge(prompt - self.prompt_tokens + tokens - self.tokens)
        self.prompt_tokens, self.tokens = prompt, tokens


def current() -> Call:
    """The request under way in this task."""
    return _CURRENT.get()


def begin(call: Call) -> None:
    """Let this task and those that it starts belong to a request."""
    _CURRENT.set(call)


def new_run(**options: Any) -> Run:
    """A program of the request under way: its key's cache scope and fair share are its own.

    Args:
        options: as `Run` takes them.
    """
    return current().new_run(**options)

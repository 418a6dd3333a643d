"""How many requests may run and wait, whose turn it is, and on what terms one runs."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from anabranch.serve.calls import current
from anabranch.serve.errors import Refusal
from anabranch.serve.keys import Account


class Admission:
    """Places for requests: so many run, so many wait for a place, the rest are refused at once.

    A place that becomes free goes to the key that holds the fewest; of those that hold as many, to
    who has waited longest.

    Attributes:
        running, waiting: requests now.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._most_running, self._most_waiting = running, waiting
        self.running = self.waiting = 0
        self._queues: dict[Account, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._held: Counter[Account] = Counter()
        self._tickets = itertools.count()

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for a place for the request under way, and hold it.

        Raises:
            Refusal: too many wait already, or the key's quota is used up.
        """
        call = current()
        account = call.account
        with call.under_way():
            account.check()
            await self._enter(account)
            try:
                yield
            finally:
                self._leave(account)

    async def _enter(self, account: Account) -> None:
        queue = self._queues.get(account, deque())
        if self.running >= self._most_running or not self._may_run(account):
            own = account.most_waiting
            if self.waiting >= self._most_waiting or (own is not None and len(queue) >= own):
                raise Refusal(
                    429, "too many requests are waiting", code="queue_full", retry_after=2
                )
        turn = asyncio.get_running_loop().create_future()
        entry = (next(self._tickets), turn)
        queue.append(entry)
        self._queues[account] = queue
        self.waiting += 1
        self._call_up()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # called up in the same moment
                self._leave(account)
            elif entry in queue:
                queue.remove(entry)
                self._gone(account)
            raise

    def _leave(self, account: Account) -> None:
        self.running -= 1
        self._held[account] -= 1
        if not self._held[account]:
            del self._held[account]
        self._call_up()

    def _may_run(self, account: Account) -> bool:
        return account.most_running is None or self._held[account] < account.most_running

    def _call_up(self) -> None:
        """Give free places away."""
        while self.running < self._most_running:
            able = [account for account in self._queues if self._may_run(account)]
            if not able:
                return
            account = min(able, key=lambda each: (self._held[each], self._queues[each][0][0]))
            _, turn = self._queues[account].popleft()
            self._gone(account)
            if turn.cancelled():  # whoever waited has left in the same moment
                continue
            self.running += 1
            self._held[account] += 1
            turn.set_result(None)

    def _gone(self, account: Account) -> None:
        """One has left an account's queue."""
        self.waiting -= 1
        if not self._queues[account]:
            del self._queues[account]


@dataclass(frozen=True)
class Terms:
    """On what terms a request runs.

    Attributes:
        admission: where it takes its place.
        seconds: the longest that it may take.
        priority: see `Engine.open`.
    """

    admission: Admission
    seconds: float
    priority: float = 0.0

    @classmethod
    def of(cls, request: Request) -> Terms:
        """Those of a request that came over HTTP."""
        state = request.app.state
        return cls(state.admission, state.settings.seconds)

"""How many requests may run and wait, whose turn it is, and on what terms one runs."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Request

from anabranch.serve.calls import Call, current
from anabranch.serve.errors import Refusal
from anabranch.serve.keys import Account

LEAST_SECONDS = 1e-3
"""Of a request whose deadline is over: a budget of none is no budget."""


@dataclass(frozen=True, order=True)
class _Waiting:
    """A request in its key's queue, ordered by whose turn it is.

    Attributes:
        behind: how far below 0 its priority is.
        ticket: order of arrival, unique.
    """

    behind: float
    deadline: float
    ticket: int
    turn: asyncio.Future[None] = field(compare=False)


class Admission:
    """Places for requests: so many run, so many wait for a place, the rest are refused at once.

    A place that becomes free goes to the highest priority; of equals to the key that holds the
    fewest; of those that hold as many, to who has waited longest. Of one key's requests of equal
    priority, the one with the earliest deadline comes first.

    Args:
        waiting: None: as many as come, whatever their keys allow.

    Attributes:
        running, waiting: requests now.
    """

    def __init__(self, running: int, waiting: int | None) -> None:
        self._most_running, self._most_waiting = running, waiting
        self.running = self.waiting = 0
        self._queues: dict[Account, list[_Waiting]] = {}
        self._held: Counter[Account] = Counter()
        self._tickets = itertools.count()

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for a place for the request under way, and hold it.

        Raises:
            Refusal: too many wait already, the key's quota is used up, or its deadline was over
                before its turn came.
        """
        call = current()
        account = call.account
        with call.under_way():
            account.check()
            try:
                async with asyncio.timeout(call.left if call.left < math.inf else None):
                    await self._enter(call)
            except TimeoutError:
                raise Refusal(
                    504, "the deadline was over before a place was free", code="deadline"
                ) from None
            try:
                account.check()  # others may have used the rest meanwhile
                yield
            finally:
                self._leave(account)

    async def _enter(self, call: Call) -> None:
        account = call.account
        queue = self._queues.get(account, [])
        full = self.running >= self._most_running or not self._may_run(account)
        if full and self._most_waiting is not None:
            own = account.most_waiting
            if self.waiting >= self._most_waiting or (own is not None and len(queue) >= own):
                raise Refusal(
                    429, "too many requests are waiting", code="queue_full", retry_after=2
                )
        turn = asyncio.get_running_loop().create_future()
        entry = _Waiting(-call.priority, call.deadline, next(self._tickets), turn)
        bisect.insort(queue, entry)
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
            account = min(able, key=self._turn_of)
            turn = self._queues[account].pop(0).turn
            self._gone(account)
            if turn.cancelled():  # whoever waited has left in the same moment
                continue
            self.running += 1
            self._held[account] += 1
            turn.set_result(None)

    def _turn_of(self, account: Account) -> tuple[float, int, int]:
        """When it is a key's turn, the least first."""
        first = self._queues[account][0]
        return first.behind, self._held[account], first.ticket

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
        most_seconds: the longest that any may take.
    """

    admission: Admission
    most_seconds: float

    @property
    def seconds(self) -> float:
        """The longest that the request under way may take from now on, its deadline observed."""
        return max(LEAST_SECONDS, min(self.most_seconds, current().left))

    @classmethod
    def of(cls, request: Request) -> Terms:
        """Those of a request that came over HTTP."""
        state = request.app.state
        return cls(state.admission, state.settings.seconds)

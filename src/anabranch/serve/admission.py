"""How many requests may run and wait, and whose turn it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

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
        self._queues: set[Account] = set()
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
        if self.running >= self._most_running or not account.may_run:
            own = account.most_waiting
            if self.waiting >= self._most_waiting or (
                own is not None and len(account.queue) >= own
            ):
                raise Refusal(
                    429, "too many requests are waiting", code="queue_full", retry_after=2
                )
        turn = asyncio.get_running_loop().create_future()
        entry = (next(self._tickets), turn)
        account.queue.append(entry)
        self._queues.add(account)
        self.waiting += 1
        self._call_up()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # called up in the same moment
                self._leave(account)
            else:
                account.queue.remove(entry)
                self._gone(account)
            raise

    def _leave(self, account: Account) -> None:
        self.running -= 1
        account.running -= 1
        self._call_up()

    def _call_up(self) -> None:
        """Give free places away."""
        while self.running < self._most_running:
            able = [account for account in self._queues if account.may_run]
            if not able:
                return
            account = min(able, key=lambda each: (each.running, each.queue[0][0]))
            _, turn = account.queue.popleft()
            self._gone(account)
            self.running += 1
            account.running += 1
            turn.set_result(None)

    def _gone(self, account: Account) -> None:
        """One has left an account's queue."""
        self.waiting -= 1
        if not account.queue:
            self._queues.discard(account)

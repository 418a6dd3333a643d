"""How many requests may run and wait, and on what terms one runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from anabranch.serve.errors import Refusal


class Admission:
    """Places for requests: so many run, so many wait for a place, the rest are refused at once.

    Attributes:
        running, waiting: requests now.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(running)
        self._most_waiting = waiting
        self.running = self.waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for a place and hold it.

        Raises:
            Refusal: too many wait already.
        """
        if self._places.locked() and self.waiting >= self._most_waiting:
            raise Refusal(429, "too many requests are waiting", code="queue_full", retry_after=2)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()


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

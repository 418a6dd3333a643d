"""Sessions: branches that clients hold over HTTP, on leases.

A session belongs to the key that opened it, and there to who knows its secret. Every use renews its
lease; when that is over, nobody is there any more, and all its branches are freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import Iterator

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.serve.calls import current, metered
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Served
from anabranch.serve.plain import new_id

MOST_DEPTH = 256
"""Forks one below the other: names of branches grow with them."""


class Session:
    """Branches of one client.

    Attributes:
        secret: who knows it may use them.
        branches: those that live, by name.
        lease: seconds without use after which they are freed.
    """

    def __init__(self, served: Served, seed: int, budget: Budget, lease: float) -> None:
        self.id, self.secret = new_id("session"), secrets.token_urlsafe(24)
        self.served, self.lease = served, lease
        self.meter = metered(seed=seed, budget=budget)
        self.run = self.meter.run
        self.branches: dict[str, Branch] = {}
        self._busy: set[str] = set()
        self._used = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until it ends, if it is not used."""
        return self.lease if self._busy else max(0.0, self._used + self.lease - time.monotonic())

    def renew(self) -> None:
        """It was used just now."""
        self._used = time.monotonic()

    def branch(self, name: str) -> Branch:
        """A branch that lives. Raises Refusal."""
        found = self.branches.get(name)
        if found is None:
            raise Refusal(404, "there is no such branch, or it was dropped", code="no_branch")
        return found

    @contextlib.contextmanager
    def working(self, branch: Branch) -> Iterator[None]:
        """While one operation runs on a branch; it holds the lease. Raises Refusal."""
        if branch.id in self._busy:
            raise Refusal(
                409, "another operation is under way on this branch: fork it", code="busy"
            )
        self._busy.add(branch.id)
        try:
            yield
        finally:
            self._busy.discard(branch.id)
            self.renew()

    def charge(self) -> None:
        """Let the request under way pay for what it uses here."""
        call = current()
        call.model = self.served.name
        call.use(self.meter)

    def drop(self, branch: Branch) -> None:
        """Free a branch."""
        del self.branches[branch.id]
        branch.drop("by its client", forget=True)  # its children hold it, maybe many of them


class Sessions:
    """The sessions of one key.

    Args:
        most: sessions.
        most_branches: of one session; `most_in_all` of all together.
    """

    def __init__(self, most: int, most_branches: int, most_in_all: int) -> None:
        self._most, self._most_branches, self._most_in_all = most, most_branches, most_in_all
        self._sessions: dict[str, Session] = {}

    def add(self, session: Session) -> None:
        """Keep one until its lease is over. Raises Refusal."""
        if len(self._sessions) >= self._most:
            raise Refusal(429, "too many sessions are open", code="too_many", retry_after=5)
        self._sessions[session.id] = session
        self._watch(session)

    def find(self, name: str, secret: str | None) -> Session:
        """The session of a name; its lease is renewed. Raises Refusal."""
        session = self._sessions.get(name)
        given = (secret or "").encode()
        # Compared for unknown names too: how long it takes tells nothing.
        known = session.secret if session is not None else "none"
        if not hmac.compare_digest(known.encode(), given) or session is None:
            raise Refusal(404, "there is no such session, or its secret is another one")
        session.renew()
        return session

    def check_room(self, session: Session, n: int) -> None:
        """Raise Refusal where `n` more branches are too many."""
        if len(session.branches) + n > self._most_branches:
            raise Refusal(
                429, f"a session has at most {self._most_branches} branches", code="too_many"
            )
        if sum(len(each.branches) for each in self._sessions.values()) + n > self._most_in_all:
            raise Refusal(429, "too many branches are open", code="too_many", retry_after=5)

    def end(self, session: Session) -> None:
        """Free all its branches."""
        self._sessions.pop(session.id, None)
        session.branches.clear()
        session.run.drop_all("its session has ended")

    def _watch(self, session: Session) -> None:
        if session.id not in self._sessions:
            return
        if session.left <= 0:
            self.end(session)
        else:
            asyncio.get_running_loop().call_later(session.left + 0.001, self._watch, session)

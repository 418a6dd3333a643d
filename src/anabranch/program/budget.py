"""What a program may spend: tokens and seconds. It cannot be overspent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from anabranch.errors import check_range


class Budget:
    """Tokens and seconds a program may spend; every operation reserves before it runs.

    A token is charged when a program adds it to a branch: the prompt once, then every token
    sampled or forced. Tokens *computed* never exceed that, and a warm cache changes nothing: the
    same budget buys the same answer whatever ran before. Reserving up front makes the limit hold
    however many branches run at once, and independent of which of them finishes first.

    Args:
        tokens: most tokens to charge; None: no limit.
        seconds: most seconds from `start()`; None: no limit.
        parent: budget that is charged along with this one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        tokens: int | None = None,
        seconds: float | None = None,
        *,
        parent: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if tokens is not None:
            check_range("budget in tokens", tokens, 1, 2**53)
        if seconds is not None:
            check_range("budget in seconds", seconds, 0, 1e9, low_open=True)
        self.tokens, self.seconds, self.parent = tokens, seconds, parent
        self.spent_tokens = 0
        self._reserved = 0
        self._clock = clock
        self._started: float | None = None

    def start(self) -> None:
        """Start the clock; later calls change nothing."""
        if self._started is None:
            self._started = self._clock()
        if self.parent is not None:
            self.parent.start()

    @property
    def left_tokens(self) -> float:
        """Tokens neither spent nor reserved, here and in every parent; `inf` without a limit."""
        own = math.inf
        if self.tokens is not None:
            own = self.tokens - self.spent_tokens - self._reserved
        return own if self.parent is None else min(own, self.parent.left_tokens)

    @property
    def left_seconds(self) -> float:
        """Seconds until the deadline, never negative; `inf` without a limit."""
        own = math.inf
        if self.seconds is not None:
            began = self._started if self._started is not None else self._clock()
            own = max(0.0, began + self.seconds - self._clock())
        return own if self.parent is None else min(own, self.parent.left_seconds)

    @property
    def over(self) -> bool:
        """Nothing can be bought any more."""
        return self.left_tokens <= 0 or self.left_seconds <= 0

    def reserve(self, tokens: int) -> int:
        """Set aside up to `tokens` and return how many were granted, 0 when the budget is over."""
        granted = 0 if self.over else int(min(tokens, self.left_tokens))
        self._move(reserved=granted, spent=0)
        return granted

    def settle(self, reserved: int, spent: int) -> None:
        """Turn a reservation into tokens spent and give back the rest."""
        assert 0 <= spent <= reserved, (spent, reserved)
        self._move(reserved=-reserved, spent=spent)

    def share(self, fraction: float) -> Budget:
        """A part of what is left, as a budget of its own that charges this one too.

        Raises:
            InputError: `fraction` outside (0, 1].
        """
        check_range("share of a budget", fraction, 0, 1, low_open=True)
        tokens, seconds = self.left_tokens, self.left_seconds
        part = Budget(parent=self, clock=self._clock)
        part.tokens = None if tokens == math.inf else int(tokens * fraction)
        part.seconds = None if seconds == math.inf else seconds * fraction
        part.start()
        return part

    def _move(self, *, reserved: int, spent: int) -> None:
        self._reserved += reserved
        self.spent_tokens += spent
        if self.parent is not None:
            self.parent._move(reserved=reserved, spent=spent)

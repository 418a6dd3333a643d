"""What a branch may write: constraints on the tokens of one `extend`.

A constraint says where it starts; from then on its *states* say what may come next. States are
values: `next` leaves the state it was asked as it was, so branches may fork in the middle.

Where a state can tell all tokens at once it gives a mask. Where it can only test one at a time (any
Python predicate), tokens are drawn until one passes, and the draws that failed give an unbiased
estimate of how much of the distribution passes: adaptive weighted rejection sampling.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from anabranch.backends.base import F32, Backend, Draws
from anabranch.backends.philox import derive
from anabranch.models.tokenizer import Tokenizer

Mask = npt.NDArray[np.bool_]

MOST_TESTS = 1024
"""Most tokens that are tried for one place, where they can only be tested one at a time."""

_ATTEMPTS = 1 << 63
"""Stream keys of attempts are those of children that no branch ever has."""


class State(Protocol):
    """What may come next, after all tokens so far."""

    def mask(self) -> Mask | None:
        """`[vocab]` of the tokens that may come, ends left out; None: only `test` can tell."""
        ...

    def test(self, token: int) -> bool:
        """Whether one token, which is no end, may come."""
        ...

    def next(self, token: int) -> State:
        """The state behind a token that may come."""
        ...

    def done(self) -> bool:
        """Whether the text may end here."""
        ...


class Constraint(Protocol):
    """A rule for texts, of any tokenizer."""

    def start(self, tokenizer: Tokenizer, written: Sequence[int]) -> State:
        """The state behind `written`, tokens that stand under the rule already.

        Raises:
            InputError: the rule itself cannot be read, or `written` breaks it.
        """
        ...


@dataclass(frozen=True)
class Predicate:
    """Any test in Python of the text so far: `allowed(text)` says whether it may go on like that.

    Attributes:
        allowed: asked of a text that ends with a whole character; must hold for all its beginnings.
        complete: whether the text may end here.
    """

    allowed: Callable[[str], bool]
    complete: Callable[[str], bool] = lambda text: True

    def start(self, tokenizer: Tokenizer, written: Sequence[int]) -> State:
        """See `Constraint.start`."""
        return _Tested(self, tokenizer, b"".join(map(tokenizer.token_bytes, written)))


@dataclass(frozen=True)
class _Tested:
    rule: Predicate
    tokenizer: Tokenizer
    text: bytes

    def mask(self) -> None:
        return None

    def test(self, token: int) -> bool:
        added = self.tokenizer.token_bytes(token)
        text = _whole(self.text + added)
        return bool(added) and text is not None and bool(self.rule.allowed(text))

    def next(self, token: int) -> State:
        return replace(self, text=self.text + self.tokenizer.token_bytes(token))

    def done(self) -> bool:
        text = _whole(self.text)
        return text is not None and bool(self.rule.complete(text))


def _whole(text: bytes) -> str | None:
    """Text without a last character that is not complete yet; None if it is no text."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return None


class Choice(NamedTuple):
    """A token drawn from a row of scores under a constraint.

    Attributes:
        logq: log-probability under the distribution drawn from. Where tokens were tested one at a
            time that is not known; then exp(-logq) is unbiased as importance weight.
    """

    token: int
    logq: float


def draw_allowed(
    backend: Backend, scores: F32, draws: Draws, state: State, ends: frozenset[int]
) -> Choice | None:
    """Draw from `scores[vocab]` what a state allows; None when that is nothing.

    With everything allowed, the token and its `logq` are those of the unconstrained draw, to the
    bit.

    Args:
        draws: one draw, from row 0.
    """
    mask = state.mask()
    if mask is not None:
        allowed = mask.copy()
        allowed[list(ends)] = state.done()
        if not allowed.any():
            return None
        return _draw(backend, np.where(allowed, scores, np.float32(-np.inf)), draws)

    def passes(token: int) -> bool:
        return state.done() if token in ends else state.test(token)

    return _draw_tested(backend, scores, draws, passes)


def _draw_tested(
    backend: Backend, scores: F32, draws: Draws, passes: Callable[[int], bool]
) -> Choice | None:
    """Adaptive weighted rejection sampling (Lipkin et al. 2025, algorithm 1).

    Draw without replacement until a token passes. With q_i the probability of draw i among the
    tokens left, Z = prod over the rejected (1 - q_i), times q of the accepted one unless the next
    draw would pass too, is an unbiased estimate of the mass that passes, and weights the token
    properly. In p(x) / q(x) * Z all but the accepted token's own q cancels. At temperature 0 tokens
    are tried in the order of their scores, and nothing is estimated.
    """
    left = scores.copy()
    for attempt in range(MOST_TESTS):
        choice = _draw(backend, left, _attempt(draws, attempt))
        if choice is None:
            return None
        left[choice.token] = -np.inf
        if passes(choice.token):
            break
    else:
        return None
    if draws.temperature[0] > 0:
        following = _draw(backend, left, _attempt(draws, attempt + 1))
        if following is not None and not passes(following.token):
            return Choice(choice.token, 0.0)
    return choice


def _attempt(draws: Draws, attempt: int) -> Draws:
    """The same draw with a random number of its own; attempt 0 keeps the branch's."""
    if attempt == 0:
        return draws
    key = derive(int(draws.key[0]), _ATTEMPTS + attempt)
    return replace(draws, key=np.array([key], np.uint64))


def _draw(backend: Backend, scores: F32, draws: Draws) -> Choice | None:
    """One draw; None when no token is left."""
    if not np.isfinite(scores.max()):
        return None
    drawn = backend.draw(scores[None], draws)
    return Choice(int(drawn.token[0]), float(drawn.logq[0]))

"""What a branch can ask of the engine: draw tokens, score given ones, look at the distribution.

Each request names the *rows* whose logits it needs; row r is the token at position r, and its
logits say what comes at position r + 1. The engine computes rows and hands back results in any
order; a request says when it is done.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from anabranch.backends.base import F32
from anabranch.engine.tree import Cursor
from anabranch.errors import InputError, check_range


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Edits come first, then temperature, top-k, top-p, min-p.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep the k most likely; 0 keeps all.
        top_p: keep the smallest set with at least this probability; 1 keeps all.
        min_p: drop tokens below this share of the most likely one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of every token on the
            path (Keskar et al. 2019, section 4.1).
        presence_penalty, frequency_penalty: subtracted once, or per occurrence, for tokens after
            the prompt.
        bias: added to the logits of given token ids.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def check(self, vocab: int) -> None:
        """Raise `InputError` for anything out of range."""
        check_range("temperature", self.temperature, 0, 100)
        check_range("top_k", self.top_k, 0, 2**31 - 1)
        check_range("top_p", self.top_p, 0, 1, low_open=True)
        check_range("min_p", self.min_p, 0, 1)
        check_range("repetition_penalty", self.repetition_penalty, 0.01, 100)
        check_range("presence_penalty", self.presence_penalty, -100, 100)
        check_range("frequency_penalty", self.frequency_penalty, -100, 100)
        for token, value in self.bias.items():
            check_range("token id in bias", token, 0, vocab - 1)
            if not math.isfinite(value):
                raise InputError("bias is not finite", got=value, fix="use -100 to ban a token")

    @property
    def proper(self) -> bool:
        """Every token keeps a positive probability, so that importance weights are unbiased."""
        return self.temperature > 0 and self.top_k == 0 and self.top_p == 1.0 and self.min_p == 0.0

    @property
    def edits_path(self) -> bool:
        """Some edit depends on the tokens of the path."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class Edit(NamedTuple):
    """One edit of a raw logit: see `backends.base.Draws`."""

    token: int
    scale: float
    shift: float


class Result(NamedTuple):
    """What one row gave.

    Attributes:
        shift: log-probability under the target, minus `logp`, where the target is not the model.
        top: the row's likeliest tokens and their log-probabilities, if asked for.
    """

    token: int
    logp: float
    logq: float
    entropy: float
    shift: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Cost:
    """Rows and passes one request, or one program, has taken so far.

    Attributes:
        seconds: its share of the seconds of those passes, by rows.
    """

    computed: int = 0
    cached: int = 0
    recomputed: int = 0
    passes: int = 0
    seconds: float = 0.0


def nothing() -> None:
    """What a request calls at its end before anybody waits for it."""


class Request:
    """Common part: a cursor, the rows still wanted, and what they have cost.

    Attributes:
        todo: rows whose logits are still wanted, ascending.
        cost: of this request; `total` adds up over a program.
        finish: called once, when the request is done or has failed.
        expired: whether time is up, asked before each pass.
        top: how many of the likeliest tokens to report with each result.
        error: why it failed, or None.
        group: whose it is, for policies that share out rows.
    """

    given: Mapping[int, int] = {}
    top = 0

    def __init__(self, cursor: Cursor, rows: range, finish: Callable[[], None] = nothing) -> None:
        self.cursor = cursor
        self.todo = list(rows)
        self.finish = finish
        self.cost = Cost()
        self.total = Cost()
        self.ticket = -1
        self.priority = 0.0
        self.group = ""
        self.deadline = math.inf
        self.expired: Callable[[], bool] = lambda: False
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Nothing is wanted any more."""
        return not self.todo


class Draw(Request):
    """Sample tokens one after another until `stop` says so.

    Args:
        on_token: called with each token drawn, after it was appended to the path; returns whether
            to stop.
        prompt_end: first position that presence and frequency penalties count.
        top: see `Request`.

    Attributes:
        most: tokens after which `on_token` stops at the latest, for engines that draw several in
            one go.
    """

    most = 1

    def __init__(
        self,
        cursor: Cursor,
        sampling: Sampling,
        on_token: Callable[[Result], bool],
        finish: Callable[[], None] = nothing,
        *,
        prompt_end: int = 0,
        top: int = 0,
    ) -> None:
        super().__init__(cursor, range(cursor.position - 1, cursor.position), finish)
        self.top = top
        self.sampling = sampling
        self.on_token = on_token
        path = cursor.path() if sampling.edits_path else []
        self._seen = Counter(path)
        self._written = Counter(path[prompt_end:])

    def accept(self, result: Result) -> None:
        """Take the token drawn; the cursor has moved over it already."""
        if self.sampling.edits_path:
            self._seen[result.token] += 1
            self._written[result.token] += 1
        stop = self.on_token(result)
        self.todo = [] if stop else [self.cursor.position - 1]

    def edits(self) -> list[Edit]:
        """The logit edits for the next draw, at most one per token."""
        s = self.sampling
        edits = dict.fromkeys(self._seen, (s.repetition_penalty, 0.0)) if s.edits_path else {}
        for token, count in self._written.items():
            shift = -s.presence_penalty - s.frequency_penalty * count
            edits[token] = (s.repetition_penalty, shift)
        for token, bias in s.bias.items():
            scale, shift = edits.get(token, (1.0, 0.0))
            edits[token] = (scale, shift + bias)
        return [Edit(token, scale, shift) for token, (scale, shift) in sorted(edits.items())]


class Score(Request):
    """The log-probabilities of tokens that stand on the path already.

    Args:
        start: position of the first token to score, at least 1.
        tokens: the tokens from there on.
        top: see `Request`.
    """

    def __init__(
        self,
        cursor: Cursor,
        start: int,
        tokens: list[int],
        finish: Callable[[], None] = nothing,
        *,
        top: int = 0,
    ) -> None:
        super().__init__(cursor, range(start - 1, start - 1 + len(tokens)), finish)
        self.top = top
        self.given = dict(zip(self.todo, tokens, strict=True))
        self.results: dict[int, Result] = {}

    def accept(self, row: int, result: Result) -> None:
        """Take one token's result."""
        self.results[row] = result
        self.todo.remove(row)

    def ordered(self) -> list[Result]:
        """Results in the order of the tokens."""
        return [self.results[row] for row in sorted(self.results)]


class Peeked(NamedTuple):
    """The likeliest tokens of a row, most likely first, and what the row says as a whole."""

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    entropy: float
    hidden: F32 | None


class Look(Request):
    """The distribution at the cursor's tip, and on demand the hidden state.

    Args:
        top: how many tokens to report.
        wants_hidden: report the final normalised state, `[hidden]`, too.
    """

    def __init__(
        self,
        cursor: Cursor,
        top: int,
        wants_hidden: bool,
        finish: Callable[[], None] = nothing,
    ) -> None:
        super().__init__(cursor, range(cursor.position - 1, cursor.position), finish)
        self.top, self.wants_hidden = top, wants_hidden
        self.result: Peeked | None = None

    def accept(self, result: Peeked) -> None:
        """Take the row's result."""
        self.result = result
        self.todo = []


class Read(Request):
    """The raw logits at the cursor's tip, for who draws from them and appends the token himself."""

    def __init__(self, cursor: Cursor) -> None:
        super().__init__(cursor, range(cursor.position - 1, cursor.position))
        self.result: F32 | None = None

    def accept(self, result: F32) -> None:
        """Take the row's logits, `[vocab]`."""
        self.result = result
        self.todo = []

"""The records that cross between programs, strategies and people. All frozen: evidence is kept."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from anabranch.engine.requests import Result
    from anabranch.program.branch import Branch
    from anabranch.program.budget import Budget


Stop = Literal["until", "end", "limit", "budget", "dead", "forced", "complete", "stuck"]
"""Why a step ended: a stop condition, the model's own end, the limit, the budget, its branch was
dropped or it was cancelled meanwhile; or its tokens were given. Under a constraint also: its text
can only end, or nothing may come."""


@dataclass(frozen=True)
class Mark:
    """A position on a branch's path that `fork(at=...)` can go back to."""

    branch: str
    position: int


@dataclass(frozen=True)
class Usage:
    """Where tokens and time went. Adds up: `a + b`.

    Attributes:
        prompt_tokens: tokens of prompts opened.
        sampled_tokens: tokens drawn, all branches; `kept_tokens` of them lie on branches that lead
            to the answer, the others were explored and discarded.
        forced_tokens: tokens given to branches (templates, cues, options scored).
        computed_tokens: rows run through the model for the first time.
        cached_tokens: tokens that needed no row of their own: a prefix found in the tree, or a
            sibling that drew the same token.
        recomputed_tokens: rows run again: after preemption or eviction, or to look again at an
            earlier position.
        passes: forward passes this work took part in.
        seconds: wall time.
    """

    prompt_tokens: int = 0
    sampled_tokens: int = 0
    kept_tokens: int = 0
    forced_tokens: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    passes: int = 0
    seconds: float = 0.0

    @property
    def discarded_tokens(self) -> int:
        """Sampled tokens on branches that do not lead to the answer."""
        return self.sampled_tokens - self.kept_tokens

    @property
    def charged_tokens(self) -> int:
        """What a budget is charged: prompts, tokens sampled and tokens forced."""
        return self.prompt_tokens + self.sampled_tokens + self.forced_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            *(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self))
        )


@dataclass(frozen=True)
class Step:
    """What one operation appended to a branch.

    Attributes:
        text: the text appended.
        tokens: the token ids appended.
        start, end: marks before and after.
        logps: per token, the model's log-probability (temperature 1, nothing truncated), nats.
        logq: log-probability of the distribution really sampled from, summed; 0 for `force`.
        logw: target minus proposal, summed. Without `allow` and `blend` the target is the model;
            with them it is unnormalised.
        entropies: per token, of the model's distribution it was drawn from, nats.
        stop: why it ended.
        proper: whether `logw` corrects for the proposal on its whole support (False when top-p,
            top-k, min-p or temperature 0 cut something off).
        usage: what it cost.
        taken_back: log-probability of a token that `force` replaced along with what it appended.
        borders: per token, how many characters of `text` there are with it.
        tops: per token, the likeliest tokens at its place and the model's log-probabilities of
            them, most likely first, if `top` asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    start: Mark
    end: Mark
    logps: tuple[float, ...]
    logq: float
    logw: float
    entropies: tuple[float, ...]
    stop: Stop
    proper: bool = True
    usage: Usage = field(default_factory=Usage)
    taken_back: float = 0.0
    borders: tuple[int, ...] = ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def logp(self) -> float:
        """What the step adds to the log-probability of the path, nats: the sum of `logps`."""
        return math.fsum(self.logps) - self.taken_back


@dataclass(frozen=True)
class Piece:
    """What a step has come by since the last piece: characters, and the tokens that end in them."""

    text: str
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Next:
    """The distribution at a branch's tip, unsampled: its likeliest tokens, most likely first.

    Attributes:
        tokens, logps: token ids and their log-probabilities, nats.
        entropy: of the whole distribution, nats.
        hidden: `[hidden]` final normalised state as float32, if asked for.
    """

    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    entropy: float
    hidden: Any = None


Until = str | Sequence[str] | re.Pattern[str] | Callable[[Step], bool] | None
"""When `extend` stops: a text, any of several, a pattern found, or a test of the step so far."""


@dataclass(frozen=True)
class Problem:
    """What is to be solved.

    Attributes:
        text: the question.
        system: instructions that go before it, or None for the strategy's own.
        kind: how answers are read and compared: "auto" decides by what the text of the candidates
            holds; "choice" expects a letter of `choices`; "exact" is what is stated, as it stands
            (lists, expressions, moves); "whole" is the whole text (programs, letters to write).
        choices: options of a multiple-choice problem.
        context: what the question is about, such as a document; stands before it.
        check: says whether an answer is right (a thought's answer, or its text where none could be
            read), for problems that can tell. No part of what is asked.
        examples: other problems with their answers, for methods that learn from such; they are
            asked only by these.
    """

    text: str
    system: str | None = None
    kind: Literal["auto", "number", "choice", "text", "exact", "whole"] = "auto"
    choices: tuple[str, ...] = ()
    context: str = ""
    check: Callable[[str], bool] | None = field(default=None, compare=False, repr=False)
    examples: tuple[tuple[Problem, str], ...] = field(default=(), repr=False)


@dataclass
class Thought:
    """One candidate: a branch with what a search knows of it. The branch *is* the search-tree node.

    Attributes:
        branch: where it lives in the token tree.
        parent: the thought it grew from.
        answer: its normalised answer, or None when none could be read.
        scores: ratings by judges, oldest first, each in [0, 1].
        logp: sum along its own steps, nats.
        logw: likewise, of a particle since it was last resampled.
        tokens: tokens sampled along its own steps.
        cost: cumulative cost in a best-first search.
        visits, total, prior: for tree search.
        done: it reached an answer or the model's own end.
        text: its text since the problem.
    """

    branch: Branch
    parent: Thought | None = None
    answer: str | None = None
    scores: tuple[float, ...] = ()
    logp: float = 0.0
    logw: float = 0.0
    tokens: int = 0
    cost: float = 0.0
    visits: int = 0
    total: float = 0.0
    prior: float = 1.0
    done: bool = False
    text: str = ""


@dataclass(frozen=True)
class Candidate:
    """A thought as it is kept in an `Answer`, free of the engine."""

    branch: str
    answer: str | None
    text: str
    weight: float
    logp: float
    tokens: int
    done: bool


@dataclass(frozen=True)
class Answer:
    """The outcome of a program, with the evidence for it.

    Attributes:
        answer: the answer itself, normalised ("42"); never None: the text if nothing was extracted.
        text: the full text of the thought that gives it.
        confidence: share of the candidates' weight that agrees, in [0, 1].
        strategy: the strategy with its parameters, as it could be typed again.
        model: name of the model.
        seed: the seed that brings it back to the bit.
        usage: what it cost.
        candidates: every candidate, best first.
        notes: what a reader should know (a fallback taken, a budget that ended early).
    """

    answer: str
    text: str
    confidence: float
    strategy: str
    model: str
    seed: int
    usage: Usage
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()


Strategy = Callable[["Problem", "Branch", "Budget"], Awaitable[list[Thought]]]
"""A small asynchronous program: candidates out, never one answer, so that strategies nest."""

Fold = Callable[[Sequence[Thought]], list[tuple[str, float]]]
"""Candidates to `(answer, weight)`, heaviest first; weights sum to 1."""

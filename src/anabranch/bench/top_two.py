"""Answers, runners-up and difficulty of many problems, from what a crowd said of them.

The crowd may be prompts, models or temperatures: anything that answers every problem under the same
name, so that it shows over many problems who is to be relied on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anabranch.errors import InputError

F64 = npt.NDArray[np.float64]

ROUNDS = 200
"""Of expectation maximisation; it ends sooner when no reliability moves by `_STILL`."""

_STILL = 1e-4
_SURE = 0.99  # nobody is more reliable than that, nor less than one minus that
_Q = np.linspace(0.5, 1.0, 51)


@dataclass(frozen=True)
class TopTwo:
    """What a crowd amounts to on one problem.

    Attributes:
        answer: the likeliest to be right of those given, or None when nobody answered.
        runner_up: the most plausible wrong one, or None when no other was given.
        confusion: share of those not guessing who say the runner-up, 0 to 0.5: how difficult it is.
        confidence: posterior probability of the answer.
    """

    answer: str | None
    runner_up: str | None
    confusion: float
    confidence: float


def top_two(
    votes: Sequence[Sequence[str | None]], *, options: int | None = None
) -> tuple[list[TopTwo], list[float]]:
    """Find the best two answers of every problem, and how reliable each voter is.

    A voter of reliability p guesses among all options with probability 1 - p; else it says the
    right answer with the problem's own probability q of at least one half, or the runner-up
    (Jeong and Chung 2023, Recovering top-two answers and confusion probability in multi-choice
    crowdsourcing, section 3).

    Departures: expectation maximisation over the reliabilities instead of singular vectors; what a
    problem's answers and q are is then taken from their posterior, uniform before, instead of the
    maximum likelihood.

    Args:
        votes: per problem, the normalised answer of each voter in the same order; None: abstained.
        options: how many answers a problem has; None: as many as any problem was given, at least 2.

    Returns:
        One result per problem, and one reliability per voter.

    Raises:
        InputError: rows of different lengths, no voters, or more answers than options.
    """
    voters = len(votes[0]) if votes else 0
    if not voters or any(len(row) != voters for row in votes):
        raise InputError("every problem needs one vote of each voter", got=list(map(len, votes)))
    tasks = [_Task(row) for row in votes]
    most = max(2, *(len(task.answers) for task in tasks))
    if options is not None and options < most:
        raise InputError("more answers than options", got=options, allowed=f"{most} or more")
    count = options or most
    counted = sum(task.cast for task in tasks)
    reliability = np.full(voters, 0.5)
    for _ in range(ROUNDS):
        before = reliability
        total = sum(task.informed(reliability, count) for task in tasks)
        reliability = np.clip(total / np.maximum(counted, 1), 1 - _SURE, _SURE)
        if np.abs(reliability - before).max() < _STILL:
            break
    return [task.result(reliability, count) for task in tasks], reliability.tolist()


class _Task:
    """One problem's votes."""

    def __init__(self, row: Sequence[str | None]) -> None:
        self.answers = list(dict.fromkeys(vote for vote in row if vote is not None))
        said = [-1 if vote is None else self.answers.index(vote) for vote in row]
        self.by = np.flatnonzero(np.array(said) >= 0)  # who voted
        self.said = np.array(said, np.int64)[self.by]
        self.cast = (np.array(said) >= 0).astype(np.float64)

    def posterior(self, reliability: F64, options: int) -> F64:
        """`[right, runner-up, q]` probabilities; the last of either stands for all not given."""
        given = len(self.answers)
        guess, right, second = self._chances(reliability, options)
        as_right, as_second = np.zeros((given + 1, len(_Q))), np.zeros((given + 1, len(_Q)))
        np.add.at(as_right, self.said, np.log(right / guess))
        np.add.at(as_second, self.said, np.log(second / guess))
        pairs = 1 - np.eye(given + 1)  # how many each stands for: the two differ
        unseen = options - given
        pairs[:, given] = pairs[given] = unseen
        pairs[given, given] = unseen * max(0, unseen - 1)
        logs = as_right[:, None] + as_second[None]
        logs[pairs == 0] = -np.inf
        weights: F64 = pairs[..., None] * np.exp(logs - logs.max())
        weights /= weights.sum()
        return weights

    def informed(self, reliability: F64, options: int) -> F64:
        """`[voters]` probability that each did not guess; 0 for who abstained."""
        found = np.zeros(len(reliability))
        if self.answers:
            posterior = self.posterior(reliability, options)
            guess, right, second = self._chances(reliability, options)
            as_right, as_second = posterior.sum(1)[self.said], posterior.sum(0)[self.said]
            known = as_right * (1 - guess / right) + as_second * (1 - guess / second)
            found[self.by] = known.sum(1)
        return found

    def result(self, reliability: F64, options: int) -> TopTwo:
        """What there is to say of the problem."""
        if not self.answers:
            return TopTwo(None, None, 0.5, 0.0)
        posterior = self.posterior(reliability, options)
        right = int(posterior[:-1].sum((1, 2)).argmax())
        second = int(posterior[right].sum(1).argmax())
        shares = posterior[right, second] / posterior[right, second].sum()
        return TopTwo(
            answer=self.answers[right],
            runner_up=self.answers[second] if second < len(self.answers) else None,
            confusion=float(shares @ (1 - _Q)),
            confidence=float(posterior[right].sum()),
        )

    def _chances(self, reliability: F64, options: int) -> tuple[F64, F64, F64]:
        """`[votes, q]` probability of a vote if it is neither of the two, the right one, or the
        runner-up."""
        p = reliability[self.by][:, None]
        guess = (1 - p) / options
        return guess, guess + p * _Q, guess + p * (1 - _Q)

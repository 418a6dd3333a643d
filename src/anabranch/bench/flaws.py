"""What asking again until a verifier is content can reach when the verifier errs.

With chance p that a sample is right, and a verifier that accepts right ones at rate t and wrong
ones at rate f, a sample is accepted with a = p t + (1 - p) f, and the first one accepted among K is
right with (1 - (1 - a)^K) p t / a. No number of tries gets past p t / a (Stroebl et al. 2024,
Inference scaling fLaws: the limits of LLM resampling with imperfect verifiers, section 3).

Problems differ in p: all functions take `[problems]` rates and average over problems. That is why
a best number of tries is finite: easy problems are accepted early, what is accepted late is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anabranch.bench.intervals import Estimate, share
from anabranch.errors import check_range

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verifier:
    """How often a verifier accepts right samples, and wrong ones."""

    true_positives: float
    false_positives: float

    def __post_init__(self) -> None:
        check_range("rate of true positives", self.true_positives, 0, 1)
        check_range("rate of false positives", self.false_positives, 0, 1)

    def after(self, p: Any, tries: Any) -> tuple[F64, F64]:
        """Chance that the answer is right, and that a wrong one was accepted, after so many tries.

        What is missing to 1: nothing was accepted.

        Args:
            p: `[problems]` or one: chance that a sample is right.
            tries: `[...]` at least 0; infinity gives the ceiling.
        """
        p = np.atleast_1d(np.asarray(p, np.float64))
        tries = np.asarray(tries, np.float64)[..., None]
        good, bad = p * self.true_positives, (1 - p) * self.false_positives
        accepted = good + bad
        with np.errstate(divide="ignore", invalid="ignore"):
            ended = np.where(tries > 0, -np.expm1(tries * np.log1p(-accepted)), 0.0)
        ended = np.where(accepted > 0, ended, 0.0) / np.where(accepted > 0, accepted, 1.0)
        return (ended * good).mean(-1), (ended * bad).mean(-1)

    def ceiling(self, p: Any) -> float:
        """The accuracy that no number of tries gets past."""
        return float(self.after(p, np.inf)[0])

    def best_tries(
        self, p: Any, *, wrong: float = 1.0, price: float = 0.0, most: int = 1000
    ) -> tuple[int, float]:
        """The number of tries worth most, and its worth; (0, 0) when none is worth anything.

        A right answer is worth 1, a wrong one accepted costs `wrong`, each try made costs `price`
        (section 4).
        """
        check_range("cost of a wrong answer", wrong, 0, 1e9)
        check_range("price of a try", price, 0, 1e9)
        check_range("most tries", most, 1, 1e6)
        tries = np.arange(most + 1)
        right, false = self.after(p, tries)
        # A try is made as long as none was accepted: its price is due with that chance.
        open_before = 1 - (right + false)[:-1]
        spent = price * np.concatenate([[0.0], np.cumsum(open_before)])
        worth = right - wrong * false - spent
        best = int(worth.argmax())
        return best, float(worth[best])


def rates(accepted: Any, right: Any, problems: Any = None) -> tuple[Estimate | None, ...]:
    """Rates of true and of false positives from labelled judgements, with 95% intervals.

    Args:
        accepted, right: `[n]` bool, what the verifier said and what is so.
        problems: `[n]` which problem each belongs to.

    Returns:
        Of true, then of false positives; None where nothing was right, or wrong.
    """
    accepted, right = np.asarray(accepted, np.bool_), np.asarray(right, np.bool_)
    problems = np.arange(len(right)) if problems is None else np.asarray(problems)
    return tuple(
        share(accepted[kind], problems[kind]) if kind.any() else None for kind in (right, ~right)
    )

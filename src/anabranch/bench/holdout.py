"""A test set that stays honest while one tunes on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from anabranch.errors import InputError, check_range


class Guard:
    """Answers questions about a mean from the training half unless the held-out half disagrees.

    Thresholdout (Dwork et al. 2015, Generalization in adaptive data analysis and holdout reuse,
    section 4, algorithm 1): while both halves agree within a noisy threshold, the training value
    is the answer and nothing of the held-out half is given away; else the answer is the held-out
    value plus noise, and one of a limited number of such events is used up.

    Attributes:
        left: how many more times the halves may disagree.

    Args:
        threshold: disagreement that is let pass, in the unit of the means.
        noise: sigma; the Laplace noises have scales of 2 sigma (threshold), 4 sigma (comparison)
            and sigma (answer).
        budget: events of overfitting that may be revealed.
    """

    def __init__(
        self, *, threshold: float = 0.04, noise: float = 0.005, budget: int = 100, seed: int = 0
    ) -> None:
        check_range("threshold", threshold, 0, 1e9)
        check_range("noise", noise, 0, 1e9)
        check_range("budget of overfitting events", budget, 1, 1 << 30)
        self._threshold, self._noise, self.left = threshold, noise, budget
        self._draws = np.random.default_rng(seed)
        self._limit = self._new_limit()

    def mean(self, train: Any, held_out: Any) -> float:
        """The mean of a quantity, of which both halves hold values.

        Args:
            train, held_out: `[...]` its values on either half.

        Raises:
            InputError: the budget is used up: the held-out half has nothing more to say.
        """
        if not self.left:
            raise InputError(
                "the held-out half has been asked too often",
                fix="draw new problems, with another seed",
            )
        known, fresh = float(np.mean(train)), float(np.mean(held_out))
        if abs(fresh - known) <= self._limit + self._laplace(4):
            return known
        self.left -= 1
        self._limit = self._new_limit()
        return fresh + self._laplace(1)

    def _new_limit(self) -> float:
        return self._threshold + self._laplace(2)

    def _laplace(self, scale: float) -> float:
        return float(self._draws.laplace(0, scale * self._noise)) if self._noise else 0.0

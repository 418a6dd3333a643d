"""How many problems some sample of k solves, how that grows, and how much of it a choice keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anabranch.errors import InputError

F64 = npt.NDArray[np.float64]


def pass_at_k(right: Any, drawn: Any, k: int) -> F64:
    """`[problems]` chance that one of k samples is right: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021, Evaluating large language models trained on code,
    section 2.1, equation 1. Its mean over problems is the coverage of Brown et al. 2024, Large
    language monkeys, section 2.

    Args:
        right, drawn: `[problems]` samples that are right, and all samples.
        k: samples one may choose from.

    Raises:
        InputError: k is below 1 or above what was drawn, or more are right than were drawn.
    """
    right, drawn = np.asarray(right, np.int64), np.asarray(drawn, np.int64)
    if right.shape != drawn.shape or not drawn.size:
        raise InputError("samples do not match problems", got=f"{right.size} and {drawn.size}")
    if (right < 0).any() or (right > drawn).any():
        raise InputError("more samples are right than were drawn")
    if not 1 <= k <= drawn.min():
        raise InputError(
            "k is out of range", got=k, allowed=f"1 to {drawn.min()}, the fewest drawn"
        )
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, drawn.max() + 1)))])
    wrong = drawn - right
    missed = logs[wrong] - logs[np.maximum(wrong - k, 0)] - (logs[drawn] - logs[drawn - k])
    return np.where(wrong < k, 1.0, -np.expm1(missed))


def ks(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, which is always among them."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]


@dataclass(frozen=True)
class PowerLaw:
    """Coverage as exp(a k^b), with a and b below 0 where it grows.

    Attributes:
        residuals: measured minus fitted coverage, at each k that was fitted.
    """

    a: float
    b: float
    residuals: tuple[float, ...]

    def at(self, k: Any) -> Any:
        """The coverage it foretells for k samples."""
        return np.exp(self.a * np.asarray(k, np.float64) ** self.b)


def fit_power_law(k: Sequence[int], coverage: Sequence[float]) -> PowerLaw | None:
    """The exponentiated power law of coverage (Brown et al. 2024, section 3.1, equation 2).

    A straight line through log(-log coverage) over log k. Coverages of exactly 0 or 1 have no place
    on it and are left out; with fewer than three others there is no fit.
    """
    xs, ys = np.asarray(k, np.float64), np.asarray(coverage, np.float64)
    inside = (ys > 0) & (ys < 1)
    if inside.sum() < 3:
        return None
    xs, ys = xs[inside], ys[inside]
    b, intercept = np.polyfit(np.log(xs), np.log(-np.log(ys)), 1)
    a = -np.exp(intercept)
    residuals = ys - np.exp(a * xs**b)
    return PowerLaw(float(a), float(b), tuple(map(float, residuals)))

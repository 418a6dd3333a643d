"""What the samples of one problem allow: the worst choice, chance, the majority, the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Bounds(NamedTuple):
    """Expected accuracy of four ways to choose one of N samples; worst <= mean <= best."""

    worst: float
    mean: float
    majority: float
    best: float


def bounds(answers: Sequence[str | None], right: Sequence[bool]) -> Bounds:
    """The bounds of one problem (Balachandran et al. 2025, Inference-time scaling for complex
    tasks, section 3).

    Among answers equally frequent the majority is drawn by lot: its accuracy is the share of them
    that is right. Samples without an answer have no vote; without any vote, majority is the mean.

    Args:
        answers, right: `[samples]` what each says, and whether that is right.
    """
    mean = sum(right) / len(right)
    votes: dict[str, list[bool]] = {}
    for answer, is_right in zip(answers, right, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(is_right)
    most = max(map(len, votes.values()), default=0)
    # Equal answers may be marked differently where more than the answer is checked.
    leaders = [sum(marks) / most for marks in votes.values() if len(marks) == most]
    majority = sum(leaders) / len(leaders) if leaders else mean
    return Bounds(float(all(right)), mean, majority, float(any(right)))

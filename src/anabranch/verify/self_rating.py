"""The model's own opinion of its thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anabranch.program.registry import OneOf
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.asking import VERDICTS, question
from anabranch.verify.registry import UNKNOWN, Judge, judge

DIGITS = tuple("123456789")

_QUESTIONS = {
    ("steps", "verdict"): "Is every step of this solution right so far? Answer Yes or No.",
    ("steps", "digits"): "How sure are you that this solution is right so far, from 1 to 9? Answer "
    "with one digit.",
    ("last", "verdict"): "Is the last step of that right and useful? Answer Yes or No.",
    ("last", "digits"): "How good is the last step of that, from 1 (wrong) to 9 (right and "
    "useful)? Answer with one digit.",
    ("whole", "verdict"): "Check every line of that. Is it all right, the result included? Reply "
    "Yes or No.",
    ("whole", "digits"): "Check every line of that. How sure are you that it is all right, the "
    "result included, from 1 to 9? Reply with one digit.",
}


@judge(
    "self_rating",
    paper="Xie et al. 2023, Self-evaluation guided beam search for reasoning; "
    "expected digit: Liu et al. 2023, G-Eval, section 2",
    summary="The model is asked whether its thought is right so far. See its AUC before trusting.",
)
def self_rating(
    *,
    of: Annotated[str, OneOf(("steps", "last", "whole"))] = "steps",
    scale: Annotated[str, OneOf(("verdict", "digits"))] = "verdict",
    prior: Annotated[str, OneOf(("empty", "none"))] = "empty",
) -> Judge:
    """The probability of "Yes", or the expected digit, brought to [0, 1]; nothing is sampled.
    It is asked of the steps so far, of the last of them, or of the whole with its result.

    `prior="empty"` subtracts what the model says of an empty reply: 0.5 then means "no better than
    nothing". Departures: one question for all problems, instead of a prompt with examples.
    """
    text, options = _QUESTIONS[of, scale], VERDICTS if scale == "verdict" else DIGITS

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        asked = [question(t.branch, text, options, prior=prior == "empty") for t in thoughts]
        return [UNKNOWN if shares is None else _value(shares) for shares in await together(asked)]

    return Judge(rate)


def _value(shares: Sequence[float]) -> float:
    """The share of Yes, or the mean of digits brought to [0, 1]."""
    if len(shares) == len(VERDICTS):
        return shares[0]
    top = len(shares) - 1
    return min(1.0, sum(share * digit / top for digit, share in enumerate(shares)))

"""Whether a thought is worth going on with, by the model that wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.asking import VERDICTS, question
from anabranch.verify.registry import UNKNOWN, Judge, judge

_QUESTION = "Would starting over give a better solution than that? Reply Yes or No."


@judge(
    "start_over",
    paper="Manvi et al. 2024, Adaptive inference-time compute: LLMs can predict if they can do "
    "better, even mid-generation, section 3",
    summary="The probability that the model would not rather start over.",
)
def start_over() -> Judge:
    """P(No) to that question; nothing is sampled.

    Departure: the paper trains the model to predict it; here it is asked, uncalibrated.
    """

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        asked = (question(t.branch, _QUESTION, VERDICTS, prior=False) for t in thoughts)
        return [UNKNOWN if shares is None else shares[1] for shares in await together(asked)]

    return Judge(rate)

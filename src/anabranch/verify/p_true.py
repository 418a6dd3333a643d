"""P(True): is the proposed answer true?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.registry import Range
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.agreement import finished
from anabranch.verify.asking import answers, open_aside
from anabranch.verify.registry import UNKNOWN, Judge, judge

MAX_SHOWN = 500
"""How much of the end of a text stands for an answer that could not be read, in characters."""

_OPTIONS = ("(A)", "(B)")


@judge(
    "p_true",
    paper="Kadavath et al. 2022, Language models (mostly) know what they know, section 4",
    summary="The probability that the model calls the answer true, other answers shown beside it.",
)
def p_true(*, shown: Annotated[int, Range(0, 64)] = 5) -> Judge:
    """The proposed answer alone in a new context, with up to `shown` answers of other thoughts.

    Departures: no examples; asked with (A) True and with (A) False, and averaged, since small
    models like the letter more than the answer. Two prompts a thought, without its steps.
    """

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        known = finished(thoughts)

        async def each(thought: Thought) -> float:
            proposed = thought.answer or thought.text[-MAX_SHOWN:].strip()
            if not proposed:
                return 0.0
            ideas = list(dict.fromkeys(t.answer for t in known if t is not thought))[:shown]
            shares = []
            for order in (("True", "False"), ("False", "True")):
                content = _prompt(problem, proposed, [i for i in ideas if i], order)
                found = await _letter(thought.branch, content)
                if found is None:
                    return UNKNOWN
                shares.append(found[order.index("True")])
            return sum(shares) / len(shares)

        return await together(map(each, thoughts))

    return Judge(rate, partial=False)


async def _letter(beside: Branch, content: str) -> list[float] | None:
    asked = open_aside(beside, [{"role": "user", "content": content}])
    if asked is None:
        return None
    try:
        return await answers(asked, _OPTIONS)
    finally:
        asked.drop("p_true")


def _prompt(problem: Problem, proposed: str, ideas: list[str], order: Sequence[str]) -> str:
    lines = [f"Question: {problem.text}"]
    if ideas:
        lines += ["Some brainstormed ideas:", *ideas]
    options = (f"{letter} {word}" for letter, word in zip(_OPTIONS, order, strict=True))
    return "\n".join(
        [*lines, f"Possible answer: {proposed}", "Is the possible answer:", *options,
         "Answer with (A) or (B)."]
    )  # fmt: skip

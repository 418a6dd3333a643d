"""A second model as the judge of the first one's thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anabranch.errors import InputError
from anabranch.program.engine import Engine
from anabranch.program.registry import Text
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.asking import VERDICTS, answers, open_aside
from anabranch.verify.registry import UNKNOWN, Judge, judge

_QUESTION = "Is every step of this solution right? Answer Yes or No."


@judge(
    "reward",
    paper="Zhang et al. 2024, Generative verifiers: reward modeling as next-token prediction, "
    "section 3.1",
    summary="A second model file, loaded once, says how likely the thought is right.",
)
def reward(*, model: Annotated[str, Text()] = "") -> Judge:
    """P(Yes) against P(No) of another model after problem, solution and question.

    The model is loaded into this process when first asked, and stays; its tokens are charged to
    the program. Departure: any chat model may be named, trained as a verifier or not.

    Raises:
        InputError: no model is named.
    """
    if not model:
        raise InputError("reward needs a model", fix='name one: reward(model="path/to/model.gguf")')

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        engine = await thoughts[0].branch.engine.other(model)
        return await together(_ask(engine, problem, thought) for thought in thoughts)

    return Judge(rate)


async def _ask(engine: Engine, problem: Problem, thought: Thought) -> float:
    content = f"Problem: {problem.text}\n\nSolution:\n{thought.text.strip()}\n\n{_QUESTION}"
    asked = open_aside(thought.branch, [{"role": "user", "content": content}], engine)
    if asked is None:
        return UNKNOWN
    try:
        shares = await answers(asked, VERDICTS)
    finally:
        asked.drop("reward")
    return UNKNOWN if shares is None else shares[0]

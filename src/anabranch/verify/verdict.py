"""A verdict that the model writes, after thinking about it or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anabranch.engine.grammar import choice
from anabranch.program.derived import forks
from anabranch.program.registry import Range
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.asking import VERDICTS, put, unasked
from anabranch.verify.registry import UNKNOWN, Judge, judge

_QUICK = "Is every step of this solution right so far? Answer Yes or No."
_SLOW = "Check this solution step by step. Point out the first mistake, if there is one."
_SO = "\nEvery step is right, Yes or No: "


@judge(
    "verdict",
    paper="Zhang et al. 2024, Generative verifiers: reward modeling as next-token prediction, "
    "section 3 (with thinking: GenRM-CoT)",
    summary="A sampled Yes (1) or No (0), with up to `think` tokens of checking before it.",
)
def verdict(
    *,
    think: Annotated[int, Range(0, 1 << 16)] = 0,
    temperature: Annotated[float, Range(0, 10)] = 1.0,
) -> Judge:
    """One sampled verdict; `repeat` and `flex` take several. The words Yes and No are all that may
    be written. Departure: a prompt instead of a trained verifier."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        async def each(thought: Thought) -> float:
            branch = thought.branch
            if not branch.live:
                unasked(branch, "the thought was dropped")
                return UNKNOWN
            with forks(branch, 1, "verdict") as (child,):
                if not await put(child, _SLOW if think else _QUICK):
                    return UNKNOWN
                if think:
                    await child.extend(think, temperature=temperature)
                    if child.tokens[-1] not in child.engine.tokenizer.ends:
                        await child.force(_SO)
                    elif not await put(child, _SO.strip()):
                        return UNKNOWN
                said = await child.extend(8, allow=choice(VERDICTS), temperature=temperature)
                if said.text not in VERDICTS:
                    unasked(branch)
                    return UNKNOWN
                return float(said.text == VERDICTS[0])

        return await together(map(each, thoughts))

    return Judge(rate)

"""Several ways to put a problem, which must agree on every word."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.blends import sample_blend
from anabranch.reason.folds import majority
from anabranch.reason.prompts import STEPS, ending, messages
from anabranch.reason.registry import MaxTokens, Range, Samples, Temperature, strategy
from anabranch.verify.asking import open_aside

ROLES = (
    "You are a careful teacher who writes out every step.",
    "You are a mathematician. Name what is known, then what is asked.",
    "You check every step for mistakes before the next.",
    "You answer in few, exact words.",
)


@strategy(
    "experts",
    paper="Hinton 2002, Training products of experts by minimizing contrastive divergence",
    summary="One text by several instructions at once: a word must seem right to each.",
    cost="a row of the batch for each instruction, one text",
    use="When several instructions must hold at once.",
    fold=majority,
)
def experts(
    *,
    roles: Annotated[int, Range(1, len(ROLES))] = 2,
    n: Samples = 4,
    temperature: Temperature = 0.8,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """A product of experts: the geometric mean of what the model says in several roles.

    Departures: the experts are prompts of one model. The prompt as usual takes the place of the
    first role.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        asked = f"{problem.text}\n\n{STEPS} {ending(problem)}"
        others = [
            open_aside(root, messages(replace(problem, text=asked, system=role)))
            for role in ROLES[1:roles]
        ]
        voices = [root, *(other for other in others if other is not None)]
        roots = [(voice, 1 / len(voices)) for voice in voices]
        return await sample_blend(problem, roots, n, max_tokens, temperature=temperature)

    return run

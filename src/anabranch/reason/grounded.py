"""Answers that keep to the context given."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.blends import sample_blend
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import messages
from anabranch.reason.registry import MaxTokens, Range, Samples, Temperature, strategy
from anabranch.verify.asking import open_aside


@strategy(
    "grounded",
    paper="Shi et al. 2024, Trusting your evidence: context-aware decoding, section 2",
    summary="What a context makes likelier is made likelier still, against what is known by heart.",
    cost="2 rows a token, one text",
    use="When the context contradicts what the model knows by heart.",
    fold=majority,
)
def grounded(
    *,
    alpha: Annotated[float, Range(0, 8)] = 0.5,
    n: Samples = 1,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Context-aware decoding: p(token | context, question)^(1 + alpha) / p(token | question)^alpha.

    A problem without a context is solved as it is.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        without = None
        if problem.context:
            without = open_aside(root, messages(replace(problem, context="")))
        else:
            root.run.remark("the problem has no context to keep to")
        if without is None:
            return await sample(problem, root, n, max_tokens, temperature=temperature)
        roots = [(root, 1 + alpha), (without, -alpha)]
        return await sample_blend(problem, roots, n, max_tokens, temperature=temperature)

    return run

"""Divide and conquer by confidence: a few samples for all, many more for what divides them."""

from __future__ import annotations

from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.reason.registry import (
    MaxTokens,
    OneOf,
    Samples,
    Share,
    Temperature,
    TopP,
    strategy,
)
from anabranch.reason.turns import begin, replies


@strategy(
    "divide",
    paper="Meng et al. 2024, Divide and conquer for large language models reasoning, section 3",
    summary="A few samples; where they disagree, many more that see what these came to.",
    cost="few solutions where they agree, else many",
    use="Instead of vote, when a budget must last for many problems.",
    fold=majority,
)
def divide(
    *,
    n: Samples = 3,
    more: Samples = 9,
    threshold: Share = 0.6,
    second: Annotated[str, OneOf(("filter", "prior", "both", "plain"))] = "filter",
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Confidence is the share of the samples that the leading answer has; up to `threshold` of it,
    the problem is put again, with the answers that were voted for ("filter"), a thought for each of
    them ("prior"), both, or as it was ("plain").

    Departures: also for open problems, whose choices are the answers found; both passes vote
    together after "plain", the second alone after the others, if it finds any answer.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        sampling = {"temperature": temperature, "top_p": top_p}
        first = await sample(problem, root, n, max_tokens, **sampling)
        voices = [thought for thought in first if thought.answer is not None]
        ranked = majority(voices)
        if budget.over or (ranked and ranked[0][1] * len(voices) > threshold * len(first)):
            return first
        if second == "plain" or not ranked:
            return first + await sample(problem, root, more, max_tokens, **sampling)
        hints = ""
        if second in ("filter", "both"):
            hints += f"\n\nOne of these is right: {', '.join(sorted(a for a, _ in ranked))}."
        if second in ("prior", "both"):
            each = {thought.answer: thought for thought in reversed(voices)}
            hints += "".join(f"\n\nOne attempt:\n{t.text.strip()}" for t in each.values())
        text = f"{stated_question(problem)}{hints}\n\n{STEPS} {ending(problem)}"
        again = begin(root, problem, text)
        if again is None:
            return first
        redone = await replies(problem, again, more, max_tokens, **sampling)
        if any(thought.answer is not None for thought in redone):
            return redone
        root.run.remark("the second pass found no answer: the first votes")
        return first

    return run

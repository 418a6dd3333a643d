"""A vote among the longest chains."""

from __future__ import annotations

import math
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Range, Samples, Temperature, TopP, strategy


@strategy(
    "complexity",
    paper="Fu et al. 2022, Complexity-based prompting for multi-step reasoning, section 3",
    summary="n sampled chains of thought; those of the most steps vote.",
    cost="n solutions side by side",
    use="When short solutions skip what matters.",
    fold=majority,
)
def complexity(
    *,
    n: Samples = 16,
    keep: Annotated[float, Range(0, 1, low_open=True)] = 0.6,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """A chain that takes more lines skips less. `keep` is the share of the answers that vote.

    Departures: no exemplars, so none are chosen by their length.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        sampling = {"temperature": temperature, "top_p": top_p}
        thoughts = await sample(problem, root, n, max_tokens, **sampling)
        voices = [thought for thought in thoughts if thought.answer is not None]
        voices.sort(key=lambda thought: -lines(thought.text))
        return voices[: math.ceil(keep * len(voices))] or thoughts

    return run


def lines(text: str) -> int:
    """Steps of a chain: its lines with something on them."""
    return sum(bool(line.strip()) for line in text.splitlines())

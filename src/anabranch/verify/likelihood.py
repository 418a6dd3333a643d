"""How likely the model itself finds its thought."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anabranch.program.types import Problem, Thought
from anabranch.verify.registry import Judge, judge


@judge(
    "likelihood",
    paper="Jelinek et al. 1977, Perplexity: a measure of the difficulty of speech recognition",
    summary="Mean probability per token (one over the perplexity). Free, and a weak guide.",
)
def likelihood() -> Judge:
    """The geometric mean of the probabilities of a thought's own tokens; 0 before the first."""

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        for thought in thoughts:
            thought.branch.engine.require("logprobs")
        return [min(1.0, math.exp(t.logp / t.tokens)) if t.tokens else 0.0 for t in thoughts]

    return Judge(rate)

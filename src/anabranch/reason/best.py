"""Best of n by the model's own likelihood."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason import folds
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Samples, Temperature, TopP, strategy


@strategy(
    "best",
    paper="Adiwardana et al. 2020, Towards a human-like open-domain chatbot (sample-and-rank)",
    summary="n sampled chains of thought; the answer of the likeliest one, per token.",
    cost="n solutions side by side",
    use="When answers cannot be compared, so that none can be voted for.",
    fold=folds.best,
)
def best(
    *,
    n: Samples = 8,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Sample and rank.

    Departures: ranked by the mean, not the sum, of the tokens' log-probabilities (at temperature
    1), so that long thoughts are not at a disadvantage; thoughts without an answer are left out
    while there are others.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        root.engine.require("logprobs")
        return await sample(problem, root, n, max_tokens, temperature=temperature, top_p=top_p)

    return run

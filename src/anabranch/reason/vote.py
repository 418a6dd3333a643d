"""Self-consistency: many thoughts, the most common answer."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Samples, Temperature, TopP, strategy


@strategy(
    "vote",
    paper="Wang et al. 2022, Self-consistency improves chain of thought reasoning, section 2",
    summary="n sampled chains of thought; the answer that most of them reach.",
    cost="n solutions side by side; the prompt is computed once",
    use="The first thing to try where answers can be compared.",
    fold=majority,
)
def vote(
    *,
    n: Samples = 8,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Marginalise over reasoning paths by an unweighted vote (as good as weighting: table 1).

    Departures: no exemplars in the prompt; temperature 0.8 and no top-k, where the paper mostly
    takes 0.5 or 0.7 and 40; ties are broken by likelihood.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        return await sample(problem, root, n, max_tokens, temperature=temperature, top_p=top_p)

    return run

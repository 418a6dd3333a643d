"""One thought."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Temperature, TopP, strategy


@strategy(
    "single",
    paper="Wei et al. 2022, Chain-of-thought prompting, section 2; Kojima et al. 2022, section 3",
    summary="One chain of thought; by default the most likely token at every step.",
    cost="1 solution",
    use="The base line; enough where it is nearly always right.",
    fold=majority,
)
def single(
    *, temperature: Temperature = 0.0, top_p: TopP = 1.0, max_tokens: MaxTokens = 512
) -> Strategy:
    """Chain of thought, without exemplars: the instruction alone asks for the steps."""

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        return await sample(problem, root, 1, max_tokens, temperature=temperature, top_p=top_p)

    return run

"""Program-aided reasoning: the model writes the program, and the machine runs it."""

from __future__ import annotations

from functools import partial

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.formalise import PROGRAM, Fallback, code, formalise, posed
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Retries, Samples, Temperature, TopP, strategy
from anabranch.tools.python import python


@strategy(
    "pal",
    paper="Gao et al. 2022, PAL: Program-aided language models",
    summary="Python programs, run in a sandbox; the answer that most of them print.",
    cost="n short programs; running them takes no tokens",
    use="Whatever can be computed: arithmetic, counting, dates.",
    fold=majority,
    runs_code=True,
)
def pal(
    *,
    n: Samples = 4,
    retries: Retries = 1,
    temperature: Temperature = 0.6,
    top_p: TopP = 1.0,
    fallback: Fallback = "vote",
    max_tokens: MaxTokens = 384,
) -> Strategy:
    """The reasoning is the program; what it prints is the answer.

    Departures: no exemplars in the prompt; a program that fails is told why, and may be corrected.
    Without the budget for the prompt, or when no program can be run, as many chains of thought
    vote; with `fallback="none"` the programs abstain.
    """
    solve = python()

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        sampling = {"temperature": temperature, "top_p": top_p}
        chains = partial(sample, problem, root, n, max_tokens, **sampling)
        asked = posed(root, problem, PROGRAM)
        if asked is None:
            return await chains()
        return await formalise(
            problem,
            [Thought(branch) for branch in asked.fork(n)],
            code(**sampling),
            solve,
            retries=retries,
            limit=max_tokens,
            otherwise=chains if fallback == "vote" else None,
        )

    return run

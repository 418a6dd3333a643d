"""Induction without deduction: the model finds the rule, and the machine applies it."""

from __future__ import annotations

from functools import partial

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.formalise import Fallback, code, formalise, posed
from anabranch.reason.induction import FUNCTION, examples, inducer
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Retries, Samples, Temperature, TopP, strategy


@strategy(
    "solver_learner",
    paper="Cheng et al. 2024, Inductive or deductive? Rethinking the fundamental reasoning "
    "abilities of LLMs (SolverLearner)",
    summary="Examples `a -> b`: functions that fit them all are run on what is asked, and vote.",
    cost="n short programs; running them takes no tokens",
    use="Functions to be found from examples.",
    fold=majority,
    runs_code=True,
)
def solver_learner(
    *,
    n: Samples = 6,
    retries: Retries = 1,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    fallback: Fallback = "vote",
    max_tokens: MaxTokens = 384,
) -> Strategy:
    """The model sees examples and writes a function; only the interpreter applies it.

    Departures: several functions, of which those that are wrong about an example abstain, or are
    told and corrected. A problem without examples is answered by chains of thought, and so is one
    for which no function fits; with `fallback="none"` the functions abstain.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        sampling = {"temperature": temperature, "top_p": top_p}
        shown = examples(problem)
        if shown is None:
            root.run.remark("there are no examples `input -> output` to learn from")
        asked = posed(root, problem, FUNCTION) if shown else None
        chains = partial(sample, problem, root, n, max_tokens, **sampling)
        if shown is None or asked is None:
            return await chains()
        return await formalise(
            problem,
            [Thought(branch) for branch in asked.fork(n)],
            code(**sampling),
            inducer(*shown),
            retries=retries,
            limit=max_tokens,
            otherwise=chains if fallback == "vote" else None,
        )

    return run

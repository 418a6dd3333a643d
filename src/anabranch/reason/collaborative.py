"""A chain of thought and a program that must agree."""

from __future__ import annotations

from dataclasses import replace

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import weighted
from anabranch.reason.formalise import code, formalise
from anabranch.reason.kernels import sample
from anabranch.reason.registry import MaxTokens, Retries, Samples, Temperature, TopP, strategy
from anabranch.reason.turns import ask
from anabranch.tools.python import python

TRANSLATE = (
    "Translate this solution into a Python program that follows its steps and prints the answer. "
    "Reply with the code alone, in one ```python block."
)


@strategy(
    "collaborative",
    paper="Liang et al. 2024, Improving LLM reasoning through scaling inference computation with "
    "collaborative verification (CoTnPoT)",
    summary="Chains of thought vote if a program made from them comes to the same answer.",
    cost="n solutions and n short programs",
    use="Arithmetic, when a wrong answer costs more than none.",
    fold=weighted,
    runs_code=True,
)
def collaborative(
    *,
    n: Samples = 6,
    retries: Retries = 0,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 384,
) -> Strategy:
    """Each chain is translated into a program, in the same conversation, and run.

    Departures: no trained verifier ranks what is left: the agreeing chains have equal votes. When
    no program agrees with its chain, all chains vote.
    """
    solve = python()

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        chains = await sample(problem, root, n, max_tokens, temperature=temperature, top_p=top_p)
        programs = [
            replace(chain, branch=chain.branch.fork(), parent=chain, answer=None, done=False)
            for chain in chains
            if chain.answer is not None
        ]
        covered = await together(ask(program.branch, TRANSLATE) for program in programs)
        asked = [program for program, there in zip(programs, covered, strict=True) if there]
        made = await formalise(
            problem, asked, code(temperature=temperature), solve, retries=retries, limit=max_tokens
        )
        sure = [p for p in made if p.parent is not None and p.answer == p.parent.answer]
        if not sure:
            root.run.remark("no chain has a program that agrees with it: all chains vote")
        kept = {id(program.parent) for program in sure} or set(map(id, chains))
        for chain in chains:
            chain.scores = (float(id(chain) in kept),)
        return chains

    return run

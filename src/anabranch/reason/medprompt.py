"""A multiple-choice problem asked several times, its options in another order each time."""

from __future__ import annotations

import random
from dataclasses import replace

from anabranch.backends.philox import derive
from anabranch.program.answers import letters
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import population, sample, sampler
from anabranch.reason.prompts import messages
from anabranch.reason.registry import MaxTokens, Samples, Temperature, strategy


@strategy(
    "medprompt",
    paper="Nori et al. 2023, Can generalist foundation models outcompete special-purpose tuning?",
    summary="Votes over shuffled options, so that none wins by its place.",
    cost="n solutions side by side",
    use="Multiple choice.",
    fold=majority,
)
def medprompt(
    *, shuffles: Samples = 5, temperature: Temperature = 0.7, max_tokens: MaxTokens = 512
) -> Strategy:
    """Choice shuffling ensemble; letters are mapped back before the vote.

    Departures: of the paper's three parts only this one, as there is no bank of solved examples.
    A problem without options is voted on as it is.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        if not problem.choices:
            root.run.remark("there are no options to shuffle: a plain vote")
            return await sample(problem, root, shuffles, max_tokens, temperature=temperature)
        rng = random.Random(root.run.seed)
        orders = [list(range(len(problem.choices))) for _ in range(shuffles)]
        for order in orders[1:]:
            rng.shuffle(order)
        share = root.mark.position + max_tokens
        affordable = 1 + int(min(shuffles, max(0, budget.left_tokens - max_tokens) // share))
        if affordable < shuffles:
            root.run.remark(f"the budget covers {affordable} of {shuffles} orders")
        found = await together(
            ask(problem, root, i, order) for i, order in enumerate(orders[:affordable])
        )
        return [thought for thoughts in found for thought in thoughts]

    async def ask(problem: Problem, root: Branch, i: int, order: list[int]) -> list[Thought]:
        asked = replace(problem, choices=tuple(problem.choices[i] for i in order))
        branch = root
        if asked != problem:
            # Each order draws its own numbers, lest all be lucky together.
            seed = derive(root.run.seed, i)
            branch = root.engine.open(messages(asked), seed=seed, run=root.run)
        go_on = sampler(asked, temperature=temperature)

        async def advance(thought: Thought, limit: int) -> None:
            try:
                await go_on(thought, limit)
            finally:  # whoever stops us wants the problem's own letters too
                if thought.answer is not None:
                    place = letters(asked).index(thought.answer)
                    thought.answer = letters(problem)[order[place]]

        return await population([Thought(branch.fork())], advance, limit=max_tokens)

    return run

"""Many small thoughts, summed outside the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from anabranch.program.answers import letters
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import score
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.kernels import note_thought, population, sample, write
from anabranch.reason.registry import MaxTokens, OneOf, Samples, Temperature, strategy
from anabranch.reason.resample import by_share, normalised

SUMS: dict[str, Callable[[Sequence[float]], float]] = {
    "mixture": lambda logs: math.log(math.fsum(map(math.exp, logs)) or 1e-300),
    "product": math.fsum,
    "min": min,
    "max": max,
}
"""How log-probabilities of one option under several thoughts become one."""

CUE = "\nThe answer is"


@strategy(
    "thinksum",
    paper="Ozturkler et al. 2023, ThinkSum: probabilistic reasoning over sets, section 3",
    summary="n short thoughts; each says how likely every option is, and that is summed outside.",
    cost="n short thoughts, each option scored under each",
    use="Few possible answers, none of which can be computed.",
    fold=by_share,
)
def thinksum(
    *,
    n: Samples = 8,
    total: Annotated[str, OneOf(SUMS)] = "mixture",
    think_tokens: MaxTokens = 32,
    temperature: Temperature = 0.8,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Think by sampling, sum by arithmetic: no long chain has to hold together.

    Departures: the thoughts are free text about the problem, not a task's own list of facts.
    Without options there is nothing to sum over, and chains of thought vote.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        if not problem.choices:
            root.run.remark("there are no options to sum over: a plain vote")
            thoughts = await sample(problem, root, n, max_tokens, temperature=temperature)
            for thought in thoughts:
                thought.total = 1.0
            return thoughts

        async def think(thought: Thought, limit: int) -> None:
            await write(thought, limit, temperature=temperature, until="\n")

        thoughts = await population(
            [Thought(branch) for branch in root.fork(n)], think, limit=think_tokens
        )
        options = [f"{CUE} {letter}" for letter in letters(problem)]
        tables = await together(score(thought.branch, options) for thought in thoughts)
        known = [normalised(row) for row in tables if max(row) > -math.inf]
        if not known:
            root.run.remark("the budget ended before the options were scored")
            return thoughts
        columns = zip(*known, strict=True)
        logs = [SUMS[total]([math.log(max(p, 1e-300)) for p in column]) for column in columns]
        branches = root.fork(len(options))
        voices = []
        for letter, share, branch in zip(letters(problem), normalised(logs), branches, strict=True):
            text = f"{CUE.strip()} {letter}"
            voices.append(Thought(branch, answer=letter, total=share, done=True, text=text))
            note_thought(voices[-1])
        root.run.thoughts = list(voices)
        return voices

    return run

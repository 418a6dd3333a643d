"""A method of one's own in one file: the solution that says it in the fewest words wins.

`anabranch --with examples/own_method.py solve --strategy "shortest(n=4)" "What is 17 + 25?"` takes
it by name, and so do scripts, once the file has been run.
"""

import anabranch
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import tally
from anabranch.reason.kernels import sample
from anabranch.reason.registry import Samples, strategy


def fewest_words(thoughts: list[Thought]) -> list[tuple[str, float]]:
    """An answer weighs one over the length of its shortest solution."""
    return tally(thoughts, lambda thought: 1 / max(1, thought.tokens), max)


@strategy(
    "shortest",
    paper="this file",
    summary="n sampled chains of thought; the answer of the shortest one.",
    cost="n solutions side by side",
    use="To see how a method is written.",
    fold=fewest_words,
)
def shortest(*, n: Samples = 8) -> Strategy:
    """Budgets, traces, cancellation and the same bits come with the kernel."""

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        return await sample(problem, root, n, 256, temperature=0.8)

    return run


if __name__ == "__main__":
    with anabranch.load("qwen2.5-coder-0.5b") as lm:
        answer = lm.solve("What is 17 + 25? End with: Answer: X", "shortest(n=4)")
        print(answer.answer, *(f"{c.tokens} tokens: {c.answer}" for c in answer.candidates))

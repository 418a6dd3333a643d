"""Concise and organized perception: only the statements that matter, in the order of a proof."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.registry import Share, Then, strategy
from anabranch.reason.statements import read_statement, relevant, split_problem
from anabranch.reason.turns import YES, opinion, put_anew

ASKED = "Is this needed to answer the question? Reply Yes or No.\nQuestion: {}\n{}"


@strategy(
    "organize",
    paper="Liu et al. 2023, Concise and organized perception facilitates reasoning, section 3",
    summary="What the question does not lead back to is left out, the rest put in order.",
    cost="1 listing, and what `then` costs",
    use="Facts in disorder with some beside the point.",
    fold=majority,
)
def organize(
    *,
    threshold: Share = 0.5,
    then: Then = "single",
) -> Strategy:
    """Walk back from the question over rules and facts, and reason over what that reaches.

    Departures: the concept map is made by rules of grammar, not by a model. Unless a text is all
    rules and facts, the model is asked of each sentence whether it matters, and those that it
    thinks needed with less than `threshold` go.

    Args:
        then: what solves the problem so organized.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        parts, question = split_problem(problem)
        read = [statement for part in parts if (statement := read_statement(part))]
        if len(read) == len(parts) and any(statement.given for statement in read):
            kept = [statement.text for statement in relevant(read, question)]
        else:
            shares = await together(
                opinion(root, problem, ASKED.format(question, part)) for part in parts
            )
            kept = [p for p, s in zip(parts, shares, strict=True) if s[YES] >= threshold]
        root.run.note("organize", kept=kept, left_out=[part for part in parts if part not in kept])
        if kept and len(kept) < len(parts):
            problem, root = put_anew(problem, root, [*kept, question])
        thoughts: list[Thought] = await then(problem, root, budget)
        return thoughts

    return run

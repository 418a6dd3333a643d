"""Tree-search refinement: several revisions of what fails, and of these, until one passes."""

from __future__ import annotations

from collections import deque
from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.criticism import OWN, WHAT_FAILS, approval, revised
from anabranch.reason.folds import by_rating
from anabranch.reason.kernels import sample
from anabranch.reason.registry import (
    JudgedBy,
    MaxTokens,
    OneOf,
    Range,
    Rounds,
    Samples,
    Share,
    Temperature,
    strategy,
)
from anabranch.reason.turns import remark_on


@strategy(
    "refine_tree",
    paper="Cheng et al. 2024, SPaR: self-play with tree-search refinement, section 2.3",
    summary="A tree of revisions, searched in breadth or in depth until one is found right.",
    cost="up to visits drafts, each rated, and a complaint for each that fails",
    use="As refine, when one line of revisions gets stuck.",
    fold=by_rating,
)
def refine_tree(
    *,
    width: Samples = 2,
    depth: Annotated[int, Range(1, 16)] = 2,
    order: Annotated[str, OneOf(("breadth", "depth"))] = "breadth",
    judge: JudgedBy = OWN,
    threshold: Share = 0.5,
    visits: Rounds = 16,
    temperature: Temperature = 0.8,
    critique_tokens: MaxTokens = 128,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Each draft visited is rated; up to `threshold` it is criticised and revised in `width` ways.
    At most `visits` drafts are visited, `depth` revisions deep.

    Departures: the search of the paper without its training; by default the rating is the
    probability of the word Yes. `judge=repeat(judge=verdict)` takes several judgements, as the
    paper does.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        drafts = await sample(problem, root, 1, max_tokens, temperature=temperature)
        waiting = deque((draft, 0) for draft in drafts)
        for _ in range(visits):
            if not waiting or budget.over:
                break
            draft, level = waiting.popleft() if order == "breadth" else waiting.pop()
            if await approval(judge, problem, draft) > threshold:
                break
            if level == depth:
                continue
            complaint = await remark_on(draft.branch, WHAT_FAILS, critique_tokens)
            if complaint is None:
                continue
            children = await together(
                revised(problem, draft, complaint, max_tokens, temperature=temperature)
                for _ in range(width)
            )
            new = [child for child in children if child is not None]
            drafts += new
            waiting += [(child, level + 1) for child in (new if order == "breadth" else new[::-1])]
        return drafts

    return run

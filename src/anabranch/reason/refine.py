"""Self-refine: criticise one's own solution and write it anew until nothing is left to say."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason import kernels
from anabranch.reason.criticism import OWN, complaint_of, revised
from anabranch.reason.folds import latest
from anabranch.reason.kernels import sample
from anabranch.reason.registry import JudgedBy, MaxTokens, Rounds, Share, Temperature, strategy


@strategy(
    "refine",
    paper="Madaan et al. 2023, Self-refine: iterative refinement with self-feedback, section 2",
    summary="A solution is criticised and rewritten until the judge, or the model, approves.",
    cost="2 to 1 + rounds solutions, with criticism between",
    use="With a judge that knows, such as checker; small models seldom see their own faults.",
    fold=latest,
)
def refine(
    *,
    rounds: Rounds = 3,
    judge: JudgedBy = OWN,
    threshold: Share = 0.5,
    temperature: Temperature = 0.7,
    critique_tokens: MaxTokens = 128,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Draft, feedback, revision, until the judge rates a draft above `threshold`.

    With `judge=checker` this is refinement with a perfect verifier, or oracle labels (Huang et al.
    2023, Large language models cannot self-correct reasoning yet, section 3): a right draft is
    kept, and only what is wrong is revised.

    Departures: whether to stop is a choice between two words by their likelihood, not read off the
    feedback; a revision sees the draft before it and the feedback on that, not the whole history.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def criticise(draft: Thought) -> str | None:
            return await complaint_of(judge, problem, draft, threshold, critique_tokens)

        async def revise(draft: Thought, complaint: str) -> Thought | None:
            return await revised(problem, draft, complaint, max_tokens, temperature=temperature)

        drafts = await sample(problem, root, 1, max_tokens, temperature=temperature)
        return await kernels.refine(drafts[0], criticise, revise, rounds=rounds) if drafts else []

    return run

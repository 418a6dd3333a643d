"""Inferential exclusion: what a candidate answer implies is held against the problem."""

from __future__ import annotations

from anabranch.program.answers import letters, normalise
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.reason.registry import MaxTokens, Samples, Temperature, strategy
from anabranch.reason.turns import begin, replies, reply, verdict

CONTRADICTS, NEUTRAL, FOLLOWS = "Contradiction", "Neutral", "Entailment"
LABELS = (CONTRADICTS, NEUTRAL, FOLLOWS)
RELATION = (
    "Does that contradict the problem, follow from it, or neither? "
    f"Reply {CONTRADICTS}, {NEUTRAL} or {FOLLOWS}."
)


@strategy(
    "exclude",
    paper="Tong et al. 2023, Eliminating reasoning via inferring with planning, section 3",
    summary="Answers whose implications contradict the problem are excluded; the rest are weighed.",
    cost="1 idea, 1 implication and 1 rating an answer",
    use="Few possible answers, such as multiple choice.",
    fold=majority,
)
def exclude(
    *,
    candidates: Samples = 6,
    temperature: Temperature = 0.8,
    implied_tokens: MaxTokens = 64,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """For each choice (of an open problem: each distinct of `candidates` short answers), what it
    implies, and whether that contradicts, follows from, or does not touch the problem. Those that
    contradict go; among several that stay those that follow do; one left is the answer, more are
    put to a chain of thought. When all would go, all stay.

    Departures: the relation is the likeliest of three words, not read off a text.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        options = await _options(problem, root)
        thoughts = await together(_imply(problem, root, words) for words in options.values())
        answers = [(a, t) for a, t in zip(options, thoughts, strict=True) if t is not None]
        shares = await together(verdict(t.branch, RELATION, LABELS) for _, t in answers)
        labels = {
            answer: max(share, key=lambda label: share[label])
            for (answer, _), share in zip(answers, shares, strict=True)
        }
        root.run.note("exclude", relations=labels)
        following = [answer for answer in labels if labels[answer] == FOLLOWS]
        left = following or [a for a in labels if labels[a] != CONTRADICTS] or list(options)
        for answer, thought in answers:
            if left == [answer] and not budget.over:
                thought.answer, thought.done = answer, True
                return [thought]
        return await _weigh(problem, root, {answer: options[answer] for answer in left})

    async def _options(problem: Problem, root: Branch) -> dict[str, str]:
        """Candidate answers in normal form, each with the words it was given in."""
        if problem.choices:
            return dict(zip(letters(problem), problem.choices, strict=False))
        text = f"{stated_question(problem)}\n\nReply with a possible answer, and nothing else."
        branch = begin(root, problem, text)
        if branch is None:
            return {}
        found: dict[str, str] = {}
        for thought in await replies(
            problem, branch, candidates, implied_tokens, temperature=temperature
        ):
            answer = thought.answer or normalise(thought.text, problem)
            if answer is not None:
                found[answer] = answer
        return found

    async def _imply(problem: Problem, root: Branch, words: str) -> Thought | None:
        text = f"Suppose the answer is: {words}. What would follow? Reply in one sentence."
        branch = begin(root, problem, f"{stated_question(problem)}\n\n{text}")
        if branch is None:
            return None
        return await reply(problem, branch, implied_tokens, temperature=0.0)

    async def _weigh(problem: Problem, root: Branch, left: dict[str, str]) -> list[Thought]:
        """A chain of thought among the answers that are left; among all if that is no limit."""
        if left:
            named = [f"{a}) {w}" if problem.choices else w for a, w in left.items()]
            text = "\n".join([problem.text, "One of these is right:", *named])
            branch = begin(root, problem, f"{text}\n\n{STEPS} {ending(problem)}")
            if branch is not None:
                return [await reply(problem, branch, max_tokens, temperature=0.0)]
        return await sample(problem, root, 1, max_tokens, temperature=0.0)

    return run

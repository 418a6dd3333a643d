"""Early exit: thinking ends once the answer it would give no longer changes."""

from __future__ import annotations

from collections import Counter

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import population, sampler
from anabranch.reason.registry import MaxTokens, Rounds, Samples, Share, Temperature, strategy

CUES = ("Wait", "Alternatively", "Hmm", "But ", "Let me check", "Let me verify", "\n\n")
"""What a new train of thought begins with, or comes after."""

STATE = "\n\nThe answer is"
"""What makes a thought state its answer."""

OPENED, CLOSED = "<think>", "</think>"


@strategy(
    "early_exit",
    paper="An et al. 2025, Don't think longer, think wisely: optimizing thinking dynamics",
    summary="At the turns of a chain of thought its answer is probed; a stable one ends it.",
    cost="1 solution or less, a probe at each turn",
    use="Models that think too long.",
    fold=majority,
)
def early_exit(
    *,
    probes: Samples = 4,
    threshold: Share = 0.75,
    stable: Rounds = 2,
    temperature: Temperature = 0.6,
    probe_tokens: MaxTokens = 16,
    max_tokens: MaxTokens = 2048,
) -> Strategy:
    """At each cue, `probes` forks are made to answer at once. Thinking ends when at least
    `threshold` of them agree, on the same answer at `stable` cues in a row; also, with what the
    probes say then, when it has come to `max_tokens` without an end.

    Departures: the paper cuts finished thinking by the gold answer and trains on it; here the
    agreement of the probes stands in for the gold answer, while the model thinks.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        thought = Thought(root.fork())
        think = sampler(problem, until=CUES, temperature=temperature)
        agreed: list[str | None] = []
        while True:
            limit = max_tokens - thought.tokens
            await population([thought], think, limit=limit)
            last = thought.branch.last
            if last is None or last.stop not in ("until", "limit") or budget.over:
                return [thought]
            thought.done = False  # whatever it has said, it goes on after a cue
            answers = await _probe(problem, thought, probes, probe_tokens)
            root.run.thoughts = [thought, *answers]
            answer, votes = Counter(t.answer for t in answers).most_common(1)[0]
            agreed.append(answer if votes >= threshold * probes else None)
            streak = agreed[-stable:]
            exits = len(streak) == stable and set(streak) == {answer} and answer is not None
            if exits or thought.tokens >= max_tokens:
                root.run.note("exit", branch=thought.branch.id, answer=answer, votes=votes)
                return answers

    return run


async def _probe(problem: Problem, thought: Thought, n: int, limit: int) -> list[Thought]:
    """What `n` forks of a thought answer if they must do so now; their branches are dropped."""
    open_mark = thought.text.rfind(OPENED) > thought.text.rfind(CLOSED)
    cue = (f"\n{CLOSED}\n" if open_mark else "") + STATE

    async def answer(branch: Branch) -> Thought:
        child = Thought(branch, thought, logp=thought.logp, logw=thought.logw, text=thought.text)
        child.tokens = thought.tokens
        if (await branch.force(cue)).stop == "forced":
            await sampler(problem, until="\n")(child, limit)
            child.done = child.answer is not None
        branch.drop("probed")
        return child

    return await together(answer(branch) for branch in thought.branch.fork(n))

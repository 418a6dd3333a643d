"""Solve, detect, verify: stop where a solution is complete, check it as hard as it is doubtful."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason import kernels
from anabranch.reason.criticism import complaint_of
from anabranch.reason.early_exit import CUES, STATE
from anabranch.reason.folds import latest
from anabranch.reason.kernels import population, sampler
from anabranch.reason.prompts import ending
from anabranch.reason.registry import JudgedBy, MaxTokens, Rounds, Share, Temperature, strategy
from anabranch.reason.turns import YES, ask, verdict

MARKERS = tuple(cue for cue in CUES if cue.strip())
"""Words of hesitation. A new paragraph is none."""

STATED_TOKENS = 16
COMPLETE = "Is that a complete solution, with its result? Reply Yes or No."


@strategy(
    "detect_and_verify",
    paper="Zhong et al. 2025, Solve-detect-verify: inference-time scaling with flexible generative "
    "verifier, section 3",
    summary="Stops a solution once complete; quick checks decide if they agree, else a slow one.",
    cost="1 to 2 solutions, quick checks of a token each",
    use="Models that go on and on after they have found the answer.",
    fold=latest,
)
def detect_and_verify(
    *,
    judge: JudgedBy = "flex",
    threshold: Share = 0.5,
    rounds: Rounds = 1,
    temperature: Temperature = 0.6,
    check_tokens: MaxTokens = 256,
    max_tokens: MaxTokens = 1024,
) -> Strategy:
    """At words of hesitation, ask whether the solution is complete; if so, pause it there and have
    it state its answer. The paper's verifier is the judge `flex`: a few verdicts of one word, and
    where they disagree, one after a written check. What is not rated above `threshold` is solved
    anew with a complaint of up to `check_tokens`, once for each of `rounds`.

    Departures: the verifier is the model itself, untrained.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def solve(thought: Thought) -> Thought:
            branch, before = thought.branch, thought.tokens
            skip = len(branch.text)
            write = sampler(problem, skip=skip, until=MARKERS, temperature=temperature)
            while True:
                thought.done = False
                await population([thought], write, limit=max_tokens + before - thought.tokens)
                last = branch.last
                going = last is not None and last.stop == "until" and not budget.over
                if not going or thought.tokens - before >= max_tokens:
                    return thought
                if (await verdict(branch, COMPLETE))[YES] > 0.5:
                    if thought.answer is None and (await branch.force(STATE)).stop == "forced":
                        state = sampler(problem, skip=skip, until="\n", temperature=0.0)
                        await population([thought], state, limit=STATED_TOKENS)
                    thought.done = True
                    return thought

        async def verify(draft: Thought) -> str | None:
            return await complaint_of(judge, problem, draft, threshold, check_tokens)

        async def revise(thought: Thought, finding: str) -> Thought | None:
            branch = thought.branch.fork()
            text = f"A check of that says: {finding}\nSolve it anew. {ending(problem)}"
            if not await ask(branch, text):
                branch.drop("not covered")
                return None
            return await solve(Thought(branch, thought, logp=thought.logp, tokens=thought.tokens))

        first = await solve(Thought(root.fork()))
        return await kernels.refine(first, verify, revise, rounds=rounds)

    return run

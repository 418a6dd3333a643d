"""Sampling under a rule, weighed so that the rule holds for texts as a whole."""

from __future__ import annotations

from typing import Annotated, Any

from anabranch.engine import grammar
from anabranch.engine.constraints import Constraint
from anabranch.program.answers import extract, normalise
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.registry import Text
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.kernels import note_thought, population, write
from anabranch.reason.registry import (
    MaxTokens,
    Range,
    Rounds,
    Samples,
    Temperature,
    strategy,
)
from anabranch.reason.resample import by_share, resampling


@strategy(
    "constrained",
    paper="Loula et al. 2025, Syntactic and semantic control of LLMs via sequential Monte Carlo",
    summary="n replies under a grammar, resampled so that none is favoured for a narrow way on.",
    cost="n replies under a grammar",
    use="When a reply must have a form, and what it says matters more than its first words.",
    fold=by_share,
)
def constrained(
    *,
    n: Samples = 8,
    regex: Annotated[str, Text()] = "",
    ess: Annotated[float, Range(0, 1)] = 0.5,
    step_tokens: MaxTokens = 4,
    rounds: Rounds = 128,
    temperature: Temperature = 1.0,
) -> Strategy:
    """The model's own distribution, conditioned on the reply's matching a rule.

    Masking tokens one by one favours beginnings that leave few ways to go on; the weights undo
    that. Without a `regex` the rule is what the problem asks for: one of its choices, a number, or
    one line.

    Departures: resampled every `step_tokens` tokens.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        rule = grammar.regex(regex) if regex else asked_for(problem)
        shape: Any = {"temperature": temperature, "allow": rule, "since": root.mark}

        async def advance(thought: Thought, limit: int) -> None:
            await write(thought, limit, **shape)
            if thought.done:  # only the rule says when; what states no answer is one as a whole
                stated = extract(thought.text, problem, done=False)
                thought.answer = stated or normalise(thought.text, problem)
                note_thought(thought)

        return await population(
            [Thought(branch) for branch in root.fork(n)],
            advance,
            resampling(ess),
            limit=step_tokens,
            rounds=rounds,
        )

    return run


def asked_for(problem: Problem) -> Constraint:
    """The rule that a bare answer to a problem keeps."""
    if problem.choices:
        return grammar.choice(problem.choices)
    return grammar.regex(r"-?\d{1,20}(\.\d{1,20})?" if problem.kind == "number" else r"[^\n]+")

"""Evidence to generate: quote what the answer rests on, then answer from the quotes alone."""

from __future__ import annotations

import re

from anabranch.engine.grammar import substring
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.registry import MaxTokens, Samples, Temperature, Then, strategy
from anabranch.reason.statements import split_problem
from anabranch.reason.turns import begin, put_anew

_QUOTE_END = re.compile(r"[.!?]\s|\n")


@strategy(
    "evidence",
    paper="Parvez 2024, Evidence to generate (E2G): a single-agent two-step prompting, section 2",
    summary="The problem is quoted, to the letter; the answer comes from the quotes alone.",
    cost="1 quotation, and what `then` costs",
    use="Long texts of which little matters.",
    fold=majority,
)
def evidence(
    *,
    quotes: Samples = 3,
    temperature: Temperature = 0.0,
    quote_tokens: MaxTokens = 64,
    then: Then = "single",
) -> Strategy:
    """Call one quotes up to `quotes` stretches of the text; nothing else can be written there.
    Call two sees them and the question. A text that is only a question is answered as it is.

    Departures: call one gives no answer and no justification of its own.

    Args:
        temperature: of the quotes.
        then: what answers from them.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        parts, question = split_problem(problem)
        if parts:
            found = await _quote("\n".join(parts), question, problem, root)
            root.run.note("evidence", quotes=found)
            if found:
                problem, root = put_anew(problem, root, [*found, question])
        thoughts: list[Thought] = await then(problem, root, budget)
        return thoughts

    async def _quote(text: str, question: str, problem: Problem, root: Branch) -> list[str]:
        """Distinct quotes, in the order of the text."""
        asked = "Copy from this text the sentences that answer the question, one a line."
        branch = begin(root, problem, f"{asked}\n\n{text}\n\nQuestion: {question}")
        found: list[str] = []
        if branch is None:
            return found
        for _ in range(quotes):
            if (await branch.force("- ")).stop == "budget":
                break
            step = await branch.extend(
                quote_tokens, until=_QUOTE_END, allow=substring(text), temperature=temperature
            )
            quote = step.text.strip()
            if not quote or quote in found:
                break
            found.append(quote)
            if step.stop in ("end", "budget", "stuck"):
                break
            await branch.force("\n")
        branch.drop("quoted")
        return sorted(found, key=text.index)

    return run

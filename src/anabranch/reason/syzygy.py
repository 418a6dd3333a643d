"""Syzygy of thoughts: the fewest auxiliary conditions, and how they bear on one another."""

from __future__ import annotations

from typing import Annotated, Any

from anabranch.program.answers import extract
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.reason.registry import MaxTokens, Range, Temperature, strategy
from anabranch.reason.turns import NO, begin, opinion, replies, reply

MISSING = "Is a condition missing? Reply Yes or No."


@strategy(
    "syzygy",
    paper="Li et al. 2025, Syzygy of thoughts: improving LLM CoT with the minimal free resolution",
    summary="Conditions that a solution needs are stated, related, and cut to the fewest that do.",
    cost="1 list of conditions, its relations, 1 solution",
    use="Problems of many conditions.",
    fold=majority,
)
def syzygy(
    *,
    most: Annotated[int, Range(1, 9)] = 4,
    temperature: Temperature = 0.8,
    line_tokens: MaxTokens = 64,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Choose how many conditions there are (the Betti number, up to `most`), state them in parallel
    (generators) and how they limit each other (mappings); state all `most` if something is missing
    (exactness); leave out each one whose absence does not change the answer (minimality); solve.

    Departures: the paper names the six stages, and not how each is decided; here the number and
    exactness are choices between words, and the answer that must not change is the likeliest one
    given at once.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        question = stated_question(problem)

        async def direct(conditions: list[str]) -> str | None:
            """The answer given at once with these conditions in view; None if there is none."""
            branch = begin(root, problem, "\n".join([question, *conditions, "", ending(problem)]))
            if branch is None:
                return None
            text = ""
            if (await branch.force("The answer is")).stop == "forced":
                await branch.extend(16, until="\n", temperature=0.0)
                text = branch.text
            branch.drop("tried")
            return extract(text, problem, done=False)

        async def minimal(conditions: list[str]) -> list[str]:
            whole = await direct(conditions)
            for condition in conditions if whole is not None else []:
                fewer = [other for other in conditions if other != condition]
                if await direct(fewer) == whole:
                    conditions = fewer
            return conditions

        numbers = [str(k) for k in range(1, most + 1)]
        shares = await opinion(
            root, problem, f"{question}\n\nHow many conditions must be met? One digit.", numbers
        )
        betti = int(max(numbers, key=lambda number: shares[number]))
        text = f"{question}\n\nState one condition that a solution must meet, in one line."
        branch = begin(root, problem, text)
        if branch is not None:
            line: dict[str, Any] = {"until": "\n", "temperature": temperature}
            stated = await replies(problem, branch, most, line_tokens, **line)
            found = list(dict.fromkeys(t.text.strip() for t in stated if t.text.strip()))
            conditions = found[:betti]
            text = "\n".join([question, *conditions, "", MISSING])
            if (await opinion(root, problem, text))[NO] < 0.5:
                conditions = found
            conditions = await minimal(conditions)
            root.run.note("syzygy", betti=betti, found=found, kept=conditions)
            if len(conditions) > 1:
                text = "\n".join([question, *conditions, "", "How do these limit each other?"])
                related = begin(root, problem, text)
                if related is not None:
                    step = await related.extend(line_tokens, temperature=0.0)
                    conditions = [*conditions, step.text.strip()]
            text = "\n".join([question, *conditions, "", f"{STEPS} {ending(problem)}"])
            last = begin(root, problem, text)
            if last is not None:
                return [await reply(problem, last, max_tokens, temperature=0.0)]
        return await sample(problem, root, 1, max_tokens, temperature=temperature)

    return run

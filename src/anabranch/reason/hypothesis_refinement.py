"""Iterative hypothesis refinement: rules from examples, tried on them, mended by what they miss."""

from __future__ import annotations

import re

from anabranch.program.answers import normalise_text
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import ending
from anabranch.reason.registry import MaxTokens, Rounds, Samples, Temperature, strategy
from anabranch.reason.turns import begin, replies, reply

_PAIR = re.compile(r"^(?P<given>[^\n]{1,300}?)\s*(?:->|=>|→)[ \t]*(?P<made>[^\n]{0,300})$", re.M)

APPLY = "Rule: {rule}\n\nApply this rule to the input {given}. Reply with the output alone."


@strategy(
    "hypothesis_refinement",
    paper="Qiu et al. 2023, Phenomenal yet puzzling: testing inductive reasoning capabilities of "
    "language models with hypothesis refinement, section 2",
    summary="Rules are guessed from examples, tried on them, and guessed anew from what they miss.",
    cost="n short rules a round",
    use="Rules to be found from examples.",
    fold=majority,
)
def hypothesis_refinement(
    *,
    n: Samples = 5,
    rounds: Rounds = 3,
    temperature: Temperature = 0.8,
    rule_tokens: MaxTokens = 64,
    output_tokens: MaxTokens = 32,
    max_tokens: MaxTokens = 256,
) -> Strategy:
    """For problems whose text has lines `input -> output`, and one `input -> ?` to complete; any
    other is answered as it is. Of `n` rules the one that gets the most examples right is kept; the
    examples that it misses are shown when the next `n` are asked for, in `rounds` at most.

    Departures: rules are applied by the model, with its most likely output, not by an interpreter,
    which is where the paper finds models weak.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        pairs, query = read_pairs(problem.text)
        if query is None or len(pairs) < 2:
            root.run.remark("the problem has no examples `input -> output`: it is solved as it is")
            return await sample(problem, root, 1, max_tokens, temperature=temperature)
        best, missed, hint = "", list(pairs), ""
        for _ in range(rounds):
            text = f"{_shown(pairs)}\n\n{hint}State the rule that makes these outputs, in one line."
            branch = begin(root, problem, text)
            if branch is None:
                break
            proposed = await replies(
                problem, branch, n, rule_tokens, until="\n", temperature=temperature
            )
            rules = list(dict.fromkeys(t.text.strip() for t in proposed if t.text.strip()))
            misses = await together(_missed(problem, root, rule, pairs) for rule in rules)
            for rule, miss in zip(rules, misses, strict=True):
                root.run.note("hypothesis", rule=rule, missed=len(miss))
                if not best or len(miss) < len(missed):
                    best, missed = rule, miss
            if not missed or budget.over:
                break
            hint = f'The rule "{best}" is wrong for:\n{_shown(missed)}\n\n'
        text = f"{APPLY.format(rule=best, given=query)} {ending(problem)}"
        branch = begin(root, problem, text) if best else None
        if branch is None:
            return await sample(problem, root, 1, max_tokens, temperature=temperature)
        return [await reply(problem, branch, max_tokens, temperature=0.0)]

    async def _missed(
        problem: Problem, root: Branch, rule: str, pairs: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """The pairs that a rule does not make. What the budget does not cover counts as missed."""

        async def makes(given: str, made: str) -> bool:
            branch = begin(root, problem, APPLY.format(rule=rule, given=given))
            if branch is None:
                return False
            step = await branch.extend(output_tokens, until="\n", temperature=0.0)
            branch.drop("tried")
            return normalise_text(step.text) == normalise_text(made)

        right = await together(makes(*pair) for pair in pairs)
        return [pair for pair, ok in zip(pairs, right, strict=True) if not ok]

    return run


def read_pairs(text: str) -> tuple[list[tuple[str, str]], str | None]:
    """The examples `input -> output` of a text, and the last input whose output is open."""
    pairs: list[tuple[str, str]] = []
    query = None
    for match in _PAIR.finditer(text):
        given, made = match["given"].strip(), match["made"].strip()
        if made in ("", "?"):
            query = given
        else:
            pairs.append((given, made))
    return pairs, query


def _shown(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"{given} -> {made}" for given, made in pairs)

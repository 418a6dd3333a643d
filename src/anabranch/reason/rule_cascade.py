"""A chain of proposer and filters: rules induced from facts, kept only if they pass four tests."""

from __future__ import annotations

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.reason.registry import MaxTokens, Samples, Share, Temperature, strategy
from anabranch.reason.turns import YES, begin, opinion, replies

FILTERS = (
    "Do all the facts agree with this rule?",
    "Does this rule say more than the facts themselves?",
    "Does this rule hold for more cases than those in the facts?",
    "Is this rule worth knowing, not plain to everyone?",
)


@strategy(
    "rule_cascade",
    paper="Yang et al. 2022, Language models as inductive reasoners, section 4",
    summary="Rules are proposed and sifted by four tests; the answer is reasoned from those left.",
    cost="n rules, four short tests each, 1 solution",
    use="Facts in words from which a general rule must be drawn.",
    fold=majority,
)
def rule_cascade(
    *,
    rules: Samples = 6,
    threshold: Share = 0.5,
    n: Samples = 1,
    temperature: Temperature = 0.8,
    rule_tokens: MaxTokens = 64,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Propose `rules`, drop each at the first test that it does not pass above `threshold`, reason
    from the others; from the one that came furthest when none passes all.

    Departures: each test is a choice between two words by likelihood.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def passed(rule: str) -> int:
            """How many tests it passes before it fails one; later ones are not asked."""
            for count, test in enumerate(FILTERS):
                text = f"{problem.text}\n\nRule: {rule}\n\n{test} Reply Yes or No."
                if (await opinion(root, problem, text))[YES] <= threshold:
                    return count
            return len(FILTERS)

        text = "State one general rule that explains the facts above, in one sentence."
        branch = begin(root, problem, f"{problem.text}\n\n{text}")
        if branch is not None:
            proposals = await replies(
                problem, branch, rules, rule_tokens, until="\n", temperature=temperature
            )
            found = list(dict.fromkeys(t.text.strip() for t in proposals if t.text.strip()))
            marks = await together(passed(rule) for rule in found)
            root.run.note("rules", passed=dict(zip(found, marks, strict=True)))
            kept = [r for r, mark in zip(found, marks, strict=True) if mark == len(FILTERS)]
            if not kept and found:
                root.run.remark("no rule passed every test: the one that came furthest is used")
                kept = [found[marks.index(max(marks))]]
            shown = "\n".join(f"Rule: {rule}" for rule in kept)
            text = f"{stated_question(problem)}\n\n{shown}\n\n{STEPS} {ending(problem)}"
            last = begin(root, problem, text) if kept else None
            if last is not None:
                return await replies(problem, last, n, max_tokens, temperature=temperature)
        return await sample(problem, root, n, max_tokens, temperature=temperature)

    return run

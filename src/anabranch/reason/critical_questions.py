"""Critical questions of thought: a plan must stand up to questions before it is followed."""

from __future__ import annotations

from typing import Annotated

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason import kernels
from anabranch.reason.folds import majority
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import STEPS, ending, stated_question
from anabranch.reason.registry import MaxTokens, Range, Rounds, Temperature, strategy
from anabranch.reason.turns import YES, answer_turn, begin, reply, verdict

QUESTIONS = (
    "Does the plan start from facts that the problem states?",
    "Are these facts complete: is nothing needed left out?",
    "Is every step of the plan backed by a rule that holds in general?",
    "Does each rule fit the facts that it is used on?",
    "Does the last step follow from the steps before it?",
    "Does the plan say how sure its weakest step is, or has it none?",
    "Has the plan thought of cases where its rules do not hold?",
    "Does the plan end in what the problem asks for?",
)
"""The parts of an argument after Toulmin: claim, data, warrant, backing, qualifier, rebuttal."""

TURN = 32
"""About how many tokens a question costs besides its own: the template's, and the two replies."""


@strategy(
    "critical_questions",
    paper="Castagna et al. 2024, Critical-questions-of-thought, section 3",
    summary="A plan is rewritten until it passes most of eight critical questions, then followed.",
    cost="a plan, eight short questions a round, 1 solution",
    use="Problems that go wrong in the approach rather than in a step.",
    fold=majority,
)
def critical_questions(
    *,
    need: Annotated[int, Range(1, len(QUESTIONS))] = 7,
    rounds: Rounds = 3,
    temperature: Temperature = 0.7,
    plan_tokens: MaxTokens = 192,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Plan, question, replan up to `rounds` times, answer.

    Departures: the questions are worded anew, each asked on its own and answered by the likelier of
    two words; few rewritings by default. Plans are not questioned any more when the rest of the
    budget may be needed for the answer.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        async def criticise(plan: Thought) -> str | None:
            asked = sum(len(root.engine.encode(question)) + TURN for question in QUESTIONS)
            if budget.left_tokens < asked + plan_tokens + max_tokens:
                root.run.remark("the budget was kept for the answer: the plan stands unquestioned")
                return None
            shares = await together(
                verdict(plan.branch, f"{question} Reply Yes or No.") for question in QUESTIONS
            )
            failed = [q for q, s in zip(QUESTIONS, shares, strict=True) if s[YES] <= 0.5]
            return None if len(QUESTIONS) - len(failed) >= need else "\n".join(failed)

        async def revise(plan: Thought, complaint: str) -> Thought | None:
            text = f"The plan fails these questions:\n{complaint}\nWrite a better plan."
            return await answer_turn(problem, plan, text, plan_tokens, temperature=temperature)

        text = (
            f"{stated_question(problem)}\n\nWrite a short plan to solve this. Do not solve it yet."
        )
        start = begin(root, problem, text)
        if start is not None:
            plan = await reply(problem, start, plan_tokens, temperature=temperature)
            plans = await kernels.refine(plan, criticise, revise, rounds=rounds)
            text = f"Follow this plan now. {STEPS} {ending(problem)}"
            answer = await answer_turn(
                problem, plans[-1], text, max_tokens, temperature=temperature
            )
            if answer is not None:
                return [answer]
        return await sample(problem, root, 1, max_tokens, temperature=temperature)

    return run

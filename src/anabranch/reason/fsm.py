"""A finite-state machine for questions of several hops: one small question, its answer, a check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import latest
from anabranch.reason.kernels import sample
from anabranch.reason.prompts import ending, stated_question
from anabranch.reason.registry import MaxTokens, Rounds, Temperature, strategy
from anabranch.reason.turns import answer_turn, begin, reply, verdict

State = Callable[[Thought], Awaitable[tuple[str, Thought | None]]]
"""What happens in a state: the name of the next one, and the thought that it goes on from."""

END = "end"

ENOUGH, MORE, WRONG = "Enough", "More", "Wrong"
FIRST = "State the first smaller question that helps to answer this, and nothing else."
NEXT = "State the next smaller question that is still open, and nothing else."
ANSWER = "Answer this smaller question in one line, from the text."
JUDGE = (
    f"Do these answers suffice for the whole question? Reply {ENOUGH}; {MORE} if something is "
    f"still open; {WRONG} if the last answer is not right."
)


async def automaton(
    states: Mapping[str, State], start: str, thought: Thought, *, most: int
) -> list[Thought]:
    """Go through states, `most` at most, until `END`, or one gives no thought.

    Returns:
        The thoughts gone on from, in order.
    """
    path, state = [thought], start
    for _ in range(most):
        if state == END:
            break
        state, after = await states[state](path[-1])
        if after is None:
            break
        path.append(after)
    return path


@strategy(
    "fsm",
    paper="Wang et al. 2024, FSM: a finite state machine based zero-shot prompting paradigm for "
    "multi-hop question answering, section 3",
    summary="Asks itself one smaller question at a time, until the answers suffice for the whole.",
    cost="1 short solution a question",
    use="Questions over several facts.",
    fold=latest,
)
def fsm(
    *,
    hops: Rounds = 4,
    temperature: Temperature = 0.3,
    hop_tokens: MaxTokens = 64,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """States ask, answer, judge and sum up. An answer that is judged wrong is taken back and its
    question answered anew; after `hops` answers it is summed up whatever the verdict.

    Departures: transitions are choices between words by likelihood, so that there is no malformed
    output to retry.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        line: dict[str, Any] = {"until": "\n", "temperature": temperature}
        answers = 0

        async def ask_next(thought: Thought) -> tuple[str, Thought | None]:
            return "answer", await answer_turn(problem, thought, NEXT, hop_tokens, **line)

        async def answer(question: Thought) -> tuple[str, Thought | None]:
            nonlocal answers
            answers += 1
            return "judge", await answer_turn(problem, question, ANSWER, hop_tokens, **line)

        async def judge(given: Thought) -> tuple[str, Thought | None]:
            if answers >= hops:
                return "sum up", given
            shares = await verdict(given.branch, JUDGE, (ENOUGH, MORE, WRONG))
            verdict_ = max(shares, key=lambda word: shares[word])
            root.run.note("judge", branch=given.branch.id, verdict=verdict_)
            if verdict_ == WRONG:
                return "answer", given.parent
            return ("sum up" if verdict_ == ENOUGH else "ask"), given

        async def sum_up(thought: Thought) -> tuple[str, Thought | None]:
            # Told again: by now small models answer the last of the smaller ones.
            text = (
                f"{stated_question(problem)}\n\n"
                f"Now answer this whole question from the answers above. {ending(problem)}"
            )
            return END, await answer_turn(
                problem, thought, text, max_tokens, temperature=temperature
            )

        states = {"ask": ask_next, "answer": answer, "judge": judge, "sum up": sum_up}
        branch = begin(root, problem, f"{stated_question(problem)}\n\n{FIRST}")
        if branch is not None:
            first = await reply(problem, branch, hop_tokens, **line)
            path = await automaton(states, "answer", first, most=3 * hops + 2)
            if path[-1].text and len(path) > 1:
                return [path[-1]]
        return await sample(problem, root, 1, max_tokens, temperature=temperature)

    return run

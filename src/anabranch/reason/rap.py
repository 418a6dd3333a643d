"""Reasoning via planning: the model proposes actions, a world says what comes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from anabranch.engine.constraints import Constraint
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import probe
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import by_rating, rating
from anabranch.reason.kernels import Advance, grow, sampler, spread
from anabranch.reason.mcts import Tree, uct
from anabranch.reason.registry import (
    MaxTokens,
    Range,
    Rounds,
    Samples,
    Temperature,
    strategy,
)


@dataclass(frozen=True)
class State:
    """What a simulated world makes of an action.

    Attributes:
        text: what is written after the action; its last line should end.
        worth: how good the state is, in [0, 1]: a heuristic of the task.
        answer: not None ends the thought with this answer.
    """

    text: str
    worth: float = 1.0
    answer: str | None = None


World = Callable[[str], State]
"""The state after an action, from the text since the problem, which ends with the action."""

ASK = "Is this a right and useful step? Answer yes or no: "


@strategy(
    "rap",
    paper="Hao et al. 2023, Reasoning with language model is planning with world model, section 3",
    summary="Tree search over actions; the model also predicts, and doubts, what they lead to.",
    cost="rollouts x actions steps, each with a predicted state",
    use="Puzzles whose states can be told in words.",
    fold=by_rating,
)
def rap(
    *,
    actions: Samples = 4,
    rollouts: Rounds = 16,
    w: Annotated[float, Range(0, 100)] = 1.0,
    states: Samples = 3,
    likelihood: Annotated[float, Range(0, 1)] = 0.0,
    confidence: Annotated[float, Range(0, 1)] = 0.5,
    evaluation: Annotated[float, Range(0, 1)] = 0.5,
    step_tokens: MaxTokens = 64,
    temperature: Temperature = 0.8,
) -> Strategy:
    """MCTS with UCT; an action is a line, and the state that it leads to is the line after it.

    A step's reward is likelihood ** a * confidence ** b * evaluation ** c: how likely the model
    finds its action per token; the share of `states` samples of the next state that agree, of which
    one is kept; and P(yes) when it is asked whether the step is right and useful. Exponents are the
    parameters; one of 0 leaves its part out, and costs nothing then.

    Departures: no exemplars, so no cues such as "Question 5.1"; a leaf is worth the mean reward of
    its path instead of that of an end simulated from it.
    """
    return plan(
        None,
        actions=actions,
        rollouts=rollouts,
        w=w,
        states=states,
        exponents=(likelihood, confidence, evaluation),
        step_tokens=step_tokens,
        temperature=temperature,
    )


def plan(
    world: World | None,
    *,
    allow: Constraint | None = None,
    actions: int = 4,
    rollouts: int = 16,
    w: float = 1.0,
    states: int = 3,
    exponents: tuple[float, float, float] = (0.0, 0.5, 0.5),
    step_tokens: int = 64,
    temperature: float = 0.8,
) -> Strategy:
    """`rap` for programs, where a simulator may stand in for the model as the world.

    Args:
        world: the simulator, whose `worth` of a state takes the place of the confidence in it.
        allow: which actions there are; None: any line.
        exponents: of likelihood, confidence and evaluation.
    """
    for_likelihood, for_confidence, for_evaluation = exponents

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        root.engine.require("logprobs")
        line = sampler(problem, temperature=temperature, until="\n")
        act = line if allow is None else sampler(problem, temperature=temperature, allow=allow)

        async def advance(thought: Thought, limit: int) -> None:
            logp, tokens = thought.logp, thought.tokens
            await act(thought, limit)
            drawn, sure = thought.tokens - tokens, 1.0
            likely = math.exp((thought.logp - logp) / drawn) if drawn else 0.0
            if world is not None and not root.run.budget.over:
                sure = await _simulate(thought, world)
            elif not thought.done and not root.run.budget.over:
                sure = await _imagine(thought, line, limit, states if for_confidence else 1)
            reward = min(1.0, likely) ** for_likelihood * sure**for_confidence
            thought.scores = (*thought.scores, reward)

        async def rate(thoughts: Sequence[Thought]) -> None:
            if for_evaluation:
                asked = (probe(t.branch, "\n" + ASK, ["yes", "no"]) for t in thoughts)
                for thought, shares in zip(thoughts, await together(asked), strict=True):
                    reward = thought.scores[-1] * shares["yes"] ** for_evaluation
                    thought.scores = (*thought.scores[:-1], reward)
            for thought in thoughts:
                thought.visits, thought.total = 1, rating(thought)

        start = Thought(root.fork())
        tree = Tree(start, uct(w))
        return await grow(
            start,
            advance,
            rate,
            tree.descend,
            backup=tree.backup,
            limit=step_tokens,
            fanout=actions,
            rounds=rollouts,
        )

    return run


async def _simulate(thought: Thought, world: World) -> float:
    """Let the simulator say what comes; returns what that is worth."""
    try:
        state = world(thought.branch.text)
    except Exception as error:  # anybody's code: its fault must not end the search
        thought.branch.run.remark(f"the simulator failed: {type(error).__name__}: {error}")
        thought.done = True
        return 0.0
    if state.text and (await thought.branch.force(state.text)).stop == "budget":
        return 0.0
    thought.text = thought.branch.text
    thought.answer, thought.done = state.answer, state.answer is not None
    return min(1.0, max(0.0, state.worth))


async def _imagine(thought: Thought, line: Advance, limit: int, n: int) -> float:
    """Let the model say what comes, `n` times; keeps what most say, and returns their share."""
    before = len(thought.text)
    futures = spread(thought, n)
    try:
        await together(line(future, max(1, limit // n)) for future in futures)
    finally:  # the thought lives on one of them, whatever happens
        groups: dict[str, list[Thought]] = {}
        for future in futures:
            groups.setdefault(future.text[before:].strip(), []).append(future)
        most = max(groups.values(), key=len)
        for name in ("branch", "answer", "logp", "logw", "tokens", "done", "text"):
            setattr(thought, name, getattr(most[0], name))
        for future in futures:
            if future is not most[0]:
                future.branch.drop("another state was kept")
    return len(most) / n

"""Solved examples like the problem, and its options in another order each time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from anabranch.backends.philox import derive
from anabranch.program.answers import extract, letters, normalise
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import embed
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Strategy, Thought
from anabranch.reason.folds import majority
from anabranch.reason.kernels import population, sample, sampler, write
from anabranch.reason.prompts import instruction, messages, stated_question
from anabranch.reason.registry import MaxTokens, Range, Samples, Temperature, strategy
from anabranch.reason.turns import begin

EXAMPLES_SHARE = 1 / 2
"""Most of what is left of a budget that goes into finding and solving examples."""

TRIES = 4
"""Examples tried for each that is wanted: further ones are hardly alike."""


@strategy(
    "medprompt",
    paper="Nori et al. 2023, Can generalist foundation models outcompete special-purpose tuning?",
    summary="Votes over shuffled options, so that none wins by its place; shows solved examples.",
    cost="shuffles solutions side by side, and up to k examples solved before",
    use="Multiple choice, and wherever solved examples are at hand.",
    fold=majority,
)
def medprompt(
    *,
    k: Annotated[int, Range(0, 32)] = 5,
    shuffles: Samples = 5,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 512,
) -> Strategy:
    """Nearest examples with chains of thought of the model's own, and a choice shuffling ensemble.

    Of the problem's `examples` those most like it are solved by the model; the first `k` whose
    chain of thought comes to the known answer are shown before the problem, the most alike last.
    The options are put in `shuffles` orders, and letters are mapped back before the vote.

    Departures: likeness is the cosine between the model's own states, less their mean, instead of
    a trained embedding; examples are solved when they are needed, not beforehand, and as far as
    half of the budget goes. A problem without options is asked as it is every time.
    """

    async def run(problem: Problem, root: Branch, budget: Budget) -> list[Thought]:
        shown: list[tuple[str, str]] = []
        if k and problem.examples:
            shown = await solved(problem, root, k, max_tokens)
        space = min(budget.left_tokens, root.engine.core.capacity) - max_tokens
        while shown and _size(problem, root, shown) > space:
            shown.pop(0)
        if not problem.choices and not shown:
            root.run.remark("there are no options to shuffle: a plain vote")
            return await sample(problem, root, shuffles, max_tokens, temperature=temperature)
        rng = random.Random(root.run.seed)
        orders = [list(range(len(problem.choices))) for _ in range(shuffles)]
        for order in orders[1:]:
            rng.shuffle(order)
        share = _size(problem, root, shown) + max_tokens
        first = share if shown else max_tokens
        affordable = 1 + int(min(shuffles, max(0, budget.left_tokens - first) // share))
        if affordable < shuffles:
            root.run.remark(f"the budget covers {affordable} of {shuffles} orders")
        found = await together(
            ask(problem, root, i, order, shown) for i, order in enumerate(orders[:affordable])
        )
        return [thought for thoughts in found for thought in thoughts]

    async def ask(
        problem: Problem, root: Branch, i: int, order: list[int], shown: list[tuple[str, str]]
    ) -> list[Thought]:
        asked = replace(problem, choices=tuple(problem.choices[i] for i in order))
        branch = root
        if shown or asked != problem:
            # Each order draws its own numbers, lest all be lucky together.
            seed = derive(root.run.seed, i)
            branch = root.engine.open(messages(asked, shown), seed=seed, run=root.run)
        go_on = sampler(asked, temperature=temperature)

        async def advance(thought: Thought, limit: int) -> None:
            try:
                await go_on(thought, limit)
            finally:  # whoever stops us wants the problem's own letters too
                if thought.answer is not None and problem.choices:
                    place = letters(asked).index(thought.answer)
                    thought.answer = letters(problem)[order[place]]

        return await population([Thought(branch.fork())], advance, limit=max_tokens)

    return run


def _size(problem: Problem, root: Branch, shown: Sequence[tuple[str, str]]) -> int:
    """Tokens of the prompt with examples; without, of the one that is there."""
    if not shown:
        return root.mark.position
    return len(root.engine.tokenizer.chat(messages(problem, shown)))


async def solved(problem: Problem, root: Branch, k: int, limit: int) -> list[tuple[str, str]]:
    """Up to `k` examples, asked and solved by the model itself, the most alike last."""
    engine, run = root.engine, root.run
    allowed = run.budget.left_tokens * EXAMPLES_SHARE
    bank, texts = list[tuple[Problem, str]](), [stated_question(problem)]
    for example in problem.examples:
        text = stated_question(example[0])
        fits = 0 < len(engine.tokenizer.prompt(text)) < engine.core.capacity
        if fits and text != texts[0]:  # its own answer would be no help, but a leak
            bank.append(example)
            texts.append(text)
    allowed -= sum(len(engine.tokenizer.prompt(text)) for text in texts)
    if allowed < 0:
        run.remark("the budget did not cover a look at the examples")
        return []
    states = await together(embed(engine, text, run=run) for text in texts)
    likeness = alike([[float(x) for x in state] for state in states])
    order = sorted(range(len(bank)), key=lambda i: -likeness[i])[: TRIES * k]

    async def chain(example: Problem, known: str) -> tuple[str, str] | None:
        branch = begin(root, example, instruction(example))
        if branch is None:
            return None
        try:
            thought = Thought(branch)
            await write(thought, limit, temperature=0.0)
        finally:
            branch.drop("an example")
        answer = extract(thought.text, example, done=thought.done)
        if answer is None or answer != normalise(known, example):
            return None
        return instruction(example), thought.text.strip()

    found: list[tuple[str, str]] = []
    while order and len(found) < k:
        wave, order = order[: k - len(found)], order[k - len(found) :]
        examples = [bank[i] for i in wave]
        allowed -= sum(len(engine.tokenizer.chat(messages(p))) + limit for p, _ in examples)
        if allowed < 0:
            run.remark(f"the budget covered {len(found)} of {k} examples")
            break
        found += [c for c in await together(chain(*e) for e in examples) if c is not None]
    run.note("examples", shown=[asked for asked, _ in found])
    return found[::-1]


def alike(states: Sequence[Sequence[float]]) -> list[float]:
    """Cosine of each further state with the first, after their mean is taken from all."""
    middle = [math.fsum(column) / len(states) for column in zip(*states, strict=True)]
    first, *others = ([x - m for x, m in zip(s, middle, strict=True)] for s in states)
    return [_dot(first, o) / (math.sqrt(_dot(first, first) * _dot(o, o)) or 1.0) for o in others]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))

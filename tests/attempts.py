"""Attempts of simulated strategies: what the bench would record, without a model."""

from __future__ import annotations

import random

from anabranch.bench.attempts import Attempt, Sample
from anabranch.program.types import Usage

STRATEGIES = {
    "single": (1, 0.0),
    "vote(n=4)": (4, 0.0),
    "vote(n=16)": (16, 0.0),
    "best(n=16)": (16, 0.1),
    "beam(width=4)": (4, 0.15),
    "beam(width=8)": (8, 0.2),
    "pal": (1, 0.25),
}
"""Samples of each, and how much likelier right they are."""

TASKS = {f"arithmetic(digits={n})": 1.0 * n for n in (1, 2, 3, 4)}
TASKS |= {f"deduction(hops={n})": 1.0 * n for n in (1, 2, 4)} | {"own": None}
"""Their difficulty."""


def attempts(problems: int = 30, seeds: int = 1, take: str = "", noise: int = 0) -> list[Attempt]:
    """Every strategy on every problem; `noise` changes what is drawn."""
    found = []
    for task, difficulty in TASKS.items():
        for problem in range(problems):
            rng = random.Random(f"{task} {problem}")
            chance = 0.95 ** (6 * difficulty) if difficulty else rng.betavariate(1, 1.5)
            for strategy, (count, gain) in STRATEGIES.items():
                for seed in range(seeds):
                    rng = random.Random(f"{task} {problem} {strategy} {seed} {noise}")
                    found.append(_attempt(rng, task, problem, strategy, seed, chance + gain, count))
                    extra = {"difficulty": difficulty, "take": take}
                    found[-1] = Attempt(**{**found[-1].__dict__, **extra})
    return found


def _attempt(
    rng: random.Random,
    task: str,
    problem: int,
    strategy: str,
    seed: int,
    chance: float,
    count: int,
) -> Attempt:
    gold = str(100 + problem)
    samples = []
    for _ in range(count):
        right = rng.random() < chance
        answer = gold if right else str(rng.choice([1, 2, 3]))
        length = int(40 * 2 ** rng.gauss(0, 0.6) * (1.5 - chance)) + 8
        samples.append(Sample(answer, right, f"So it is {answer}.", 1 / count, length))
    votes = [sample.answer for sample in samples]
    answer = max(votes, key=lambda vote: (votes.count(vote), vote == gold and "best" in strategy))
    tokens = sum(sample.tokens for sample in samples)
    return Attempt(
        task=task,
        problem=problem,
        strategy=strategy,
        seed=seed,
        right=answer == gold,
        answer=str(answer),
        model="toy",
        gold=gold,
        question=f"What is {problem} + 100?",
        confidence=votes.count(answer) / count if count > 1 else 0.5,
        text=f"Let us see. So it is {answer}.",
        usage=Usage(
            prompt_tokens=60,
            sampled_tokens=tokens,
            computed_tokens=tokens + 60,
            passes=tokens // count,
            seconds=0.02 * tokens / count**0.6,
        ),
        samples=tuple(samples),
    )

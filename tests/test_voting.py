"""Voting methods against what enumeration says of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem, Thought
from anabranch.reason import folds
from anabranch.reason.registry import parse
from anabranch.reason.resample import normalised
from anabranch.reason.rpc import unlikely_pruned
from anabranch.reason.solve import conclude, think
from anabranch.reason.weighted import weighted
from anabranch.verify.registry import Judge
from tests.engines import run
from tests.scripted import Rule, ask, scripted

NUMBER = Problem("?", kind="number")


def solve(rule: Rule | Mapping[str, float], strategy: str, seed: int = 0, **options: Any) -> Answer:
    problem = Problem("?", **{"kind": "number", **options})
    engine, program = scripted(rule), Run(seed=seed)
    return run(
        engine,
        think(
            problem, lambda p, r: ask(engine, p.text, r), parse(strategy), program, model="scripted"
        ),
    )


def test_the_longest_chains_decide() -> None:
    table = {"The answer is 1.": 0.6, "a\nb\nThe answer is 2.": 0.25, "a\nThe answer is 3.": 0.15}
    for seed in range(4):
        assert solve(table, "complexity(n=32, keep=0.1)", seed).answer == "2"
        assert solve(table, "complexity(n=32, keep=1)", seed).answer == "1"


def test_a_vote_weighs_what_its_judge_says() -> None:
    async def like_two(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        return [0.9 if "2" in thought.text else 0.1 for thought in thoughts]

    async def program() -> None:
        root = ask(engine, "?", Run(seed=1))
        strategy = weighted(n=24, judge=Judge(like_two, name="like_two"), temperature=1.0)
        thoughts = await strategy(NUMBER, root, root.run.budget)
        votes, weights = dict(folds.majority(thoughts)), dict(folds.weighted(thoughts))
        assert votes["1"] > votes["2"]
        ones, twos = votes["1"] * 0.1, votes["2"] * 0.9
        assert weights["2"] == pytest.approx(twos / (ones + twos))
        root.run.drop_all()

    engine = scripted({"The answer is 1.": 0.7, "The answer is 2.": 0.3})
    run(engine, program())


def test_probabilities_find_the_mode_sooner_than_frequencies() -> None:
    """The chance that the fold picks the answer of the most mass, over many problems."""
    vote, all_ = "vote(n=8, temperature=1)", "rpc(n=8, norm=sum, prune=0)"
    pruned = "rpc(n=8, norm=sum)"
    right = dict.fromkeys((vote, all_, pruned), 0)
    for seed in range(40):
        rng = random.Random(seed)
        weights = sorted((rng.random() ** 4 for _ in range(12)), reverse=True)
        table = {f"{i} so the answer is {i % 4}.": w / sum(weights) for i, w in enumerate(weights)}
        mass = {str(a): sum(list(table.values())[a::4]) for a in range(4)}
        mode = max(mass, key=lambda a: mass[a])
        for strategy in right:
            right[strategy] += solve(table, strategy, seed).answer == mode
    assert right[all_] >= right[vote] + 2
    assert right[pruned] >= right[vote]


def test_only_texts_of_the_unlikely_kind_are_pruned() -> None:
    rng = random.Random(1)
    likely = [rng.uniform(0.08, 0.12) for _ in range(8)]
    unlikely = [rng.uniform(0.0005, 0.002) for _ in range(8)]
    assert unlikely_pruned([*likely, *unlikely]) == [True] * 8 + [False] * 8
    assert all(unlikely_pruned([0.1, 0.1, 0.1, 0.1, 0.1]))
    assert all(unlikely_pruned([0.1, 0.9]))


@pytest.mark.parametrize(
    "logs", [(-20, -21, -900, -950), (-5, -6, -5.5, -900), (-10, -300, -500, -690)]
)
def test_texts_that_are_worlds_apart_are_told_apart(logs: tuple[float, ...]) -> None:
    kept = unlikely_pruned(normalised(logs))
    assert kept == [log > -100 for log in logs]


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=24))
def test_the_likeliest_text_is_never_pruned(logs: list[float]) -> None:
    assert unlikely_pruned(normalised(logs))[logs.index(max(logs))]


def test_an_interrupted_vote_over_shuffled_options_is_mapped_back() -> None:
    """All replies name the right option's letter at once, and go on for too long."""

    def rambling(prompt: str, reply: str) -> Mapping[str, float]:
        right = next((c for c in "ABCD" if f"{c}) blue" in prompt), "C")
        text = f"The answer is {right}.\n" + "x" * 3000
        return {text[len(reply) :]: 1.0}

    async def program() -> None:
        task = asyncio.create_task(
            think(problem, lambda p, r: ask(engine, p.text, r), named, thinking, model="")
        )
        while not any(len(branch.text) > 40 for branch in thinking.live):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    problem = Problem("?", kind="choice", choices=("red", "green", "blue", "white"))
    engine, thinking, named = scripted(rambling), Run(seed=3), parse("medprompt(shuffles=8)")
    run(engine, program())
    answer = conclude(problem, named, thinking, model="")
    assert {candidate.answer for candidate in answer.candidates} == {"C"}


def test_shuffled_options_undo_a_taste_for_places() -> None:
    """A model that says A two times of five whatever stands there, else the right option."""

    def biased(prompt: str, reply: str) -> Mapping[str, float]:
        right = next((c for c in "ABCD" if f"{c}) blue" in prompt), "C")
        texts = {"The answer is A.": 0.6, f"The answer is {right}.": 0.4}
        if right == "A":
            texts = {"The answer is A.": 1.0}
        going = {t[len(reply) :]: p for t, p in texts.items() if t.startswith(reply)}
        return going or {"": 1.0}

    choices = ("red", "green", "blue", "white")
    plain = solve(biased, "vote(n=48, temperature=1)", kind="choice", choices=choices)
    wins = {"C": 0, "other": 0}
    for seed in range(6):
        answer = solve(
            biased, "medprompt(shuffles=48, temperature=1)", seed, kind="choice", choices=choices
        )
        wins["C" if answer.answer == "C" else "other"] += 1
    assert plain.answer == "A"
    assert wins["C"] == 6


def test_a_problem_without_options_is_voted_on_as_it_is() -> None:
    answer = solve({"The answer is 4.": 1.0}, "medprompt")
    assert answer.answer == "4"
    assert any("no options" in note for note in answer.notes)


@pytest.mark.parametrize("name", ["weighted", "complexity", "rpc"])
def test_texts_without_an_answer_do_not_win(name: str) -> None:
    answer = solve({"no idea": 0.7, "The answer is 4.": 0.3}, f"{name}(n=16)")
    assert answer.answer == "4"

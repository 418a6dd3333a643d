"""Known puzzles, changed so that the known answer is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

from anabranch.program.registry import OneOf
from anabranch.program.types import Problem
from anabranch.tasks.registry import Posed, Source, task

Pair = tuple[tuple[str, str], tuple[str, str]]
"""A puzzle that everybody knows with its answer, and one that only looks like it with its own."""


@task(
    "habits",
    paper="Nezhurina et al. 2024, Alice in Wonderland; Williams and Huckle 2024, Easy problems "
    "that LLMs get wrong",
    summary="Known puzzles changed a little: who answers the known puzzle is wrong.",
)
def habits(*, version: Annotated[str, OneOf(("edited", "original"))] = "edited") -> Source:
    """The same seed and place give the same puzzle and numbers in both versions, and the answer
    by habit is that of the original."""

    def pose(seed: int, place: int) -> Posed:
        rng = random.Random(f"habits {seed} {place}")
        original = edited = ("", "")
        while original[1] == edited[1]:  # small numbers may agree by chance
            original, edited = rng.choice(_PUZZLES)(rng)
        text, answer = original if version == "original" else edited
        problem = Problem(text, kind="number" if answer.isdigit() else "text")
        return Posed(problem, answer, habit=original[1] if version == "edited" else None)

    return Source(pose)


def _weights(rng: random.Random) -> Pair:
    n, more = rng.randint(1, 9), rng.randint(2, 9)
    light, heavy = (
        rng.choice(("feathers", "cotton", "straw")),
        rng.choice(("steel", "lead", "gold")),
    )
    ask = f'Which weighs more: {{}} kg of {light} or {n} kg of {heavy}? Answer "{light}", "{heavy}"'
    ask += ' or "neither".'
    return (ask.format(n), "neither"), (ask.format(n + more), light)


def _bat(rng: random.Random) -> Pair:
    ball = rng.randint(2, 40)
    one, two = rng.choice((("bat", "ball"), ("racket", "net"), ("kettle", "cup")))
    more = 10 * rng.randint(5, 30)
    text = (
        f"A {one} and a {two} cost {more + 2 * ball} cents in total. The {one} costs {more} cents"
    )
    ask = f"How many cents does the {two} cost?"
    return (f"{text} more than the {two}. {ask}", str(ball)), (f"{text}. {ask}", str(2 * ball))


def _lake(rng: random.Random) -> Pair:
    days = 2 * rng.randint(5, 40)
    text = "A patch of lilies {}. It covers the whole lake after"
    ask = f"{days} days. After how many days does it cover half of the lake?"
    doubles = text.format("doubles in size every day")
    grows = text.format("starts from nothing and grows by the same area every day")
    return (f"{doubles} {ask}", str(days - 1)), (f"{grows} {ask}", str(days // 2))


def _machines(rng: random.Random) -> Pair:
    n, many = rng.randint(2, 9), 10 * rng.randint(2, 20)
    text = f"{n} machines together take {n} minutes to make {n} toys. How many minutes "
    first = f"{text}do {many} machines together take to make {many} toys?"
    second = f"{text}do these {n} machines together take to make {many * n} toys?"
    return (first, str(n)), (second, str(many * n))


def _race(rng: random.Random) -> Pair:
    place = rng.randint(2, 20)
    ask = f"the runner in place {place}. In which place are you now? Give the number."
    text = "In a race you overtake"
    back = f"In a race you are in place {place}. One runner overtakes you, and nobody else moves. "
    return (f"{text} {ask}", str(place)), (
        f"{back}In which place are you now? Give the number.",
        str(place + 1),
    )


def _snail(rng: random.Random) -> Pair:
    slips = rng.randint(1, 3)
    climbs = slips + rng.randint(1, 3)
    days = rng.randint(4, 9)
    deep = climbs + (climbs - slips) * (days - 1)
    text = f"A snail is at the bottom of a well of {deep} m. Every day it climbs {climbs} m"
    ask = "On which day does it reach the top? Give the number."
    slipping = f"{text}, and every night it slips back {slips} m. {ask}"
    resting = f"{text}, and every night it stays where it is. {ask}"
    return (slipping, str(days)), (resting, str(-(-deep // climbs)))


def _sheep(rng: random.Random) -> Pair:
    left = rng.randint(3, 12)
    all_, animals = 2 * left + rng.randint(1, 20), rng.choice(("sheep", "cows", "goats"))
    text = f"A farmer has {all_} {animals}. {{}} {left} run away. How many are left?"
    return (text.format("All but"), str(left)), (text.format("Of them,"), str(all_ - left))


def _socks(rng: random.Random) -> Pair:
    n = rng.randint(4, 20)
    one, two = rng.sample(("black", "white", "blue", "red", "grey"), 2)
    text = f"In a dark drawer lie {n} {one} and {n} {two} socks. How many must you take out to be "
    first = f"{text}sure of two socks of the same colour?"
    return (first, "3"), (f"{text}sure of two socks of different colours?", str(n + 1))


def _doors(rng: random.Random) -> Pair:
    prize, chosen = rng.choice(("car", "boat", "diamond")), rng.randint(1, 3)
    other, opened = rng.sample([door for door in (1, 2, 3) if door != chosen], 2)
    text = f"Behind one of three {{}} is a {prize}, behind the others is nothing. {{}}"
    ask = f"The host, who knows all, opens door {opened}, which is empty, and lets you change to "
    ask += f"door {other}. Which door is the better choice? Give the number."
    choice = f"You choose door {chosen}. {ask}"
    seen = f"You see the {prize} behind door {chosen} and choose that door. {ask}"
    closed = text.format("closed doors", choice)
    return (closed, str(other)), (text.format("doors of clear glass", seen), str(chosen))


_PUZZLES: tuple[Callable[[random.Random], Pair], ...] = (
    *(_weights, _bat, _lake, _machines, _race, _snail, _sheep, _socks, _doors),
)

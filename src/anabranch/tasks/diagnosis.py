"""Games of deduction with observations: what is it, and how many tests does it take?"""

from __future__ import annotations

import functools
import random
from typing import Annotated

from anabranch.program.registry import OneOf, Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import numbered

_FAULTS = (
    *("arvex", "belmor", "cintra", "dolvin", "elthon", "farnix"),
    *("gravel", "hespen", "ilmora", "jentis", "korvan", "luxor"),
)
_COLOURS = ("red", "blue", "green")

Test = tuple[int, ...]
"""The colour that it shows for each candidate."""


@task(
    "diagnosis",
    paper="Lin et al. 2025, Generative evaluation of complex reasoning in large language models "
    "(KUMO)",
    summary="Which of so many minerals is it, from tests that each rule some out?",
    difficulty="candidates",
    counts="candidates to tell apart",
)
def diagnosis(
    *,
    candidates: Annotated[int, Range(3, 10)] = 4,
    ask: Annotated[str, OneOf(("truth", "tests"))] = "truth",
) -> Make:
    """`ask="tests"` asks instead how many tests are needed in the worst case, chosen one after the
    other with the results so far in view. Every test that is told of rules something out."""

    def make(rng: random.Random) -> Posed:
        names = rng.sample(_FAULTS, candidates)
        tests = list[Test]()
        while len({*zip(*tests, strict=True)}) < candidates:  # until all can be told apart
            tests.append(tuple(rng.randrange(len(_COLOURS)) for _ in names))
            tests = [t for t in tests if len(set(t)) > 1]
        book = " ".join(
            f"Test {i} turns "
            + ", ".join(
                f"{colour} for {' and '.join(n for n, c in zip(names, t, strict=True) if c == k)}"
                for k, colour in enumerate(_COLOURS)
                if k in t
            )
            + "."
            for i, t in enumerate(tests, 1)
        )
        opening = f"A mineral is one of {', '.join(names)}. {book} "
        if ask == "tests":
            text = (
                f"{opening}You choose tests one after the other, with the results so far in view. "
                "How many tests are enough, however they turn out, to know which mineral it is?"
            )
            return Posed(Problem(text, kind="number"), str(tests_needed(tuple(tests), candidates)))
        truth = rng.randrange(candidates)
        left, seen, states = list(range(candidates)), [], []
        for i in rng.sample(range(len(tests)), len(tests)):
            kept = [who for who in left if tests[i][who] == tests[i][truth]]
            if len(kept) < len(left):
                left = kept
                seen.append(f"Test {i + 1} turned {_COLOURS[tests[i][truth]]}.")
                states.append(", ".join(names[who] for who in left))
        text = (
            f"{opening}{' '.join(seen)} Which mineral is it? After each result write one line with "
            'those that it can still be: "Step 1: ...".'
        )
        steps = tuple(f"Step {i}: {state}" for i, state in enumerate(states, 1))
        follow = numbered(states)
        return Posed(Problem(text, kind="text"), names[truth], steps, follow=follow)

    return make


def tests_needed(tests: tuple[Test, ...], candidates: int) -> int:
    """The least number of tests that tells the candidates apart in the worst case; exact."""

    @functools.cache
    def needed(left: frozenset[int]) -> int:
        if len(left) == 1:
            return 0
        least = len(tests)
        for test in tests:
            parts = {colour: [w for w in left if test[w] == colour] for colour in set(test)}
            split = [frozenset(part) for part in parts.values() if part]
            if len(split) > 1:
                least = min(least, 1 + max(map(needed, split)))
        return least

    return needed(frozenset(range(candidates)))

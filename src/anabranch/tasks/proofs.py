"""What follows from facts and rules, with the proof."""

from __future__ import annotations

import itertools
import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import claimed

_TRAITS = (
    *("big", "blue", "cold", "furry", "green", "kind", "nice", "quiet"),
    *("red", "rough", "round", "sad", "smart", "white", "young", "loud"),
)
_NAMES = ("Anne", "Bob", "Charlie", "Dave", "Erin", "Fiona", "Gary", "Harry")
_SIGN = {True: "", False: "not "}

Fact = tuple[str, bool]
"""A trait that somebody has, or surely has not."""

Rule = tuple[tuple[str, ...], Fact]
"""Who has all of these traits has this one, or has it not."""


@task(
    "proofs",
    paper="Tafjord et al. 2021, ProofWriter: Generating implications, proofs, and abductive "
    "statements (its open-world theories)",
    summary="Is Anne red? Facts and rules: true, false or unknown, with a proof of so many steps.",
    difficulty="depth",
    counts="rules applied in the proof, one on the result of the other",
)
def proofs(*, depth: Annotated[int, Range(1, 8)] = 3) -> Make:
    """Each answer a third of the time. For "unknown" the steps are all that follows."""

    def make(rng: random.Random) -> Posed:
        name, other = rng.sample(_NAMES, 2)
        traits = rng.sample(_TRAITS, len(_TRAITS))
        chain, more = traits[: depth + 1], traits[depth + 1 :]
        wanted, holds = rng.choice(("true", "false", "unknown")), rng.random() < 0.5
        has, lacks, idle, never = more[:4]  # `lacks` and `never` are nobody's
        rules: list[Rule] = []
        for i, (before, after) in enumerate(itertools.pairwise(chain)):
            # A rule may ask for what is given, besides the trait before.
            needs = (before, has) if rng.random() < 0.4 else (before,)
            rules.append((needs, (after, holds if i == depth - 1 else True)))
        if wanted == "unknown":  # one rule asks for what nobody has
            broken = rng.randrange(depth)
            rules[broken] = ((rules[broken][0][0], lacks), rules[broken][1])
        rules += [((lacks,), (idle, True)), ((never, has), (chain[-1], not holds))]
        rng.shuffle(rules)
        given = [chain[0], has]
        derived, proof = follows(given, rules)
        asked = rng.choice((True, False)) if wanted == "unknown" else holds == (wanted == "true")
        goal = chain[-1]
        answer = "unknown" if goal not in derived else str(derived[goal] == asked).lower()
        assert answer == wanted
        needed = _needed(goal, proof) if goal in derived else [head for _, head in proof]
        lines = [f"{name} is {_SIGN[sign]}{trait}" for trait, sign in needed]
        true = [f"{name} is {_SIGN[sign]}{trait}" for trait, sign in derived.items()]
        facts = [f"{name} is {trait}." for trait in given]
        facts += [f"{other} is {trait}." for trait in rng.sample(more[4:], 2)]
        rng.shuffle(facts)
        told = [f"If someone is {' and '.join(n)}, they are {_SIGN[s]}{t}." for n, (t, s) in rules]
        text = (
            f"{' '.join(facts)} {' '.join(told)} True, false or unknown: "
            f"{name} is {_SIGN[asked]}{goal}."
        )
        pattern = rf"\b{name} is (?:not )?(?:{'|'.join(_TRAITS)})\b"
        steps = tuple(f"{line}." for line in lines)
        follow = claimed(lines, pattern, true)
        return Posed(Problem(text, kind="text"), answer, steps, follow=follow)

    return make


def follows(given: list[str], rules: list[Rule]) -> tuple[dict[str, bool], list[Rule]]:
    """All that somebody with these traits is or is not, and the rules applied, in order."""
    derived, applied = dict.fromkeys(given, True), list[Rule]()
    while new := [r for r in rules if r[1][0] not in derived and all(map(derived.get, r[0]))]:
        needs, (trait, sign) = new[0]
        derived[trait] = sign
        applied.append((needs, (trait, sign)))
    return derived, applied


def _needed(goal: str, applied: list[Rule]) -> list[Fact]:
    """The conclusions that lead to the goal, in the order in which they were drawn."""
    wanted, found = {goal}, list[Fact]()
    for needs, head in reversed(applied):
        if head[0] in wanted:
            wanted |= set(needs)
            found.append(head)
    return found[::-1]

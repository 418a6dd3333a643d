"""Chains of rules over words that mean nothing."""

from __future__ import annotations

import itertools
import random
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import claimed

_KINDS = ("wumpus", "yumpus", "zumpus", "dumpus", "rompus", "numpus", "tumpus", "vumpus", "jompus")
_TRAITS = ("red", "small", "kind", "loud", "cold", "sweet", "happy", "bright")
_CLAIM = rf"\b{{}} is (?:a (?:{'|'.join(_KINDS)})|(?:not )?(?:{'|'.join(_TRAITS)}))\b"
_NAMES = ("Max", "Fae", "Rex", "Sally", "Alex", "Polly")


@task(
    "deduction",
    paper="Saparov and He 2023, Language models are greedy reasoners (PrOntoQA), section 3",
    summary="Is Max red? Follows or contradicts in so many steps, among rules beside the point.",
    difficulty="hops",
    counts="rules applied in a row",
)
def deduction(*, hops: Annotated[int, Range(1, 6)] = 3) -> Make:
    """The answer is yes or no, each half of the time."""

    def make(rng: random.Random) -> Posed:
        kinds = rng.sample(_KINDS, hops + 3)
        chain, others = kinds[:hops], kinds[hops:]
        trait, idle = rng.sample(_TRAITS, 2)
        name, holds, asked = rng.choice(_NAMES), rng.random() < 0.5, rng.random() < 0.5
        rules = [f"Every {a} is a {b}." for a, b in itertools.pairwise(chain)]
        rules.append(f"Every {chain[-1]} is {'' if holds else 'not '}{trait}.")
        rules.append(f"Every {others[0]} is {'not ' if holds else ''}{trait}.")
        rules.append(f"Every {others[1]} is a {others[2]}.")
        rules.append(f"Every {chain[0]} is {idle}.")
        rng.shuffle(rules)
        claim = f"{name} is {'' if asked else 'not '}{trait}"
        text = f"{' '.join(rules)} {name} is a {chain[0]}. True or false: {claim}."
        proof = [f"{name} is a {kind}" for kind in chain]
        proof.append(f"{name} is {'' if holds else 'not '}{trait}")
        follow = claimed(proof, _CLAIM.format(name), [*proof, f"{name} is {idle}"])
        steps = tuple(f"{step}." for step in proof)
        answer = "true" if holds == asked else "false"
        return Posed(Problem(text, kind="text"), answer, steps, follow=follow)

    return make

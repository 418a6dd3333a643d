"""Instructions whose following a program can check."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from anabranch.program.registry import Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task

_TOPICS = ("a river", "a train", "the moon", "a market", "winter", "a garden", "a ship", "bread")
_KEYWORDS = ("lantern", "copper", "melody", "harvest", "marble", "pocket", "signal", "velvet")
_ENDINGS = ("that is all", "until next time", "nothing more to say")
_FILLER = ["people", "often", "stop", "there", "to", "look", "and", "listen", "for", "some", "time"]


@dataclass(frozen=True)
class Rule:
    """An instruction.

    Attributes:
        text: what it says.
        holds: whether a text follows it.
        apply: changes a text that follows the rules that come before so that it follows this one
            as well.
    """

    text: str
    holds: Callable[[str], bool]
    apply: Callable[[str], str]


@task(
    "instructions",
    paper="Zhou et al. 2023, Instruction-following evaluation for large language models (IFEval), "
    "section 2",
    summary="Write about a topic under so many rules that a program checks.",
    difficulty="rules",
    counts="rules to be followed at once",
)
def instructions(*, rules: Annotated[int, Range(1, 8)] = 2) -> Make:
    """The score is the share of rules followed; right is who follows all. The whole text counts."""

    def make(rng: random.Random) -> Posed:
        topic = rng.choice(_TOPICS)
        known = _rules(rng)
        chosen: list[Rule] = []
        while all(rule.holds("4711") for rule in chosen):  # some rule must ask for words
            chosen = [known[i] for i in sorted(rng.sample(range(len(known)), rules))]
        answer = f"I like {topic}"
        for rule in chosen:
            answer = rule.apply(answer)
        told = "\n".join(f"- {rule.text}" for rule in rng.sample(chosen, rules))
        problem = Problem(
            f"Write a short text about {topic}. Follow these rules:\n{told}",
            system="Write the text that is asked for and nothing else.",
            kind="whole",
        )
        return Posed(
            problem,
            answer,
            grade=lambda text: sum(r.holds(text) for r in chosen) / rules if text.strip() else 0.0,
        )

    return make


def words(text: str) -> list[str]:
    """What counts as words."""
    return re.findall(r"[\w'-]+", text)


def _rules(rng: random.Random) -> list[Rule]:
    """All that can hold together, in the order in which a text can be made to follow them."""
    keyword, other, banned = rng.sample(_KEYWORDS, 3)
    least, times = rng.randint(8, 40), rng.randint(2, 4)
    ending, case = rng.choice(_ENDINGS), rng.choice(("lower", "upper"))
    fold: Callable[[str], str] = str.lower if case == "lower" else str.upper

    def count(text: str, word: str) -> int:
        return [w.lower() for w in words(text)].count(word)

    def fill(text: str) -> str:
        missing = range(len(words(text)), least)
        return " ".join([text, *(_FILLER[i % len(_FILLER)] for i in missing)])

    return [
        Rule(
            f'Use the word "{keyword}" exactly {times} times.',
            lambda t: count(t, keyword) == times,
            lambda t: " ".join([t, *[keyword] * times]),
        ),
        Rule(
            f'Use the word "{other}".',
            lambda t: count(t, other) > 0,
            lambda t: f"{t} {other}",
        ),
        Rule(f'Do not use the word "{banned}".', lambda t: not count(t, banned), lambda t: t),
        Rule(f"Use at least {least} words.", lambda t: len(words(t)) >= least, fill),
        Rule(
            f"Use at most {least + 40} words.", lambda t: len(words(t)) <= least + 40, lambda t: t
        ),
        Rule("Use no commas.", lambda t: "," not in t, lambda t: t),
        Rule(
            f'End with exactly these words and no full stop: "{ending}"',
            lambda t: t.lower().rstrip('" \n').endswith(ending),
            lambda t: f"{t} {ending}",
        ),
        Rule(
            f"Write in {case} case letters only.",
            lambda t: t == fold(t),
            fold,
        ),
        Rule(
            "Put the whole text between double quotation marks.",
            lambda t: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
            lambda t: f'"{t}"',
        ),
    ]

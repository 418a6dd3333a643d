"""Deductive verification: each step against the premises it cites, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple
from weakref import WeakKeyDictionary

from anabranch.program.branch import Branch
from anabranch.program.registry import Range
from anabranch.program.run import Run
from anabranch.program.tasks import together
from anabranch.program.types import Problem, Thought
from anabranch.verify.asking import VERDICTS, answers, open_aside
from anabranch.verify.registry import UNKNOWN, Judge, judge

MAX_STEPS = 64
"""Most statements of a text that are verified; each costs a prompt."""

MAX_READ = 1 << 14
"""How much of a question or a text is read, in characters."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")
_NUMBERED = re.compile(r"\s{0,8}#(\d{1,4})[.:)]?\s{0,4}")
_CITED = re.compile(r"\(\s?by\s((?:#\d{1,4}[,\s]{0,3}(?:and\s)?){1,32})\)[.:]?", re.IGNORECASE)


class Statement(NamedTuple):
    """A premise, or a step with what it says it follows from.

    Attributes:
        premises: numbers of statements before it; None if it cites nothing that there is.
    """

    number: int
    text: str
    premises: tuple[int, ...] | None = None


@judge(
    "natural_program",
    paper="Ling et al. 2023, Deductive verification of chain-of-thought reasoning, section 4",
    summary="Each step is verified from only the premises it cites, `(by #1 #3)`; all must pass.",
)
def natural_program(*, votes: Annotated[int, Range(1, 99)] = 3) -> Judge:
    """The probability that every step wins a majority of `votes` sampled verdicts.

    The question's sentences are premises #1, #2, and so on; the lines of the thought go on
    counting. Departures: verdicts are not sampled: their majority's probability follows exactly
    from the probability of Yes. A step that cites nothing is shown all statements before it. The
    question put is shorter than the paper's one-shot prompt.
    """
    # A search rates the same first steps again and again.
    known_verdicts: WeakKeyDictionary[Run, dict[str, float]] = WeakKeyDictionary()

    async def rate(problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
        verdicts = known_verdicts.setdefault(thoughts[0].branch.run, {})
        contexts: list[list[str]] = []
        asked: dict[str, Branch] = {}
        for thought in thoughts:
            premises, steps = statements(problem.text, thought.text)
            if any(step.premises is None for step in steps):
                thought.branch.run.remark(
                    "steps that cite no premises were verified from everything before them"
                )
            contexts.append([context(premises, steps, step) for step in steps])
            for text in contexts[-1]:
                if text not in verdicts:
                    asked.setdefault(text, thought.branch)

        async def each(text: str, beside: Branch) -> None:
            verdict = await _verdict(beside, text)
            if verdict is not None:
                verdicts[text] = verdict

        await together(each(text, beside) for text, beside in asked.items())
        ratings = []
        for texts in contexts:
            chances = [verdicts.get(text) for text in texts]
            known = [majority(chance, votes) for chance in chances if chance is not None]
            value = 1.0
            for chance in known:
                value *= chance
            ratings.append(value if known and len(known) == len(chances) else UNKNOWN)
        return ratings

    return Judge(rate)


async def _verdict(beside: Branch, text: str) -> float | None:
    asked = open_aside(beside, [{"role": "user", "content": text}])
    if asked is None:
        return None
    try:
        shares = await answers(asked, VERDICTS)
    finally:
        asked.drop("natural_program")
    return None if shares is None else shares[0]


def statements(question: str, text: str) -> tuple[list[Statement], list[Statement]]:
    """Premises of a question, and steps of a text with what they cite.

    Numbers that lines bear (`#4. ...`) count where they go up; all other lines go on counting.
    """
    sentences = [s.strip() for s in _SENTENCE.split(question[:MAX_READ]) if s.strip()]
    premises = [Statement(i, sentence) for i, sentence in enumerate(sentences, 1)]
    known, steps = {premise.number for premise in premises}, []
    for line in text[:MAX_READ].splitlines():
        bears = _NUMBERED.match(line)
        rest = line[bears.end() :] if bears else line
        cited = [int(n) for found in _CITED.findall(rest) for n in re.findall(r"\d+", found)]
        said = " ".join(_CITED.sub(" ", rest).split())
        if not said:
            continue
        last = max(known, default=0)
        number = int(bears[1]) if bears and int(bears[1]) > last else last + 1
        there = tuple(dict.fromkeys(n for n in cited if n in known))
        steps.append(Statement(number, said, there or None))
        known.add(number)
    return premises, steps[:MAX_STEPS]


def context(premises: Sequence[Statement], steps: Sequence[Statement], step: Statement) -> str:
    """What a step is verified from: the statements it cites, or else all before it."""
    before = [*premises, *(s for s in steps if s.number < step.number)]
    shown = [s for s in before if step.premises is None or s.number in step.premises]
    return "\n".join(
        ["Premises:", *(s.text for s in shown), "", f"Step: {step.text}", "",
         "Does the step follow from these premises alone, without a mistake? Answer Yes or No."]
    )  # fmt: skip


def majority(chance: float, votes: int) -> float:
    """Probability that more than half of `votes` verdicts are Yes; a tie counts half."""
    total, term = 0.0, (1 - chance) ** votes
    if chance == 1.0:
        return 1.0
    for yes in range(votes + 1):
        total += term * (1.0 if 2 * yes > votes else 0.5 if 2 * yes == votes else 0.0)
        term *= (votes - yes) / (yes + 1) * chance / (1 - chance)
    return min(1.0, total)

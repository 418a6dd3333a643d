"""A problem's text as statements and a question, and which statements a proof may need."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anabranch.program.types import Problem

MOST_STATEMENTS = 400
"""Most statements of one text; what comes after them counts as one."""

_BORDER = re.compile(r"(?<=[.!?])\s+|\n+")
_RULES = (
    re.compile(r"if (?P<given>.{1,300}?),? then (?P<then>.{1,300})", re.IGNORECASE),
    re.compile(
        r"(?:every|each|all|any)\b (?P<given>.{1,300}?) (?:is|are|has|have|can)\b "
        r"(?P<then>.{1,300})",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<given>\w{1,40}s) are\b (?P<then>.{1,300})", re.IGNORECASE),
)
_FACT = re.compile(
    r"(?P<who>.{1,100}?) (?:is|are|was|were|has|have|can)\b (?P<then>.{1,300})", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+")
_IDLE = re.compile(
    r"an?|the|is|are|was|were|be|has|have|can|not?|and|or|if|then|it|they|he|she|so|also|of|to|in"
    r"|on|at|that|this|every|each|all|any|someone|something|true|false"
)


@dataclass(frozen=True)
class Statement:
    """One sentence as a step of a proof.

    Attributes:
        text: the sentence.
        given, then: the words of what it assumes, and of what it concludes from that.
    """

    text: str
    given: frozenset[str]
    then: frozenset[str]


def split_problem(problem: Problem) -> tuple[list[str], str]:
    """The sentences of a problem, its context's first, and the question."""
    parts, question = split_question(problem.text)
    return [*_sentences(problem.context), *parts], question


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _BORDER.split(text, maxsplit=MOST_STATEMENTS) if part.strip()]


def split_question(text: str) -> tuple[list[str], str]:
    """The sentences of a text that are no question, and the question: the last that asks, or the
    last one."""
    parts = _sentences(text)
    if not parts:
        return [], text
    asking = [i for i, part in enumerate(parts) if part.endswith("?")]
    at = asking[-1] if asking else len(parts) - 1
    return parts[:at] + parts[at + 1 :], parts[at]


def read_statement(sentence: str) -> Statement | None:
    """A rule or a fact ("If P then Q", "All P are Q", "Ps are Q", "X is Q"); None for others."""
    plain = sentence.strip().rstrip(".!")
    for form in _RULES:
        if match := form.fullmatch(plain):
            return Statement(sentence, words(match["given"]), words(match["then"]))
    if match := _FACT.fullmatch(plain):
        return Statement(sentence, frozenset(), words(match["then"]))
    return None


def words(text: str) -> frozenset[str]:
    """Content words, singular, without case."""
    found = _WORD.findall(text.casefold())
    return frozenset(_singular(word) for word in found if not _IDLE.fullmatch(word))


def relevant(statements: Sequence[Statement], question: str) -> list[Statement]:
    """Statements on a chain of words that leads back from the question, in proof order: facts, then
    each rule after what its premises come from."""
    kept: list[Statement] = []
    wanted, left = set(words(question)), list(statements)
    while found := [s for s in left if s.then & wanted]:
        left = [s for s in left if not s.then & wanted]
        kept = found + kept  # found later: further from the question
        wanted |= {word for s in found for word in s.given}
    ordered = [s for s in kept if not s.given]
    known = {word for s in ordered for word in s.then}
    rules = [s for s in kept if s.given]
    while rules:
        ready = next((s for s in rules if s.given <= known), rules[0])
        rules.remove(ready)
        ordered.append(ready)
        known |= ready.then
    return ordered


def _singular(word: str) -> str:
    if word.endswith(("uses", "sses", "xes", "ches")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "us" else word

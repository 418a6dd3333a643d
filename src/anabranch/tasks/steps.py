"""Checks of single steps, which tasks share. Texts are a model's, and hostile."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from anabranch.program.answers import MAX_READ, normalise_number
from anabranch.tasks.registry import Follow
from anabranch.tools.syntax import Notation, Tree

MAX_SUM = 240
"""Longest calculation that is read, in characters."""

_SUMS = Notation(
    binary={"+": (1, 2), "-": (1, 2), "*": (3, 4), "/": (3, 4)}, prefix={"-": 5}, numbers=True
)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "$": None})
_LATEX = re.compile(r"\\(times|cdot|div)(?![a-z])")
_EQUATION = re.compile(r"([-+*/() \d.]{1,240})=[ ]{0,3}(-?\d[\d,]{0,60}(?:\.\d{1,60})?)")
_ANSWER = re.compile(r"^.*\banswer\b", re.I | re.M)
_NUMBERED = re.compile(r"^[\s*#>-]{0,9}(?:step\s{0,3})?(\d{1,4})\W{0,3}[:.)](.*)$", re.I | re.M)


def calculate(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of a sum of whole numbers, and the numbers in it; None if it is none."""
    text = _plain_signs(text)
    if len(text) > MAX_SUM:
        return None
    numbers: list[int] = []
    try:
        return _value(_SUMS.read(text), numbers), numbers
    except (ValueError, ZeroDivisionError):
        return None


def _plain_signs(text: str) -> str:
    return _LATEX.sub(lambda m: "/" if m[1] == "div" else "*", text).translate(_SIGNS)


def _value(tree: Tree, numbers: list[int]) -> Fraction:
    match tree:
        case ("number", str(digits)):
            numbers.append(int(digits))
            return Fraction(digits)
        case ("-", inner):
            return -_value(inner, numbers)
        case (str(sign), left, right):
            a, b = _value(left, numbers), _value(right, numbers)
            return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[sign](b)
    raise ValueError("no sum")


def calculated(values: Sequence[object]) -> Follow:
    """Right is an equation such as `3 * 4 = 12` that gives the next of these values.

    True equations that give none of them count for nothing, false ones as wrong steps.
    """

    def claims(text: str) -> Iterator[tuple[str, bool]]:
        for match in _EQUATION.finditer(_plain_signs(text[-MAX_READ:])):
            # "So 1) 3 + 4 = 7": what stands before the sum is no part of it.
            left = match[1].strip().lstrip("./*+) ")
            got, said = calculate(left), normalise_number(match[2])
            if got is not None and said is not None and got[1] and not left.isdigit():
                yield said, got[0] == Fraction(said)

    return lambda text: list(_against([str(value) for value in values], claims(text)))


def claimed(gold: Sequence[str], pattern: str, true: Iterable[str]) -> Follow:
    """Right is a sentence that matches and is the next of these; one that is not true is wrong.

    Args:
        pattern: what all such sentences match.
        true: all of them that are true, `gold` among them.
    """
    sentence, known = re.compile(pattern, re.IGNORECASE), {s.casefold() for s in true}

    def claims(text: str) -> Iterator[tuple[str, bool]]:
        for match in sentence.finditer(text[-MAX_READ:]):
            said = " ".join(match[0].casefold().split())
            yield said, said in known

    return lambda text: list(_against([g.casefold() for g in gold], claims(text)))


def numbered(gold: Sequence[str]) -> Follow:
    """Right is the k-th step, from `Step k: ...` on, if it says what the k-th of these does.

    It may say so at once, or on its last line after the order or a calculation.
    """

    def follow(text: str) -> list[bool]:
        text = text[-MAX_READ:]
        heads, found = list(_NUMBERED.finditer(text)), list[bool]()
        for place, head in enumerate(heads):
            end = heads[place + 1].start() if place + 1 < len(heads) else len(text)
            body = _ANSWER.split(text[head.end() : end], maxsplit=1)[0].strip()
            last = body.rpartition("\n")[2] or head[2]
            said = (plain(head[2]), plain(last), plain(last.rpartition("=")[2]))
            right = place < len(gold) and plain(gold[place]) in said
            found.append(int(head[1]) == place + 1 and right)
        return found

    return follow


def plain(text: str) -> str:
    """A state without the marks that people set around or inside one."""
    return " ".join(re.sub(r"[\s\[\]\"'“”`*.,:]+", " ", text).split())


def _against(gold: Sequence[str], claims: Iterable[tuple[str, bool]]) -> Iterator[bool]:
    after = 0
    for said, true in claims:
        if not true:
            yield False
        elif said in gold[after:]:
            after = gold.index(said, after) + 1
            yield True

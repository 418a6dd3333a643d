"""Whether two answers mean the same: as numbers, or as mathematics. For checks of problems."""

from __future__ import annotations

import importlib
import logging
import re
from fractions import Fraction
from typing import Any

from anabranch.errors import InputError, check_range
from anabranch.program.answers import normalise_number

MAX_FORMULA = 240
"""Longest formula that is parsed, in characters."""

# What makes short texts expensive: powers of powers, large exponents, factorials, long sums, and
# nesting.
_TOWER = re.compile(r"(?:\^|\*\*)[^+\-,;=]{0,40}(?:\^|\*\*)")
_LARGE_POWER = re.compile(r"(?:\^|\*\*)\s{0,4}[{(]?\s{0,4}[-+]?(?:\d{4,}|\d+\s*e)")
_EXPENSIVE = re.compile(r"!|\\(?:sum|prod|int|lim|binom)|\d{61}|factorial|gamma|\be\d{3}", re.I)
_MAX_DEPTH = 24


def numeric(answer: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two texts are the same number, exactly: "1/2", "0.50" and "$0.5" are.

    Args:
        tolerance: greatest difference that still counts as none, as a share of `expected`.
    """
    check_range("tolerance", tolerance, 0, 1)
    first, second = map(normalise_number, (answer, expected))
    if first is None or second is None:
        return False
    a, b = Fraction(first), Fraction(second)
    return abs(a - b) <= Fraction(tolerance) * abs(b)


def symbolic(answer: str, expected: str) -> bool:
    """Whether two formulas (LaTeX or plain) are equal as mathematics: `x+1` and `1+x` are.

    Numbers that `numeric` finds equal are equal without parsing anything. A formula that could
    take long to evaluate is equal to nothing but its own text.

    Raises:
        InputError: math-verify is not installed.
    """
    if answer.strip() == expected.strip() or numeric(answer, expected):
        return True
    if not (_cheap(answer) and _cheap(expected)):
        return False
    math_verify = _math_verify()
    try:
        # Its own timeouts work in the main thread only: what is slow was refused above.
        wanted, given = (
            math_verify.parse(f"${text}$", parsing_timeout=None) for text in (expected, answer)
        )
        return bool(wanted and given and math_verify.verify(wanted, given, timeout_seconds=None))
    except Exception:  # a parser on a model's text
        return False


def _cheap(text: str) -> bool:
    depth = most = 0
    for character in text[: MAX_FORMULA + 1]:
        depth += (character in "([{") - (character in ")]}")
        most = max(most, depth)
    costly = (_TOWER, _LARGE_POWER, _EXPENSIVE)
    return (
        len(text) <= MAX_FORMULA
        and most <= _MAX_DEPTH
        and not any(pattern.search(text) for pattern in costly)
    )


def _math_verify() -> Any:
    try:
        module = importlib.import_module("math_verify")
    except ImportError:
        raise InputError(
            "symbolic comparison needs a package that is not here", got="math-verify",
            fix="pip install math-verify",
        ) from None  # fmt: skip
    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns of the timeouts we switch off
    return module

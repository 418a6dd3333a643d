"""Reading answers off a model's text, and bringing them to one form in which they compare.

Pure functions. Text is hostile: only its last `MAX_READ` characters are searched, with patterns
that take linear time, and what is parsed further is at most `MAX_RAW` characters long.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import deque
from collections.abc import Iterator

from anabranch.program.types import Problem

MAX_READ = 1 << 15
"""How much of a text's end is searched, in characters."""

MAX_RAW = 240
"""Longest stretch after "the answer is" that is read, in characters."""

MAX_EXACT = 4000
"""The same where answers are taken as they stand: moves and lists are longer than numbers."""

MAX_STATED = 8
"""Most statements tried before a text counts as stating nothing."""

MAX_DIGITS = 60
"""Numbers with more digits than this are compared as text."""

_MARK = re.compile(
    r"\\boxed\s{0,2}\{"
    r"|\#{4,}"
    r"|\banswer\b[*_`\"')\]]{0,4}"
    r"(?:\s(?:to|of|for)\b[^.:\n]{0,60}?)?"
    r"\s{0,2}(?:is|are|was|=|:)(?![a-z])",
    re.IGNORECASE,
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"[-+−]?\s?[$€£¥]?\s?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:e[-+]?\d{{1,3}})?"
# A number alone, or with what may stand around it: a currency, a percent sign, a unit of up to
# three words.
_QUANTITY = re.compile(
    rf"(?P<number>{_NUMBER})(?:\s?/\s?(?P<below>\d+))?"
    r"\s?(?:%|°|[^\W\d_]{1,20}\.?(?:[ /·][^\W\d_]{1,20}){0,2}(?:\^?[23²³])?)?",
    re.IGNORECASE,
)
_MIXED = re.compile(r"(?P<whole>[-+−]?\d+) (?P<above>\d+)\s?/\s?(?P<below>\d+)")
# In running text a number must not be part of a word, a date or a version.
_LOOSE = re.compile(
    rf"(?<![\w.,/])[-−]?[$€£¥]?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:/\d+)?(?![\w/])", re.IGNORECASE
)
_WORDS_BETWEEN = re.compile(r"\b(?:and|or|to|by|x|times|plus|minus|divided)\b", re.IGNORECASE)
_ASKS_NUMBER = re.compile(
    r"\d|\bhow (?:many|much|old|long|far|fast|tall|big|often)\b"
    r"|\b(?:number|sum|total|average|percent)\b",
    re.IGNORECASE,
)
_OPENS_YES_NO = re.compile(r"\W{0,4}(yes|no|true|false)\b", re.IGNORECASE)
_NUMBER_END = re.compile(r"[.!?;](?:\s|$)|, | \(")
_SENTENCE_END = re.compile(r"(?<=\w{3})[.!?;](?=\s|$)")  # not in "St. Louis"
_LATEX_WORD = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s?\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}")
_LATEX_NOISE = re.compile(r"\\[,;:! ()\[\]]|\\(?:left|right|circ|quad)\b|\$\$|\^\\?circ")
_ARTICLE = re.compile(r"\b(?:a|an|the)\s(?=\S)")
_EDGES = string.whitespace + string.punctuation.replace("%", "") + "“”‘’«»…。·"
_AROUND = " :*`\"'“”‘’"  # around an answer that is taken as it stands
_LEFT_EDGES = "".join(c for c in _EDGES if c not in "-.$")  # these may open a number


def extract(text: str, problem: Problem, *, done: bool = True) -> str | None:
    """The normalised answer that a text gives to a problem, or None.

    Looks for the last of `\\boxed{X}`, `#### X`, "answer is X", "answer: X". Without one, a
    finished text that opens with yes or no answers that, and one for a problem that asks for a
    number answers its last number.

    Args:
        done: whether the text is finished: in one cut short only a stated answer counts.
    """
    if problem.kind == "whole":
        return normalise(text, problem) if done else None
    opening, text = text[:MAX_RAW], text[-MAX_READ:]
    for raw in stated(text, MAX_EXACT if problem.kind == "exact" else MAX_RAW):
        if answer := normalise(raw, problem):
            return answer
    if not done:
        return None
    if letters(problem):
        return _loose_letter(text, letters(problem))
    return _unstated(opening, text, problem)


def normalise(raw: str, problem: Problem) -> str | None:
    """One form for answers that mean the same, or None when `raw` cannot be of the problem's kind.

    Numbers lose signs of currency and percent, separators, units and idle zeros ("$1,234.50" and
    "1234.5 dollars" agree; so do "50%" and "50"); fractions are reduced and stay fractions. All
    else is compared without case, articles and punctuation at its edges. An exact answer loses but
    spaces, quotes and emphasis around it and its full stop; a whole text only empty lines.
    """
    if problem.kind == "whole":
        return raw[:MAX_READ].lstrip("\r\n").rstrip() or None  # indentation is part of code
    if problem.kind == "exact":
        return " ".join(raw[:MAX_EXACT].split()).lstrip(_AROUND).rstrip(_AROUND + ".") or None
    plain = _without_latex(raw[:MAX_RAW])
    if letters(problem):
        return _letter(plain, problem)
    number = _stated_number(plain)
    if number is not None or problem.kind == "number":
        return number
    return normalise_text(_SENTENCE_END.split(plain, maxsplit=1)[0]) or None


def normalise_text(text: str) -> str:
    """Text without case, articles, edge punctuation and differences of spacing or composition."""
    plain = unicodedata.normalize("NFC", text.casefold())
    plain = _ARTICLE.sub("", " ".join(plain.split()).strip(_EDGES))
    return plain.strip(_EDGES)


def normalise_number(text: str) -> str | None:
    """A number's shortest form, with or without its unit; None if the text is not one number."""
    text = _ascii_digits(text.strip())
    if mixed := _MIXED.fullmatch(text):
        whole, above, below = mixed["whole"], mixed["above"], mixed["below"]
        if len(text) > MAX_DIGITS or not below.strip("0"):
            return None
        sign = "-" if whole[0] in "-−" else ""
        total = int(whole.lstrip("+-−")) * int(below) + int(above)
        return _fraction(f"{sign}{total}", below)
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number = _decimal(match["number"])
    if match["below"] is None or number is None:
        return number
    return _fraction(number, match["below"])


def letters(problem: Problem) -> str:
    """The letters of a multiple-choice problem, "" for any other."""
    if problem.choices:
        return string.ascii_uppercase[: len(problem.choices)]
    return "ABCDE" if problem.kind == "choice" else ""


def stated(text: str, longest: int = MAX_RAW) -> Iterator[str]:
    """What the text itself calls its answer, the last statement first. May yield empty strings.

    Args:
        longest: most of one, in characters.
    """
    for match in reversed(deque(_MARK.finditer(text), maxlen=MAX_STATED)):
        rest = text[match.end() : match.end() + longest]
        if match[0].startswith("\\"):
            yield _closed(rest)
        else:
            # On a line of its own, or the rest of this one.
            line = next((s for s in rest.splitlines() if s.strip(_EDGES)), "")
            yield _closed(line.partition("\\boxed{")[2]) if "\\boxed{" in line else line


def _closed(rest: str) -> str:
    """Up to the brace that closes the one before `rest`, or its first line."""
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i]
    return rest.partition("\n")[0]


def _without_latex(raw: str) -> str:
    plain = _LATEX_WORD.sub(r" \1", raw)
    plain = _LATEX_FRACTION.sub(r"\1/\2", plain)
    plain = _LATEX_NOISE.sub(" ", plain).replace("\\$", "$").replace("\\%", "%")
    return " ".join(plain.replace("**", "").replace("`", "").split())


def _stated_number(plain: str) -> str | None:
    """The number of a statement such as "x = 5 cm." or "42, because ..."."""
    for part in (plain, _NUMBER_END.split(plain, maxsplit=1)[0]):
        part = part.rpartition("=")[2].lstrip(_LEFT_EDGES).rstrip(_EDGES)
        if not _WORDS_BETWEEN.search(part) and (number := normalise_number(part)):
            return number
    return None


def _letter(plain: str, problem: Problem) -> str | None:
    """The letter of a statement: "B", "(b)", "B because ...", or a choice's own words."""
    allowed = letters(problem)
    text = normalise_text(_SENTENCE_END.split(plain, maxsplit=1)[0])
    for letter, choice in zip(allowed, map(normalise_text, problem.choices), strict=False):
        if text in (choice, f"{letter.lower()} {choice}", f"{letter.lower()}) {choice}"):
            return letter
    # "a blue one" names no letter.
    match = re.match(
        rf"[\s(\[\"'*:]*([{allowed}])(?![\w']|\s(?!because|since|as\b)\w)", plain, re.IGNORECASE
    )
    return match[1].upper() if match else None


def _loose_letter(text: str, allowed: str) -> str | None:
    found = re.findall(rf"(?<!\w)\(?([{allowed}])[).:](?!\w)", text)
    return found[-1] if found else None


def _unstated(opening: str, text: str, problem: Problem) -> str | None:
    if problem.kind in ("text", "exact"):
        return None
    if problem.kind == "auto":
        if match := _OPENS_YES_NO.match(opening):
            return match[1].casefold()
        if "```" in text or not _ASKS_NUMBER.search(problem.text[-MAX_READ:]):
            return None
    last = deque(_LOOSE.finditer(text), maxlen=1)
    return normalise_number(last[0][0][:MAX_RAW]) if last else None


def _ascii_digits(text: str) -> str:
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text
    )


def _decimal(text: str) -> str | None:
    """`-1,234.50` as `-1234.5`; exponents written out if they are small."""
    mantissa, _, exponent = text.lower().partition("e")
    negative = mantissa[0] in "-−"
    whole, _, decimals = mantissa.strip("-+−$€£¥ ").replace(",", "").partition(".")
    if len(whole) + len(decimals) > MAX_DIGITS:
        return None
    shift = int(exponent or 0)
    if abs(shift) > MAX_DIGITS:
        return None
    digits, point = whole + decimals, len(whole) + shift
    digits = "0" * -point + digits + "0" * (point - len(digits))
    point = max(point, 0)
    whole, decimals = digits[:point].lstrip("0") or "0", digits[point:].rstrip("0")
    plain = f"{whole}.{decimals}" if decimals else whole
    return f"-{plain}" if negative and plain != "0" else plain


def _fraction(above: str, below: str) -> str | None:
    """`above/below` reduced; None if it is none."""
    if not below.strip("0") or "." in above or len(above) + len(below) > MAX_DIGITS:
        return None
    top, bottom = int(above), int(below)
    common = math.gcd(top, bottom)
    top, bottom = top // common, bottom // common
    return f"{top}" if bottom == 1 else f"{top}/{bottom}"

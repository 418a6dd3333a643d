"""Reading answers, as methods do it: `program.answers`, where judges find it too."""

from anabranch.program.answers import (
    MAX_DIGITS,
    MAX_RAW,
    MAX_READ,
    MAX_STATED,
    extract,
    letters,
    normalise,
    normalise_number,
    normalise_text,
    stated,
)

__all__ = [
    "MAX_DIGITS",
    "MAX_RAW",
    "MAX_READ",
    "MAX_STATED",
    "extract",
    "letters",
    "normalise",
    "normalise_number",
    "normalise_text",
    "stated",
]

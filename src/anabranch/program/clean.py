"""What a model wrote, made harmless to whatever shows it."""

from __future__ import annotations

import unicodedata

_STEERING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str, keep: str = "\n\t") -> str:
    """Text without control characters (but `keep`), overrides of direction, and half characters."""
    rest = text
    for allowed in keep:
        rest = rest.replace(allowed, "")
    if rest.isprintable():  # nearly always, and fast
        return text
    return "".join(
        c
        if c in keep or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _STEERING)
        else "\ufffd"
        for c in text
    )

"""A reader of infix notation, for small languages whose text is hostile.

It gives nested tuples, the operator first: `("+", ("number", "1"), ("name", "x"))`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 60
"""How deep expressions may nest."""

Tree = tuple[Any, ...]


@dataclass(frozen=True)
class Notation:
    """Which operators there are.

    Attributes:
        binary: how tightly each binds, to its left and to its right.
        prefix: how tightly each binds to its right.
        binders: words that bind a name in what follows: `all x. ...`.
        numbers: whether there are numbers, also as factors: `2x`.
    """

    binary: Mapping[str, tuple[int, int]]
    prefix: Mapping[str, int]
    binders: tuple[str, ...] = ()
    numbers: bool = False

    def read(self, text: str) -> Tree:
        """The tree of a text. Raises ValueError, with what is wrong."""
        reader = _Reader(self, self._tokens(text))
        tree = reader.expression(0, 0)
        if reader.token:
            raise ValueError(f"unexpected {reader.token!r} in {text.strip()!r}")
        return tree

    def _tokens(self, text: str) -> list[str]:
        signs = sorted({*self.binary, *self.prefix, "(", ")", ",", "."}, key=len, reverse=True)
        number = r"\d+(?:\.\d+)?|" if self.numbers else ""
        pattern = re.compile(rf"\s*({number}[A-Za-z]\w*|{'|'.join(map(re.escape, signs))})")
        tokens, position, end = [], 0, len(text.rstrip())
        while position < end:
            match = pattern.match(text, position)
            if match is None:
                raise ValueError(f"cannot read {text[position:].strip()[:20]!r}")
            tokens.append(match[1])
            position = match.end()
        return tokens


class _Reader:
    def __init__(self, notation: Notation, tokens: list[str]) -> None:
        self.notation, self.tokens, self.place = notation, tokens, 0

    @property
    def token(self) -> str:
        """The next one, "" at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.token
        if not token or (wanted and token != wanted):
            raise ValueError(f"expected {wanted or 'more'!r}, got {token or 'the end'!r}")
        self.place += 1
        return token

    def expression(self, least: int, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        left = self.operand(depth)
        while True:
            binding = self.notation.binary.get(self.token)
            if binding is None or binding[0] < least:
                return left
            left = (self.take(), left, self.expression(binding[1], depth + 1))

    def operand(self, depth: int) -> Tree:
        token = self.take()
        if token in self.notation.prefix:
            return (token, self.expression(self.notation.prefix[token], depth + 1))
        if token == "(":
            inner = self.expression(0, depth + 1)
            self.take(")")
            return inner
        if token in self.notation.binders:
            name = self.take()
            if not name.isidentifier():
                raise ValueError(f"{token!r} needs a name")
            self.take(".")
            return (token, name, self.expression(0, depth + 1))
        if token[0].isdigit():
            return self.factor(("number", token), depth)
        if not token[0].isalpha():
            raise ValueError(f"expected a name, got {token!r}")
        return ("call", token, *self.arguments(depth)) if self.token == "(" else ("name", token)

    def factor(self, number: Tree, depth: int) -> Tree:
        """A number, or one written before what it multiplies."""
        tight = max((right for _, right in self.notation.binary.values()), default=0)
        if self.token == "(" or self.token[:1].isalpha():
            return ("*", number, self.expression(tight, depth + 1))
        return number

    def arguments(self, depth: int) -> list[Tree]:
        self.take("(")
        found = [self.expression(0, depth + 1)]
        while self.token == ",":
            self.take()
            found.append(self.expression(0, depth + 1))
        self.take(")")
        return found

"""Constraints that a grammar gives, as masks from llguidance's parser.

`regex`, `json_schema`, `lark`, `choice` and `substring` make them. Characters count, not tokens:
every way to cut an allowed text into tokens is allowed.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
import numpy as np

from anabranch.engine.constraints import Constraint, Mask, State
from anabranch.errors import InputError
from anabranch.models.tokenizer import Tokenizer

MAX_GRAMMAR = 1 << 20
"""Longest grammar, in characters."""


def regex(pattern: str) -> Constraint:
    """Texts that match a regular expression as a whole (Rust syntax: no look-around)."""
    return _Grammar(llguidance.LLMatcher.grammar_from_regex(_checked(pattern)))


def json_schema(schema: Mapping[str, Any] | str) -> Constraint:
    """JSON that a schema allows.

    Raises:
        InputError: the schema is no JSON object.
    """
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        return _Grammar(llguidance.LLMatcher.grammar_from_json_schema(_checked(text)))
    except ValueError as error:
        raise InputError(f"the schema cannot be read: {error}") from None


def lark(grammar: str) -> Constraint:
    """Texts of a context-free grammar in Lark's syntax; its first rule is `start`."""
    return _Grammar(llguidance.LLMatcher.grammar_from_lark(_checked(grammar)))


def choice(options: Sequence[str]) -> Constraint:
    """One of several texts."""
    if isinstance(options, str) or not options or not all(options):
        raise InputError("options are not a list of texts", got=options, allowed="one or more")
    return lark("start: " + " | ".join(json.dumps(option) for option in options))


def substring(text: str) -> Constraint:
    """Any stretch of a text that begins and ends at a character of it, not empty."""
    if not text:
        raise InputError("the text to quote from is empty")
    return lark(f"start: %regex {json.dumps({'substring_chars': text})}")


def _checked(text: str) -> str:
    if len(text) > MAX_GRAMMAR:
        raise InputError("the grammar is too long", got=len(text), allowed=f"up to {MAX_GRAMMAR}")
    return text


@dataclass(frozen=True)
class _Grammar:
    grammar: str

    def start(self, tokenizer: Tokenizer, written: Sequence[int]) -> State:
        """See `Constraint.start`."""
        matcher = llguidance.LLMatcher(_vocabulary(tokenizer), self.grammar, log_level=0)
        if matcher.is_error():
            fault = matcher.get_error()
            if fault.startswith("panic"):  # a limit of the parser's, told as where in its source
                raise InputError("the grammar is too large", fix="use fewer or shorter rules")
            raise InputError("the grammar cannot be read", got=fault)
        state = _Parsed(matcher, tokenizer.vocab_size)
        for token in written:
            if not state.test(token):
                raise InputError(
                    "the text so far breaks the grammar",
                    got=tokenizer.decode(written),
                    fix="let the constraint begin where its text does",
                )
            state = state.next(token)
        return state


class _Parsed:
    """A parser's state. Never changed once somebody holds it."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab

    def mask(self) -> Mask:
        if self._matcher.is_stopped():
            return np.zeros(self._vocab, np.bool_)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._vocab].astype(np.bool_)

    def test(self, token: int) -> bool:
        return self._matcher.validate_tokens([token]) == 1

    def next(self, token: int) -> _Parsed:
        after = self._matcher.deep_copy()
        if not after.consume_token(token):
            raise InputError(
                "the grammar is too complex for the text so far",
                got=after.get_error().partition("\n")[0],
                fix="use smaller counts of repetition",
            )
        return _Parsed(after, self._vocab)

    def done(self) -> bool:
        return self._matcher.is_accepting()


_VOCABULARIES: weakref.WeakKeyDictionary[Tokenizer, llguidance.LLTokenizer] = (
    weakref.WeakKeyDictionary()
)
"""Tokenizers in the parser's form, which takes a good part of a second to make."""


def _vocabulary(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    known = _VOCABULARIES.get(tokenizer)
    if known is None:
        wrapped = llguidance.TokenizerWrapper(_Tokens(tokenizer))
        known = llguidance.LLTokenizer(wrapped, n_vocab=tokenizer.vocab_size)
        _VOCABULARIES[tokenizer] = known
    return known


class _Tokens:
    """What the parser asks of a tokenizer. Ends are the engine's own affair: it needs one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if not text]
        self.eos_token_id = min(tokenizer.ends, default=0)
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, start=False)

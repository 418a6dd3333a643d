"""Chat templates: a conversation rendered as a model expects it, by Jinja code out of its file.

The template comes from strangers and the contents of messages from users. What the template may do
and cost is the business of `sandbox`. Here it is made sure that **contents never become control
tokens**: where the template's own source writes a control token, it is made to write a marker
instead, which starts with a secret drawn for this template. Markers, and nothing else, become
control tokens; whatever the template does to a message, it cannot make the secret out of it. A
template that assembles a control token from pieces is refused.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from jinja2 import Template, TemplateError, nodes

from anabranch.errors import FileFormatError, InputError, UnsupportedError
from anabranch.models.sandbox import METER, Meter, Refused, Sandbox

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 4_096
MAX_CONTENT_CHARS = 4_000_000

_MAX_SOURCE_CHARS = 1 << 15
_STEPS, _STEPS_PER_MESSAGE = 2_000_000, 10_000
_CHARS, _CHARS_PER_CONTENT_CHAR = 16_000_000, 64
_MAX_ADDED_CHARS = 1_000_000
_SECRET_CHARS = 16
_FIRST_SYMBOL, _MAX_SYMBOLS = 0xF0000, 1000  # private-use characters that follow the secret


class ControlTokens:
    """The control tokens of a vocabulary, found in text: the leftmost first, then the longest."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {text: token for text, token in ids.items() if text}
        lengths: dict[str, set[int]] = {}
        for text in self._ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else None

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """`(start, end, token id)` of each, from left to right."""
        at = 0
        while self._first and (match := self._first.search(text, at)):
            start = match.start()
            at = start + 1
            for length in self._lengths[match.group()]:
                found = text[start : start + length]
                if found in self._ids:
                    at = start + len(found)
                    yield start, at, self._ids[found]
                    break

    def split(self, text: str) -> list[str | int]:
        """Ordinary text and token ids, in order, without empty text."""
        parts: list[str | int] = []
        last = 0
        for start, end, token in self.find(text):
            parts += [text[last:start], token]
            last = end
        return [part for part in (*parts, text[last:]) if part != ""]


class ChatTemplate:
    """A chat template, compiled when first used.

    Args:
        source: Jinja code.
        path: the file it came from, for messages.
        control: the control tokens that the template may write.
        variables: text by name, as `bos_token`.
    """

    def __init__(
        self, source: str, path: Path, control: ControlTokens, variables: Mapping[str, str]
    ) -> None:
        self._source, self._path = source, path
        self._control, self._variables = control, variables
        self._secret = "".join(chr(0xE000 + byte) for byte in secrets.token_bytes(_SECRET_CHARS))
        self._marker = re.compile(f"{self._secret}(.?)", re.DOTALL)
        self._symbols: dict[str, tuple[str, int]] = {}

    def render(self, messages: Sequence[Mapping[str, str]], *, generate: bool) -> list[str | int]:
        """The conversation as ordinary text and control token ids, in order.

        Args:
            messages: checked by `check_messages`.
            generate: end with the opening of the assistant's turn.

        Raises:
            InputError: the template refuses this conversation.
            FileFormatError: the template is broken, or costs too much.
            UnsupportedError: the template assembles control tokens from pieces.
        """
        contents = [message["content"] for message in messages]
        size = sum(map(len, contents))
        values: dict[str, object] = {
            **{name: self._mark(text) for name, text in self._variables.items()},
            METER: Meter(
                _STEPS + _STEPS_PER_MESSAGE * len(messages), _CHARS + _CHARS_PER_CONTENT_CHAR * size
            ),
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": generate,
        }
        try:
            rendered = self._template.render(values)
            rendered.encode()
            if len(rendered) > 2 * size + _MAX_ADDED_CHARS:
                raise TemplateError("it makes too much text")
        except Refused as error:
            raise InputError(
                f"the model's chat template refuses this conversation: {self._plain(error)}",
                got=[message["role"] for message in messages],
            ) from None
        except Exception as error:
            raise self._fault(error) from error
        return self._tokens(rendered, contents)

    def _tokens(self, rendered: str, contents: Sequence[str]) -> list[str | int]:
        pieces = self._marker.split(rendered)
        if torn := set(pieces[1::2]) - self._symbols.keys():
            raise self._fault(TemplateError(f"it tears {len(torn)} control tokens apart"))
        self._check_ordinary(pieces[::2], contents)
        parts: list[str | int] = [
            self._symbols[piece][1] if i % 2 else piece for i, piece in enumerate(pieces)
        ]
        return [part for part in parts if part != ""]

    def _check_ordinary(self, texts: Sequence[str], contents: Sequence[str]) -> None:
        """Ordinary text may only spell a control token that a message spells."""
        spelt = {text[start:end] for text in texts for start, end, _ in self._control.find(text)}
        if spelt:
            spelt -= {text[i:j] for text in contents for i, j, _ in self._control.find(text)}
        if spelt:
            raise UnsupportedError(
                f"{self._path}: its chat template assembles {min(spelt)!r} from pieces",
                fix="give the prompt as text or as token ids",
            )

    @cached_property
    def _template(self) -> Template:
        if len(self._source) > _MAX_SOURCE_CHARS:
            raise FileFormatError(
                self._path,
                f"a chat template of {len(self._source)} characters (allowed: {_MAX_SOURCE_CHARS})",
            )
        sandbox = Sandbox()
        try:
            tree = sandbox.parse(self._source)
            for node in tree.find_all((nodes.TemplateData, nodes.Const)):
                field = "data" if isinstance(node, nodes.TemplateData) else "value"
                if isinstance(text := getattr(node, field), str):
                    setattr(node, field, self._mark(text))
            return sandbox.compiled(tree)
        except Exception as error:
            raise self._fault(error) from error

    def _mark(self, text: str) -> str:
        """`text` with every control token replaced by its marker."""
        marked, last = "", 0
        for start, end, token in self._control.find(text):
            marked += text[last:start] + self._secret + self._symbol(text[start:end], token)
            last = end
        return marked + text[last:]

    def _symbol(self, text: str, token: int) -> str:
        for symbol, entry in self._symbols.items():
            if entry[1] == token:
                return symbol
        if len(self._symbols) == _MAX_SYMBOLS:
            raise TemplateError(f"it names more than {_MAX_SYMBOLS} control tokens")
        symbol = chr(_FIRST_SYMBOL + len(self._symbols))
        self._symbols[symbol] = text, token
        return symbol

    def _fault(self, error: Exception) -> FileFormatError:
        if isinstance(error, FileFormatError):
            return error
        return FileFormatError(
            self._path,
            f"its chat template cannot be used: {self._plain(error)}",
            fix="give the prompt as text or as token ids",
        )

    def _plain(self, error: Exception) -> str:
        """An error's message for people, control tokens spelt out, at most 300 characters."""
        text = str(error) or type(error).__name__
        spelt = self._marker.sub(lambda found: self._symbols.get(found[1], ("",))[0], text)
        return spelt if len(spelt) <= 300 else spelt[:299] + "…"


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Raise `InputError` unless this is a conversation: known roles, contents that are text."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InputError(
            "a conversation of this many messages cannot be rendered",
            got=len(messages),
            allowed=f"1 to {MAX_MESSAGES}",
        )
    for message in messages:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InputError("not a message", got=message, allowed="{'role': ..., 'content': ...}")
        if message["role"] not in ROLES:
            raise InputError("unknown role", got=message["role"], allowed=", ".join(ROLES))
        if not isinstance(message["content"], str):
            raise InputError(
                "the content of a message is not text",
                got=type(message["content"]).__name__,
                allowed="str",
            )
    size = sum(len(message["content"]) for message in messages)
    if size > MAX_CONTENT_CHARS:
        raise InputError(
            "the conversation is too long",
            got=size,
            allowed=f"at most {MAX_CONTENT_CHARS} characters",
        )

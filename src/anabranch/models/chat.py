"""Chat templates: a conversation rendered as a model expects it, by Jinja code out of its file.

The template comes from strangers and the contents of messages from users, hence two guarantees.

**Contents never become control tokens.** Where the template's own source writes a control token, it
is made to write a marker instead, which starts with a secret drawn for this template. Markers, and
nothing else, become control tokens; whatever the template does to a message, it cannot make the
secret out of it. A template that assembles a control token from pieces is refused.

**A rendering is bounded**, deterministically, by its `_Meter`. The parsed template is rewritten:
every loop round and macro call first pays one step for each node that it holds. An operation whose
cost grows with its operands (calls, filters, tests, operators, comparisons, literals, slices,
output) pays for their sizes, before it makes anything large. The few ways to make much out of
little (`*`, `**`, `replace`, `join`, `indent`) compute the size of the result first; other such
filters and methods do not exist here. Nothing is evaluated while compiling, no value can be
changed in place, and no generator is left unread, so there are no hidden loops.

Otherwise as Hugging Face transformers renders: sandboxed, blocks trimmed, `break` and `continue`,
`raise_exception`, `strftime_now`, `tojson` without HTML escapes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template, TemplateError, Undefined, nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from anabranch.errors import FileFormatError, InputError, UnsupportedError

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 10_000
MAX_CONTENT_CHARS = 4_000_000

_MAX_SOURCE_CHARS = 1 << 16
_STEPS, _STEPS_PER_MESSAGE = 2_000_000, 2_000
_CHARS, _CHARS_PER_CONTENT_CHAR = 16_000_000, 64
_OPERATION = 20
"""Steps of a metered operation; a step takes some 50 ns."""

_MAX_INT_BITS = 1 << 14
_MAX_DEPTH = 32
_METER = "!meter"  # no template can name it
_SECRET_CHARS = 16


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
                token = self._ids.get(text[start : start + length])
                if token is not None:
                    at = start + length
                    yield start, at, token
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
        self._marker = re.compile(self._secret + "([\U000f0000-\U000ffffd])")
        self._marked: list[tuple[str, int]] = []

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
            _METER: _Meter(
                _STEPS + _STEPS_PER_MESSAGE * len(messages), _CHARS + _CHARS_PER_CONTENT_CHAR * size
            ),
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": generate,
        }
        try:
            rendered = self._template.render(values)
        except _Refused as error:
            raise InputError(
                f"the model's chat template refuses this conversation: {self._unmark(str(error))}",
                got=[message["role"] for message in messages],
            ) from None
        except Exception as error:
            raise self._fault(error) from error
        return self._tokens(rendered, contents)

    def _tokens(self, rendered: str, contents: Sequence[str]) -> list[str | int]:
        parts: list[str | int] = []
        for i, piece in enumerate(self._marker.split(rendered)):
            if i % 2:
                parts.append(self._marked[ord(piece) - 0xF0000][1])
            elif piece:
                self._check_ordinary(piece, contents)
                parts.append(piece)
        return parts

    def _check_ordinary(self, text: str, contents: Sequence[str]) -> None:
        """Text of a control token may only stand where a message has it."""
        for start, end, _ in self._control.find(text):
            if not any(text[start:end] in content for content in contents):
                raise UnsupportedError(
                    f"{self._path}: its chat template assembles {text[start:end]!r} from pieces",
                    fix="give the prompt as text or as token ids",
                )

    @cached_property
    def _template(self) -> Template:
        if len(self._source) > _MAX_SOURCE_CHARS:
            raise FileFormatError(
                self._path,
                f"a chat template of {len(self._source)} characters "
                f"(allowed: {_MAX_SOURCE_CHARS})",
            )
        sandbox = _Sandbox()
        try:
            tree = sandbox.parse(self._source)
            for node in tree.find_all((nodes.TemplateData, nodes.Const)):
                field = "data" if isinstance(node, nodes.TemplateData) else "value"
                if isinstance(text := getattr(node, field), str):
                    setattr(node, field, self._mark(text))
            return sandbox.from_string(_Metering().visit(tree))
        except Exception as error:
            raise self._fault(error) from error

    def _mark(self, text: str) -> str:
        """`text` with every control token replaced by its marker."""
        marked, last = "", 0
        for start, end, token in self._control.find(text):
            entry = (text[start:end], token)
            if entry not in self._marked:
                self._marked.append(entry)
            symbol = chr(0xF0000 + self._marked.index(entry))
            marked += text[last:start] + self._secret + symbol
            last = end
        return marked + text[last:]

    def _unmark(self, text: str) -> str:
        """For people: markers as the tokens they stand for, at most 300 characters."""
        plain = self._marker.sub(lambda found: self._marked[ord(found[1]) - 0xF0000][0], text)
        plain = plain.replace(self._secret, "")
        return plain if len(plain) <= 300 else plain[:299] + "…"

    def _fault(self, error: Exception) -> FileFormatError:
        if isinstance(error, FileFormatError):
            return error
        what = self._unmark(str(error)) or type(error).__name__
        return FileFormatError(
            self._path,
            f"its chat template cannot be used: {what}",
            fix="give the prompt as text or as token ids",
        )


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Raise `InputError` unless this is a conversation: roles and contents, all text, not too long."""
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


class _Refused(TemplateError):
    """The template called `raise_exception`."""


class _Meter:
    """What one rendering may still spend.

    Attributes:
        steps: bound its time.
        chars: characters it may read or make; they bound its memory, and its time as well.
    """

    __slots__ = ("chars", "steps")

    def __init__(self, steps: int, chars: int) -> None:
        self.steps, self.chars = steps, chars

    def spend(self, steps: int, chars: int = 0) -> None:
        self.steps -= steps
        self.chars -= chars
        if self.steps < 0:
            raise TemplateError("it takes too many steps")
        if self.chars < 0:
            raise TemplateError("it makes too much text")

    def read(self, value: object) -> None:
        """Pay for an operation that looks at `value`, but not at what its elements hold."""
        if isinstance(value, str):
            self.spend(1, len(value))
        elif isinstance(value, _CONTAINERS):
            self.spend(1 + len(value))

    def walk(self, value: object, depth: int = 0) -> None:
        """Pay for an operation that looks at `value` through and through."""
        self.read(value)
        if isinstance(value, _CONTAINERS) and not isinstance(value, range):
            if depth == _MAX_DEPTH:
                raise TemplateError("it nests lists too deep")
            for element in value:
                self.walk(element, depth + 1)
                if isinstance(value, dict):
                    self.walk(value[element], depth + 1)
        elif not isinstance(value, _PLAIN) and depth:
            raise TemplateError(f"it puts a {type(value).__name__} into a list")


_CONTAINERS = (list, tuple, dict, range, type({}.items()), type({}.keys()), type({}.values()))
_PLAIN = (str, int, float, type(None), Undefined, range)


class _Metering(NodeTransformer):
    """Rewrites a parsed template so that it pays for what it does.

    Attributes:
        seen: nodes so far, text counted as one node per 16 characters.
        chars: of text so far.
    """

    def __init__(self) -> None:
        self.seen = self.chars = 0

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, _FORBIDDEN):
            raise TemplateError(f"it has a {type(node).__name__} statement")
        seen, chars = self.seen, self.chars
        self.seen += 1
        if isinstance(node, (nodes.TemplateData, nodes.Const)):
            text = node.data if isinstance(node, nodes.TemplateData) else node.value
            self.chars += len(text) if isinstance(text, str) else 0
        node = super().generic_visit(node, *args, **kwargs)
        cost = self.seen - seen, self.chars - chars
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            node.body.insert(0, nodes.ExprStmt(_apply("charge", nodes.Const(None), *cost)))
        if isinstance(node, nodes.For) and node.test:
            node.test = _apply("charge", node.test, *cost)
        return self._metered(node)

    def _metered(self, node: nodes.Node) -> nodes.Node:
        """An expression that makes or compares things, so that their sizes are paid."""
        if isinstance(node, nodes.Concat):
            return _apply("join", nodes.List(node.nodes))
        if isinstance(node, nodes.Compare):
            node.expr = _apply("walk", node.expr)
            for operand in node.ops:
                operand.expr = _apply("walk", operand.expr)
        if isinstance(node, nodes.Pair):
            node.key = _apply("key", node.key)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return _apply("read", node)
        if isinstance(node, (nodes.List, nodes.Dict)):
            return _apply("walk", node)
        if isinstance(node, nodes.Tuple) and node.ctx == "load":
            return _apply("walk", node)
        return node


def _apply(name: str, node: nodes.Expr, *args: int) -> nodes.Filter:
    constants: list[nodes.Expr] = [nodes.Const(arg) for arg in args]
    return nodes.Filter(node, f"!{name}" if name != "join" else name, constants, [], None, None)


_FORBIDDEN = (
    nodes.Block,
    nodes.Extends,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.EvalContextModifier,
)


class _Generation(Extension):
    """`{% generation %}`: marks what the model wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja with only what chat templates need, all of it metered."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or constants would be computed, unmetered, while compiling
            extensions=[LoopControlExtension, _Generation],
            finalize=_output,
        )
        library = Environment()
        self.filters = {
            **{name: _filter(library, name, _Meter.read) for name in _READING_FILTERS},
            **{name: _filter(library, name, _Meter.walk) for name in _WALKING_FILTERS},
            **_FILTERS,
        }
        self.tests = {
            **{name: _test(library, name, _Meter.read) for name in _READING_TESTS},
            **{name: _test(library, name, _Meter.walk) for name in _WALKING_TESTS},
        }
        self.globals = {
            "range": safe_range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._functions = tuple(self.globals.values())

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, dict)):
            return attr in (_STR_METHODS if isinstance(obj, str) else _DICT_METHODS)
        return isinstance(obj, LoopContext) and not attr.startswith("_")

    def is_safe_callable(self, obj: Any) -> bool:
        # Methods got through `is_safe_attribute`; templates have no other way to one.
        owner = getattr(obj, "__self__", None)
        return (
            isinstance(obj, (Macro, LoopContext))
            or isinstance(owner, (str, dict, LoopContext))
            or obj in self._functions
        )

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter: _Meter = __context.parent[_METER]
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        meter.spend(_OPERATION)
        for value in (owner, *args, *kwargs.values()):
            meter.walk(value)
        if isinstance(owner, str) and name in _COSTLY_METHODS:
            return _COSTLY_METHODS[name](__context, owner, *args, **kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        meter.walk(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter: _Meter = context.parent[_METER]
        meter.spend(_OPERATION)
        if operator == "*":
            left, right = (right, left) if isinstance(left, int) else (left, right)
        for value in (left, right):
            meter.read(value)
            if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
                raise TemplateError("it computes with huge numbers")
        if isinstance(left, str) and operator == "%":
            raise TemplateError("it formats text with %")
        if isinstance(left, (str, list, tuple)) and operator == "*" and isinstance(right, int):
            meter.spend(len(left) * max(right, 0), len(left) * max(right, 0))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > _MAX_INT_BITS:
                raise TemplateError("it computes with huge numbers")
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, _key(argument))


def _key(value: object) -> object:
    """A dictionary key or an index: hashing anything else could cost much."""
    if not isinstance(value, (str, int, float, type(None), Undefined)):
        raise TemplateError(f"it uses a {type(value).__name__} as a key")
    return value


@pass_context
def _output(context: Context, value: object) -> object:
    """What `{{ value }}` prints: plain data only, so that its size is known."""
    meter: _Meter = context.parent[_METER]
    meter.walk(value)
    if not isinstance(value, (*_PLAIN, *_CONTAINERS)):
        raise TemplateError(f"it prints a {type(value).__name__}")
    return value


def _pays(name: str) -> Callable[..., Any]:
    """A filter that passes its value on and pays for it by `_Meter.<name>`."""

    @pass_context
    def pay(context: Context, value: object, *cost: int) -> object:
        meter: _Meter = context.parent[_METER]
        if cost:
            meter.spend(*cost)
        else:
            getattr(meter, name)(value)
        return value

    return pay


def _filter(library: Environment, name: str, look: Callable[[_Meter, object], None]) -> Any:
    """Jinja's own filter, metered; generators are read to their end at once."""

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter: _Meter = context.parent[_METER]
        meter.spend(_OPERATION)
        for given in (value, *args, *kwargs.values()):
            look(meter, given)
        if name in _ELEMENTWISE and isinstance(value, _CONTAINERS):
            texts = (given for given in (*args, *kwargs.values()) if isinstance(given, str))
            meter.spend(len(value) * (_OPERATION + sum(map(len, texts))))
        result = library.call_filter(name, value, args, kwargs, context=context)
        if isinstance(result, Iterator):
            result = list(result)
        meter.read(result)
        return result

    return run


def _test(library: Environment, name: str, look: Callable[[_Meter, object], None]) -> Any:
    """Jinja's own test, metered."""

    @pass_context
    def run(context: Context, value: Any, *args: Any) -> bool:
        meter: _Meter = context.parent[_METER]
        meter.spend(_OPERATION)
        for given in (value, *args):
            look(meter, given)
        return library.call_test(name, value, args, context=context)

    return run


@pass_context
def _string(context: Context, value: object) -> str:
    """The `string` and `safe` filters: nothing is escaped here, so nothing needs to be marked safe."""
    return str(_output(context, value))


@pass_context
def _join(context: Context, values: Sequence[object], separator: str = "") -> str:
    meter: _Meter = context.parent[_METER]
    texts = [_string(context, value) for value in values]
    meter.spend(_OPERATION, sum(map(len, texts)) + len(separator) * len(texts))
    return str(separator).join(texts)


@pass_context
def _replace(context: Context, value: object, old: str, new: str, count: int = -1) -> str:
    meter: _Meter = context.parent[_METER]
    text = _string(context, value)
    found = text.count(old)
    meter.spend(_OPERATION + found, len(text) + found * len(new))
    return text.replace(old, new, -1 if count is None else count)


@pass_context
def _split(context: Context, text: str, separator: str | None = None, maxsplit: int = -1) -> Any:
    meter: _Meter = context.parent[_METER]
    meter.spend(text.count(separator) if separator else len(text) // 2, len(text))
    return text.split(separator, maxsplit)


@pass_context
def _indent(context: Context, value: object, width: int = 4, first: bool = False) -> str:
    meter: _Meter = context.parent[_METER]
    text = _string(context, value)
    lines = text.splitlines(keepends=True)
    meter.spend(len(lines), len(text) + len(lines) * max(width, 0))
    return "".join(
        line if not line.strip() or (i == 0 and not first) else " " * width + line
        for i, line in enumerate(lines)
    )


@pass_context
def _tojson(
    context: Context,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if max(indent or 0, *(len(mark) for mark in separators or ("", ""))) > 16:
        raise TemplateError("it indents JSON too far")
    text = json.dumps(
        _output(context, value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    context.parent[_METER].spend(_OPERATION, len(text))
    return text


def _raise_exception(message: str) -> None:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    if not re.fullmatch(r"(?:[^%]|%[A-Za-z%])*", form) or len(form) > 100:
        raise TemplateError("its date format is not a plain one")
    return datetime.now().strftime(form)


_READING_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "last"),
    *("length", "list", "lower", "map", "reject", "rejectattr", "reverse", "select", "selectattr"),
    *("title", "trim", "upper"),
)
_WALKING_FILTERS = ("dictsort", "max", "min", "sort", "unique")
_ELEMENTWISE = {"map", "reject", "rejectattr", "select", "selectattr", *_WALKING_FILTERS}
_FILTERS: dict[str, Callable[..., Any]] = {
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "safe": _string,
    "string": _string,
    "tojson": _tojson,
    "!charge": _pays("spend"),
    "!key": _key,
    "!read": _pays("read"),
    "!walk": _pays("walk"),
}
_READING_TESTS = (
    *("boolean", "callable", "defined", "divisibleby", "even", "false", "float", "integer"),
    *("iterable", "mapping", "none", "number", "odd", "sequence", "string", "true", "undefined"),
)
_WALKING_TESTS = (
    *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le"),
    *("lessthan", "lt", "ne", "sameas"),
)
_STR_METHODS = frozenset(
    "capitalize count endswith find index isalnum isalpha isdigit isspace join lower lstrip "
    "partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines "
    "startswith strip title upper".split()
)
_DICT_METHODS = frozenset({"get", "items", "keys", "values"})
_COSTLY_METHODS: dict[str, Callable[..., Any]] = {
    "join": lambda context, text, values: _join(context, values, text),
    "replace": _replace,
    "rsplit": partial(_split),
    "split": _split,
    "splitlines": lambda context, text, keep=False: _split(context, text, "\n"),
}

"""Jinja for templates from strangers: only what chat templates need, and every rendering bounded.

The bound is deterministic, a `Meter` of steps and characters, and covers time and memory. A parsed
template is rewritten so that every loop round and macro call first pays one step for each node that
it holds. An operation whose cost grows with its operands (calls, filters, tests, operators,
comparisons, literals, slices, output) pays for their sizes before it makes anything large; the few
that make much out of little (`*`, `**`, `replace`, `join`, `indent`, `tojson`) compute the size of
their result first, and other such filters and methods do not exist here. Nothing is evaluated while
compiling, values cannot be changed in place, and no generator is left unread, so there are no
hidden loops.

Otherwise templates render as Hugging Face transformers renders them: in the immutable sandbox,
blocks trimmed, with `break` and `continue`, `raise_exception`, `strftime_now`, and `tojson` without
HTML escapes. `safe` changes nothing, as nothing is ever escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, TemplateError, Undefined, nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

METER = "!meter"
"""The variable that holds a rendering's `Meter`; no template can name it."""

_OPERATION = 20
"""Steps of a metered operation; a step takes some 50 ns."""

_MAX_INT_BITS = 1 << 14
_MAX_DEPTH = 32


class Refused(TemplateError):
    """The template called `raise_exception`."""


class Meter:
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
                raise TemplateError(f"it nests lists deeper than {_MAX_DEPTH}")
            self.spend(len(value) * _OPERATION)
            for element in value:
                self.walk(element, depth + 1)
                if isinstance(value, dict):
                    self.walk(value[element], depth + 1)
        elif not isinstance(value, _PLAIN) and depth:
            raise TemplateError(f"it puts a {type(value).__name__} into a list")


_CONTAINERS = (list, tuple, dict, range, ItemsView, KeysView, ValuesView)
_PLAIN = (str, int, float, type(None), Undefined, range)
_OPERANDS = (str, int, float, list, tuple, Undefined)


class _Metering(NodeTransformer):
    """Rewrites a parsed template so that it pays for what it does.

    Attributes:
        seen: nodes so far; one that looks something up or opens a scope counts as an operation.
        chars: characters of text in them.
    """

    def __init__(self) -> None:
        self.seen = self.chars = 0

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, _FORBIDDEN):
            raise TemplateError(f"it has a {type(node).__name__} statement")
        seen, chars = self.seen, self.chars
        self.seen += _OPERATION if isinstance(node, _COSTLY) else 1
        if isinstance(node, (nodes.TemplateData, nodes.Const)):
            text = node.data if isinstance(node, nodes.TemplateData) else node.value
            self.chars += len(text) if isinstance(text, str) else 0
        super().generic_visit(node, *args, **kwargs)
        cost = self.seen - seen, self.chars - chars
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            nothing = nodes.Const(None, lineno=node.lineno)
            charge = nodes.ExprStmt(_apply("charge", nothing, *cost), lineno=node.lineno)
            node.body.insert(0, charge)
            if isinstance(node, nodes.For) and node.test:
                node.test = _apply("charge", node.test, *cost)
        return self._metered(node)

    def _metered(self, node: nodes.Node) -> nodes.Node:
        """An expression that makes or compares things, so that their sizes are paid."""
        if isinstance(node, nodes.Concat):
            return _apply("join", nodes.List(node.nodes, lineno=node.lineno))
        if isinstance(node, nodes.Compare):
            node.expr = _apply("walk", node.expr)
            for operand in node.ops:
                operand.expr = _apply("walk", operand.expr)
        if isinstance(node, nodes.Pair):
            node.key = _apply("key", node.key)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _apply("read", node.node)
        if isinstance(node, (nodes.List, nodes.Dict)):
            return _apply("walk", node)
        if isinstance(node, nodes.Tuple) and node.ctx == "load":
            return _apply("walk", node)
        return node


def _apply(name: str, node: Any, *args: int) -> nodes.Filter:
    constants: list[nodes.Expr] = [nodes.Const(arg, lineno=node.lineno) for arg in args]
    filter_name = name if name == "join" else f"!{name}"
    return nodes.Filter(node, filter_name, constants, [], None, None, lineno=node.lineno)


_FORBIDDEN = (
    nodes.Block,
    nodes.Extends,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.EvalContextModifier,
)
"""What chat templates never need: other templates, and blocks, which could call themselves."""

_COSTLY = (
    nodes.AssignBlock,
    nodes.Call,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.For,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Macro,
    nodes.Scope,
    nodes.With,
)
"""Nodes that take as long as an operation, not as a step."""


class _Generation(Extension):
    """`{% generation %}`: marks what the model wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
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
        library = SandboxedEnvironment()
        self.filters = {
            **{name: _filter(library, name, Meter.read) for name in _READING_FILTERS},
            **{name: _filter(library, name, Meter.walk) for name in _WALKING_FILTERS},
            **_FILTERS,
        }
        self.tests = {
            **{name: _test(library, name, Meter.read) for name in _READING_TESTS},
            **{name: _test(library, name, Meter.walk) for name in _WALKING_TESTS},
        }
        self.globals = {
            "range": safe_range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def compiled(self, tree: nodes.Template) -> Template:
        """A template from what `parse` gave, which is rewritten."""
        _Metering().visit(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, dict)):
            return attr in (_STR_METHODS if isinstance(obj, str) else _DICT_METHODS)
        return isinstance(obj, (LoopContext, Namespace)) and not attr.startswith("_")

    def is_safe_callable(self, obj: Any) -> bool:
        # Bound methods were let through by `is_safe_attribute`: there is no other way to one.
        return (
            isinstance(obj, (Macro, LoopContext, Undefined))
            or isinstance(getattr(obj, "__self__", None), (str, dict, LoopContext))
            or any(obj is function for function in self.globals.values())
        )

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if not __self.is_safe_callable(__obj):
            raise TemplateError(f"it calls a {type(__obj).__name__}")
        meter: Meter = __context.parent[METER]
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        meter.spend(_OPERATION)
        meter.read(owner)
        given = {name: value for name, value in kwargs.items() if name not in _COMPILED}
        for value in (*args, *given.values()):
            meter.walk(value)
        if isinstance(owner, str) and name in _METHODS:
            return _METHODS[name](__context, owner, *args, **given)
        result = super().call(__context, __obj, *args, **kwargs)
        meter.walk(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter: Meter = context.parent[METER]
        meter.spend(_OPERATION)
        if operator == "*" and isinstance(left, int):
            left, right = right, left
        for value in (left, right):
            meter.read(value)
            if not isinstance(value, _OPERANDS):
                raise TemplateError(f"it uses {operator} on a {type(value).__name__}")
        if isinstance(left, str) and operator == "%":
            raise TemplateError("it formats text with %")
        if isinstance(left, (str, list, tuple)) and operator == "*" and isinstance(right, int):
            size = len(left) * max(right, 0)
            meter.spend(0 if isinstance(left, str) else size, size)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length(), right.bit_length()
            if (bits[0] * right if operator == "**" else sum(bits)) > _MAX_INT_BITS:
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
    meter: Meter = context.parent[METER]
    meter.spend(_OPERATION)
    meter.walk(value)
    if not isinstance(value, (*_PLAIN, *_CONTAINERS)):
        raise TemplateError(f"it prints a {type(value).__name__}")
    return value


def _pays(name: str) -> Callable[..., Any]:
    """A filter that passes its value on and pays for it by `Meter.<name>`."""

    @pass_context
    def pay(context: Context, value: object, *cost: int) -> object:
        meter: Meter = context.parent[METER]
        meter.spend(_OPERATION)
        getattr(meter, name)(*(cost or (value,)))
        return value

    return pay


def _filter(library: Environment, name: str, look: Callable[[Meter, object], None]) -> Any:
    """Jinja's own filter, metered; generators are read to their end at once."""

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.parent[METER]
        meter.spend(_OPERATION)
        look(meter, value)
        for given in (*args, *kwargs.values()):
            meter.walk(given)
        if name in _ELEMENTWISE and isinstance(value, (str, *_CONTAINERS)):
            texts = (given for given in (*args, *kwargs.values()) if isinstance(given, str))
            meter.spend(len(value) * (_OPERATION + sum(map(len, texts))))
        result = library.call_filter(name, value, args, kwargs, context=context)
        if isinstance(result, Iterator):
            result = list(result)
        meter.read(result)
        return result

    return run


def _test(library: Environment, name: str, look: Callable[[Meter, object], None]) -> Any:
    """Jinja's own test, metered."""

    @pass_context
    def run(context: Context, value: Any, *args: Any) -> bool:
        meter: Meter = context.parent[METER]
        meter.spend(_OPERATION)
        look(meter, value)
        for given in args:
            meter.walk(given)
        if name in _NUMBER_TESTS and not isinstance(value, (int, float)):
            raise TemplateError(f"it asks whether a {type(value).__name__} is {name}")
        return bool(library.call_test(name, value, args, context=context))

    return run


@pass_context
def _string(context: Context, value: object) -> str:
    """The `string` and `safe` filters: nothing is escaped, so nothing needs to be marked safe."""
    return str(_output(context, value))


@pass_context
def _join(context: Context, values: Sequence[object], separator: str = "") -> str:
    meter: Meter = context.parent[METER]
    texts = [_string(context, value) for value in values]
    meter.spend(_OPERATION, sum(map(len, texts)) + len(separator) * len(texts))
    return str(separator).join(texts)


@pass_context
def _replace(context: Context, value: object, old: str, new: str, count: int = -1) -> str:
    meter: Meter = context.parent[METER]
    text = _string(context, value)
    found = text.count(old)
    meter.spend(_OPERATION + found, len(text) + found * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _pieces(method: str) -> Callable[..., Any]:
    """`split`, `rsplit` or `splitlines`, once their pieces are paid."""

    def run(context: Context, text: str, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.parent[METER]
        separator = args[0] if args and isinstance(args[0], str) else ""
        meter.spend(text.count(separator) if separator else len(text) // 2, len(text))
        return getattr(text, method)(*args, **kwargs)

    return run


@pass_context
def _indent(
    context: Context, value: object, width: int = 4, first: bool = False, blank: bool = False
) -> str:
    meter: Meter = context.parent[METER]
    text = _string(context, value)
    meter.spend(_OPERATION, (text.count("\n") + 1) * width)
    return do_indent(text, width, first, blank)


@pass_context
def _tojson(
    context: Context,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    meter: Meter = context.parent[METER]
    before = meter.steps
    _output(context, value)
    spaces = _MAX_DEPTH * (indent or 0) + sum(map(len, separators or ()))
    meter.spend(_OPERATION, (before - meter.steps) * spaces)
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    meter.spend(0, len(text))
    return text


def _raise_exception(message: str) -> None:
    raise Refused(str(message))


def _strftime_now(form: str) -> str:
    if not re.fullmatch(r"(?:[^%]|%[A-Za-z%])*", form) or len(form) > 100:
        raise TemplateError("its date format is not a plain one")
    return datetime.now().strftime(form)


_READING_FILTERS = (
    *("abs", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list"),
    *("map", "reject", "rejectattr", "reverse", "select", "selectattr"),
)
_WALKING_FILTERS = (
    *("capitalize", "dictsort", "lower", "max", "min", "sort", "title", "trim", "unique", "upper"),
)
_ELEMENTWISE = frozenset(
    ("list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique")
)
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
_NUMBER_TESTS = ("divisibleby", "even", "odd")  # on text, `%` would format it
_READING_TESTS = (
    *_NUMBER_TESTS,
    *("boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping"),
    *("none", "number", "sequence", "string", "true", "undefined"),
)
_WALKING_TESTS = (
    *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le"),
    *("lessthan", "lt", "ne"),
)
_STR_METHODS = (
    *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit"),
    *("isspace", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
    *("replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith"),
    *("strip", "title", "upper"),
)
_COMPILED = ("_block_vars", "_loop_vars")  # arguments that compiled templates add to calls
_DICT_METHODS = ("get", "items", "keys", "values")
_METHODS: dict[str, Callable[..., Any]] = {
    "join": lambda context, text, values: _join(context, values, text),
    "replace": _replace,
    **{name: _pieces(name) for name in ("split", "rsplit", "splitlines")},
}
"""Methods of text that need to know the size of their result beforehand."""

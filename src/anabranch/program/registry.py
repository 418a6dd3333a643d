"""Things by name: registered each by its own file, parsed from what people type.

A *kind* of thing (strategies, judges) is a `Registry` over one package, whose files register
factories. A factory's keyword parameters are the thing's options; their annotations say what is
allowed. Command-line help, docs and the test matrix are made from what is registered.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from anabranch.errors import InputError, check_range, unknown_name

MAX_TEXT = 1000
"""Longest text that is parsed, in characters."""

MAX_DEPTH = 8
"""How deep things may nest in it."""

_LISTS = {"strategy": "strategies", "judge": "judges", "task": "tasks"}


@dataclass(frozen=True)
class Range:
    """What a numeric parameter may be, ends included unless `low_open`."""

    low: float
    high: float
    low_open: bool = False


class OneOf(tuple[str, ...]):
    """The words that a parameter may be: `OneOf(("odds", "probability"))`."""


@dataclass(frozen=True)
class Part:
    """A parameter that is itself a registered thing of some kind: `Part("judge")`."""

    kind: str


@dataclass(frozen=True)
class Text:
    """A parameter that is a text of at most so many characters, such as a model's name."""

    longest: int = 500


Limits = Range | OneOf | Part | Text


@dataclass(frozen=True)
class Parameter:
    """One option of a registered thing.

    Attributes:
        kind: type of numbers.
    """

    name: str
    kind: type[int] | type[float] | type[str]
    limits: Limits
    default: Any

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        limits = self.limits
        if isinstance(limits, Part):
            return f"one of `anabranch {_LISTS[limits.kind]}`"
        if isinstance(limits, OneOf):
            return ", ".join(limits)
        if isinstance(limits, Text):
            return f"text of up to {limits.longest} characters"
        kind = "whole number" if self.kind is int else "number"
        begin = "above" if limits.low_open else "from"
        return f"{kind} {begin} {limits.low:.12g} to {limits.high:.12g}"

    def describe(self) -> dict[str, Any]:
        """Everything about it, for programs: `type` is int, float, one_of, text, or the kind of a
        part."""
        limits: dict[str, Any]
        if isinstance(self.limits, Part):
            limits = {"type": self.limits.kind}
        elif isinstance(self.limits, OneOf):
            limits = {"type": "one_of", "options": list(self.limits)}
        elif isinstance(self.limits, Text):
            limits = {"type": "text", "longest": self.limits.longest}
        else:
            low, high, low_open = self.limits.low, self.limits.high, self.limits.low_open
            limits = {"type": self.kind.__name__, "low": low, "high": high, "low_open": low_open}
        return {"name": self.name, "default": self.default, "allowed": self.allowed, **limits}

    def check(self, value: object, depth: int = 0) -> Any:
        """The value in the parameter's own form. Raises InputError."""
        if isinstance(self.limits, Part):
            if isinstance(value, Named):
                return value
            if not isinstance(value, str):
                kind = self.limits.kind
                raise InputError(f"{self.name} is not a {kind}", got=value, allowed=f"a {kind}")
            return REGISTRIES[self.limits.kind].parse(value, depth + 1)
        if isinstance(self.limits, OneOf):
            if value not in self.limits:
                raise unknown_name(f"value of {self.name}", str(value), self.limits)
            return value
        if isinstance(self.limits, Text):
            if not isinstance(value, str) or len(value) > self.limits.longest:
                allowed = f"text in quotes, up to {self.limits.longest} characters"
                raise InputError(f"{self.name} is not a text", got=value, allowed=allowed)
            return value
        numeric = isinstance(value, int) or (self.kind is float and isinstance(value, float))
        low, high = self.limits.low, self.limits.high
        if isinstance(value, bool) or not numeric:
            what = "a whole number" if self.kind is int else "a number"
            allowed = f"{low:g} to {high:g}"
            raise InputError(f"{self.name} is not {what}", got=value, allowed=allowed)
        assert isinstance(value, (int, float))
        check_range(self.name, value, low, high, low_open=self.limits.low_open)
        return self.kind(value)


@dataclass(frozen=True)
class Entry:
    """A registered thing.

    Attributes:
        name: what people type.
        paper: where it comes from: authors, year, title, section.
        summary: one line.
        make: from parameters to the thing.
        parameters: by name, in order.
        extra: what else its kind says of it.
    """

    name: str
    paper: str
    summary: str
    make: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Everything that is registered, as JSON can say it."""
        return {
            "name": self.name,
            "summary": self.summary,
            "paper": self.paper,
            **{k: v for k, v in self.extra.items() if isinstance(v, str) and v},
            "about": inspect.getdoc(self.make) or "",
            "parameters": [parameter.describe() for parameter in self.parameters.values()],
        }


@dataclass(frozen=True)
class Named:
    """A registered thing with its parameters. `str()` gives what could be typed again."""

    entry: Entry
    values: Mapping[str, Any]

    def __str__(self) -> str:
        shown = (f"{k}={v if isinstance(v, Named) else repr(v)}" for k, v in self.values.items())
        return f"{self.entry.name}({', '.join(shown)})"

    @property
    def short(self) -> str:
        """Likewise, what stands at its default left out."""
        shown = []
        for name, value in self.values.items():
            parameter = self.entry.parameters[name]
            if str(value) != str(parameter.check(parameter.default)):
                shown.append(f"{name}={value.short if isinstance(value, Named) else repr(value)}")
        return f"{self.entry.name}({', '.join(shown)})" if shown else self.entry.name

    def change(self, **values: object) -> Named:
        """The same with some parameters set. Raises InputError."""
        return self._changed(values, 0)

    def make(self) -> Any:
        """The thing itself, its parts made too."""
        made = {k: v.make() if isinstance(v, Named) else v for k, v in self.values.items()}
        return self.entry.make(**made)

    def _changed(self, values: Mapping[str, object], depth: int) -> Named:
        known = self.entry.parameters
        for name in values:
            if name not in known:
                raise unknown_name(f"parameter of {self.entry.name}", name, known)
        checked = {name: known[name].check(value, depth) for name, value in values.items()}
        return Named(self.entry, MappingProxyType({**self.values, **checked}))


class Registry:
    """All things of one kind.

    Args:
        kind: what one is called: "strategy".
        package: its files register them when they are imported.
        product: name of the entry that `a * b` stands for, with parameters `a` and `b`.
    """

    def __init__(self, kind: str, package: str, product: str | None = None) -> None:
        self.kind, self._package, self._product = kind, package, product
        self._entries: dict[str, Entry] = {}
        REGISTRIES[kind] = self

    def register(
        self, name: str, *, paper: str, summary: str, **extra: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a factory; its keyword parameters are `Annotated[type, limits]`.

        Raises:
            InputError: the name is taken.
        """

        def decorate(make: Callable[..., Any]) -> Callable[..., Any]:
            if name in self._entries:
                raise InputError(f"there is a {self.kind} of this name already", got=name)
            parameters = MappingProxyType(_parameters(make))
            self._entries[name] = Entry(name, paper, summary, make, parameters, extra)
            return make

        return decorate

    def all(self) -> list[Entry]:
        """Every entry, by name."""
        self.discover()
        return [self._entries[name] for name in sorted(self._entries)]

    def parse(self, text: str, depth: int = 0) -> Named:
        """A thing from its text: `vote`, or `beam(width=4, judge=rollout(n=2) * agreement)`.

        Raises:
            InputError: not of that form, an unknown name, or a value that is not allowed.
        """
        name, values = self._read(text, depth)
        self.discover()
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        entry = self._entries[name]
        defaults = {
            p.name: p.check(p.default) if isinstance(p.limits, Part) else p.default
            for p in entry.parameters.values()
            if p.name not in values
        }
        order = dict.fromkeys(entry.parameters)
        changed = Named(entry, defaults)._changed(values, depth).values
        return Named(entry, MappingProxyType({p: changed[p] for p in order}))

    def discover(self) -> None:
        """Import the files of the package, if that was not done yet."""
        _import_all(self._package)

    def _read(self, text: str, depth: int) -> tuple[str, dict[str, object]]:
        """Name and values, read without evaluating anything. Things in it stay text."""
        if len(text) <= MAX_TEXT and depth <= MAX_DEPTH:
            try:
                node = ast.parse(text.strip(), mode="eval").body
                if isinstance(node, ast.Name):
                    return node.id, {}
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and self._product:
                    sides = {"a": ast.unparse(node.left), "b": ast.unparse(node.right)}
                    return self._product, dict(sides)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
                    values = {k.arg: _value(k.value) for k in node.keywords if k.arg}
                    if len(values) == len(node.keywords):
                        return node.func.id, values
            except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
                pass
        raise InputError(
            f"the {self.kind} cannot be read",
            got=text,
            allowed="name, or name(parameter=value, ...)",
        )


# Filled by the modules that define a kind; nothing else writes it.
REGISTRIES: dict[str, Registry] = {}


def load_file(path: Path) -> None:
    """Run a Python file of the user's own, so that what it registers can be named.

    Raises:
        InputError: it cannot be read, fails, or takes a name that is taken.
    """
    for registry in REGISTRIES.values():
        registry.discover()  # before the file, so that a name taken is its fault
    try:
        runpy.run_path(str(path))
    except Exception as error:  # anybody's code
        raise InputError(
            f"{path} cannot be loaded", got=f"{type(error).__name__}: {error}"
        ) from error


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Name | ast.Call | ast.BinOp) and not _is_number(node):
        return ast.unparse(node)
    return ast.literal_eval(node)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Mult)


@functools.cache
def _import_all(package: str) -> None:
    """Import every file of a package, so that each can register what it has."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def _parameters(make: Callable[..., Any]) -> dict[str, Parameter]:
    # What it returns may be named by what its file need not import.
    own = {name: hint for name, hint in make.__annotations__.items() if name != "return"}
    hints = get_type_hints(
        SimpleNamespace(__annotations__=own), inspect.unwrap(make).__globals__, include_extras=True
    )
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        hint: Any = hints[name]
        assert get_origin(hint) is Annotated, f"{name} needs Annotated[type, limits]"
        kind, limits = get_args(hint)
        default = parameter.default
        found[name] = Parameter(
            name, kind, limits, kind(default) if isinstance(limits, Range) else default
        )
    return found

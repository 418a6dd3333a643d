"""Every method by name: registered by its own file, parsed from what people type.

A method is a file in this package whose factory carries `@strategy`. Its keyword parameters are its
options; their annotations say what is allowed. Command-line help and the test matrix are made from
what is registered here.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import anabranch.reason
from anabranch.errors import InputError, check_range, unknown_name
from anabranch.program.types import Fold, Strategy

MAX_TEXT = 1000
"""Longest strategy text, in characters."""


@dataclass(frozen=True)
class Range:
    """What a numeric parameter may be, ends included unless `low_open`."""

    low: float
    high: float
    low_open: bool = False


# The parameters that most methods share, so that they mean and allow the same everywhere.
Samples = Annotated[int, Range(1, 1024)]
Temperature = Annotated[float, Range(0, 10)]
TopP = Annotated[float, Range(0, 1, low_open=True)]
MaxTokens = Annotated[int, Range(1, 1 << 20)]


@dataclass(frozen=True)
class Parameter:
    """One option of a method."""

    name: str
    kind: type[int] | type[float]
    range: Range
    default: int | float

    def check(self, value: object) -> int | float:
        """The value in the parameter's own type. Raises InputError."""
        numeric = isinstance(value, int) or (self.kind is float and isinstance(value, float))
        if isinstance(value, bool) or not numeric:
            what = "a whole number" if self.kind is int else "a number"
            low, high = self.range.low, self.range.high
            raise InputError(
                f"{self.name} is not {what}", got=value, allowed=f"{low:g} to {high:g}"
            )
        assert isinstance(value, (int, float))
        check_range(self.name, value, self.range.low, self.range.high, low_open=self.range.low_open)
        return self.kind(value)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: what people type.
        paper: where it comes from: authors, year, title, section.
        summary: one line.
        make: from parameters to a strategy.
        fold: how its candidates become one answer.
        parameters: by name, in order.
    """

    name: str
    paper: str
    summary: str
    make: Callable[..., Strategy]
    fold: Fold
    parameters: Mapping[str, Parameter]


@dataclass(frozen=True)
class NamedStrategy:
    """A method with its parameters. `str()` gives what could be typed again."""

    method: Method
    values: Mapping[str, int | float]

    def __str__(self) -> str:
        return f"{self.method.name}({', '.join(f'{k}={v!r}' for k, v in self.values.items())})"

    def change(self, **values: object) -> NamedStrategy:
        """The same method with some parameters set. Raises InputError."""
        known = self.method.parameters
        for name in values:
            if name not in known:
                raise unknown_name(f"parameter of {self.method.name}", name, known)
        checked = {name: known[name].check(value) for name, value in values.items()}
        return NamedStrategy(self.method, MappingProxyType({**self.values, **checked}))

    def make(self) -> Strategy:
        """The strategy itself."""
        return self.method.make(**self.values)


def strategy(
    name: str, *, paper: str, summary: str, fold: Fold
) -> Callable[[Callable[..., Strategy]], Callable[..., Strategy]]:
    """Register a factory of strategies; its keyword parameters are `Annotated[..., Range(...)]`."""

    def register(make: Callable[..., Strategy]) -> Callable[..., Strategy]:
        assert name not in _METHODS, f"two methods are called {name}"
        parameters = MappingProxyType(_parameters(make))
        _METHODS[name] = Method(name, paper, summary, make, fold, parameters)
        return make

    return register


def strategies() -> list[Method]:
    """Every method, by name."""
    _discover()
    return [_METHODS[name] for name in sorted(_METHODS)]


def parse(text: str) -> NamedStrategy:
    """A strategy from its text: `vote`, or `vote(n=16, temperature=0.8)`.

    Raises:
        InputError: not of that form, an unknown name, or a value that is not allowed.
    """
    name, values = _read(text)
    _discover()
    if name not in _METHODS:
        raise unknown_name("strategy", name, _METHODS)
    method = _METHODS[name]
    defaults = {p.name: p.default for p in method.parameters.values()}
    return NamedStrategy(method, MappingProxyType(defaults)).change(**values)


# Filled once, by the import of this package's own files; nothing else writes it.
_METHODS: dict[str, Method] = {}


@functools.cache
def _discover() -> None:
    """Import every file of this package, so that each can register its method."""
    for module in pkgutil.iter_modules(anabranch.reason.__path__):
        importlib.import_module(f"anabranch.reason.{module.name}")


def _read(text: str) -> tuple[str, dict[str, object]]:
    """Name and literal values, read without evaluating anything."""
    if len(text) <= MAX_TEXT:
        try:
            node = ast.parse(text.strip(), mode="eval").body
            if isinstance(node, ast.Name):
                return node.id, {}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
                values = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
                if len(values) == len(node.keywords):
                    return node.func.id, values
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            pass
    raise InputError(
        "the strategy cannot be read", got=text, allowed="name, or name(parameter=number, ...)"
    )


def _parameters(make: Callable[..., Strategy]) -> dict[str, Parameter]:
    hints = get_type_hints(make, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        hint: Any = hints[name]
        assert get_origin(hint) is Annotated, f"{name} needs Annotated[int or float, Range(...)]"
        kind, limits = get_args(hint)
        found[name] = Parameter(name, kind, limits, kind(parameter.default))
    return found

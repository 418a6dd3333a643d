"""Every method by name. A method is a file in this package whose factory carries `@strategy`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

from anabranch.errors import InputError
from anabranch.program.registry import Entry, Named, OneOf, Part, Range, Registry
from anabranch.program.types import Fold, Strategy
from anabranch.verify.aggregates import AGGREGATES
from anabranch.verify.registry import Judge, JudgedBy, Steps, boundary

__all__ = ["Entry", "JudgedBy", "Named", "OneOf", "Part", "Range", "Steps", "boundary"]

# The parameters that most methods share, so that they mean and allow the same everywhere.
Samples = Annotated[int, Range(1, 1024)]
Temperature = Annotated[float, Range(0, 10)]
TopP = Annotated[float, Range(0, 1, low_open=True)]
MaxTokens = Annotated[int, Range(1, 1 << 20)]
Rounds = Annotated[int, Range(1, 1024)]
Retries = Annotated[int, Range(0, 16)]
Share = Annotated[float, Range(0, 1)]
Aggregated = Annotated[str, OneOf(AGGREGATES)]
# A default is the text of one: what a factory gets is always made.
Then = Annotated[Any, Part("strategy")]


def needs_partial(name: str, judge: Judge) -> None:
    """Raise InputError unless a judge may rate the unfinished thoughts that a strategy has."""
    if not judge.partial:
        raise InputError(
            f"{name} needs a judge of unfinished thoughts",
            got=judge.name,
            fix="take one that can, such as likelihood",
        )


_STRATEGIES = Registry("strategy", "anabranch.reason")


def strategy(
    name: str,
    *,
    paper: str,
    summary: str,
    cost: str,
    use: str,
    fold: Callable[..., list[tuple[str, float]]],
    runs_code: bool = False,
) -> Callable[[Callable[..., Strategy]], Callable[..., Strategy]]:
    """Register a factory of strategies.

    Args:
        cost: what it computes, in its parameters, solutions and steps.
        use: when to take it.
        fold: how its candidates become one answer: a `Fold`. If it has parameters that the strategy
            has too, such as `aggregate`, they have the strategy's values.
        runs_code: it runs programs that the model wrote, which servers allow only when told to.
    """
    about: dict[str, Any] = {"cost": cost, "use": use, "fold": fold}
    return _STRATEGIES.register(name, paper=paper, summary=summary, runs_code=runs_code, **about)


def strategies() -> list[Entry]:
    """Every method, by name."""
    return _STRATEGIES.all()


def parse(text: str) -> Named:
    """A strategy from its text: `vote`, or `vote(n=16, temperature=0.8)`. Raises InputError."""
    return _STRATEGIES.parse(text)


def fold_of(named: Named) -> Fold:
    """How a strategy's candidates become one answer: as in the one it hands the problem on to."""
    if isinstance(then := named.values.get("then"), Named):
        return fold_of(then)
    fold: Any = named.entry.extra["fold"]
    shared = inspect.signature(fold).parameters.keys() & named.values.keys()
    return functools.partial(fold, **{name: named.values[name] for name in shared})

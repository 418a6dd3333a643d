"""Every judge by name. A judge is a file in this package whose factory carries `@judge`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from anabranch.errors import AnabranchError, InputError
from anabranch.program.registry import Entry, Named, OneOf, Part, Registry
from anabranch.program.types import Problem, Thought

Rate = Callable[[Problem, Sequence[Thought]], Awaitable[list[float]]]
"""Ratings in [0, 1], one per thought, likelier right is higher. Changes no branch."""

UNKNOWN = 0.5
"""The rating of a thought of which a judge can say nothing."""


@dataclass(frozen=True)
class Judge:
    """Something that rates thoughts.

    Attributes:
        rate: asks it.
        partial: it may rate thoughts that have not come to an end.
        name: with its parameters, as it could be typed again.
    """

    rate: Rate
    partial: bool = True
    name: str = ""


# A default is the text of one: what a factory gets is always made.
JudgedBy = Annotated[Any, Part("judge")]
Steps = Annotated[str, OneOf(("line", "paragraph"))]


def boundary(step: str) -> str:
    """The text that ends a step."""
    return {"line": "\n", "paragraph": "\n\n"}[step]


_JUDGES = Registry("judge", "anabranch.verify", product="product")


def judge(
    name: str, *, paper: str, summary: str, runs_code: bool = False
) -> Callable[[Callable[..., Judge]], Callable[..., Judge]]:
    """Register a factory of judges. What it makes is named here.

    Args:
        runs_code: it runs programs that a model wrote, which servers allow only when told to.
    """

    def decorate(make: Callable[..., Judge]) -> Callable[..., Judge]:
        @functools.wraps(make)
        def named(**values: Any) -> Judge:
            shown = (f"{k}={getattr(v, 'name', None) or repr(v)}" for k, v in values.items())
            return replace(make(**values), name=f"{name}({', '.join(shown)})")

        return _JUDGES.register(name, paper=paper, summary=summary, runs_code=runs_code)(named)

    return decorate


def judges() -> list[Entry]:
    """Every judge, by name."""
    return _JUDGES.all()


def parse(text: str) -> Named:
    """A judge from its text: `rollout(n=4)`, or `a * b`. Raises InputError."""
    return _JUDGES.parse(text)


async def rate(judge: Judge, problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
    """Ask a judge, each thought once at each place; appends nothing to `scores`.

    A judge that fails, or whose ratings are not one number in [0, 1] per thought, rates them
    `UNKNOWN`; the answer's notes say so.

    Raises:
        InputError: it may not rate unfinished thoughts, and one is.
    """
    if not thoughts:
        return []
    run = thoughts[0].branch.run
    if not judge.partial and not all(thought.done for thought in thoughts):
        raise InputError(
            "the judge rates finished thoughts only",
            got=judge.name,
            fix="take one that rates unfinished ones too, such as rollout",
        )
    places = [(judge.name, thought.branch.mark) for thought in thoughts]
    new = {p: t for p, t in zip(places, thoughts, strict=True) if p not in run.ratings}
    if new:
        began = time.monotonic()
        ratings = await ask(judge, problem, list(new.values()))
        seconds = time.monotonic() - began
        for (place, thought), rating in zip(new.items(), ratings, strict=True):
            run.ratings[place] = rating
            run.note(
                "rate",
                branch=thought.branch.id,
                judge=judge.name,
                rating=rating,
                seconds=seconds,
            )
    return [run.ratings[place] for place in places]


async def ask(judge: Judge, problem: Problem, thoughts: Sequence[Thought]) -> list[float]:
    """Ask a judge anew, whatever it has said before; faults as in `rate`."""
    run = thoughts[0].branch.run
    fault = ""
    try:
        ratings: Any = await judge.rate(problem, thoughts)
        if len(ratings) == len(thoughts) and all(
            isinstance(r, float | int) and math.isfinite(r) and 0 <= r <= 1 for r in ratings
        ):
            return [float(r) for r in ratings]
        fault = f"gave {ratings!r:.200} for {len(thoughts)} thoughts"
    except AnabranchError:
        raise
    except Exception as error:  # anybody's code: its fault must not end the search
        fault = f"failed: {type(error).__name__}: {error}"
    run.remark(f"the judge {judge.name} {fault}; rated {UNKNOWN:g} instead")
    return [UNKNOWN] * len(thoughts)

"""Procedures whose every state is asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any

from anabranch.program.registry import OneOf, Range
from anabranch.program.types import Problem
from anabranch.tasks.registry import Make, Posed, task
from anabranch.tasks.steps import numbered, plain
from anabranch.tasks.strings import OPERATIONS, WORDS

Operation = tuple[str, Callable[[Any], Any]]

_THINGS = ("string", "list", "number")


@task(
    "procedures",
    paper="Fujisawa et al. 2024, ProcBench: Benchmark for multi-step reasoning, section 3",
    summary="So many operations on a string, a list or a number, with the state after each.",
    difficulty="steps",
    counts="operations, one after the other",
)
def procedures(
    *,
    on: Annotated[str, OneOf((*_THINGS, "any"))] = "any",
    steps: Annotated[int, Range(1, 25)] = 4,
) -> Make:
    """All that is to be done is given. Prefix accuracy says how far it was done right."""

    def make(rng: random.Random) -> Posed:
        thing = rng.choice(_THINGS) if on == "any" else on
        start, operations = _START[thing](rng), _OPERATIONS[thing]
        state, orders, states = start, list[str](), list[str]()
        while len(orders) < steps:
            order, do = operations(rng, state)
            changed = do(state)
            if changed != state:
                state = changed
                orders.append(f"Step {len(orders) + 1}: {order[0].upper()}{order[1:]}.")
                states.append(_shown(state))
        text = (
            f"Start with the {thing} {_shown(start)} and do this:\n"
            + "\n".join(orders)
            + '\nWrite one line for each step, with the result of that step: "Step 1: ...". '
            "The answer is the result of the last step."
        )
        return Posed(
            Problem(text, kind="exact"),
            states[-1],
            tuple(f"Step {i}: {state}" for i, state in enumerate(states, 1)),
            grade=lambda answer: float(plain(answer) == plain(states[-1])),
            follow=numbered(states),
        )

    return make


def _shown(state: Any) -> str:
    return " ".join(map(str, state)) if isinstance(state, list) else str(state)


def _on_string(rng: random.Random, state: str) -> Operation:
    a, b = rng.choice("bcdfglmprst"), rng.choice("aeiou")
    more: list[Operation] = [
        (f'add "{a}{b}" at the end', lambda s: s + a + b),
        (f'add "{a}" at the front', lambda s: a + s),
        ("swap its first and its last letter", lambda s: s[-1] + s[1:-1] + s[0]),
    ]
    known = [(order, do) for order, do in OPERATIONS if "twice" not in order]
    fitting = more if len(state) < 4 else more + known if len(state) < 9 else known
    return rng.choice(fitting)


def _on_list(rng: random.Random, state: list[int]) -> Operation:
    n = rng.randint(1, 9)
    longer: list[Operation] = [
        (f"add {n} at the end", lambda s: [*s, n]),
        (f"add {n} at the front", lambda s: [n, *s]),
    ]
    shorter: list[Operation] = [
        ("remove the first number", lambda s: s[1:]),
        ("remove the last number", lambda s: s[:-1]),
    ]
    same: list[Operation] = [
        ("reverse the list", lambda s: s[::-1]),
        ("move the first number to the end", lambda s: [*s[1:], s[0]]),
        ("swap the first and the last number", lambda s: [s[-1], *s[1:-1], s[0]]),
        (f"add {n} to the first number", lambda s: [s[0] + n, *s[1:]]),
        ("sort the list from small to large", lambda s: sorted(s)),
    ]
    return rng.choice(
        same + (longer if len(state) < 7 else []) + (shorter if len(state) > 3 else [])
    )


def _on_number(rng: random.Random, state: int) -> Operation:
    n = rng.randint(2, 30)
    fitting: list[Operation] = [
        (f"add {n}", lambda s: s + n),
        ("write its digits backwards, without zeros at the front", lambda s: int(str(s)[::-1])),
        (f"take the remainder of its division by {n + 70}", lambda s: s % (n + 70)),
    ]
    if state >= n:
        fitting.append((f"subtract {n}", lambda s: s - n))
    if state < 400:
        fitting.append(("double it", lambda s: 2 * s))
    if state % 2 == 0:
        fitting.append(("halve it", lambda s: s // 2))
    return rng.choice(fitting)


_OPERATIONS: dict[str, Callable[[random.Random, Any], Operation]] = {
    "string": _on_string,
    "list": _on_list,
    "number": _on_number,
}
_START: dict[str, Callable[[random.Random], Any]] = {
    "string": lambda rng: rng.choice(WORDS),
    "list": lambda rng: [rng.randint(1, 9) for _ in range(5)],
    "number": lambda rng: rng.randint(10, 99),
}

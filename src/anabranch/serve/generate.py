"""Plain generation: several choices under one prompt, as a stream of what each has come by."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from anabranch.engine import grammar
from anabranch.engine.constraints import Constraint, State
from anabranch.engine.requests import Result
from anabranch.errors import InputError
from anabranch.models.tokenizer import Tokenizer
from anabranch.program.branch import Branch
from anabranch.program.tasks import together
from anabranch.serve.wire import Drawn, Sampled, Structured

Finish = Literal["stop", "length"]

NEVER = -1e9
"""Bias that keeps a token from being drawn."""


@dataclass(frozen=True)
class Delta:
    """What a choice has come by.

    Attributes:
        results: the tokens that end in the text, when they were asked for.
        finish: why it ended, with its last delta.
    """

    index: int
    text: str = ""
    results: tuple[Result, ...] = ()
    finish: Finish | None = None


@dataclass
class Ask:
    """How every choice is written.

    Attributes:
        limit: most tokens.
        stops: texts that end it, and are left out.
        keep: they are not.
        top: likeliest tokens to report with each.
        sampling: as in `Branch.extend`.
    """

    limit: int
    stops: Sequence[str] = ()
    allow: Constraint | None = None
    top: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    keep: bool = False


def sampling_of(body: Drawn, tokenizer: Tokenizer) -> dict[str, Any]:
    """The parameters of `Branch.extend` that a body asks for. Raises InputError."""
    bias = {_token(key): value for key, value in (body.logit_bias or {}).items()}
    if body.ignore_eos:
        bias |= dict.fromkeys(tokenizer.ends, NEVER)
    return {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_k": max(0, body.top_k or 0),
        "min_p": body.min_p or 0.0,
        "repetition_penalty": 1.0 if body.repetition_penalty is None else body.repetition_penalty,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "bias": bias,
    }


def stops_of(body: Sampled) -> list[str]:
    """The stop texts of a body. Raises InputError."""
    stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or [])
    if not all(stops):
        raise InputError("a stop text is empty")
    return stops


def rule_of(structured: Structured | None) -> Constraint | None:
    """The one rule that is asked for. Raises InputError."""
    if structured is None:
        return None
    told = structured.model_dump(exclude_none=True)
    if len(told) != 1:
        raise InputError(
            "structured_outputs names no rule, or several",
            got=sorted(told),
            allowed="one of json, regex, choice, grammar",
        )
    if structured.json_schema is not None:
        return grammar.json_schema(structured.json_schema)
    if structured.regex is not None:
        return grammar.regex(structured.regex)
    if structured.choice is not None:
        return grammar.choice(structured.choice)
    assert structured.grammar is not None
    return grammar.lark(structured.grammar)


@dataclass(frozen=True)
class _Begun:
    """A rule whose first state is made already: every text under it begins there."""

    first: State

    def start(self, tokenizer: Tokenizer, written: Sequence[int]) -> State:
        """See `Constraint.start`."""
        state = self.first
        for token in written:
            if not state.test(token):
                raise InputError("the text so far breaks the rule", got=tokenizer.decode(written))
            state = state.next(token)
        return state


async def begun(rule: Constraint | None, tokenizer: Tokenizer) -> Constraint | None:
    """A rule, compiled beside the event loop. Raises InputError."""
    if rule is None:
        return None
    first = await asyncio.get_running_loop().run_in_executor(_RULES, rule.start, tokenizer, ())
    return _Begun(first)


_RULES = ThreadPoolExecutor(2, "anabranch-rules")
"""Threads of their own, and few: rules that take seconds must hold up nobody without one."""


async def choices(branches: Sequence[Branch], ask: Ask) -> AsyncGenerator[Delta]:
    """Let branches grow side by side; every one ends with a delta that says why."""
    deltas: asyncio.Queue[Delta | None] = asyncio.Queue()

    async def write(index: int, branch: Branch) -> None:
        async with contextlib.aclosing(_written(branch, ask)) as pieces:
            async for text, results in pieces:
                deltas.put_nowait(Delta(index, text, results))
        assert branch.last is not None
        stopped = branch.last.stop in ("until", "end", "complete")
        deltas.put_nowait(Delta(index, finish="stop" if stopped else "length"))

    work = asyncio.ensure_future(together(write(i, b) for i, b in enumerate(branches)))
    work.add_done_callback(lambda _: deltas.put_nowait(None))
    try:
        while (delta := await deltas.get()) is not None:
            yield delta
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    await work


async def _written(branch: Branch, ask: Ask) -> AsyncGenerator[tuple[str, tuple[Result, ...]]]:
    """Pieces of a step, up to the first stop text, which is held back by `pieces` until it is
    whole."""
    text, longest = "", max(map(len, ask.stops), default=0)
    stream: AsyncIterator[Any] = branch.pieces(
        ask.limit, until=ask.stops or None, allow=ask.allow, top=ask.top, **ask.sampling
    )
    async with contextlib.aclosing(stream) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            begin = len(text)
            text += piece.text
            found = [
                (at, at + len(stop) * ask.keep)
                for stop in ask.stops
                if (at := text.find(stop, max(0, begin - longest))) >= 0
            ]
            _, cut = min(found, default=(0, len(text)))
            yield text[begin:cut], piece.results


def _token(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise InputError("logit_bias names no token id", got=key) from None

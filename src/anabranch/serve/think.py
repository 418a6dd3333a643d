"""A strategy at work on a conversation: what it does, told as it happens, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anabranch.engine.constraints import Constraint
from anabranch.errors import InputError
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.registry import Named
from anabranch.program.run import Run
from anabranch.program.types import Answer, Problem
from anabranch.reason.prompts import messages as asked
from anabranch.reason.solve import think
from anabranch.serve.calls import current, new_run
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import Finish
from anabranch.serve.hub import Served, strategy_of
from anabranch.serve.plain import usage_of
from anabranch.serve.wire import EFFORTS, Effort, Extension, Spend

Event = tuple[Literal["reasoning", "trace", "progress"], Any]

PROGRESS_SECONDS = 1.0
FORM = "Now state the answer once more in the required form, and nothing else."
FORM_SHARE = 0.75
"""Of a budget of tokens, what thinking may take where a form is required after it."""


@dataclass(frozen=True)
class Plan:
    """Which strategy, on what budget."""

    strategy: Named
    budget: Spend


def plan_of(extension: Extension | None, named: Named | None, effort: Effort | None) -> Plan | None:
    """What a request asks for: its body's strategy, else its model's name's, else its effort's.

    Raises:
        InputError: a strategy or judge that is not known, or a judge for a strategy without.
    """
    extension = extension or Extension()
    spend = extension.budget or Spend()
    if extension.strategy is not None:
        named = strategy_of(extension.strategy)
    elif named is None and effort is not None and (told := EFFORTS[effort]) is not None:
        named = strategy_of(told[0])
        if spend.tokens is None:
            spend = Spend(tokens=told[1], seconds=spend.seconds)
    if named is None:
        if extension.judge is not None or extension.budget is not None:
            raise InputError("a judge or a budget needs a strategy", fix="name one")
        return None
    if extension.judge is not None:
        named = named.change(judge=extension.judge)
    return Plan(named, spend)


class Thinking:
    """One run of a strategy.

    Args:
        rule: what form the answer must have; the thoughts are free.
        limit: most tokens of the answer in that form.

    Attributes:
        content, reasoning, finish, usage, report: what came of it, once `events` has ended.
    """

    def __init__(
        self,
        plan: Plan,
        served: Served,
        conversation: Sequence[Mapping[str, str]],
        rule: Constraint | None,
        limit: int,
    ) -> None:
        if conversation[-1]["role"] != "user":
            raise Refusal(400, "a strategy needs a last message by the user", param="messages")
        self.plan, self.served, self.rule, self.limit = plan, served, rule, limit
        self._call = current()
        self._call.strategy = str(plan.strategy)
        *self._before, last = conversation
        above = "\n\n".join(f"{m['role'].title()}: {m['content']}" for m in self._before)
        self._problem = Problem(last["content"], context=above)
        self._turns = [*self._before, *asked(Problem(last["content"]))]
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._told = time.monotonic()
        self.content = self.reasoning = ""
        self.finish: Finish = "stop"
        self.usage: dict[str, Any] = {}
        self.report: dict[str, Any] = {}

    async def events(self, seed: int, seconds: float) -> AsyncGenerator[Event]:
        """Think, and tell what happens."""
        spend = self.plan.budget
        whole = Budget(spend.tokens, min(spend.seconds or seconds, seconds))
        run = new_run(seed=seed, budget=whole.share(FORM_SHARE) if self.rule else whole, trace=self)
        if self._call.traced:
            self._call.trace = self.served.lm.trace(None, self.plan.strategy, whole, seed)
        tokens = await self.served.render(self._turns)
        cached = 0

        def root(problem: Problem, run: Run) -> Branch:
            nonlocal cached
            branch = self.served.lm.engine.open(tokens, seed=seed, run=run)
            cached = run.cost.cached
            return branch

        work = asyncio.ensure_future(
            think(self._problem, root, self.plan.strategy, run, model=self.served.name)
        )
        work.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                yield event
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        answer = await work
        self.content, self.reasoning = answer.answer, answer.text
        extra = new_run(seed=seed, budget=whole)
        if self.rule is not None:
            await self._put_in_form(answer, extra)
        self._call.finishes[self.finish] += 1
        self._conclude(answer, run, extra, cached)

    def note(self, event: str, **fields: object) -> None:
        """See `Log`."""
        if self._call.trace is not None:
            self._call.trace.note(event, **fields)
        self._events.put_nowait(("trace", {"event": event, **fields}))
        if event == "extend" and fields["text"]:
            self._call.wrote()
            self._events.put_nowait(("reasoning", f"[{fields['branch']}] {fields['text']}\n"))
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._events.put_nowait(("progress", f"{event} {fields.get('branch', '')}"))

    async def _put_in_form(self, answer: Answer, run: Run) -> None:
        turns = [
            *self._turns,
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": FORM},
        ]
        branch = self.served.lm.engine.open(await self.served.render(turns), seed=run.seed, run=run)
        try:
            step = await branch.extend(self.limit, allow=self.rule, temperature=0.0)
        finally:
            run.drop_all()
        self.content, self.finish = (
            step.text,
            "stop" if step.stop in ("complete", "end") else "length",
        )

    def _conclude(self, answer: Answer, run: Run, extra: Run, cached: int) -> None:
        usage = run.usage + extra.usage
        completion = usage.sampled_tokens + usage.forced_tokens
        visible = len(self.served.lm.tokenizer.encode(self.content, start=False))
        self.usage = usage_of(
            usage.prompt_tokens,
            completion,
            cached=cached,
            reasoning=max(0, completion - visible),
        )
        self.report = {
            "strategy": answer.strategy,
            "seed": answer.seed,
            "confidence": answer.confidence,
            "notes": list(answer.notes),
            "usage": asdict(usage),
            "candidates": [asdict(candidate) for candidate in answer.candidates],
        }

"""A strategy at work on a conversation: what it does, told as it happens, and what came of it."""

from __future__ import annotations

import asyncio
import math
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
from anabranch.program.trace import plain
from anabranch.program.types import Answer, Piece, Problem
from anabranch.reason.prompts import messages as asked
from anabranch.reason.solve import think
from anabranch.serve.admission import Terms
from anabranch.serve.calls import current, new_run
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import Finish
from anabranch.serve.hub import Served, strategy_of
from anabranch.serve.plain import usage_of
from anabranch.serve.wire import EFFORTS, Effort, Extension, Spend

Event = tuple[Literal["reasoning", "trace", "progress"], Any]

PROGRESS_SECONDS = 1.0
GROW_SECONDS = 0.1
"""Least time between two events that tell what steps under way have come by."""

FORM = "Now state the answer once more in the required form, and nothing else."
FORM_SHARE = 0.75
"""Of a budget of tokens, what thinking may take where a form is required after it."""

FORM_TOKENS = 128
"""What the answer in that form may need, beside the prompt; and what asking for it takes."""


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


@dataclass
class Grown:
    """What a step under way has come by since that was last told."""

    text: str = ""
    tokens: int = 0
    logp: float = 0.0
    entropy: float = 0.0


class Thinking:
    """One run of a strategy.

    Args:
        rule: what form the answer must have; the thoughts are free.
        limit: most tokens of the answer in that form.
        form: what asks for it.
        live: whether steps are told while they are written, as traced events of their own kind:
            `grow`, whose `steps` have, of each branch that wrote since the last one, the `text`
            and `tokens` since then, and the sums of their log-probabilities (`logp`) and
            entropies (`entropy`). What was told of a step gives way to its `extend`.

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
        form: str = FORM,
        live: bool = False,
    ) -> None:
        if conversation[-1]["role"] != "user":
            raise Refusal(400, "a strategy needs a last message by the user", param="messages")
        self.plan, self.served, self.rule, self.limit = plan, served, rule, limit
        self._call = current()
        self._call.strategy = str(plan.strategy)
        self.form = form
        self._watch = self._grow if live else None
        self._grown: dict[str, Grown] = {}
        self._grown_told = 0.0
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

    async def events(self, seed: int, terms: Terms) -> AsyncGenerator[Event]:
        """Think, and tell what happens."""
        spend = self.plan.budget
        whole = Budget(spend.tokens, min(spend.seconds or terms.seconds, terms.seconds))
        if self._call.traced:
            self._call.trace = self.served.lm.trace(None, self.plan.strategy, whole, seed)
        tokens = await self.served.render(self._turns)
        budget = whole.share(_share(whole, len(tokens))) if self.rule else whole
        run = new_run(seed=seed, budget=budget, trace=self, watch=self._watch)
        cached = 0

        def root(problem: Problem, run: Run) -> Branch:
            nonlocal cached
            branch = self.served.lm.engine.open(tokens, seed=seed, run=run)
            cached = run.cost.cached
            self._call.cached_tokens += cached
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
            await self._put_in_form(answer, extra, terms)
        self._call.finishes[self.finish] += 1
        self._conclude(answer, extra, cached)

    def note(self, event: str, **fields: object) -> None:
        """See `Log`."""
        self._call.note(event, **fields)
        if event == "extend":
            self._grown.pop(str(fields["branch"]), None)
        self._events.put_nowait(("trace", {"event": event, **plain(fields)}))
        if event == "extend" and fields["text"]:
            self._call.wrote()
            self._events.put_nowait(("reasoning", f"[{fields['branch']}] {fields['text']}\n"))
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._events.put_nowait(("progress", f"{event} {fields.get('branch', '')}"))

    def _grow(self, branch: Branch, piece: Piece) -> None:
        """Gather pieces; tell them all at once, not too often, and to nobody who is behind."""
        grown = self._grown.setdefault(branch.id, Grown())
        grown.text += piece.text
        grown.tokens += len(piece.results)
        grown.logp += sum(result.logp for result in piece.results)
        grown.entropy += sum(result.entropy for result in piece.results)
        now = time.monotonic()
        if now - self._grown_told >= GROW_SECONDS and self._events.empty():
            self._grown_told = now
            steps = [{"branch": name, **asdict(grown)} for name, grown in self._grown.items()]
            self._grown.clear()
            self._events.put_nowait(("trace", {"event": "grow", "steps": plain(steps)}))

    async def _put_in_form(self, answer: Answer, run: Run, terms: Terms) -> None:
        tokens = await self._asked_for_form(answer.text)
        over = len(tokens) + FORM_TOKENS - run.budget.left_tokens
        if over > 0:  # what a thought comes to stands at its end
            thought = self.served.lm.tokenizer.encode(answer.text, start=False)[int(over) :]
            tokens = await self._asked_for_form(self.served.lm.engine.text_of(thought))
        branch = self.served.lm.engine.open(tokens, seed=run.seed, run=run)
        try:
            step = await branch.extend(self.limit, allow=self.rule, temperature=0.0)
        finally:
            run.drop_all()
        self.content, self.finish = (
            step.text,
            "stop" if step.stop in ("complete", "end") else "length",
        )

    async def _asked_for_form(self, thought: str) -> list[int]:
        said = {"role": "assistant", "content": thought}
        asked_for = {"role": "user", "content": self.form}
        return await self.served.render([*self._turns, said, asked_for])

    def _conclude(self, answer: Answer, extra: Run, cached: int) -> None:
        usage = answer.usage + extra.usage
        completion = usage.sampled_tokens + usage.forced_tokens
        visible = len(self.served.lm.tokenizer.encode(self.content, start=False))
        reasoning = max(0, completion - visible)
        self._call.reasoning_tokens += reasoning
        self.usage = usage_of(usage.prompt_tokens, completion, cached=cached, reasoning=reasoning)
        report = {
            "strategy": answer.strategy,
            "seed": answer.seed,
            "confidence": answer.confidence,
            "notes": list(answer.notes),
            "usage": asdict(usage),
            "candidates": [asdict(candidate) for candidate in answer.candidates],
        }
        self.report = plain(report)


def _share(whole: Budget, prompt: int) -> float:
    """What thinking may take of a budget, so that the prompt fits in again with the form.

    Raises:
        InputError: nothing.
    """
    left = whole.left_tokens
    share = (
        min(FORM_SHARE, (left - prompt - 2 * FORM_TOKENS) / left) if left < math.inf else FORM_SHARE
    )
    if share * left < prompt + FORM_TOKENS:
        raise InputError(
            "the budget does not cover a thought and an answer in form",
            got=f"{left} tokens",
            allowed=f"at least {2 * prompt + 4 * FORM_TOKENS}",
        )
    return share

"""One request for plain text, from its prompt to its usage: what chat and completions share."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.serve.admission import Terms
from anabranch.serve.calls import current, new_run
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import Ask, Delta, choices
from anabranch.serve.hub import Served
from anabranch.serve.wire import Prompts, Sampled

MOST_PROMPTS = 2048


class Plain:
    """Prompts under way, each with `n` choices: choice i*n + k is the k-th of prompt i.

    Attributes:
        prompts: token ids of each.
        cached: tokens of prompts that were in the tree already.
        written: tokens drawn, and given to be scored.
    """

    def __init__(
        self, served: Served, prompts: Sequence[list[int]], *, n: int, seed: int, terms: Terms
    ) -> None:
        self.served, self.prompts, self.n, self.seed = served, prompts, n, seed
        self.call = current()
        self.run = new_run(seed=seed, budget=Budget(seconds=terms.seconds))
        self.cached = 0

    async def deltas(self, ask: Ask) -> AsyncGenerator[Delta]:
        """What the choices come by."""
        try:
            branches = [b for tokens in self.prompts for b in self.open(tokens).fork(self.n)]
            async with contextlib.aclosing(choices(branches, ask)) as written:
                async for delta in written:
                    if delta.text:
                        self.call.wrote(delta.index)
                    if delta.finish:
                        self.call.finishes[delta.finish] += 1
                    yield delta
        finally:
            self.run.drop_all()

    def open(self, tokens: list[int]) -> Branch:
        """A prompt's branch."""
        before = self.run.cost.cached
        root = self.served.lm.engine.open(tokens, seed=self.seed, run=self.run)
        held = self.run.cost.cached - before
        self.cached += held
        self.call.cached_tokens += held
        return root

    @property
    def usage(self) -> dict[str, Any]:
        """In OpenAI's words."""
        return usage_of(self.run.prompt_tokens, self.run.sampled_tokens, cached=self.cached)


def prompts_of(given: Prompts, served: Served, field: str = "prompt") -> list[list[int]]:
    """Token ids of every prompt. Raises Refusal, InputError."""
    several: list[Any] = [given] if isinstance(given, str) else list(given)
    if several and isinstance(several[0], int):
        several = [several]
    if not 1 <= len(several) <= MOST_PROMPTS:
        raise Refusal(400, f"give 1 to {MOST_PROMPTS} texts", param=field)
    lm = served.lm
    prompts = [
        lm.tokenizer.prompt(one) if isinstance(one, str) else lm.engine.encode(one)
        for one in several
    ]
    if not all(prompts):
        raise Refusal(400, "a text is empty", param=field)
    return prompts


def usage_of(
    prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0
) -> dict[str, Any]:
    """Usage in OpenAI's words."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def seed_of(body: Sampled) -> int:
    """The seed that a body tells, else a random one; the response repeats it."""
    told = (body.anabranch.seed if body.anabranch else None, body.seed)
    return next((seed for seed in told if seed is not None), secrets.randbits(53))


def new_id(kind: str) -> str:
    """A name for a response."""
    return f"{kind}-{secrets.token_hex(12)}"

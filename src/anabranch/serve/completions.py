"""`/v1/completions`: text after a prompt, with the prompt's own log-probabilities on demand."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from anabranch.engine.requests import Result
from anabranch.program.tasks import together
from anabranch.program.types import Step
from anabranch.serve.admission import Terms
from anabranch.serve.calls import current
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import Ask, begun, rule_of, sampling_of, stops_of
from anabranch.serve.hub import Hub, Served
from anabranch.serve.plain import Plain, new_id, prompts_of, seed_of
from anabranch.serve.stream import events, first, unless_gone
from anabranch.serve.wire import Prompts, Sampled, or_stream, shape

routes = APIRouter()

DEFAULT_TOKENS = 16


class Completion(Sampled):
    """The body of a request. `max_tokens` of 0 with `echo` only scores the prompt."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, le=1 << 20)] | None = DEFAULT_TOKENS
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


_SHAPE = shape("text_completion", id="string", created="integer", model="string",
               choices="array", usage="object")  # fmt: skip


@routes.post("/v1/completions", response_model=None, responses=or_stream(_SHAPE))
async def completions(body: Completion, request: Request) -> Response:
    """Go on with prompts."""
    own = begin(body, request.app.state.hub, Terms.of(request))
    if body.stream:
        return events(await unless_gone(request, first(own.chunks())))
    return JSONResponse(await unless_gone(request, own.whole()))


def begin(body: Completion, hub: Hub, terms: Terms) -> Text:
    """The response to a body, not begun. Raises Refusal, InputError."""
    served, named = hub.find(body.model)
    if named is not None or (body.anabranch is not None and body.anabranch.strategy is not None):
        raise Refusal(
            400, "strategies need a conversation: use /v1/chat/completions", param="model"
        )
    if body.stream and body.echo:
        raise Refusal(400, "echo does not go with stream", param="echo")
    current().wants(body.anabranch)
    return Text(body, served, terms, prompts_of(body.prompt, served))


class Text:
    """One response."""

    def __init__(
        self, body: Completion, served: Served, terms: Terms, prompts: list[list[int]]
    ) -> None:
        self.body, self.served, self.prompts = body, served, prompts
        self.admission = terms.admission
        self.id, self.created = new_id("cmpl"), int(time.time())
        seed = seed_of(body)
        self.n = body.n or 1
        self.work = Plain(served, prompts, n=self.n, seed=seed, terms=terms)

    async def chunks(self) -> AsyncGenerator[dict[str, Any] | str]:
        """What choices come by."""
        async with self.admission.place():
            ask = await self._ask()
            async with contextlib.aclosing(self.work.deltas(ask)) as deltas:
                async for delta in deltas:
                    likely = (
                        self._table(delta.results, 0) if self._wanted and delta.results else None
                    )
                    yield self._response(
                        [self._choice(delta.index, delta.text, likely, delta.finish)]
                    )
        if self.body.tells_usage:
            yield {**self._response([]), "usage": self.work.usage}

    async def whole(self) -> dict[str, Any]:
        """The response without streaming."""
        async with self.admission.place():
            texts = [""] * (len(self.prompts) * self.n)
            results: list[list[Result]] = [[] for _ in texts]
            finish: list[str | None] = ["length"] * len(texts)
            echoed = await self._echoes() if self.body.echo else []
            if self.body.max_tokens != 0:
                ask = await self._ask()
                async with contextlib.aclosing(self.work.deltas(ask)) as deltas:
                    async for delta in deltas:
                        texts[delta.index] += delta.text
                        results[delta.index] += delta.results
                        finish[delta.index] = delta.finish or finish[delta.index]
        found = []
        for i, text in enumerate(texts):
            likely = self._table(results[i], 0) if self._wanted else None
            if echoed:
                head, step = echoed[i // self.n]
                text = head + text
                if self._wanted:
                    likely = self._echo_table(self.prompts[i // self.n], step, results[i])
            found.append(self._choice(i, text, likely, finish[i]))
        return {**self._response(found), "usage": self.work.usage}

    @property
    def _wanted(self) -> bool:
        return self.body.logprobs is not None

    async def _ask(self) -> Ask:
        body, tokenizer = self.body, self.served.lm.tokenizer
        rule = await begun(rule_of(body.structured_outputs), tokenizer)
        limit = body.max_tokens or DEFAULT_TOKENS
        return Ask(
            limit,
            stops_of(body),
            rule,
            body.logprobs or 0,
            sampling_of(body, tokenizer),
            keep=body.include_stop_str_in_output,
        )

    async def _echoes(self) -> list[tuple[str, Step | None]]:
        """The text of each prompt, and if wanted what the model says of all but its first token."""

        async def score(tokens: list[int]) -> tuple[str, Step | None]:
            text = self.served.lm.engine.text_of(tokens)
            if not self._wanted or len(tokens) < 2:
                return text, None
            root = self.work.open(tokens[:1])
            return text, await root.force(tokens[1:], top=self.body.logprobs or 0)

        try:
            return await together(score(tokens) for tokens in self.prompts)
        finally:
            self.work.run.drop_all()

    def _echo_table(
        self, prompt: list[int], step: Step | None, results: list[Result]
    ) -> dict[str, Any]:
        head = [Result(prompt[0], 0.0, 0.0, 0.0)]
        if step is not None:
            tops = step.tops or [()] * len(step.tokens)
            head += [
                Result(token, logp, 0.0, 0.0, top=top)
                for token, logp, top in zip(step.tokens, step.logps, tops, strict=True)
            ]
        table = self._table([*head, *results], 0)
        table["token_logprobs"][0] = table["top_logprobs"][0] = None
        return table

    def _table(self, results: list[Result] | tuple[Result, ...], offset: int) -> dict[str, Any]:
        """Log-probabilities in the form of the old completions."""
        text_of = self.served.lm.engine.text_of
        tokens = [text_of([r.token]) for r in results]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [r.logp for r in results],
            "top_logprobs": [{text_of([t]): logp for t, logp in r.top} for r in results],
            "text_offset": offsets,
        }

    def _choice(self, index: int, text: str, likely: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": likely, "finish_reason": finish}

    def _response(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": self.served.lm.fingerprint,
            "choices": found,
        }

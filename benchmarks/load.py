"""Clients that ask a server for all kinds of work, and note whatever they did not ask for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

CHAT, BRANCHES = "/v1/chat/completions", "/v1/branches"
PATIENCE = 600.0
"""Seconds that a client waits for a response."""

LEASE = 20
"""Seconds after which the branches of clients that died are freed."""

SHOWN = 20
"""Surprises that are kept with their words; all are counted."""

Body = dict[str, Any]


class Surprise(Exception):
    """Something that was not asked for."""


@dataclass
class Client:
    """Asks with one key.

    Attributes:
        http: connections; may be shared.
        texts: where it takes its questions from.
    """

    http: httpx.AsyncClient
    model: str
    key: str
    texts: random.Random

    def question(self, words: int = 0) -> list[dict[str, str]]:
        """A conversation that nobody has had; `words` more make its prompt longer."""
        numbers = [str(self.texts.randrange(10, 1000)) for _ in range(words + 2)]
        asked = f"What is {numbers[0]} + {numbers[1]}?"
        if words:
            asked = f"Numbers: {' '.join(numbers)}. Say something about them."
        return [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": asked},
        ]

    def chat(self, tokens: int, **more: Any) -> Body:
        """The body of a chat request."""
        asked = self.question()
        return {"model": self.model, "messages": asked, "max_tokens": tokens, **more}

    def thinking(self, strategy: str, tokens: int, **more: Any) -> Body:
        """The body of one that a strategy answers, on a budget for all branches."""
        extension = {"strategy": strategy, "budget": {"tokens": tokens}}
        return self.chat(tokens, anabranch=extension, **more)

    async def send(
        self, path: str, body: Body | None, method: str = "POST", secret: str = "", want: int = 200
    ) -> Body:
        """A request and its whole response. Raises Surprise."""
        headers = {**self._headers(), "X-Session-Secret": secret}
        reply = await self.http.request(method, path, json=body, headers=headers)
        if reply.status_code != want:
            raise Surprise(f"{method} {path}: {reply.status_code} {reply.text[:300]}")
        told: Body = reply.json()
        return told

    async def stream(self, path: str, body: Body, leave_after: int | None = None) -> Body:
        """A streamed response, read to its end or left after so many pieces of it.

        Returns:
            The last chunk, which has the usage; nothing when it was left.

        Raises:
            Surprise: no stream, or one that does not end as it should.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with self.http.stream("POST", path, json=body, headers=self._headers()) as reply:
            if reply.status_code != 200:
                text = (await reply.aread()).decode(errors="replace")
                raise Surprise(f"POST {path}: {reply.status_code} {text[:300]}")
            kept, pieces = b"", 0
            async for data in reply.aiter_raw():
                kept, pieces = (kept + data)[-(1 << 16) :], pieces + 1
                if pieces == leave_after:
                    return {}
        *_, last, done = kept.decode().strip().split("\n\n")
        if done != "data: [DONE]":
            raise Surprise(f"POST {path}: the stream ends with {done[:300]}")
        told: Body = json.loads(last.removeprefix("data: "))
        return told

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


# ---- kinds of work -------------------------------------------------------------------------------


async def plain(client: Client) -> None:
    """A reply in one piece."""
    told = await client.send(CHAT, client.chat(client.texts.randrange(8, 64)))
    _ended(told)


async def reading(client: Client) -> None:
    """A long prompt, scored."""
    text = client.question(200)[-1]["content"]
    body = {"model": client.model, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
    told = await client.send("/v1/completions", body)
    _check(len(told["choices"][0]["logprobs"]["tokens"]) > 100, told)


async def streamed(client: Client) -> None:
    """A reply, token by token."""
    told = await client.stream(CHAT, client.chat(client.texts.randrange(8, 64)))
    _check(told["usage"]["completion_tokens"] > 0, told)


async def several(client: Client) -> None:
    """Four replies to one question."""
    told = await client.send(CHAT, client.chat(24, n=4))
    _check(len(told["choices"]) == 4, told)


async def vote(client: Client) -> None:
    """A vote of four."""
    _ended(await client.send(CHAT, client.thinking("vote(n=4, max_tokens=48)", 1000)))


async def beam(client: Client) -> None:
    """A tree search, watched."""
    body = client.thinking("beam(width=2, fanout=2, step_tokens=24, rounds=3)", 1000)
    body["anabranch"]["trace"] = True
    told = await client.stream(CHAT, body)
    _check(told["anabranch"]["strategy"].startswith("beam"), told)


async def structured(client: Client) -> None:
    """A reply that a schema allows."""
    schema = {
        "type": "object",
        "properties": {
            "sum": {"type": "integer", "minimum": -9999, "maximum": 9999},
            "sure": {"enum": ["yes", "no"]},
        },
        "required": ["sum", "sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    choice = _ended(await client.send(CHAT, client.chat(80, response_format=form)))
    if choice["finish_reason"] == "stop":  # else the limit has cut it off
        _check(set(json.loads(choice["message"]["content"])) == {"sum", "sure"}, choice)


async def branching(client: Client) -> None:
    """A search of the client's own; some of those who do that end without a word."""
    opened = {"model": client.model, "messages": client.question(), "lease": LEASE}
    root = await client.send(BRANCHES, opened)
    secret = root["secret"]

    async def on(branch: str, what: str, **body: Any) -> Body:
        return await client.send(f"{BRANCHES}/{branch}/{what}", body, secret=secret)

    children = [child["id"] for child in (await on(root["id"], "fork", n=3))["data"]]
    steps = await asyncio.gather(*(on(child, "extend", limit=12) for child in children))
    best = max(steps, key=lambda step: step["logp"] / max(1, len(step["tokens"])))["branch"]
    await on(best, "force", text="\nThe answer is")
    scores = (await on(best, "score", options=[" 1", " 22", " 333"]))["scores"]
    _check(len(scores) == 3, scores)
    if client.texts.random() < 0.75:
        await client.send(f"/v1/sessions/{root['session']}", None, "DELETE", secret)


async def leaving(client: Client) -> None:
    """A client that goes while it is written for."""
    if client.texts.random() < 0.5:
        body = client.thinking("vote(n=8, max_tokens=200)", 4000)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(client.texts.uniform(0.05, 2)):
                await client.send(CHAT, body)
    else:
        await client.stream(CHAT, client.chat(500), client.texts.randrange(1, 20))


async def refused(client: Client) -> None:
    """What is no request, or names what is not there."""
    await client.send(CHAT, client.chat(8, no_such_field=1), want=400)
    await client.send(CHAT, {**client.chat(8), "model": "no such model"}, want=404)


WORK: dict[Callable[[Client], Awaitable[None]], int] = {
    plain: 6,
    streamed: 6,
    reading: 1,
    several: 2,
    vote: 3,
    beam: 2,
    structured: 3,
    branching: 3,
    leaving: 3,
    refused: 1,
}
"""Kinds of work, and how often each is asked for in comparison."""


def _check(holds: bool, told: object) -> None:
    """Raises Surprise."""
    if not holds:
        raise Surprise(f"not what was asked for: {json.dumps(told)[:300]}")


def _ended(told: Body) -> Body:
    """The choice of a chat reply that has come to its end."""
    (choice,) = told["choices"]
    _check(choice["finish_reason"] in ("stop", "length"), told)
    return dict(choice)


# ---- many of them --------------------------------------------------------------------------------


@dataclass
class Watch:
    """What a server holds, once a second.

    Args:
        client: whoever may ask.
        pid: of the server.

    Attributes:
        seen: samples, the first from before the load.
    """

    client: Client
    pid: int
    seen: list[Body] = field(default_factory=list)

    async def look(self) -> Body:
        """Take a sample."""
        told = await self.client.send("/v1/engine", None, "GET")
        (model,) = told.pop("models")
        status = Path(f"/proc/{self.pid}/status").read_text()
        memory = int(status.partition("VmRSS:")[2].split()[0]) * 1024
        self.seen.append({"time": time.monotonic(), **told, **model, "memory": memory})
        return self.seen[-1]

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Samples as long as this lasts."""

        async def look_again() -> None:
            while True:
                await asyncio.sleep(1)
                await self.look()

        await self.look()
        watch = asyncio.ensure_future(look_again())
        try:
            yield
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def until_idle(self, seconds: float) -> Body:
        """Wait, so long at most, until nothing is under way and nobody holds a branch."""
        until = time.monotonic() + seconds
        while True:
            seen = await self.look()
            busy = seen["running"], seen["waiting"], seen["operations"], seen["branches"]
            if not any(busy) or time.monotonic() > until:
                return seen
            await asyncio.sleep(0.5)


@dataclass
class Outcomes:
    """What came of requests: by kind of work, how many were served, and how many were not.

    Attributes:
        seconds: that each took, by kind.
        surprises: in words, the first of them.
    """

    served: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    async def add(self, client: Client, kind: Callable[[Client], Awaitable[None]]) -> None:
        """Do a piece of work, and count it; one that is cut off by the end counts as that."""
        name, began = kind.__name__, time.monotonic()
        try:
            await kind(client)
        except asyncio.CancelledError:
            self.cut[name] += 1
            raise
        except (Surprise, httpx.HTTPError, ValueError, LookupError) as error:
            self.failed[name] += 1
            if len(self.surprises) < SHOWN:
                self.surprises.append(f"{name}: {type(error).__name__}: {error}")
        else:
            self.served[name] += 1
            self.seconds.setdefault(name, []).append(time.monotonic() - began)


def connections(url: str) -> httpx.AsyncClient:
    """As many as it takes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits, trust_env=False)


async def load(clients: list[Client], seconds: float) -> Outcomes:
    """Every client asks for one thing after the other, at random, until the time is over."""
    outcomes, kinds = Outcomes(), list(WORK)
    until = time.monotonic() + seconds

    async def ask(client: Client) -> None:
        while time.monotonic() < until:
            (kind,) = client.texts.choices(kinds, [WORK[kind] for kind in kinds])
            await outcomes.add(client, kind)

    tasks = [asyncio.ensure_future(ask(client)) for client in clients]
    try:
        await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    for end in done:
        if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
            raise end
    return outcomes


def shares(records: Mapping[str, list[Body]]) -> dict[str, float]:
    """Of the tokens that were computed, each key's part."""
    computed = {key: sum(map(rows, told)) for key, told in records.items()}
    whole = max(1, sum(computed.values()))
    return {key: count / whole for key, count in computed.items()}


def rows(record: Body) -> int:
    """Tokens of a prompt that no tree held, and of replies."""
    return int(record["prompt_tokens"] - record["cached_tokens"] + record["tokens"])


async def records(client: Client, since: float) -> list[Body]:
    """What the server has recorded of a key since a time."""
    found: list[Body] = []
    before = ""
    while True:
        page = (await client.send(f"/v1/records?limit=1000{before}", None, "GET"))["data"]
        found += [record for record in page if record["time"] >= since]
        if len(page) < 1000 or page[-1]["time"] < since:
            return found
        before = f"&before={page[-1]['id']}"

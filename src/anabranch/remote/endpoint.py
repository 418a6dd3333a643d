"""One OpenAI-compatible endpoint: what it can do, found out by asking, and how it is asked.

Servers that tokenize for us are asked by token ids: what is written then never becomes special
tokens. vLLM and Anabranch do by `/tokenize`, llama-server by `/apply-template` and `/tokenize`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from anabranch.engine.requests import Sampling
from anabranch.errors import InputError, RemoteError, UnsupportedError
from anabranch.program.tasks import together
from anabranch.remote.wire import RefusedError, Wire, retrying

CONTEXT = 32768
"""Tokens of context where an endpoint does not say: it refuses what is too long itself."""

TOPS = (20, 5, 0)
"""How many of the likeliest tokens are asked for to find out how many are told."""

MOST_KNOWN = 4096
"""Texts whose tokens are remembered."""

NEUTRAL = {"top_k": 0, "min_p": 0.0}
"""Told to servers that know them: some have other defaults."""

FORCING = 100.0
"""Logit bias that makes a token certain: what the API allows at most."""

Message = Mapping[str, str]
Turns = tuple[tuple[str, str], ...]
"""A conversation so far: role and text of each turn."""


class Token(NamedTuple):
    """A token as it is told.

    Attributes:
        top: the likeliest tokens at its place with their log-probabilities, if asked for.
    """

    text: bytes
    logp: float = 0.0
    top: tuple[tuple[bytes, float], ...] = ()


class Chunk(NamedTuple):
    """What one event of a stream says.

    Attributes:
        finish: why the reply ended, if it has.
        written: tokens of the whole reply, if told.
    """

    tokens: tuple[Token, ...]
    finish: str | None
    written: int | None


@dataclass(frozen=True)
class Capabilities:
    """What an endpoint can do.

    Attributes:
        api: prompts as text or tokens ("completions"), or as messages only ("chat").
        context: longest path in tokens.
        tokenizes: whose words it tokenizes by, or None.
        resumes: it goes on with a reply that has begun.
        top: how many likeliest tokens it tells; None: no log-probabilities at all.
        scores: how it is made to tell the log-probabilities of given text: with the prompt's, or
            of tokens that a bias makes certain.
        shapes: it knows top-k, min-p and repetition penalties.
        repeats: the same seed gave the same words, once.
    """

    api: Literal["completions", "chat"]
    context: int = CONTEXT
    tokenizes: Literal["vllm", "llama.cpp"] | None = None
    resumes: bool = True
    top: int | None = None
    scores: Literal["echo", "bias"] | None = None
    shapes: bool = False
    repeats: bool = False


class Endpoint:
    """A model behind an endpoint.

    Attributes:
        model: the name that it is asked for by.
        can: what it can do, once `detect` has run.
    """

    def __init__(self, wire: Wire, model: str | None) -> None:
        self.wire, self.model = wire, model or ""
        self.can = Capabilities("completions")
        self._known: dict[object, list[int]] = {}

    def features(self) -> dict[str, Any]:
        """Where it is and what it can do, for records."""
        return {"endpoint": self.wire.url, **asdict(self.can)}

    # ---- finding out ---------------------------------------------------------------------------

    async def detect(self, api: str | None = None) -> None:
        """Find out what it can do, by small requests.

        Args:
            api: "chat" or "completions": look at that one only.

        Raises:
            RemoteError: it cannot be reached, does not let us in, or has neither API.
            InputError: it has no such model, or several and none was named.
        """
        listed = await self._models()
        context = _context(listed.get(self.model, {}))
        found: list[Capabilities] = []
        refused: RemoteError | None = None
        for name in ("completions", "chat") if api is None else (api,):
            try:
                found.append(await self._detect("chat" if name == "chat" else "completions"))
            except RefusedError as error:
                refused = error
            # Where completions take the model's own template, nothing is missing.
            if found and found[-1].tokenizes:
                break
        if not found:
            assert refused is not None
            raise refused
        # The model's own form of a conversation beats plain text, if it can be gone on with.
        self.can = replace(
            max(found, key=lambda c: (bool(c.tokenizes), c.resumes, c.api == "chat"))
        )
        if context:
            self.can = replace(self.can, context=context)

    async def _models(self) -> dict[str, dict[str, Any]]:
        """What models there are; picks one where none was named and there is no choice."""
        try:
            told = await self.wire.json("GET", f"{self.wire.url}/models")
            listed = {entry["id"]: entry for entry in told["data"] if isinstance(entry["id"], str)}
        except (RefusedError, TypeError, KeyError) as error:
            if self.model:
                return {}
            raise InputError(
                f"{self.wire.url} lists no models", got=str(error), fix="name one: URL#MODEL"
            ) from None
        if not self.model:
            plain = [name for name, entry in listed.items() if not entry.get("strategy")]
            if len(plain) != 1:
                several = ", ".join(plain[:20]) or "none"
                raise InputError(
                    f"{self.wire.url} has {len(plain)} models",
                    allowed=several,
                    fix="name one: URL#MODEL",
                )
            self.model = plain[0]
        return listed

    async def _detect(self, api: Literal["completions", "chat"]) -> Capabilities:
        self.can = Capabilities(api)
        if api == "completions":
            for dialect in ("vllm", "llama.cpp"):
                with contextlib.suppress(RemoteError):
                    self.can = Capabilities(api, tokenizes=dialect)
                    await self.prompt((("user", "a"), ("assistant", "b")))
                    break
            else:
                self.can = Capabilities(api)
        asked = (("user", "Count to 12, with commas in between."), ("assistant", ""))
        counted = (asked[0], ("assistant", "1, 2, 3, 4, 5, 6, 7, 8, 9, 1"))
        can = self.can = await self._shaped(asked)
        drawn = [[t.text for t in await self._few(asked, 1.0)] for _ in range(2)]
        can = replace(can, repeats=drawn[0] == drawn[1])
        if api == "chat":
            # Some take the reply that has begun for a turn of its own, and begin another one.
            goes_on = b""
            with contextlib.suppress(RefusedError):
                goes_on = b"".join(t.text for t in await self._few(counted, 0.0))
            return replace(can, resumes=goes_on.startswith(b"0"))
        for way in ("echo", "bias") if can.top is not None else ():
            self.can = replace(can, scores=way)
            with contextlib.suppress(RemoteError):
                told = await self.score(counted, " zebra")
                if -math.inf < math.fsum(t.logp for t in told) < -0.01:  # a bias would make it 0
                    return self.can
        return can

    async def _shaped(self, turns: Turns) -> Capabilities:
        """What it takes of parameters beyond the oldest ones."""
        for top in TOPS:
            for shapes in (True, False):
                self.can = replace(self.can, top=top, shapes=shapes)
                if top == 0:
                    self.can = replace(self.can, top=None)
                try:
                    told = await self._few(turns, 0.0, top)
                except RefusedError:
                    if top == 0 and not shapes:
                        raise
                    continue
                most = max((len(t.top) for t in told), default=0)
                return replace(self.can, top=min(top, most) or None)
        raise AssertionError("the last try returns or raises")

    async def _few(self, turns: Turns, temperature: float, top: int = 0) -> list[Token]:
        async def once() -> list[Token]:
            stream = self.reply(turns, Sampling(temperature), limit=4, seed=7, top=top)
            async with contextlib.aclosing(stream) as chunks:
                return [token async for chunk in chunks for token in chunk.tokens]

        return await retrying(once)

    # ---- asking --------------------------------------------------------------------------------

    async def reply(
        self, turns: Turns, sampling: Sampling, *, limit: int, seed: int, top: int = 0
    ) -> AsyncGenerator[Chunk]:
        """A reply as it comes, up to where it ends or breaks off.

        Raises:
            RemoteError: it failed; `BrokenError` when another try may help.
            UnsupportedError: something that it lacks is needed.
        """
        body = await self._body(turns)
        body |= {"max_tokens": limit, "seed": seed, "stream": True} | self._shaping(sampling)
        body["stream_options"] = {"include_usage": True}
        if self.can.top is not None:
            top = min(max(1, top), self.can.top)
            wanted = {"logprobs": True, "top_logprobs": top}
            body |= wanted if self.can.api == "chat" else {"logprobs": top}
        async with contextlib.aclosing(self.wire.events(self._url, body)) as events:
            async for event in events:
                yield self._chunk(event)

    async def score(self, turns: Turns, text: str) -> list[Token]:
        """The tokens of a text that goes on with the last turn, with what the model says of each.

        Raises:
            RemoteError: as `reply`.
        """
        body = await self._body(turns)
        body |= {"max_tokens": 1, "temperature": 0.0, "logprobs": 1}
        before = body["prompt"]
        given: Any = await self._ids(text) if self.can.tokenizes else text
        if self.can.scores == "bias":
            if not self.can.tokenizes:
                raise RefusedError(f"{self.wire.url} does not tell what tokens are called")
            # Each token alone, after those before it, made certain; what is told is unbiased.
            bodies = (
                body | {"prompt": before + given[:i], "logit_bias": {str(token): FORCING}}
                for i, token in enumerate(given)
            )
            return [told[0] for told in await together(map(self._told, bodies))]
        told = await self._told(body | {"prompt": before + given, "echo": True})
        if self.can.tokenizes:
            return told[len(before) : len(before) + len(given)]
        # By characters: a token that reaches into the text counts whole.
        ends, end = [], 0
        for token in told:
            end += len(token.text)
            ends.append(end)
        low, high = len(before.encode()), len((before + given).encode())
        return [t for t, end in zip(told, ends, strict=True) if low < end <= high]

    async def prompt(self, turns: Turns) -> Any:
        """Turns as a prompt of completions, the last one open: token ids, or text.

        One turn with the role "" is text as it stands.

        Raises:
            RemoteError: its tokens cannot be had.
        """
        *before, (role, begun) = turns
        if not self.can.tokenizes:
            if role == "":
                return begun
            said = "".join(f"{role.capitalize()}: {text}\n\n" for role, text in before)
            return f"{said}{role.capitalize()}:{begun}"
        if role == "":
            return await self._ids(begun, start=True)
        return [*await self._template(before), *await self._ids(begun)]

    async def _body(self, turns: Turns) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model}
        if self.can.api == "completions":
            return body | {"prompt": await self.prompt(turns)}
        *before, (role, begun) = turns
        if role == "":
            raise self.lack("take plain text (it has no completions)", "ask in messages")
        messages = [{"role": role, "content": text} for role, text in before]
        if not begun:
            return body | {"messages": messages}
        if not self.can.resumes:
            raise self.lack("go on with a reply that has begun", "single, vote or refine")
        resume = {"add_generation_prompt": False, "continue_final_message": True}
        return body | {"messages": [*messages, {"role": role, "content": begun}]} | resume

    def _shaping(self, sampling: Sampling) -> dict[str, Any]:
        """A sampling in the words of the API; left out what stands at its default."""
        given = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        }
        if sampling.bias:
            raise self.lack("bias tokens by their ids", "temperature, top_p or penalties")
        further = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        penalty = sampling.repetition_penalty
        if self.can.shapes:
            given |= further
            if penalty != 1.0:
                llama = self.can.tokenizes == "llama.cpp"
                given["repeat_penalty" if llama else "repetition_penalty"] = penalty
        elif further != NEUTRAL or penalty != 1.0:
            raise self.lack("draw by top_k, min_p or repetition_penalty", "temperature and top_p")
        return given

    def lack(self, what: str, instead: str) -> UnsupportedError:
        """The error that says what this endpoint cannot do."""
        return UnsupportedError(
            f"{self.wire.url} ({self.model}) cannot {what}",
            fix=f"use {instead}; docs/remote.md says which strategies need what",
        )

    # ---- tokens --------------------------------------------------------------------------------

    async def _ids(self, text: str, start: bool = False) -> list[int]:
        if not text:
            return []
        if self.can.tokenizes == "vllm":
            asked = {"model": self.model, "prompt": text, "add_special_tokens": start}
            return await self._tokens(asked)
        return await self._tokens({"content": text, "add_special": start, "parse_special": False})

    async def _template(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        messages = [{"role": role, "content": text} for role, text in turns]
        if self.can.tokenizes == "vllm":
            return await self._tokens({"model": self.model, "messages": messages})
        told = await self.wire.json(
            "POST", f"{self.wire.root}/apply-template", {"messages": messages}
        )
        text = told.get("prompt") if isinstance(told, dict) else None
        if not isinstance(text, str):
            raise RemoteError(f"{self.wire.url} gives no prompt for messages", got=told)
        return await self._tokens({"content": text, "add_special": True, "parse_special": True})

    async def _tokens(self, body: dict[str, Any]) -> list[int]:
        key = repr(body)
        if key not in self._known:
            told = await self.wire.json("POST", f"{self.wire.root}/tokenize", body)
            ids = told.get("tokens") if isinstance(told, dict) else None
            if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
                raise RemoteError(f"{self.wire.url} gives no tokens for a text", got=told)
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = ids
        return self._known[key]

    # ---- reading -------------------------------------------------------------------------------

    @property
    def _url(self) -> str:
        return self.wire.url + ("/chat/completions" if self.can.api == "chat" else "/completions")

    async def _told(self, body: Mapping[str, Any]) -> list[Token]:
        """The tokens of a reply that comes whole."""
        told = await self.wire.json("POST", self._url, body)
        tokens = self._chunk(told).tokens
        if not tokens:
            raise RemoteError(f"{self.wire.url} tells no log-probabilities", got=told)
        return list(tokens)

    def _chunk(self, event: Any) -> Chunk:
        """An event, or a whole reply. Raises RemoteError for what is none."""
        try:
            usage = event.get("usage") or {}
            written = usage.get("completion_tokens")
            if written is not None and (type(written) is not int or written < 0):
                raise ValueError(f"completion_tokens: {written!r}")
            choice = next(iter(event["choices"]), None)
            if choice is None:  # the last event of a stream holds the usage alone
                return Chunk((), None, written)
            text = choice["text"] if "text" in choice else _said(choice)
            if not isinstance(text, str):
                raise ValueError(f"text: {text!r}")
            finish = choice.get("finish_reason")
            tokens = tuple(_tokens(choice.get("logprobs")))
            return Chunk(_matched(tokens, text.encode()), finish and str(finish), written)
        except (AttributeError, KeyError, TypeError, ValueError, UnicodeError) as error:
            fault = f"{type(error).__name__}: {error}"
            raise RemoteError(f"{self.wire.url} sent what is no completion", got=fault) from None


def _said(choice: Mapping[str, Any]) -> Any:
    """Text of a chat's choice, whole or in a stream; a turn may come without any."""
    said = choice["delta"] if "delta" in choice else choice["message"]
    return said.get("content") or ""


def _tokens(told: Any) -> Iterator[Token]:
    """Tokens with log-probabilities, in the form of chats or of the old completions."""
    if not told:
        return
    if told.get("content") is not None:
        for entry in told["content"]:
            top = tuple((_text(e), _logp(e["logprob"])) for e in entry.get("top_logprobs") or ())
            yield Token(_text(entry), _logp(entry["logprob"]), top)
        return
    tokens, logps = told.get("tokens") or [], told.get("token_logprobs") or []
    tops = told.get("top_logprobs") or [None] * len(tokens)
    for token, logp, likely in zip(tokens, logps, tops, strict=True):
        top = tuple((t.encode(), _logp(value)) for t, value in (likely or {}).items())
        yield Token(token.encode(), _logp(logp), tuple(sorted(top, key=lambda pair: -pair[1])))


def _text(entry: Mapping[str, Any]) -> bytes:
    told = entry.get("bytes")
    return bytes(told) if told is not None else entry["token"].encode()


def _logp(told: Any) -> float:
    """A log-probability; 0 for the first token of a prompt, of which nothing can be said."""
    if told is None:
        return 0.0
    value = float(told)
    if math.isnan(value) or value > 1e-3:
        raise ValueError(f"log-probability {told!r}")
    return min(0.0, max(value, -1e4))


def _matched(tokens: tuple[Token, ...], text: bytes) -> tuple[Token, ...]:
    """Tokens whose texts make up the text: where the endpoint's do not, the last one has it all,
    since a character may be cut into several."""
    if not tokens:
        return (Token(text),) if text else ()
    if b"".join(token.text for token in tokens) == text:
        return tokens
    return (*(t._replace(text=b"") for t in tokens[:-1]), tokens[-1]._replace(text=text))


def _context(entry: Mapping[str, Any]) -> int | None:
    """Tokens of context by the words of vLLM and Anabranch, or of llama-server."""
    meta = entry.get("meta")
    told = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return told if type(told) is int and 16 <= told <= 1 << 24 else None

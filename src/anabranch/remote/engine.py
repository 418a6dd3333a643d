"""Branches over a model behind an endpoint: the engine's requests, answered over HTTP.

Tree, branches, budgets and traces are the engine's own. A path holds turns and pieces of text: what
the endpoint told as tokens when they were drawn, and what an estimate cuts given text into.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from anabranch.backends.base import PAGE_SLOTS
from anabranch.backends.philox import derive
from anabranch.engine.core import EngineCore
from anabranch.engine.requests import Draw, Look, Peeked, Request, Result, Sampling, Score
from anabranch.errors import InputError, RemoteError
from anabranch.program.branch import Branch
from anabranch.program.engine import Engine, Prompt
from anabranch.remote.endpoint import Capabilities, Chunk, Endpoint, Token, Turns
from anabranch.remote.wire import TRIES, BrokenError, pause, retrying

END, ROLES = 0, ("system", "user", "assistant")
"""Tokens 0 to 3: the end of a turn, and the beginnings of turns by these."""

VOCABULARY = 1 << 31
"""More pieces than will ever be told apart."""

_PIECE = re.compile(r" ?[A-Za-z]{1,8}|\s+|.", re.DOTALL)

PERIOD = 0.1
"""Seconds between two looks at the clock of a budget."""

LACKS = {
    "scoring": ("tell the log-probabilities of given text", "a judge that asks for none"),
    "logprobs": ("tell log-probabilities", "a judge that needs none, such as agreement"),
    "constraints": ("restrict what is written (extend(allow=...))", "a method without grammar"),
    "blending": ("blend branches (extend(blend=...))", "vote or best"),
    "hidden": ("show hidden states", "a judge that needs none"),
}


class Pieces:
    """Text as tokens: pieces of it by number, in the order in which they first came up.

    How many there are is an estimate of how many the model's own tokens would be, rather high.
    """

    vocab_size = VOCABULARY
    ends = frozenset({END})

    def __init__(self) -> None:
        self._texts = [b""] * (1 + len(ROLES))
        self._ids: dict[bytes, int] = {}

    def id(self, piece: bytes) -> int:
        """A piece's number."""
        if piece not in self._ids:
            self._ids[piece] = len(self._texts)
            self._texts.append(piece)
        return self._ids[piece]

    def token_bytes(self, token: int) -> bytes:
        """The piece of a number; nothing for what begins and ends turns."""
        return self._texts[token]

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """The pieces of a text. Raises InputError where it is no valid Unicode."""
        try:
            return [self.id(piece.encode()) for piece in _PIECE.findall(text)]
        except UnicodeEncodeError:
            raise InputError("the text is not valid Unicode", got=text) from None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of pieces."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def prompt(self, text: str) -> list[int]:
        """Text as a prompt."""
        return self.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True) -> list[int]:
        """A conversation, by default up to where the next reply begins."""
        tokens = []
        for message in messages:
            role = message.get("role", "")
            if role not in ROLES or not isinstance(message.get("content"), str):
                raise InputError("a message is none", got=message, allowed=f"role {ROLES}, content")
            tokens += [1 + ROLES.index(role), *self.encode(message["content"]), END]
        return [*tokens, 1 + ROLES.index("assistant")] if generate else tokens

    def turns(self, path: Sequence[int]) -> Turns:
        """What stands on a path; one turn with the role "" where it is text without turns."""
        turns: list[tuple[str, list[int]]] = []
        for token in path:
            if 1 <= token <= len(ROLES):
                turns.append((ROLES[token - 1], []))
            elif token != END:
                if not turns:
                    turns.append(("", []))
                turns[-1][1].append(token)
        return tuple((role, self.decode(tokens)) for role, tokens in turns)


class RemoteEngine(Engine):
    """An engine whose model is behind an endpoint.

    What is different from a local one: log-probabilities and distributions are what the endpoint
    tells of them, drawing again may give other words, and given text is counted by an estimate.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        can = endpoint.can
        config = SimpleNamespace(architecture="remote", vocab=VOCABULARY, context=can.context)
        decoder: Any = SimpleNamespace(config=config, backend=endpoint, cache=lambda pages: None)
        self.pieces = Pieces()
        self.endpoint = endpoint
        core = EngineCore(decoder, pages=-(-can.context // PAGE_SLOTS))
        super().__init__(core, cast(Any, self.pieces))

    def open(self, prompt: Prompt, **options: Any) -> Branch:
        """See `Engine.open`."""
        branch = super().open(prompt, **options)
        branch.run.remark(_note(self.endpoint.can))
        return branch

    def require(self, what: str) -> None:
        """Raise UnsupportedError where the endpoint lacks it."""
        can = self.endpoint.can
        here = {"scoring": can.scores is not None, "logprobs": can.top is not None}
        if not here.get(what):
            raise self.endpoint.lack(*LACKS[what])

    async def perform(
        self, request: Request, *, priority: float, deadline: float, group: str
    ) -> None:
        """Answer one request over HTTP; the connection is closed where nobody wants it any more.

        Raises:
            RemoteError, UnsupportedError: it cannot be answered.
        """
        work = asyncio.ensure_future(self._answer(request))

        def finish() -> None:  # its branch is dropped
            work.cancel()

        request.finish = finish
        try:
            while not (await asyncio.wait({work}, timeout=PERIOD))[0]:
                if request.expired():
                    work.cancel()
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    async def _answer(self, request: Request) -> None:
        if isinstance(request, Draw):
            await self._draw(request)
        elif isinstance(request, Look):
            await self._look(request)
        elif isinstance(request, Score):
            await self._score(request)

    # ---- drawing -------------------------------------------------------------------------------

    async def _draw(self, request: Draw) -> None:
        """Take tokens as they come. What breaks off is gone on with from what has come."""
        tried, start = 0, request.cursor.position
        while not request.done:
            before = request.cursor.position
            try:
                await self._reply(request, start + request.most - before)
            except BrokenError as error:
                tried = 1 if request.cursor.position > before else tried + 1
                if tried >= TRIES:
                    raise
                await pause(tried, error)

    async def _reply(self, request: Draw, room: int) -> None:
        """One reply, of which tokens are taken up to its end, or to where nobody wants more."""
        cursor, taken = request.cursor, 0
        held: Token | None = None  # an empty piece is the end's, if nothing follows
        seed = derive(cursor.key, cursor.position) & 0x7FFFFFFF
        chunk, finish, written = Chunk((), None, None), None, None
        stream = self.endpoint.reply(
            self.pieces.turns(cursor.path()),
            request.sampling,
            limit=room,
            seed=seed,
            top=request.top,
        )
        async with contextlib.aclosing(stream) as chunks:
            async for chunk in chunks:
                finish, written = chunk.finish or finish, chunk.written or written
                for token in chunk.tokens:
                    if held is not None:
                        self._take(request, held)
                        taken, held = taken + 1, None
                    if request.done:
                        return
                    if token.text:
                        self._take(request, token)
                        taken += 1
                    else:
                        held = token
                if request.done:
                    return
        if finish is None:
            raise BrokenError(f"{self.endpoint.wire.url} broke off within a reply")
        # Tokens that came without text of their own, several at once.
        most = room if written is None else min(room, written)
        end = finish != "length"
        untold = (0 if written is None else most - taken - 1) if end else most - taken
        for _ in range(untold):
            if not request.done:
                self._take(request, Token(b""))
        if end and not request.done:
            self._take(request, held or Token(b""), end=True)
        elif taken + untold <= 0 and not request.done:
            raise RemoteError(f"{self.endpoint.wire.url} ends replies at a limit of its own")

    def _take(self, request: Draw, token: Token, end: bool = False) -> None:
        result = self._result(END if end else self.pieces.id(token.text), token, request.sampling)
        self.core.tree.append(request.cursor, [result.token])
        request.accept(result)

    def _result(self, piece: int, token: Token, sampling: Sampling | None = None) -> Result:
        # The endpoint tells no proposal, but at temperature 0 and 1 it is known.
        logq = 0.0 if sampling is None or sampling.temperature == 0 else token.logp
        top = tuple((self.pieces.id(text), logp) for text, logp in token.top)
        return Result(piece, token.logp, logq, _entropy(token), 0.0, top)

    # ---- looking -------------------------------------------------------------------------------

    async def _look(self, request: Look) -> None:
        """The likeliest tokens, as far as they are told."""
        if request.wants_hidden:
            self.require("hidden")
        self.require("logprobs")
        turns = self.pieces.turns(request.cursor.path())

        async def once() -> Token:
            stream = self.endpoint.reply(turns, Sampling(0.0), limit=1, seed=0, top=request.top)
            async with contextlib.aclosing(stream) as chunks:
                async for chunk in chunks:
                    if chunk.tokens:
                        return chunk.tokens[0]
            raise BrokenError(f"{self.endpoint.wire.url} told no log-probabilities")

        token = await retrying(once)
        likely = self._result(END, token).top or ((self.pieces.id(token.text), token.logp),)
        tokens, logps = zip(*likely, strict=True)
        request.accept(Peeked(tokens, logps, _entropy(token), None))

    async def _score(self, request: Score) -> None:
        """What is told of given text, shared out evenly over our pieces of it; 0 where turns are
        given, or nothing is told."""
        cursor, given = request.cursor, list(request.given.values())
        total = 0.0
        if self.endpoint.can.scores and min(given) > len(ROLES):
            start = min(request.given) + 1
            turns = self.pieces.turns(cursor.path()[:start])
            told = await self.endpoint.score(turns, self.pieces.decode(given))
            total = math.fsum(token.logp for token in told)
        for row, piece in list(request.given.items()):
            request.accept(row, Result(piece, total / len(given), 0.0, 0.0))


def _note(can: Capabilities) -> str:
    """What a reader of an answer should know of where it comes from."""
    said = "the same seed may give another answer"
    if can.repeats:
        said += " (in a try it gave the same words)"
    notes = [f"a remote endpoint: {said}; given text is counted by an estimate"]
    if can.api == "completions" and can.tokenizes is None:
        notes.append("it gives no chat template: turns are written as User: and Assistant:")
    if can.top is None:
        notes.append("it tells no log-probabilities: they stand as 0")
    return "; ".join(notes)


def _entropy(token: Token) -> float:
    """Of the likeliest tokens, the rest taken for one: at most that of the whole; nats."""
    shares = [math.exp(logp) for _, logp in token.top]
    rest = max(0.0, 1 - math.fsum(shares))
    return -math.fsum(p * math.log(p) for p in (*shares, rest) if p > 0) if shares else 0.0

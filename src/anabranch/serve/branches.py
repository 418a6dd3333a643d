"""`/v1/branches`: the primitives of branching programs, for who writes a search of his own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.derived import Norm, score
from anabranch.program.types import Mark, Step
from anabranch.serve.admission import Terms
from anabranch.serve.calls import current
from anabranch.serve.chat import Message, conversation
from anabranch.serve.errors import Refusal
from anabranch.serve.generate import begun, rule_of, sampling_of
from anabranch.serve.own import own
from anabranch.serve.sessions import MOST_DEPTH, Session
from anabranch.serve.stream import events, first, unless_gone
from anabranch.serve.wire import (
    DELETED,
    Body,
    Drawn,
    Name,
    Priority,
    Seed,
    Spend,
    Structured,
    Tokens,
    Turn,
    or_stream,
    shape,
)

routes = APIRouter()

T = TypeVar("T")
Secret = Annotated[str | None, Header(alias="X-Session-Secret", max_length=200)]
Ids = Annotated[list[int], Field(min_length=1, max_length=1 << 20)]
Said = Annotated[str, Field(min_length=1)]
Top = Annotated[int, Field(ge=0, le=100)]


class Open(Body):
    """A root after a prompt: one of messages, prompt, tokens.

    Attributes:
        session: one that is open already, for another root in it; its secret goes along.
        budget: of the session, all branches together.
        lease: seconds without use after which the session ends.
        priority: of the session, as a request's.
    """

    model: Name | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    prompt: Said | None = None
    tokens: Ids | None = None
    session: Annotated[str, Field(max_length=100)] | None = None
    seed: Seed = 0
    budget: Spend | None = None
    lease: Annotated[float, Field(ge=1, le=3600)] | None = None
    priority: Priority = 0


class Fork(Body):
    """New branches at the tip, or at an earlier position of the path."""

    n: Annotated[int, Field(ge=1, le=4096)] = 1
    at: Annotated[int, Field(ge=1, le=1 << 30)] | None = None


class Extend(Drawn):
    """As `Branch.extend`.

    Attributes:
        until: texts that end it; with `keep` false, what comes from there on is cut off.
        allow: a rule for the text since this step's beginning, or since a position before it.
    """

    limit: Tokens = 256
    until: Said | Annotated[list[Said], Field(max_length=16)] | None = None
    keep: bool = True
    allow: Structured | None = None
    since: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    top: Top = 0
    stream: bool = False


class Force(Body):
    """Text or tokens to append, as `Branch.force`."""

    text: Said | None = None
    tokens: Ids | None = None
    heal: bool = True
    top: Top = 0


class Options(Body):
    """Continuations to compare."""

    options: Annotated[list[Said], Field(min_length=1, max_length=256)]
    norm: Norm = "sum"


class Peek(Body):
    """The distribution at the tip."""

    top: Annotated[int, Field(ge=1, le=1000)] = 20
    hidden: bool = False


_BRANCH = shape("branch", id="string", session="string", parent="string null", origin="integer",
                position="integer", text="string", last="object null")  # fmt: skip
_STEP = shape("step", branch="string", text="string", stop="string", start="integer",
              end="integer", tokens="array", logps="array", entropies="array", logp="number null",
              logq="number null", logw="number null", proper="boolean",
              usage="object")  # fmt: skip
_SESSION = shape("session", id="string", model="string", lease="number", usage="object",
                 left_tokens="number null", left_seconds="number null",
                 branches="array")  # fmt: skip


@routes.post("/v1/branches", responses=_BRANCH)
async def open_branch(body: Open, request: Request, secret: Secret = None) -> dict[str, Any]:
    """Open a root, in a new session if none is named. Its secret is told this once."""
    state, sessions = request.app.state, own(request).sessions
    current().account.check()
    given = [body.messages, body.prompt, body.tokens]
    if sum(each is not None for each in given) != 1:
        raise Refusal(400, "give one of messages, prompt and tokens", param="prompt")
    if body.session is not None:
        session = sessions.find(body.session, secret)
        terms = body.budget or body.lease or body.priority
        if terms or body.model not in (None, session.served.name):
            raise Refusal(
                400, "model, budget, lease and priority are the session's", param="session"
            )
    else:
        if body.model is None:
            raise Refusal(400, "model is missing", param="model")
        served, named = state.hub.find(body.model)
        if named is not None:
            raise Refusal(400, "strategies do not go with branches", param="model")
        spend, most = body.budget or Spend(), state.settings.session_tokens
        budget = Budget(min(spend.tokens or most, most), spend.seconds)
        current().wants(Turn(priority=body.priority))
        session = Session(served, body.seed, budget, body.lease or LEASE)
    tokens = await _prompt(body, session)
    sessions.check_room(session, 1)
    branch = session.served.lm.engine.open(tokens, seed=body.seed, run=session.run)
    told = {}
    if body.session is None:
        try:
            sessions.add(session)
        except Refusal:
            branch.drop()
            raise
        told = {"secret": session.secret}
    session.branches[branch.id] = branch
    session.charge()
    return {**_branch(session, branch), **told, "lease": session.lease}


@routes.get("/v1/sessions/{session}", responses=_SESSION)
async def session_state(session: str, request: Request, secret: Secret = None) -> dict[str, Any]:
    """What a session has spent, and its branches."""
    found = own(request).sessions.find(session, secret)
    budget = found.run.budget
    return _finite(
        {
            "id": found.id,
            "object": "session",
            "model": found.served.name,
            "lease": found.lease,
            "left_tokens": budget.left_tokens,
            "left_seconds": None if math.isinf(budget.left_seconds) else budget.left_seconds,
            "usage": dataclasses.asdict(found.run.usage),
            "branches": [_branch(found, branch) for branch in found.branches.values()],
        }
    )


@routes.delete("/v1/sessions/{session}", responses=DELETED)
async def end_session(session: str, request: Request, secret: Secret = None) -> dict[str, Any]:
    """Free all branches of a session."""
    sessions = own(request).sessions
    found = sessions.find(session, secret)
    sessions.end(found)
    return {"id": found.id, "object": "session", "deleted": True}


@routes.get("/v1/branches/{name}", responses=_BRANCH)
async def branch_state(
    name: str, request: Request, tokens: bool = False, secret: Secret = None
) -> dict[str, Any]:
    """Where a branch stands; with `tokens`, its whole path."""
    session, branch = _find(name, request, secret)
    path = {"tokens": branch.tokens} if tokens else {}
    return {**_branch(session, branch), **path}


@routes.delete("/v1/branches/{name}", responses=DELETED)
async def drop(name: str, request: Request, secret: Secret = None) -> dict[str, Any]:
    """Free a branch; what runs on it ends as "dead"."""
    session, branch = _find(name, request, secret)
    session.drop(branch)
    return {"id": name, "object": "branch", "deleted": True}


@routes.post("/v1/branches/{name}/fork", responses=shape("list", data="array"))
async def fork(name: str, body: Fork, request: Request, secret: Secret = None) -> dict[str, Any]:
    """New branches. Nothing is computed."""
    session, branch = _find(name, request, secret)
    own(request).sessions.check_room(session, body.n)
    if branch.id.count(".") >= MOST_DEPTH:
        raise Refusal(400, f"forked {MOST_DEPTH} times below each other: open its tokens anew")
    children = branch.fork(body.n, at=None if body.at is None else Mark(branch.id, body.at))
    session.branches |= {child.id: child for child in children}
    return {"object": "list", "data": [_branch(session, child) for child in children]}


@routes.post(
    "/v1/branches/{name}/extend",
    response_model=None,
    responses=or_stream(_STEP),
)
async def extend(name: str, body: Extend, request: Request, secret: Secret = None) -> Response:
    """Sample tokens."""
    session, branch = _find(name, request, secret)
    rule = await begun(rule_of(body.allow), session.served.lm.tokenizer)
    since = None if body.since is None else Mark(branch.id, body.since)
    if since is not None and (rule is None or body.stream):
        raise Refusal(400, "since goes with allow, and without stream", param="since")
    options: dict[str, Any] = {
        "until": body.until,
        "keep": body.keep,
        "allow": rule,
        "top": body.top,
        **sampling_of(body, session.served.lm.tokenizer),
    }
    if body.stream:
        chunks = _pieces(session, branch, Terms.of(request), body.limit, options)
        return events(await unless_gone(request, first(chunks)))
    return await _done(
        session, branch, request, lambda: branch.extend(body.limit, since=since, **options)
    )


@routes.post("/v1/branches/{name}/force", responses=_STEP)
async def force(name: str, body: Force, request: Request, secret: Secret = None) -> Response:
    """Append text or tokens, and tell their log-probabilities."""
    session, branch = _find(name, request, secret)
    content = body.text if body.tokens is None else body.tokens
    if content is None or (body.text is not None and body.tokens is not None):
        raise Refusal(400, "give either text or tokens", param="text")
    return await _done(
        session, branch, request, lambda: branch.force(content, heal=body.heal, top=body.top)
    )


@routes.post(
    "/v1/branches/{name}/score", responses=shape("scores", branch="string", scores="array")
)
async def score_options(
    name: str, body: Options, request: Request, secret: Secret = None
) -> Response:
    """Log-probabilities of continuations; the branch stays as it is."""
    session, branch = _find(name, request, secret)
    with session.working(branch):
        own(request).sessions.check_room(session, len(body.options))
        scores = await _within(
            request, session, lambda: score(branch, body.options, norm=body.norm)
        )
    return JSONResponse(_finite({"object": "scores", "branch": name, "scores": scores}))


@routes.post(
    "/v1/branches/{name}/peek",
    responses=shape("peek", branch="string", entropy="number null", next="array"),
)
async def peek(name: str, body: Peek, request: Request, secret: Secret = None) -> Response:
    """The likeliest next tokens; the branch stays as it is."""
    session, branch = _find(name, request, secret)
    top = min(body.top, session.served.lm.engine.core.decoder.config.vocab)
    with session.working(branch):
        seen = await _within(request, session, lambda: branch.peek(top, hidden=body.hidden))
    told = {
        "object": "peek",
        "branch": name,
        "entropy": seen.entropy,
        "next": [
            _token(session, token, logp)
            for token, logp in zip(seen.tokens, seen.logps, strict=True)
        ],
    }
    if body.hidden:
        told["hidden"] = seen.hidden.tolist()
    return JSONResponse(_finite(told))


LEASE = 60.0
"""Seconds, where none are asked for."""


async def _prompt(body: Open, session: Session) -> list[int]:
    lm = session.served.lm
    if body.messages is not None:
        return await session.served.render(conversation(body.messages, None))
    if body.prompt is not None:
        return lm.tokenizer.prompt(body.prompt)
    return lm.engine.encode(body.tokens or [])


async def _within(request: Request, session: Session, work: Callable[[], Awaitable[T]]) -> T:
    """Work with a place and for the time of a request, ended when the client leaves."""
    terms = Terms.of(request)

    async def placed() -> T:
        async with terms.admission.place(), asyncio.timeout(terms.seconds):
            session.charge()
            return await work()

    return await unless_gone(request, placed())


async def _done(
    session: Session, branch: Branch, request: Request, work: Callable[[], Awaitable[Step]]
) -> Response:
    """The response of an operation that makes a step."""
    with session.working(branch):
        return JSONResponse(_step(session, branch, await _within(request, session, work)))


async def _pieces(
    session: Session, branch: Branch, terms: Terms, limit: int, options: dict[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """What a step comes by, then the step."""
    told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def write() -> None:
        async with (
            terms.admission.place(),
            asyncio.timeout(terms.seconds),
            contextlib.aclosing(branch.pieces(limit, **options)) as pieces,
        ):
            session.charge()
            async for piece in pieces:
                likely = [_token(session, r.token, r.logp) for r in piece.results]
                told.put_nowait({"object": "piece", "text": piece.text, "tokens": likely})
        assert branch.last is not None
        told.put_nowait(_step(session, branch, branch.last))

    with session.working(branch):
        work = asyncio.ensure_future(write())
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (event := await told.get()) is not None:
                yield _finite(event)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        await work


def _find(name: str, request: Request, secret: str | None) -> tuple[Session, Branch]:
    session, _, rest = name.partition(".")
    found = own(request).sessions.find(session, secret)
    return found, found.branch(rest)


def _branch(session: Session, branch: Branch) -> dict[str, Any]:
    parent, last = branch.parent, branch.last
    return {
        "id": f"{session.id}.{branch.id}",
        "object": "branch",
        "session": session.id,
        "parent": None if parent is None else f"{session.id}.{parent.id}",
        "origin": branch.origin,
        "position": branch.mark.position,
        "text": branch.text,
        "last": last
        and {"stop": last.stop, "start": last.start.position, "end": last.end.position},
    }


def _step(session: Session, branch: Branch, step: Step) -> dict[str, Any]:
    told = {
        "object": "step",
        "branch": f"{session.id}.{branch.id}",
        "text": step.text,
        "stop": step.stop,
        "start": step.start.position,
        "end": step.end.position,
        "tokens": list(step.tokens),
        "logps": list(step.logps),
        "entropies": list(step.entropies),
        "logp": step.logp,
        "logq": step.logq,
        "logw": step.logw,
        "proper": step.proper,
        "usage": dataclasses.asdict(step.usage),
    }
    if step.tops:
        told["tops"] = [[_token(session, *each) for each in top] for top in step.tops]
    return _finite(told)


def _token(session: Session, token: int, logp: float) -> dict[str, Any]:
    return {"token": token, "text": session.served.lm.engine.text_of([token]), "logp": logp}


def _finite(told: T) -> T:
    """The same with null for what is no number: JSON has no infinities."""
    found: Any = told
    if isinstance(told, dict):
        found = {name: _finite(value) for name, value in told.items()}
    elif isinstance(told, list):
        found = [_finite(value) for value in told]
    elif isinstance(told, float) and not math.isfinite(told):
        found = None
    return cast(T, found)

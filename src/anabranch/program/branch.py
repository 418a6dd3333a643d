"""The handle a program thinks with: a path in the token tree that it alone may grow."""

from __future__ import annotations

import asyncio
import bisect
import codecs
import contextlib
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from anabranch.backends.philox import derive
from anabranch.engine.constraints import Constraint
from anabranch.engine.requests import Draw, Look, Read, Request, Result, Sampling, Score
from anabranch.engine.tree import Cursor
from anabranch.errors import ContextError, InputError, check_range
from anabranch.program.run import Run
from anabranch.program.shape import Shape
from anabranch.program.types import Mark, Next, Piece, Step, Stop, Until, Usage

if TYPE_CHECKING:
    from anabranch.program.engine import Engine

MOST_FORKS = 4096
"""Most branches one call of `fork` makes."""


class Branch:
    """A path from the root of the token tree to a tip that this branch alone may move.

    Its tokens and log-probabilities depend on the weights, the tokens of its path, its sampling
    parameters and its key; not on what else runs, how prompts were chunked, what was cached, or on
    the number of threads.

    Attributes:
        id: path of fork indices ("0.3.1"): names the branch in the trace; with the seed it keys
            the random stream.
        parent: the branch it was forked from.
        run: the program it belongs to.
        live: not dropped yet.
        last: the last step taken, or None.
        origin: position where its path left its parent's (root: end of the prompt).
    """

    def __init__(
        self,
        engine: Engine,
        run: Run,
        cursor: Cursor,
        name: str,
        *,
        parent: Branch | None = None,
        prompt_end: int | None = None,
        priority: float = 0.0,
        deadline: float = float("inf"),
        group: str = "",
    ) -> None:
        self.engine, self.run, self.id, self.parent = engine, run, name, parent
        self.live = True
        self.last: Step | None = None
        self._cursor = cursor
        self.origin = cursor.position
        self._prompt_end = cursor.position if prompt_end is None else prompt_end
        self._priority, self._deadline, self._group = priority, deadline, group
        self._forks = 0
        self._pending: Request | None = None
        self._said: list[int] = []
        run.live.add(self)
        engine.activity += 1

    def __repr__(self) -> str:
        state = "" if self.live else ", dropped"
        return f"<Branch {self.id}, {self._cursor.position} tokens{state}>"

    # ---- where it stands -----------------------------------------------------------------------

    @property
    def tokens(self) -> list[int]:
        """Token ids of the whole path, the prompt included. Raises InputError once dropped."""
        self._alive()
        return self._cursor.path()

    @property
    def text(self) -> str:
        """Text of everything on the path after the prompt; a dropped branch keeps it."""
        said = self._cursor.path(self._prompt_end) if self.live else self._said
        return self.engine.text_of(said)

    @property
    def mark(self) -> Mark:
        """The tip, as a place to fork from later."""
        return Mark(self.id, self._cursor.position)

    @property
    def opening(self) -> Mark:
        """The end of the prompt, where its text begins, as a place to fork from."""
        return Mark(self.id, self._prompt_end)

    # ---- fork and drop -------------------------------------------------------------------------

    @overload
    def fork(self, n: None = None, *, at: Mark | None = None) -> Branch: ...
    @overload
    def fork(self, n: int, *, at: Mark | None = None) -> list[Branch]: ...
    def fork(self, n: int | None = None, *, at: Mark | None = None) -> Branch | list[Branch]:
        """New branches at the tip, or at an earlier mark of the path. Nothing is computed.

        The k-th child ever forked from a branch has the id `<id>.<k>` and a random stream of its
        own, derived from its parent's.

        Raises:
            InputError: the branch was dropped, `n` is out of range, or the mark is not on its path.
        """
        self._alive()
        if n is not None:
            check_range("number of forks", n, 1, MOST_FORKS)
        position = self._cursor.position if at is None else self._locate(at)
        children = [self._child(position) for _ in range(1 if n is None else n)]
        return children[0] if n is None else children

    def drop(self, reason: str = "", *, forget: bool = False) -> None:
        """End the branch and unpin its pages. Dropping twice is harmless.

        An operation still pending on it returns with `stop="dead"`.

        Args:
            forget: do not keep its text.
        """
        if not self.live:
            return
        self.live = False
        self._said = [] if forget else self._cursor.path(self._prompt_end)
        self.run.live.discard(self)
        self.engine.activity += 1
        if self._pending is not None:
            self.engine.core.cancel(self._pending)
            self._pending.finish()
        self.engine.core.tree.drop(self._cursor)
        self.run.note("drop", branch=self.id, reason=reason)

    def _child(self, position: int) -> Branch:
        index = self._forks
        self._forks += 1
        cursor = self.engine.core.tree.fork(self._cursor, derive(self._cursor.key, index), position)
        child = Branch(
            self.engine,
            self.run,
            cursor,
            f"{self.id}.{index}",
            parent=self,
            prompt_end=min(self._prompt_end, position),
            priority=self._priority,
            deadline=self._deadline,
            group=self._group,
        )
        self.run.note("fork", branch=child.id, parent=self.id, position=position)
        return child

    def _locate(self, mark: Mark) -> int:
        """The mark's position, if it lies on this path."""
        branch: Branch | None = self
        limit = self._cursor.position
        while branch is not None and branch.id != mark.branch:
            limit = min(limit, branch.origin)
            branch = branch.parent
        if branch is None or not 1 <= mark.position <= limit:
            raise InputError(
                "the mark is not on this branch's path",
                got=mark,
                allowed=f"positions 1 to {limit} of {self.id} or its ancestors",
            )
        return mark.position

    # ---- grow ----------------------------------------------------------------------------------

    async def extend(
        self,
        limit: int = 256,
        *,
        until: Until = None,
        keep: bool = True,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        bias: Mapping[int, float] | None = None,
        allow: Constraint | None = None,
        since: Mark | None = None,
        blend: Mapping[Branch, float] | None = None,
        top: int = 0,
    ) -> Step:
        """Sample up to `limit` tokens.

        Equal, draw for draw, to a loop of peek, sample, force one token. Stops at the model's own
        end (that token is on the path, and has no text), at `limit` or the end of the context
        ("limit"), when the budget is over ("budget", possibly without a token), or at `until`.

        Args:
            until: a text, texts, pattern, or test of the step so far; looked for in the text of
                this step, wherever token borders fall.
            keep: whether the token that completed `until` stays whole. False cuts the step back to
                the last token border at or before the match (texts and patterns only).
            temperature, top_p, top_k, min_p: shape the proposal (`Sampling`).
            repetition_penalty, presence_penalty, frequency_penalty, bias: likewise.
            allow: what may be written (`engine.constraints`, `engine.grammar`). The step then ends
                with "complete" when the text can only end, "stuck" when nothing may come. A weight
                `logw` of minus infinity says that the text has no completion.
            since: where the constrained text begins, at this step or before it.
            blend: branches of this program, this one among them, with exponents: the target is the
                product of their distributions to these powers, and all are advanced by the tokens
                drawn, each charged.
            top: how many of the likeliest tokens to report with each one drawn.

        With `allow` or `blend`, `logw` weighs the step against that target, unnormalised: particles
        resampled by it follow the target as a whole, not token by token.

        Raises:
            InputError: a parameter is out of range, or another operation is pending.
        """
        sampling = Sampling(
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            bias or {},
        )
        shape = self._shape(allow, since, blend) if allow or blend else None
        return await self._extend(limit, until, keep, sampling, None, shape, top)

    async def stream(self, limit: int = 256, **options: Any) -> AsyncGenerator[str]:
        """The texts of `pieces` that have any."""
        async with contextlib.aclosing(self.pieces(limit, **options)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece.text

    async def pieces(
        self,
        limit: int = 256,
        *,
        until: Until = None,
        keep: bool = True,
        allow: Constraint | None = None,
        top: int = 0,
        **sampling: Any,
    ) -> AsyncGenerator[Piece]:
        """`extend`, piece by piece: complete characters as they come. `last` holds the step after.

        With texts in `until`, what may become one of them is held back.
        Who leaves the loop early closes the iterator (`contextlib.aclosing`) to cancel the rest.
        """
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        shape = self._shape(allow, None, None) if allow else None
        work = asyncio.ensure_future(
            self._extend(limit, until, keep, Sampling(**sampling), pieces.put_nowait, shape, top)
        )
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        await work

    async def force(self, content: str | Sequence[int], *, heal: bool = True, top: int = 0) -> Step:
        """Append given text or tokens; the step holds their exact log-probabilities.

        All or nothing: when the budget does not cover them, nothing is appended and `stop` is
        "budget".

        Args:
            heal: where the tokenizer would cut the last token written and the text together
                otherwise than one by one ("\\n" and "\\n"), take that token back and append both
                as it would. The step begins before it then, and its `logp` counts it once.
            top: how many of the likeliest tokens to report at the place of each.

        Raises:
            ContextError: they do not fit.
            InputError: token ids outside the vocabulary, or another operation is pending.
        """
        tokens = self.engine.encode(content)
        self._check_top(top)
        self._ready()
        start, taken_back = self._cursor.position, 0.0
        if heal and isinstance(content, str) and (joint := self._heal(content)) is not None:
            tokens, taken_back = joint
            start -= 1
        room = self.engine.core.capacity - start
        if len(tokens) > room:
            raise ContextError(
                "the forced text does not fit", got=f"{len(tokens)} tokens", allowed=f"{room}"
            )
        budget = self.run.budget
        granted = budget.reserve(len(tokens))
        if granted < len(tokens) or not tokens:
            budget.settle(granted, 0)
            return self._note_step(
                "force", self._step(_Writer(self), "budget" if tokens else "forced")
            )
        budget.settle(granted, granted)
        if start < self._cursor.position:
            self._rewind(start)
        writer = _Writer(self)
        held = self.engine.core.tree.append(self._cursor, tokens)
        self.run.forced_tokens += len(tokens)
        self.run.cost.cached += held
        request = Score(self._cursor, start, tokens, top=top)
        request.cost.cached += held
        await self._perform(request)
        if not self.live:
            return self._step(writer, "dead", request)
        for result in request.ordered():
            writer.add(result)
        step = self._step(writer, "forced", request)
        step = replace(step, taken_back=taken_back)
        said = content if isinstance(content, str) else step.text
        return self._note_step("force", step, said)

    async def peek(self, top: int = 20, *, hidden: bool = False) -> Next:
        """The distribution at the tip, unsampled; the branch stays as it is.

        Args:
            top: how many of the likeliest tokens to report.
            hidden: report the final normalised hidden state too.
        """
        check_range("top", top, 1, self.engine.core.decoder.config.vocab)
        self._ready()
        request = Look(self._cursor, top, hidden)
        await self._perform(request)
        if request.result is None:
            raise InputError("the branch was dropped while it was looked at", got=self.id)
        self.run.note("peek", branch=self.id, position=self._cursor.position)
        return Next(*request.result)

    # ---- inside --------------------------------------------------------------------------------

    async def _extend(
        self,
        limit: int,
        until: Until,
        keep: bool,
        sampling: Sampling,
        on_piece: Callable[[Piece], None] | None,
        shape: Shape | None = None,
        top: int = 0,
    ) -> Step:
        check_range("limit", limit, 1, 2**31 - 1)
        self._check_top(top)
        sampling.check(self.engine.core.decoder.config.vocab)
        stop_at = _Condition(until, keep)
        members = shape.members if shape else [self]
        for branch in members:
            branch._ready()
        budget = self.run.budget
        room = self.engine.core.capacity - max(b._cursor.position for b in members)
        wanted = min(limit, room)
        writer = _Writer(self, stop_at, _told(on_piece, self))
        request = Draw(self._cursor, sampling, writer.draw, prompt_end=self._prompt_end, top=top)
        request.expired = lambda: budget.left_seconds <= 0
        reserved = budget.reserve(wanted * len(members)) if wanted else 0
        granted = writer.limit = request.most = reserved // len(members)
        stop: Stop = "limit" if granted == wanted else "budget"
        if granted:
            try:
                if shape is None:
                    await self._perform(request)
                else:
                    writer.stop = await shape.write(request) or writer.stop
            except asyncio.CancelledError:
                self._note_step("extend", self._step(writer, "dead", request))
                raise
            finally:
                budget.settle(reserved, writer.drawn * len(members))
                self.run.sampled_tokens += writer.drawn
                self.run.forced_tokens += writer.drawn * (len(members) - 1)
            if writer.drawn < granted:
                stop = "budget" if all(b.live for b in members) else "dead"
        else:
            budget.settle(reserved, 0)
        stop = writer.stop or stop
        if self.live:
            writer.close(keep)
            if shape is not None:
                shape.trim(writer.text, len(writer.results))
        step = self._step(writer, stop, request, proper=sampling.proper)
        return self._note_step("extend", step)

    def _heal(self, text: str) -> tuple[list[int], float] | None:
        """The last token written and a text, cut together, and that token's log-probability; None
        where that changes nothing."""
        position, branch = self._cursor.position, self
        while branch.last is None and branch.parent is not None and branch.origin == position:
            branch = branch.parent
        last = branch.last
        if last is None or not last.tokens or last.end.position != position:
            return None
        try:
            before = self.engine.tokenizer.token_bytes(last.tokens[-1]).decode()
        except UnicodeDecodeError:
            return None
        joint = self.engine.encode(before + text) if before else []
        if not joint or joint == [last.tokens[-1], *self.engine.encode(text)]:
            return None
        return joint, last.logps[-1]

    def _shape(
        self, allow: Constraint | None, since: Mark | None, blend: Mapping[Branch, float] | None
    ) -> Shape:
        self._ready()
        self.engine.require("constraints" if allow is not None else "blending")
        begin = self._cursor.position if since is None else self._locate(since)
        return Shape(self, allow, self._cursor.path(begin), blend)

    async def _perform(self, request: Request) -> None:
        self._pending = request
        try:
            await self._run(request)
        finally:
            self._release()

    async def _run(self, request: Request) -> None:
        if not self.live:  # dropped since the request was made
            return
        request.total = self.run.cost
        await self.engine.perform(
            request, priority=self._priority, deadline=self._deadline, group=self._group
        )

    def _hold(self) -> Read:
        """A request for the logits at the tip; until `_release`, no other operation may begin."""
        request = Read(self._cursor)
        self._pending = request
        return request

    def _release(self) -> None:
        self._pending = None

    def _append(self, token: int) -> int:
        """Put a token on the path; returns how many rows it spares."""
        merged = self.engine.core.tree.append(self._cursor, [token])
        self.run.cost.cached += merged
        return merged

    def _rewind(self, position: int) -> None:
        self.engine.core.tree.rewind(self._cursor, position)

    def _check_top(self, top: int) -> None:
        check_range("top", top, 0, self.engine.core.decoder.config.vocab)

    def _alive(self) -> None:
        if not self.live:
            raise InputError("the branch was dropped", got=self.id, fix="fork before dropping")

    def _ready(self) -> None:
        self._alive()
        if self._pending is not None:
            raise InputError(
                "another operation is pending on this branch",
                got=self.id,
                fix="await it first, or fork",
            )

    def _step(
        self, writer: _Writer, stop: Stop, request: Request | None = None, *, proper: bool = True
    ) -> Step:
        results = writer.results
        logps = tuple(r.logp for r in results)
        logq = math.fsum(r.logq for r in results)
        usage = Usage(
            sampled_tokens=writer.drawn,
            forced_tokens=0 if writer.drawn else len(results),
            seconds=time.monotonic() - writer.began,
        )
        if request is not None:
            usage += Usage(
                computed_tokens=request.cost.computed,
                cached_tokens=request.cost.cached,
                recomputed_tokens=request.cost.recomputed,
                passes=request.cost.passes,
            )
        return Step(
            text=writer.text,
            tokens=tuple(r.token for r in results),
            start=Mark(self.id, writer.start),
            end=Mark(self.id, writer.start + len(results)),
            logps=logps,
            logq=logq,
            logw=-math.inf
            if stop == "stuck"
            else math.fsum(r.logp + r.shift for r in results) - logq,
            entropies=tuple(r.entropy for r in results),
            stop=stop,
            proper=proper,
            usage=usage,
            borders=tuple(writer.borders[1 : len(results) + 1]),
            tops=tuple(r.top for r in results) if any(r.top for r in results) else (),
        )

    def _note_step(self, event: str, step: Step, said: str | None = None) -> Step:
        self.last = step
        tokens = {}
        if event == "extend":
            tokens = {"logps": [round(logp, 4) for logp in step.logps], "borders": step.borders}
        self.run.note(
            event,
            branch=self.id,
            start=step.start.position,
            end=step.end.position,
            text=step.text if said is None else said,
            logp=step.logp,
            logq=step.logq,
            entropy=float(np.mean(step.entropies)) if step.entropies else 0.0,
            stop=step.stop,
            seconds=step.usage.seconds,
            **tokens,
        )
        return step


def _told(
    on_piece: Callable[[Piece], None] | None, branch: Branch
) -> Callable[[Piece], None] | None:
    """Who asked for the pieces of a step, and who watches the run: told one after the other."""
    watch = branch.run.watch
    if watch is None:
        return on_piece

    def tell(piece: Piece) -> None:
        watch(branch, piece)
        if on_piece is not None:
            on_piece(piece)

    return tell


class _Condition:
    """`until` in one form: where in the text it fires, if it does."""

    def __init__(self, until: Until, keep: bool) -> None:
        self.test: Callable[[Step], bool] | None = None
        self.pattern: re.Pattern[str] | None = None
        self.longest = 0
        if until is None:
            return
        if isinstance(until, re.Pattern):
            self.pattern = until
            return
        if callable(until):
            if not keep:
                raise InputError("keep=False needs a text or pattern", fix="cut with fork(at=...)")
            self.test = until
            return
        texts = [until] if isinstance(until, str) else list(until)
        if not all(isinstance(text, str) and text for text in texts):
            raise InputError("an empty stop text", got=until, fix="leave it out")
        self.longest = max(map(len, texts), default=0)
        if texts:
            self.pattern = re.compile("|".join(map(re.escape, texts)))

    def find(self, text: str, before: int) -> int | None:
        """Where it fires in a text of which the first `before` characters were searched already."""
        if self.pattern is None:
            return None
        start = max(0, before - self.longest + 1) if self.longest else 0
        match = self.pattern.search(text, start)
        return match.start() if match else None


class _Writer:
    """One step being written: results, text, and whether to stop."""

    def __init__(
        self,
        branch: Branch,
        until: _Condition | None = None,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> None:
        self.branch, self.until, self.on_piece = branch, until, on_piece
        self.start = branch._cursor.position
        self.results: list[Result] = []
        self.text = ""
        self.stop: Stop | None = None
        self.drawn = self.limit = 0
        self.began = time.monotonic()
        self.borders = [0]
        self._cut: int | None = None
        self._told = self._told_tokens = 0
        self._tokenizer = branch.engine.tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # The last token may have ended inside a character.
        for token in branch._cursor.path(max(branch._prompt_end, self.start - 4)):
            self._utf8.decode(self._tokenizer.token_bytes(token))

    def add(self, result: Result) -> None:
        """Append one token and the characters it completes."""
        self.results.append(result)
        self.text += self._utf8.decode(self._tokenizer.token_bytes(result.token))
        self.borders.append(len(self.text))

    def draw(self, result: Result) -> bool:
        """Take a sampled token; returns whether to stop."""
        self.drawn += 1
        before = len(self.text)
        self.add(result)
        assert self.until is not None
        self._cut = self.until.find(self.text, before) if len(self.text) > before else None
        if self._cut is not None:
            self.stop = "until"
        elif result.token in self._tokenizer.ends:
            self.stop = "end"
        elif self.until.test is not None and self.until.test(self.branch._step(self, "until")):
            self.stop = "until"
        if self.stop is None:
            self._tell(len(self.text) - max(0, self.until.longest - 1))
        return self.stop is not None or self.drawn >= self.limit

    def close(self, keep: bool) -> None:
        """End the step: cut it back if asked to, and tell the rest of the text."""
        if self._cut is not None and not keep:
            kept = max(i for i, border in enumerate(self.borders) if border <= self._cut)
            self.results = self.results[:kept]
            self.text = self.text[: self.borders[kept]]
            branch = self.branch
            branch.engine.core.tree.rewind(branch._cursor, self.start + kept)
        self._tell(len(self.text))

    def _tell(self, end: int) -> None:
        """Tell the text up to `end`, and the tokens that end there."""
        if self.on_piece is None:
            return
        told = self._told_tokens
        count = bisect.bisect_right(self.borders, end) - 1
        if end > self._told or count > told:
            text = self.text[self._told : max(end, self._told)]
            self.on_piece(Piece(text, tuple(self.results[told:count])))
            self._told, self._told_tokens = max(end, self._told), max(count, told)

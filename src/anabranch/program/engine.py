"""The asynchronous door to the engine: gathers what programs want and runs passes for them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from anabranch.backends.philox import derive
from anabranch.engine.core import EngineCore, Pass
from anabranch.engine.requests import Request
from anabranch.errors import AnabranchError, ContextError, InputError, ResourceError, check_range
from anabranch.program.branch import Branch
from anabranch.program.run import Run

if TYPE_CHECKING:
    from anabranch.models.tokenizer import Tokenizer

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]

QUIET_TURNS = 4
"""Turns of the event loop without new work before a pass starts: lets programs that were just
woken say what they want next, so that they share the pass."""

SHORT_PASS = 0.025
"""Seconds of a pass that the event loop may wait for: handing it to another thread and back costs
about half a millisecond, a twentieth of a short pass."""

MOST_TURNS = 64
"""Most turns a pass waits for that: a program that is never quiet holds nobody up."""


class Engine:
    """Branches over one model. Its operations are awaited; `LM` is the door for scripts.

    Works with one event loop at a time: while operations are pending, no other loop may use it.

    Attributes:
        fingerprint: which weights these are, for what was fitted to them; "" if nobody said.
        loader: loads another model's engine by its name, or None where there are no others.
    """

    def __init__(self, core: EngineCore, tokenizer: Tokenizer) -> None:
        self.core = core
        self.tokenizer = tokenizer
        self.fingerprint = ""
        self.activity = 0
        self.loader: Callable[[str], Engine] | None = None
        self._others: dict[str, Future[Engine]] = {}
        self._loads = ThreadPoolExecutor(1, thread_name_prefix="anabranch-load")
        self._passes: Coroutine[Any, Any, None] | None = None
        self._driver: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seconds, self._rows = math.inf, 1  # of the last pass
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="anabranch-pass")

    def open(
        self,
        prompt: Prompt,
        *,
        seed: int = 0,
        group: str | None = None,
        priority: float | None = None,
        deadline: float | None = None,
        scope: str = "",
        run: Run | None = None,
    ) -> Branch:
        """A new branch after a prompt. Nothing is computed yet.

        Args:
            prompt: text, chat messages (`role`, `content`), or token ids. Text never becomes
                special tokens.
            seed: key of the random stream; with the same seed and prompt, the same tokens.
            group: a name for programs that belong together: policies share out the engine
                between groups, and the trace keeps it; default: that of `run`.
            priority: higher runs first; default: that of `run`.
            deadline: seconds from now; earlier runs first among equals; default: that of `run`.
            scope: prefixes are shared only inside one scope; default: that of `run`.
            run: the program it belongs to; default: one of its own, without limits.

        Raises:
            InputError: empty prompt, tokens outside the vocabulary, seed out of range.
            ContextError: the prompt does not fit.
        """
        check_range("seed", seed, 0, 2**64 - 1)
        tokens = self._tokens(prompt)
        if not tokens:
            raise InputError("the prompt is empty", fix="give at least one token of text")
        if len(tokens) >= self.core.capacity:
            raise ContextError(
                "the prompt does not fit",
                got=f"{len(tokens)} tokens",
                allowed=f"at most {self.core.capacity - 1}",
                fix="shorten it, or give the engine more kv_memory if that is the limit",
            )
        run = run or Run(seed=seed)
        group = group or run.group or None
        granted = run.budget.reserve(len(tokens))
        if granted < len(tokens):
            run.budget.settle(granted, 0)
            raise InputError(
                "the budget does not cover the prompt",
                got=f"{granted} tokens left",
                allowed=f"at least {len(tokens)}",
            )
        run.budget.settle(granted, granted)
        cursor, held = self.core.tree.open(scope or run.scope, derive(seed, 0), tokens)
        run.prompt_tokens += len(tokens)
        run.cost.cached += held
        when = run.deadline if deadline is None else time.monotonic() + deadline
        branch = Branch(
            self,
            run,
            cursor,
            str(next(run.roots)),
            priority=run.priority if priority is None else priority,
            deadline=when,
            group=group or "",
        )
        run.note(
            "open",
            branch=branch.id,
            position=len(tokens),
            text=self.text_of(tokens),
            seed=seed,
            group=group,
        )
        return branch

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out, incomplete characters as U+FFFD."""
        return b"".join(map(self.tokenizer.token_bytes, tokens)).decode("utf-8", "replace")

    def encode(self, content: str | Sequence[int]) -> list[int]:
        """Text to token ids; ids are checked and passed on.

        Raises:
            InputError: not text, or an id outside the vocabulary.
        """
        if isinstance(content, str):
            return self.tokenizer.encode(content, start=False)
        vocab = self.core.decoder.config.vocab
        for token in content:
            if isinstance(token, bool) or not isinstance(token, int):
                raise InputError("a token id is not an integer", got=token)
            check_range("token id", token, 0, vocab - 1)
        return list(content)

    async def other(self, model: str) -> Engine:
        """Another model's engine: loaded when first asked for, then kept.

        Everything else goes on while it is loaded. All who ask meanwhile wait for the same load,
        which goes on when they are cancelled; one that fails is tried again when asked for again.

        Raises:
            InputError: an unknown model, or no others can be loaded here.
            ModelError, ResourceError: as when loading it.
        """
        loading = self._others.get(model)
        if loading is None or (loading.done() and loading.exception() is not None):
            if self.loader is None:
                raise InputError("no other models can be loaded here", got=model)
            loading = self._others[model] = self._loads.submit(self.loader, model)
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not loaded.done():
                loaded.set_result(None)

        def tell(_: Future[Engine]) -> None:
            with suppress(RuntimeError):  # the loop was closed over it
                loop.call_soon_threadsafe(finish)

        loading.add_done_callback(tell)
        await loaded
        return loading.result()

    def require(self, what: str) -> None:
        """Raise UnsupportedError where this engine lacks something that every local one has.

        Args:
            what: "scoring" (of given text), "logprobs", "constraints", "blending" or "hidden".
        """

    def close(self) -> None:
        """Stop the worker thread. Branches still open become unusable, other models' too."""
        self._worker.shutdown()
        self._loads.shutdown(cancel_futures=True)
        for loading in self._others.values():
            if not loading.cancelled() and loading.exception() is None:
                loading.result().close()

    # ---- passes --------------------------------------------------------------------------------

    async def perform(
        self, request: Request, *, priority: float, deadline: float, group: str
    ) -> None:
        """Run one request to its end.

        Raises:
            AnabranchError: the request failed.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not (done.done() or loop.is_closed()):
                done.set_result(None)

        request.finish = finish
        self._attach(loop)
        self.core.submit(request, priority=priority, deadline=deadline, group=group)
        self.activity += 1
        if self._driver is None or self._driver.done():
            self._passes = self._drive()
            self._driver = loop.create_task(self._passes, name="anabranch passes")
        try:
            await done
        finally:
            self.core.cancel(request)
        if request.error is not None:
            raise request.error

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._driver is not None and not self._driver.done():
            assert self._loop is not None
            assert self._passes is not None
            if not self._loop.is_closed():
                raise InputError(
                    "the engine is busy in another event loop",
                    fix="use one event loop, or load a second engine",
                )
            self._passes.close()  # the loop was closed over it: nobody waits any more
        self._loop, self._driver = loop, None

    async def _drive(self) -> None:
        """Run passes while anything waits."""
        try:
            await self._run_passes()
        except BaseException as error:
            # Cancelled, or a fault of ours: those who wait must learn of it, not wait for ever.
            self.core.fail_all(_as_ours(error))
            if not isinstance(error, Exception):
                raise

    async def _run_passes(self) -> None:
        await self._settle()
        while (work := self.core.prepare()) is not None:
            waiting = len(self.core.requests)
            try:
                await self._compute(work)
                self.core.commit(work)
            except BaseException as error:
                self.core.fail(work, _as_ours(error))
                if not isinstance(error, Exception):
                    raise
            if len(self.core.requests) < waiting:
                await self._settle()
            else:
                await asyncio.sleep(0)

    async def _compute(self, work: Pass) -> None:
        began, rows = time.monotonic(), max(1, work.row_count)
        expected = self._seconds * max(1.0, rows / self._rows)
        if expected < SHORT_PASS:
            self.core.compute(work)
        else:
            await self._compute_elsewhere(work)
        self._seconds, self._rows = work.seconds, rows = time.monotonic() - began, rows

    async def _compute_elsewhere(self, work: Pass) -> None:
        computed = self._worker.submit(self.core.compute, work)
        try:
            await asyncio.wrap_future(computed)
        except BaseException:
            if not computed.cancel():
                # The pages it writes must not be handed out before it has ended.
                wait([computed])
            raise

    async def _settle(self) -> None:
        quiet = 0
        for _ in range(MOST_TURNS):
            seen = self.activity
            await asyncio.sleep(0)
            quiet = quiet + 1 if seen == self.activity else 0
            if quiet == QUIET_TURNS:
                return

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.prompt(prompt) if prompt else []
        first = next(iter(prompt), None)
        if isinstance(first, Mapping):
            return self.tokenizer.chat(cast("Sequence[Message]", prompt))
        return self.encode(cast("Sequence[int]", prompt))


def _as_ours(error: BaseException) -> AnabranchError:
    """What went wrong in a pass, as an error that programs expect."""
    if isinstance(error, AnabranchError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError("not enough memory for a pass", fix="lower max_rows")
    ours = AnabranchError("a pass failed", got=f"{type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours

"""A loaded model: the door for scripts. `lm.engine` holds the same primitives, to be awaited."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from anabranch import __version__
from anabranch.backends.base import STORAGE_BYTES, Backend, Storage
from anabranch.engine.core import EngineCore
from anabranch.errors import (
    FileFormatError,
    InputError,
    ResourceError,
    check_range,
    unknown_name,
)
from anabranch.machine import available_memory, give_back_memory
from anabranch.models.decoder import Decoder
from anabranch.models.files import open_model
from anabranch.models.registry import resolve
from anabranch.models.tokenizer import Tokenizer
from anabranch.program.branch import Branch
from anabranch.program.budget import Budget
from anabranch.program.engine import Engine, Message, Prompt
from anabranch.program.registry import Named
from anabranch.program.run import Run
from anabranch.program.trace import Trace
from anabranch.program.types import Answer, Problem, Step
from anabranch.reason.prompts import messages
from anabranch.reason.registry import parse
from anabranch.reason.solve import think

T = TypeVar("T")

KEY_ENV = "ANABRANCH_API_KEY"
"""The environment variable that holds an endpoint's key."""

BACKENDS = ("native", "reference")
KV_SHARE, KV_MOST = 0.25, 4 << 30
"""Default memory for keys and values: this share of what is available, at most this many bytes."""


def load(
    model: str | Path = "qwen2.5-coder-0.5b",
    *,
    backend: str = "native",
    threads: int | None = None,
    kv: str = "f32",
    kv_memory: int | None = None,
    max_rows: int = 256,
    offline: bool = False,
    key_env: str = KEY_ENV,
    progress: Callable[[int, int, str], None] | None = None,
) -> LM:
    """Load a model, fetching it first if it is a registered name and not here yet.

    A URL connects to an OpenAI-compatible endpoint: see `connect`.

    Args:
        model: a name from `anabranch models`, a GGUF file, a safetensors folder, or a URL such as
            "http://127.0.0.1:8080/v1", with "#NAME" for one of several models there.
        backend: "native" (C++) or "reference" (numpy, slow, float32).
        threads: threads of the native backend; default: the cores this process may use.
        kv: how keys and values are kept: "f32", or "bf16", rounded: half the memory and half the
            reading in long contexts, for slightly different log-probabilities.
        kv_memory: bytes for keys and values; default: a quarter of the available memory, at most
            4 GiB.
        max_rows: most rows (tokens) in one forward pass.
        offline: never reach for the network.
        key_env: the environment variable that holds an endpoint's key.
        progress: told of (done, total, phase): bytes while fetching, parameters while loading.

    Raises:
        InputError: unknown name or option.
        ModelError: the files cannot be had, are broken, or need what this version cannot do.
        ResourceError: it does not fit into memory; said before anything large is read.
    """
    if is_url(str(model)):
        local = {"backend": "native", "threads": None, "kv": "f32", "kv_memory": None}
        given = {"backend": backend, "threads": threads, "kv": kv, "kv_memory": kv_memory}
        if given != local or offline:
            said = [*(k for k, v in given.items() if v != local[k]), *(["offline"] * offline)]
            raise InputError("an option for local models", got=", ".join(said), fix="leave it out")
        return connect(str(model), key_env=key_env)
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if kv not in STORAGE_BYTES:
        raise unknown_name("kv", kv, STORAGE_BYTES)
    storage = cast(Storage, kv)
    path = resolve(str(model), progress=progress, offline=offline)
    file = open_model(path, dtype="float32" if backend == "reference" else "stored")
    page = replace(file.config.cache_shape, storage=storage).page_bytes
    pages = _pages(file.packed_bytes * (4 if backend == "reference" else 1), page, kv_memory)
    if path.is_dir():
        tokenizer = Tokenizer.from_folder(path)
    else:
        tokenizer = Tokenizer.from_gguf(file.metadata, path)
    if tokenizer.vocab_size > file.config.vocab:
        raise FileFormatError(
            path, f"{tokenizer.vocab_size} tokens for an embedding of {file.config.vocab}"
        )
    give_back_memory()  # the lists that the tokenizer was made of, before weights take their place
    loading = (lambda done, total: progress(done, total, "loading")) if progress else None
    ops = _backend(backend, threads)
    decoder = Decoder(file, ops, max_rows=max_rows, kv=storage, progress=loading)
    name = str(model) if not Path(str(model)).exists() else file.name
    fingerprint = file.fingerprint + ("" if kv == "f32" else f"+kv-{kv}")
    engine = Engine(EngineCore(decoder, pages=pages), tokenizer)
    options: dict[str, Any] = {"backend": backend, "threads": threads, "kv": kv}
    engine.loader = lambda other: load(other, **options, offline=offline).engine
    return LM(engine, name, fingerprint)


def is_url(model: str) -> bool:
    """Whether a model's text is the URL of an endpoint."""
    return model.lower().startswith(("http://", "https://"))


def connect(
    url: str,
    *,
    model: str | None = None,
    key_env: str = KEY_ENV,
    api: Literal["completions", "chat"] | None = None,
    connections: int = 8,
    timeout: float = 120.0,
) -> LM:
    """A model behind an OpenAI-compatible endpoint, which is asked what it can do.

    docs/remote.md says which strategies need what of an endpoint.

    Args:
        url: its base, such as "http://127.0.0.1:8080/v1"; "#NAME" names a model.
        model: likewise; default: the only one there is.
        key_env: the environment variable that holds the key, if it needs one.
        api: use this API; default: whichever can do more.
        connections: most requests under way at a time.
        timeout: seconds to wait for the next bytes of a reply.

    Raises:
        InputError: not such a URL, or several models there and none named.
        RemoteError: it cannot be reached, refuses the key or the model, or is no such endpoint.
    """
    # Imported late: local models need no HTTP.
    from anabranch.remote.endpoint import Endpoint
    from anabranch.remote.engine import RemoteEngine
    from anabranch.remote.wire import Wire

    if api not in (None, "completions", "chat"):
        raise unknown_name("api", str(api), ("completions", "chat"))
    check_range("connections", connections, 1, 1024)
    check_range("timeout", timeout, 0, 86_400, low_open=True)
    base, _, named = url.partition("#")
    key = os.environ.get(key_env, "").strip()
    if not key and key_env != KEY_ENV:
        raise InputError("the environment variable for the key is not set", got=key_env)
    wire = Wire(base, key, connections=connections, timeout=timeout)
    endpoint = Endpoint(wire, model or named or None)
    run_to_end(endpoint.detect(api))
    engine = RemoteEngine(endpoint)
    engine.loader = lambda other: load(other, key_env=key_env).engine
    return LM(engine, endpoint.model, f"remote:{wire.url}#{endpoint.model}")


class LM:
    """A loaded model. Close it, or use it as a context manager, to free its threads and memory.

    Attributes:
        engine: the primitives (`open`, and on branches `fork`, `extend`, `force`, `peek`, `drop`),
            for use in asynchronous code or through `run`.
        tokenizer: `encode`, `decode`, `chat`.
        name, fingerprint: which model this is; with "+kv-bf16" where keys and values are rounded.
    """

    def __init__(self, engine: Engine, name: str, fingerprint: str) -> None:
        self.engine, self.name, self.fingerprint = engine, name, fingerprint
        engine.fingerprint = fingerprint
        self.tokenizer = engine.tokenizer

    def __enter__(self) -> LM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free threads. Branches still open become unusable."""
        self.engine.close()

    def run(self, program: Coroutine[Any, Any, T]) -> T:
        """Run an asynchronous program to its end, also from inside a running event loop.

        async def program():
            root = lm.engine.open("Once upon a time")
            steps = await asyncio.gather(*(b.extend(20) for b in root.fork(4)))
            return [step.text for step in steps]

        texts = lm.run(program())
        """
        return run_to_end(program)

    def solve(self, problem: str | Problem, strategy: str = "vote", **options: Any) -> Answer:
        """Answer a problem by a strategy: `think`, run to its end."""
        return self.run(self.think(problem, strategy, **options))

    async def think(
        self,
        problem: str | Problem,
        strategy: str | Named = "vote",
        *,
        budget: Budget | int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        trace: Trace | Path | str | None = None,
        scope: str = "",
        on_start: Callable[[Run], None] | None = None,
    ) -> Answer:
        """Answer a problem by a strategy such as "vote(n=16)".

        Args:
            problem: the question.
            strategy: name and parameters; `anabranch solve --help` lists them.
            budget: most tokens to charge, or a `Budget`. When it ends, the best answer so far is
                returned.
            seconds: most seconds, likewise.
            seed: the same seed gives the same answer, to the bit.
            trace: where to write the tree, as JSON lines.
            scope: computed prefixes are shared only inside one scope.
            on_start: given the `Run` before anything is computed, to watch it.
        """
        if isinstance(problem, str):
            problem = Problem(problem)
        named = parse(strategy) if isinstance(strategy, str) else strategy
        if not isinstance(budget, Budget):
            budget = Budget(budget, seconds)
        elif seconds is not None:
            raise InputError("seconds given twice", fix="put them into the Budget")
        with contextlib.ExitStack() as stack:
            if isinstance(trace, (str, Path)):
                trace = stack.enter_context(self.trace(trace, named, budget, seed))
            run = Run(seed=seed, budget=budget, trace=trace, scope=scope)
            if on_start is not None:
                on_start(run)
            return await think(problem, self._root, named, run, model=self.name)

    def trace(self, path: Path | str | None, strategy: Named, budget: Budget, seed: int) -> Trace:
        """A trace, in a file or in memory, whose header says what this model is about to do."""
        return Trace(
            path,
            model=self.name,
            fingerprint=self.fingerprint,
            seed=seed,
            strategy=str(strategy),
            budget={"tokens": budget.tokens, "seconds": budget.seconds},
            version=__version__,
        )

    def generate(
        self, prompt: Prompt, max_tokens: int = 256, *, seed: int = 0, **sampling: Any
    ) -> Step:
        """Continue a prompt; `sampling` as in `Branch.extend`, at temperature 0 if not told."""
        return self.run(self._generate(prompt, max_tokens, seed, sampling))

    def chat(
        self,
        conversation: str | Sequence[Message],
        max_tokens: int = 512,
        *,
        seed: int = 0,
        **sampling: Any,
    ) -> Step:
        """The assistant's next turn, through the model's own chat template."""
        if isinstance(conversation, str):
            conversation = [{"role": "user", "content": conversation}]
        if not conversation or not all(isinstance(m, Mapping) for m in conversation):
            raise InputError("a conversation is a list of messages", got=conversation)
        return self.generate(conversation, max_tokens, seed=seed, **sampling)

    async def _generate(
        self, prompt: Prompt, limit: int, seed: int, sampling: dict[str, Any]
    ) -> Step:
        branch = self.engine.open(prompt, seed=seed)
        try:
            return await branch.extend(limit, **{"temperature": 0.0, **sampling})
        finally:
            branch.drop()

    def _root(self, problem: Problem, run: Run) -> Branch:
        return self.engine.open(messages(problem), seed=run.seed, run=run)


def run_to_end(program: Coroutine[Any, Any, T]) -> T:
    """Run an asynchronous program, in a thread of its own inside a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(program)
    with ThreadPoolExecutor(1) as helper:
        return helper.submit(asyncio.run, program).result()


def _backend(name: str, threads: int | None) -> Backend:
    # Imported late: each backend only when it is asked for.
    if name == "native":
        from anabranch.backends.native import NativeBackend

        return NativeBackend(threads=threads)
    from anabranch.backends.reference import ReferenceBackend

    return ReferenceBackend()


def _pages(weights: int, page: int, kv_memory: int | None) -> int:
    """KV pages of `page` bytes that fit next to bytes of weights, or a `ResourceError`."""
    available = available_memory()
    kv = int(min(KV_MOST, KV_SHARE * available)) if kv_memory is None else kv_memory
    if kv < 2 * page:
        raise InputError("kv_memory is too small", got=kv, allowed=f"at least {2 * page} bytes")
    if weights + kv > available:
        raise ResourceError(
            "the model does not fit into memory",
            got=f"{available / 2**30:.2f} GiB available",
            allowed=f"{weights / 2**30:.2f} GiB of weights + {kv / 2**30:.2f} GiB of KV cache",
            fix="lower kv_memory, close other programs, or use a smaller model",
        )
    return kv // page

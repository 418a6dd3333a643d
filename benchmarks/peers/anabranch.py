"""Ours, asked the same way: programs over branches, as any user would write them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anabranch
from anabranch.backends.native import NativeBackend
from anabranch.program.branch import Branch
from anabranch.program.run import Run
from anabranch.program.types import Problem
from anabranch.reason.prompts import messages
from anabranch.reason.registry import parse
from anabranch.reason.solve import think
from peers.protocol import serve


class Anabranch:
    """A loaded model. The tasks of `protocol`, and some about itself."""

    def __init__(self, model: str, threads: int | None = None) -> None:
        self.lm = anabranch.load(model, threads=threads)
        self._decoder = self.lm.engine.core.decoder
        self._page_bytes = self._decoder.config.cache_shape.page_bytes
        assert isinstance(self._decoder.backend, NativeBackend)
        self._backend = self._decoder.backend
        # An end of text stops a branch, so it is kept from being drawn.
        self._endless = dict.fromkeys(self.lm.tokenizer.ends, -1e9)
        self._scopes = itertools.count()

    def about(self) -> dict[str, Any]:
        features = self._backend.features()
        return {
            "version": f"anabranch {anabranch.__version__}",
            "settings": f"weights packed from the same file, KV in f32, {features['isa']}",
            "weight_bytes": self._decoder.pass_bytes,
            "context": self._decoder.config.context,
            "threads": features["threads"],
        }

    def touch(self) -> dict[str, Any]:
        """Have the system give the memory for keys and values, up to a GiB, before it is used.

        Peers do so when they make theirs; where a virtual machine's host takes unused memory back,
        it costs time.
        """
        cache = self.lm.engine.core.cache
        for page in range(1, min(cache.pages, (1 << 30) // self._page_bytes)):
            self._backend.copy_page(cache, 0, page)
        return {}

    # ---- tasks ---------------------------------------------------------------------------------

    def first(self, prompt: list[int]) -> dict[str, Any]:
        return self._timed(prompt, lambda root: self._extend(root, 1))

    def decode(self, prompt: list[int], branches: int, steps: int) -> dict[str, Any]:
        return self._after(prompt, lambda root: self._grow(root.fork(branches), steps))

    def prune(self, prompt: list[int], steps: int, parents: list[list[int]]) -> dict[str, Any]:
        async def search(root: Branch) -> None:
            branches = root.fork(len(parents[0]))
            await self._grow(branches, steps, 0)
            for parent in parents:
                for child, source in enumerate(parent):
                    if source != child:
                        branches[child].drop()
                        branches[child] = branches[source].fork()
                await self._grow(branches, steps, 0)

        return self._timed(prompt, search)

    def document(
        self, document: list[int], questions: list[list[int]], branches: int, steps: int
    ) -> dict[str, Any]:
        async def ask(root: Branch) -> None:
            run, engine = root.run, root.engine
            asked = [engine.open(document + question, run=run) for question in questions]
            forks = [branch for leader in asked for branch in leader.fork(branches)]
            await self._grow(forks, steps, 0)

        return self._timed(document, ask)

    def options(self, prompt: list[int], options: list[list[int]]) -> dict[str, Any]:
        scores: list[float] = []

        async def score(root: Branch) -> None:
            forks = root.fork(len(options))
            pairs = zip(forks, options, strict=True)
            done = await asyncio.gather(*(fork.force(option) for fork, option in pairs))
            scores.extend(step.logp for step in done)

        return {**self._timed(prompt, score), "scores": scores}

    def think(self, strategy: str, problem: dict[str, Any], seed: int) -> dict[str, Any]:
        """Solve one problem from an empty cache, as no strategy may find what another computed."""
        run, named, scope = Run(seed=seed), parse(strategy), str(next(self._scopes))

        def root(problem: Problem, run: Run) -> Branch:
            return self.lm.engine.open(messages(problem), seed=seed, run=run, scope=scope)

        began = time.perf_counter()
        program = think(Problem(**problem), root, named, run, model=self.lm.name)
        answer = self.lm.run(program)
        return {
            "seconds": time.perf_counter() - began,
            "answer": answer.answer,
            "tokens": answer.usage.computed_tokens + answer.usage.recomputed_tokens,
        }

    def replies(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer conversations side by side, as `serving.py` asks a server for it; the tokens of
        each reply, those of all branches."""

        async def reply(
            messages: list[dict[str, str]], seed: int, max_tokens: int, strategy: str | None
        ) -> int:
            if strategy is not None:
                problem = Problem(messages[-1]["content"])
                usage = (await self.lm.think(problem, strategy, seed=seed)).usage
                return usage.sampled_tokens + usage.forced_tokens
            root = self.lm.engine.open(messages, seed=seed)
            step = await root.fork().extend(max_tokens, bias=self._endless)
            root.run.drop_all()
            return len(step.tokens)

        async def all_replies() -> list[int]:
            return await asyncio.gather(*(reply(**request) for request in requests))

        began = time.perf_counter()
        tokens = self.lm.run(all_replies())
        return {"seconds": time.perf_counter() - began, "tokens": tokens}

    # ---- about itself --------------------------------------------------------------------------

    def chain(self, prompt: list[int], depth: int, span: int, steps: int) -> dict[str, Any]:
        """One branch below `depth` forks of `span` tokens each, whose parents all live."""

        async def deepen(root: Branch) -> Branch:
            for _ in range(depth):
                root = root.fork()
                await self._extend(root, span)
            return root

        return self._after(prompt, lambda tip: self._grow([tip.fork()], steps), deepen)

    def share(self, prompt: list[int], branches: int, steps: int) -> dict[str, Any]:
        """`decode`, and the seconds of it inside each operation of the backend."""
        native: dict[str, float] = {}

        async def measured(root: Branch) -> None:
            forks, before = root.fork(branches), self._backend.seconds
            await self._grow(forks, steps)
            native.update({k: s - before[k] for k, s in self._backend.seconds.items()})

        return {**self._after(prompt, measured), "native": native}

    def memory(self) -> dict[str, Any]:
        """Peak resident bytes of this process, packed weights, pages that hold keys and values."""
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        pool = self.lm.engine.core.tree.pool
        used = (len(pool) - pool.free) * self._page_bytes
        return {"peak": peak, "weights": self._decoder.nbytes, "kv": used}

    # ---- inside --------------------------------------------------------------------------------

    async def _extend(self, branch: Branch, steps: int) -> None:
        step = await branch.extend(steps, bias=self._endless)
        assert len(step.tokens) == steps

    async def _grow(self, branches: list[Branch], steps: int, known: int = 1) -> None:
        """`steps` passes for each; where logits are `known` already, they give a draw more."""
        await asyncio.gather(*(self._extend(branch, steps + known) for branch in branches))

    def _timed(
        self, prompt: list[int], work: Callable[[Branch], Awaitable[None]]
    ) -> dict[str, Any]:
        """Seconds from a prompt given to the end of `work`."""

        async def program() -> float:
            began = time.perf_counter()
            root = self.lm.engine.open(prompt)
            await work(root)
            seconds = time.perf_counter() - began
            root.run.drop_all()
            return seconds

        return {"seconds": self.lm.run(program())}

    def _after(
        self,
        prompt: list[int],
        work: Callable[[Branch], Awaitable[None]],
        prepare: Callable[[Branch], Awaitable[Branch]] | None = None,
    ) -> dict[str, Any]:
        """Seconds of `work` alone, the prompt and what `prepare` grows from it computed before."""

        async def program() -> float:
            root = self.lm.engine.open(prompt)
            tip = await prepare(root) if prepare else root
            await tip.peek(1)
            began = time.perf_counter()
            await work(tip)
            seconds = time.perf_counter() - began
            root.run.drop_all()
            return seconds

        return {"seconds": self.lm.run(program())}


if __name__ == "__main__":
    serve(Anabranch)

"""The models that are served, and what their names stand for."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from anabranch.engine.scheduler import FairShare
from anabranch.errors import InputError
from anabranch.lm import LM
from anabranch.program.engine import Engine
from anabranch.program.registry import Entry, Named
from anabranch.reason.registry import parse
from anabranch.serve.calls import current
from anabranch.serve.errors import Refusal

log = logging.getLogger("anabranch.serve")

VIRTUAL = ("vote-4", "vote-16", "best-8", "beam-4", "adaptive-16", "pal-4")
"""Strategies that `/v1/models` offers behind a model's name, for clients that can say no more."""


@dataclass
class Served:
    """A model that answers.

    Attributes:
        rendering: held while its chat template runs, which is not thread-safe.
    """

    name: str
    lm: LM
    created: int = field(default_factory=lambda: int(time.time()))
    rendering: threading.Lock = field(default_factory=threading.Lock)

    async def render(
        self, messages: Sequence[Mapping[str, str]], *, going_on: bool = False
    ) -> list[int]:
        """A conversation's tokens. The template is a stranger's: it runs beside the event loop.

        Args:
            going_on: the reply has begun already, with the last message's text.
        """

        def run() -> list[int]:
            tokenizer = self.lm.tokenizer
            with self.rendering:
                if not going_on:
                    return tokenizer.chat(messages)
                begun = tokenizer.encode(messages[-1]["content"], start=False)
                return tokenizer.chat(messages[:-1]) + begun

        return await asyncio.to_thread(run)


class Hub:
    """Loads models, and finds them by what clients call them.

    Args:
        loaders: by name, what loads each; run beside the event loop, one after the other.
        loadable: other models that strategies and judges may load when they are asked for.
        code_tools: strategies and judges may run programs that a model wrote.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], LM]],
        loadable: Collection[str] = (),
        *,
        code_tools: bool = False,
    ) -> None:
        self._loaders, self._loadable, self._code_tools = dict(loaders), loadable, code_tools
        self.models: dict[str, Served] = {}
        self.fault: Exception | None = None

    @property
    def ready(self) -> bool:
        """All models are there."""
        return len(self.models) == len(self._loaders)

    async def load(self) -> None:
        """Load every model; what goes wrong is kept in `fault`."""
        try:
            for name, load in self._loaders.items():
                lm = await asyncio.to_thread(load)
                _share_fairly(lm.engine, self._loadable)
                self.models[name] = Served(name, lm)
        except Exception as error:
            self.fault = error
            log.error("the model %s cannot be loaded: %s", name, error)
            raise

    def close(self) -> None:
        """Free all models."""
        for served in self.models.values():
            served.lm.close()

    def find(self, name: str) -> tuple[Served, Named | None]:
        """A model, and the strategy that its name asks for: `qwen:vote-16` or `qwen:vote(n=16)`.

        Raises:
            Refusal: unknown, not loaded yet, or a strategy that is not allowed.
        """
        base, _, strategy = name.partition(":")
        if base not in self._loaders:
            known = ", ".join(self._loaders)
            raise Refusal(
                404,
                f"there is no model of this name; models: {known}",
                param="model",
                code="model_not_found",
            )
        if base not in self.models:
            raise Refusal(503, "the model is being loaded", code="loading", retry_after=2)
        current().model = base
        return self.models[base], self.allowed(strategy_of(strategy)) if strategy else None

    def allows(self, entry: Entry) -> bool:
        """Whether clients may use a strategy or a judge."""
        return self._code_tools or not entry.runs_code

    def allowed(self, named: Named) -> Named:
        """The same, if clients may use it and all its parts. Raises Refusal."""
        for part in named.parts:
            if not self.allows(part.entry):
                raise Refusal(
                    403,
                    f"{part.entry.name} runs programs that the model writes, which is off here; "
                    "whoever runs the server can switch it on: code_tools = true",
                    code="code_tools_off",
                )
        return named

    @property
    def only(self) -> str:
        """The name of the one model that is served. Raises Refusal: there are several."""
        if len(self._loaders) != 1:
            known = ", ".join(self._loaders)
            raise Refusal(400, f"several models are served, name one: {known}", param="model")
        return next(iter(self._loaders))

    def names(self) -> list[tuple[str, Served]]:
        """Every name that `find` knows, virtual ones too."""
        offered = [text for text in VIRTUAL if self.allows(strategy_of(text).entry)]
        return [
            (name, served)
            for served in self.models.values()
            for name in (served.name, *(f"{served.name}:{text}" for text in offered))
        ]


def _share_fairly(engine: Engine, loadable: Collection[str]) -> Engine:
    """Let keys have equal shares of it, and of what it may load: a name from a client must neither
    read any file nor fill the memory."""
    engine.core.policy = FairShare()
    load = engine.loader

    def load_allowed(model: str) -> Engine:
        if load is None or model not in loadable:
            raise InputError(
                "strategies and judges cannot load this model here",
                got=model,
                allowed=", ".join(loadable) or "none",
                fix="whoever runs the server can name it in the setting `loadable`",
            )
        return _share_fairly(load(model), loadable)

    engine.loader = load_allowed
    return engine


def strategy_of(text: str) -> Named:
    """A strategy from its text; `vote-16` sets its first parameter. Raises InputError."""
    name, dash, number = text.rpartition("-")
    if not dash or not number.isdecimal() or len(number) > 6:
        return parse(text)
    named = parse(name)
    first = next(iter(named.values), None)
    if first is None:
        raise InputError("the strategy takes no number", got=text)
    return named.change(**{first: int(number)})

"""A server over a scripted model, on a port of its own, for as long as a test."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import openai
from fastapi import FastAPI

from anabranch.lm import LM
from anabranch.serve.app import create_app
from anabranch.serve.hub import Hub
from anabranch.serve.server import Server
from anabranch.serve.settings import Settings
from tests.scripted import Rule, scripted_lm


@dataclass
class Running:
    """A server under way."""

    url: str
    hub: Hub
    lm: LM
    app: FastAPI

    @functools.cached_property
    def client(self) -> openai.OpenAI:
        """The official client."""
        return self.client_of("none")

    def client_of(self, key: str) -> openai.OpenAI:
        """One with a key of its own."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def until_idle(self) -> None:
        """Wait until nothing is pending in the engine and no branch is left; fails after 10 s."""
        engine = self.lm.engine
        for _ in range(1000):
            if not engine.core.requests and not any(
                node.cursors for node in engine.core.tree.nodes()
            ):
                engine.core.tree.check()
                return
            time.sleep(0.01)
        raise AssertionError(f"{len(engine.core.requests)} requests are left")


@contextmanager
def serving(
    rule: Rule | Mapping[str, float] | LM,
    *,
    wait: Callable[[], object] | None = None,
    **settings: object,
) -> Iterator[Running]:
    """Serve a scripted model, or any, as "scripted". No branch is left at the end.

    Args:
        wait: called while the model is loaded; the server is then given before it is.
    """
    lm = rule if isinstance(rule, LM) else scripted_lm(rule)
    told = Settings.model_validate({"models": ["scripted"], "log_level": "warning", **settings})

    def load() -> LM:
        if wait is not None:
            wait()
        return lm

    hub = Hub({"scripted": load}, told.loadable, code_tools=told.code_tools)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(told, hub)
        server = Server(app, told)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        running = Running(url, hub, lm, app)
        try:
            while not (server.started and (wait or hub.ready)):
                assert thread.is_alive()
                time.sleep(0.005)
            yield running
            running.until_idle()
        finally:
            running.client.close()
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def soon(holds: Callable[[], bool]) -> None:
    """Wait for it; fails after 10 s."""
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")

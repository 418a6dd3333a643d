"""Ten thousand clients that ask, and leave at once: nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import Any

from anabranch.serve.app import create_app
from anabranch.serve.hub import Hub
from anabranch.serve.settings import Settings
from tests.scripted import scripted_lm
from tests.test_serve import ASKED, endless

BODIES = (
    ("/v1/chat/completions", {"messages": ASKED}),
    ("/v1/chat/completions", {"messages": ASKED, "stream": True}),
    ("/v1/chat/completions", {"messages": ASKED, "anabranch": {"strategy": "vote"}}),
    ("/v1/responses", {"input": "x", "stream": True, "store": False}),
    ("/v1/completions", {"prompt": "x", "n": 3}),
    ("/v1/embeddings", {"input": "x" * 200}),
)


def test_ten_thousand_who_leave_at_once_leave_nothing_behind() -> None:
    lm = scripted_lm(endless)
    told = Settings(models=["scripted"], running=64, waiting=20_000, log_level="error")
    app = create_app(told, Hub({"scripted": lambda: lm}))
    admission, pool = app.state.admission, lm.engine.core.tree.pool

    async def leaves(number: int, gone: asyncio.Event) -> None:
        """A client that asks, and closes its connection when all do."""
        path, body = BODIES[number % len(BODIES)]
        coming = [json.dumps({"model": "scripted", "seed": number, **body}).encode()]
        if "embeddings" in path or "responses" in path:
            coming = [json.dumps({"model": "scripted", **body}).encode()]
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": headers,
        }

        async def receive() -> dict[str, Any]:
            if coming:
                return {"type": "http.request", "body": coming.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            assert message.get("status", 200) in (200, 499), message

        await app(scope, receive, send)

    async def wave(count: int) -> int:
        """Blocks of memory in use after so many have come, waited and gone."""
        gone = asyncio.Event()
        clients = [asyncio.create_task(leaves(i, gone)) for i in range(count)]
        while admission.running + admission.waiting < count:
            await asyncio.sleep(0.01)
        assert admission.running == 64
        gone.set()
        await asyncio.gather(*clients)
        del clients
        await asyncio.sleep(0)  # until then, what woke us holds them
        for _ in range(1000):  # generators are closed a few rounds of the loop later
            if not (admission.running or lm.engine.core.requests):
                break
            await asyncio.sleep(0.01)
        assert (admission.running, admission.waiting, admission._held) == (0, 0, {})
        assert not app.state.keys.open.calls
        assert not any(node.cursors for node in lm.engine.core.tree.nodes())
        lm.engine.core.tree.check()
        gc.collect()
        return sys.getallocatedblocks()

    async def program() -> None:
        async with app.router.lifespan_context(app):
            while not app.state.hub.ready:
                await asyncio.sleep(0.01)
            tasks = len(asyncio.all_tasks())
            await wave(200)
            before = await wave(200)
            after = await wave(10_000)
            assert len(asyncio.all_tasks()) == tasks
            # Every page can be had: one prompt takes them all.
            whole = lm.engine.open([65] * (16 * len(pool) - 16), seed=1)
            await whole.peek(1)
            whole.drop()
            assert after - before < 9_500  # not one block of memory for each

    asyncio.run(program())

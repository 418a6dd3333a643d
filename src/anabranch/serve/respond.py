"""One response of `/v1/responses` under way: a chat reply, told as items and typed events."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from anabranch.serve.chat import Reply
from anabranch.serve.errors import Refusal, refusal_of
from anabranch.serve.plain import new_id
from anabranch.serve.stream import first

Event = dict[str, Any]

_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
_PART = {"message": "output_text", "reasoning": "reasoning_text"}


class Response:
    """What comes of a reply.

    Args:
        about: the fields of the response that are known beforehand.

    Attributes:
        told: the response as it stands.
        fault: why it failed.
    """

    def __init__(self, reply: Reply, about: dict[str, Any]) -> None:
        self._reply = reply
        self.told: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "queued",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **about,
        }
        self._numbers = itertools.count()
        self._open: dict[str, Any] | None = None
        self.fault: Refusal | None = None

    @property
    def over(self) -> bool:
        """Nothing will come any more."""
        return self.told["status"] not in ("queued", "in_progress")

    async def events(self) -> AsyncGenerator[Event | str]:
        """What happens, progress as texts. What fails is an event, if it fails after the first.

        Raises:
            AnabranchError, Refusal: it cannot begin.
        """
        finish = None
        try:
            chunks = await first(self._reply.chunks())
            async with contextlib.aclosing(chunks):
                yield self._about("created")
                self.told["status"] = "in_progress"
                yield self._about("in_progress")
                async for chunk in chunks:
                    if isinstance(chunk, str):
                        yield chunk
                        continue
                    for choice in chunk["choices"]:
                        finish = choice["finish_reason"] or finish
                        for event in self._read(choice):
                            yield event
                    if "usage" in chunk:
                        self.told["usage"] = _usage(chunk["usage"])
                        self.told["anabranch"] = chunk["anabranch"]
            whole = finish != "length"
            for event in self._close("completed" if whole else "incomplete"):
                yield event
            if not whole:
                self.told["incomplete_details"] = {"reason": "max_output_tokens"}
            self.end("completed" if whole else "incomplete")
            yield self._about(self.told["status"])
        except Exception as error:
            refusal = refusal_of(error)
            began = self.told["status"] != "queued"
            self.fault = refusal
            self.told["error"] = {
                "code": _CODES.get(refusal.status, "server_error"),
                "message": refusal.message,
            }
            self.end("failed")
            if not began:
                raise
            yield self._about("failed")
        finally:
            self.end("cancelled")

    def end(self, status: str) -> None:
        """It is over, if it was not."""
        if not self.over:
            if self._open is not None:
                self._open["status"] = "incomplete"
            self.told |= {"status": status, "completed_at": int(time.time())}

    # ---- items ---------------------------------------------------------------------------------

    def _read(self, choice: dict[str, Any]) -> Iterator[Event]:
        delta = choice["delta"]
        if delta.get("reasoning"):
            yield from self._say("reasoning", delta["reasoning"], [])
        likely = (choice["logprobs"] or {}).get("content", [])
        if delta.get("content"):
            yield from self._say("message", delta["content"], likely)
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                function = call["function"]
                about = {"call_id": call["id"], "name": function["name"], "arguments": ""}
                yield from self._begin("function_call", about)
            item = self._open
            assert item is not None
            if more := call["function"]["arguments"]:
                item["arguments"] += more
                yield self._event("function_call_arguments.delta", delta=more)

    def _say(self, kind: str, text: str, likely: list[Any]) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            part: dict[str, Any] = {"type": _PART[kind], "text": ""}
            about: dict[str, Any] = {"content": [part]}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
                about["role"] = "assistant"
            else:
                about["summary"] = []
            yield from self._begin(kind, {**about, "content": []})
            assert self._open is not None
            self._open["content"].append(part)
            yield self._event("content_part.added", content_index=0, part=copy.deepcopy(part))
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        more: dict[str, Any] = {"content_index": 0, "delta": text}
        if kind == "message":
            part["logprobs"] += likely
            more["logprobs"] = likely
        yield self._event(f"{_PART[kind]}.delta", **more)

    def _begin(self, kind: str, about: dict[str, Any]) -> Iterator[Event]:
        yield from self._close("completed")
        prefix = {"function_call": "fc", "reasoning": "rs", "message": "msg"}[kind]
        self._open = {"id": new_id(prefix), "type": kind, "status": "in_progress", **about}
        self.told["output"].append(self._open)
        yield self._event("output_item.added", item=copy.deepcopy(self._open))

    def _close(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            yield self._event("function_call_arguments.done", arguments=item["arguments"])
        else:
            part = item["content"][0]
            likely = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            name = _PART[item["type"]]
            yield self._event(f"{name}.done", content_index=0, text=part["text"], **likely)
            yield self._event("content_part.done", content_index=0, part=part)
        yield self._event("output_item.done", item=item)
        self._open = None

    # ---- events --------------------------------------------------------------------------------

    def _about(self, name: str) -> Event:
        """An event about the response as a whole."""
        whole = {**self.told, "output": copy.deepcopy(self.told["output"])}
        return {
            "type": f"response.{name}",
            "sequence_number": next(self._numbers),
            "response": whole,
        }

    def _event(self, name: str, **fields: Any) -> Event:
        """An event about the item that is open."""
        if "item" not in fields:
            assert self._open is not None
            fields["item_id"] = self._open["id"]
        return {
            "type": f"response.{name}",
            "sequence_number": next(self._numbers),
            "output_index": len(self.told["output"]) - 1,
            **fields,
        }


class Kept:
    """A response that can be asked for again.

    Attributes:
        response: itself.
        given: its input items; `before` those of the conversation that it goes on with.
        log: what has happened, for who comes later; None if nobody may.
        task: where it runs by itself.
    """

    def __init__(self, response: Response, before: list[Any], given: list[Any], log: bool) -> None:
        self.response, self.before, self.given = response, before, given
        self.log: list[Event] | None = [] if log else None
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Come to the end by itself; failures are part of the response."""
        with contextlib.suppress(Exception):
            async with contextlib.aclosing(self.response.events()) as happening:
                async for event in happening:
                    if not isinstance(event, str):
                        self._note(event)

    def _note(self, event: Event) -> None:
        log = self.log
        # What deltas say is said again where their item is done.
        if log is not None and (len(log) < MOST_EVENTS or not event["type"].endswith(".delta")):
            log.append(event)
        self._changed.set()
        self._changed = asyncio.Event()

    async def events(self, after: int) -> AsyncGenerator[Event]:
        """What has happened since the event of a number, and what happens yet."""
        assert self.log is not None
        assert self.task is not None
        told = 0
        while True:
            changed = asyncio.ensure_future(self._changed.wait())
            while told < len(self.log):
                event = self.log[told]
                told += 1
                if event["sequence_number"] > after:
                    yield event
            if self.task.done() and told == len(self.log):
                changed.cancel()
                return
            try:
                await asyncio.wait((changed, self.task), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()


MOST_EVENTS = 1 << 15
"""Events that are kept of one response; of more, deltas are left out."""


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """A chat's usage in the words of responses."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {
            "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]
        },
        "total_tokens": usage["total_tokens"],
    }

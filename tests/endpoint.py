"""An OpenAI-compatible endpoint that says what a test wants, can do what it wants, and fails so."""

from __future__ import annotations

import json
import random
import select
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COUNT = ", ".join(map(str, range(1, 13)))
"""The reply to whoever asks for counting: that is how `Endpoint` finds out what goes on."""

KNOWN = {
    *("model", "messages", "prompt", "max_tokens", "seed", "stream", "stream_options", "echo"),
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs"),
}
FURTHER = {"top_k", "min_p", "add_generation_prompt", "continue_final_message"}


@dataclass
class Fake:
    """What the endpoint can do, and what it was asked.

    Attributes:
        replies: whole replies with their weights; one token is `width` bytes of them.
        apis: routes that it has.
        resumes: its chats go on with a reply that has begun.
        top: most likeliest tokens it tells, or None: no log-probabilities.
        strict: it refuses parameters beyond the oldest ones.
        chunk: tokens in one event.
        usage: whether it tells how many tokens it wrote.
        overlong: it ignores `max_tokens`.
        faults: what goes wrong with the requests to come, one after the other.
        bodies: what it was asked, in order; `keys` the authorizations.
        peak: most requests under way at a time.
        gone: replies whose reader left before their end.
    """

    replies: Mapping[str, float]
    apis: tuple[str, ...] = ("chat", "completions")
    resumes: bool = True
    top: int | None = 5
    strict: bool = False
    chunk: int = 1
    width: int = 1
    usage: bool = True
    overlong: bool = False
    delay: float = 0.0
    faults: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    gone: int = 0
    written: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, asked: str, begun: str, seed: int) -> bytes:
        """What follows what has begun."""
        if "Count to 12" in asked:
            text = COUNT
        else:
            options = [text for text in self.replies if text.startswith(begun)] or [begun]
            weights = [self.replies.get(text, 1.0) for text in options]
            text = random.Random(seed).choices(options, weights)[0]
        return text.encode()[len(begun.encode()) :]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "fake", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with fake.lock:
            fake.running += 1
            fake.peak = max(fake.peak, fake.running)
            fake.bodies.append(body)
            fake.keys.append(self.headers.get("authorization"))
            fault = fake.faults.pop(0) if fake.faults else ""
        try:
            self._post(body, fault)
        except OSError:
            fake.gone += 1
            self.close_connection = True
        finally:
            with fake.lock:
                fake.running -= 1

    def _post(self, body: dict[str, Any], fault: str) -> None:
        fake = self.fake
        api = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}.get(self.path)
        if api not in fake.apis:
            return self._send(404, {"error": {"message": "no such route"}})
        unknown = body.keys() - KNOWN - (set() if fake.strict else FURTHER)
        if unknown:
            return self._send(400, {"error": {"message": f"unknown fields {sorted(unknown)}"}})
        if fault.isdigit():
            said = f"refused {self.headers.get('authorization')}"
            return self._send(int(fault), {"error": {"message": said}}, {"Retry-After": "0"})
        if fault == "hang":
            return self._hang()
        chat = api == "chat"
        last = body["messages"][-1] if chat else None
        prompt = body.get("prompt", "")
        begun = prompt.rpartition("Assistant:")[2]
        if chat:
            begun = last["content"] if last["role"] == "assistant" else ""
        asked = str(body.get("messages") or prompt)
        text = fake.reply(asked, begun if not chat or fake.resumes else "", body.get("seed", 0))
        if body.get("stream"):
            return self._stream(body, text, chat, fault)
        tokens = [text[:1]] if text else []  # only `max_tokens` of 1 is asked for whole
        return self._send(200, self._choice(b"", tokens, body, chat))

    def _stream(self, body: dict[str, Any], text: bytes, chat: bool, fault: str) -> None:
        fake = self.fake
        tokens = [text[i : i + fake.width] for i in range(0, len(text), fake.width)]
        most = 10**6 if fake.overlong else body["max_tokens"]
        ended, tokens = len(tokens) < most, tokens[:most]
        kind = "text/html" if fault == "html" else "text/event-stream"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        broken = {
            "garbage": b"data: {half\n\n",
            "list": b"data: []\n\n",
            "empty": b'data: {"choices": [{}]}\n\n',
            "error": b'data: {"error": {"message": "out of luck"}}\n\n',
            "count": b'data: {"choices": [], "usage": {"completion_tokens": -1}}\n\n',
            "deep": b"data: " + b"[" * 200_000 + b"\n\n",
            "logp": b'data: {"choices": [{"text": "a", "delta": {"content": "a"}, "logprobs":'
            b' {"content": [{"token": "a", "logprob": NaN}]}}]}\n\n',
        }
        if fault in broken:
            self.wfile.write(broken[fault])
        if fault == "huge":
            for _ in range(100):
                self.wfile.write(b"data: " + b"x" * (1 << 20))
        sent = 0
        for start in range(0, len(tokens), fake.chunk):
            if fault == "cut" and start >= 2:
                return
            part = tokens[start : start + fake.chunk]
            sent += len(part)
            fake.written += len(part)
            self._event(self._choice(b"".join(tokens[:start]), part, body, chat))
            if fake.delay:
                time.sleep(fake.delay)
        said = {"delta": {}} if chat else {"text": ""}
        finish = "stop" if ended else "length"
        self._event({"choices": [{**said, "index": 0, "finish_reason": finish}]})
        if fake.usage:
            usage = {"prompt_tokens": 9, "completion_tokens": sent + ended}
            self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _choice(
        self, before: bytes, part: list[bytes], body: dict[str, Any], chat: bool
    ) -> dict[str, Any]:
        # Characters are told once they are whole.
        whole = (before + b"".join(part)).decode(errors="ignore")
        text = whole[len(before.decode(errors="ignore")) :]
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": {"content": text}} if chat else {"text": text}
        top = body.get("top_logprobs") if chat else body.get("logprobs")
        if self.fake.top is not None and top:
            entries = [
                {"token": p.decode(errors="replace"), "bytes": list(p), "logprob": -0.5}
                for p in part
            ]
            likely = [{"token": f"t{i}", "logprob": -1.0 - i} for i in range(self.fake.top)][:top]
            choice["logprobs"] = {"content": [e | {"top_logprobs": likely} for e in entries]}
        return {"choices": [choice]}

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _hang(self) -> None:
        """Say nothing until the other side hangs up."""
        if select.select([self.connection], [], [], 20)[0]:
            raise ConnectionResetError

    def _send(
        self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def endpoint(replies: Mapping[str, float] | str, **features: Any) -> Iterator[Fake]:
    """An endpoint under way."""
    fake = Fake({replies: 1.0} if isinstance(replies, str) else replies, **features)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

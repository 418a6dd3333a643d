"""The page and what it reads: its files, what they may load, and the fields that it relies on."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx
import pytest

from anabranch.reason.registry import strategies
from anabranch.serve.calls import Call, begin
from anabranch.serve.keys import Account
from anabranch.serve.metrics import Metrics
from anabranch.serve.think import Thinking, plan_of
from anabranch.serve.views import PAGE
from anabranch.serve.wire import Extension
from anabranch.verify.registry import judges
from tests.serving import Running, serving

ROOT = Path(__file__).parents[1]
FILES = sorted(PAGE.iterdir())
TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
LINES = {"3 + 1 is 4.\nThe answer is 4.": 0.6, "2 + 2 is 5.\nThe answer is 5.": 0.4}
ASKED: list[Any] = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(TWO, code_tools=True) as running:
        yield running


def fetch(server: Running, path: str) -> Any:
    """JSON of a route."""
    with urlopen(server.url + path) as response:
        return json.load(response)


# ---- files ---------------------------------------------------------------------------------------


def test_the_page_may_load_nothing_from_elsewhere(server: Running) -> None:
    with urlopen(f"{server.url}/") as response:
        text, headers = response.read().decode(), response.headers
    assert headers["Content-Type"].startswith("text/html")
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    named = re.findall(r'(?:src|href)="(/page/[^"]+)"', text)
    named += [f"/page/{name}" for path in FILES for name in _imports(path)]
    assert {f"/page/{path.name}" for path in FILES} == {*named, "/page/index.html"}
    for path in named:
        with urlopen(server.url + path) as response:
            assert response.headers["Content-Security-Policy"]
            kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
            assert response.headers.get_content_type() == kind[path.rsplit(".", 1)[1]]


def _imports(path: Path) -> list[str]:
    return re.findall(r'from "\./([^"]+)"', path.read_text("utf-8")) if path.suffix == ".js" else []


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fviews.py", "%2e%2e/views.py", "__pycache__", ""]
)
def test_nothing_but_the_pages_files_is_sent(server: Running, name: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{server.url}/page/{name}")
    refused.value.close()
    assert refused.value.code == 404


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_names_no_outside_address_and_reads_no_text_as_markup(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z0-9-]+\.|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    if path.suffix == ".html":
        assert "<style" not in text
        assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=|\sstyle=", text)


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    """The package folder is copied as it is: the build is told so, and git leaves nothing out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", PAGE.relative_to(ROOT)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {Path(line).name for line in listed.stdout.split()} == {path.name for path in FILES}
    build = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'wheel.packages = ["src/anabranch"]' in build
    assert "wheel.exclude" not in build


# ---- what the page reads -------------------------------------------------------------------------


def test_everything_registered_can_be_chosen(server: Running) -> None:
    for path, entries in (("/v1/strategies", strategies()), ("/v1/judges", judges())):
        told = fetch(server, path)["data"]
        assert [entry["name"] for entry in told] == [entry.name for entry in entries]
        for entry in told:
            assert entry["summary"]
            for parameter in entry["parameters"]:
                kind = parameter["type"]
                assert kind in ("int", "float", "one_of", "text", "judge", "strategy")
                if kind in ("int", "float"):
                    assert parameter["low"] <= parameter["default"] <= parameter["high"]
                elif kind == "one_of":
                    assert parameter["default"] in parameter["options"]
    vote = next(
        entry for entry in fetch(server, "/v1/strategies")["data"] if entry["name"] == "vote"
    )
    assert vote["cost"]
    assert vote["use"]
    assert vote["parameters"][0] == {
        "name": "n", "default": 8, "allowed": "whole number from 1 to 1024", "type": "int",
        "low": 1, "high": 1024, "low_open": False,
    }  # fmt: skip


def test_the_engines_figures_go_up() -> None:
    with serving(TWO) as running:
        before = fetch(running, "/v1/engine")
        assert (before["running"], before["waiting"]) == (0, 0)
        (model,) = before["models"]
        assert (model["model"], model["tokens"], model["passes"]) == ("scripted", 0, 0)
        for _ in range(2):
            running.client.chat.completions.create(model="scripted", messages=ASKED, seed=1)
        (after,) = fetch(running, "/v1/engine")["models"]
        prompt = len("What is 2 + 2?") + 4
        assert after["tokens"] >= 2 * (prompt + len("Answer: 5"))
        # The second was there already, but for its end, after which nothing was computed.
        assert after["cached_tokens"] == after["tokens"] / 2 - 1
        assert after["rows"] >= after["passes"] > 0
        assert 0 < after["used_pages"] <= after["pages"]
        assert after["operations"] == after["branches"] == after["held_pages"] == 0
        with httpx.Client(base_url=f"{running.url}/v1") as api:
            told = {"model": "scripted", "prompt": "x" * 20}
            root = api.post("/branches", json=told).json()
            api.headers["X-Session-Secret"] = root["secret"]
            api.post(f"/branches/{root['id']}/fork", json={"n": 2})
            api.post(f"/branches/{root['id']}/peek", json={})
            (held,) = fetch(running, "/v1/engine")["models"]
            assert (held["branches"], held["held_pages"]) == (3, 2)
            api.delete(f"/sessions/{root['session']}")
        (freed,) = fetch(running, "/v1/engine")["models"]
        assert (freed["branches"], freed["held_pages"]) == (0, 0)
        assert freed["used_pages"] == held["used_pages"]


def traced(server: Running, strategy: str, **more: object) -> tuple[list[Any], Any]:
    """The events of a run, and its report."""
    body = {"strategy": strategy, "seed": 1, "trace": True, **more}
    with server.client.chat.completions.create(
        model="scripted",
        messages=ASKED,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"anabranch": body},
    ) as stream:
        chunks: list[Any] = [chunk for chunk in stream if not chunk.choices]
    events = [chunk.anabranch["event"] for chunk in chunks[:-1]]
    return events, chunks[-1].anabranch


FIELDS = {
    "open": {"branch", "position", "text"},
    "fork": {"branch", "parent", "position"},
    "extend": {"branch", "start", "end", "text", "logp", "entropy", "stop", "logps", "borders"},
    "grow": {"steps"},
    "rate": {"branch", "judge", "rating"},
    "thought": {"branch", "answer", "done"},
    "drop": {"branch", "reason"},
    "answer": {"kept"},
}
"""What `tree.js` takes from each event."""


def test_events_have_the_fields_that_the_page_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.serve.think.GROW_SECONDS", 0.0)
    with serving(LINES) as running:
        grown, _ = traced(running, "vote(n=2)")
        events, report = traced(running, "beam(width=2, fanout=2)")
    events += grown
    assert {field for event in grown for step in event.get("steps", []) for field in step} == {
        "branch", "text", "tokens", "logp", "entropy"
    }  # fmt: skip
    assert {event["event"] for event in events} >= FIELDS.keys()
    for event in events:
        assert event.keys() >= FIELDS.get(event["event"], set())
        if event["event"] == "extend" and event["text"]:
            assert len(event["logps"]) == len(event["borders"]) == event["end"] - event["start"]
            assert event["borders"] == sorted(event["borders"])
            assert event["borders"][-1] == len(event["text"])
    text = (PAGE / "tree.js").read_text("utf-8")
    for field in set().union(*FIELDS.values()):
        assert re.search(rf"\b{field}\b", text), f"the page reads no {field}"
    assert report.keys() >= {"seed", "confidence", "notes", "usage", "candidates"}
    assert report["candidates"][0].keys() >= {
        "branch",
        "answer",
        "weight",
        "logp",
        "tokens",
        "done",
    }
    used = set(re.findall(r"usage\.(\w+)", (PAGE / "run.js").read_text("utf-8")))
    assert used <= report["usage"].keys()
    assert 0 < report["usage"]["kept_tokens"] < report["usage"]["sampled_tokens"]


def test_steps_are_told_while_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pause between them, every piece is told; their sums are the steps'."""
    monkeypatch.setattr("anabranch.serve.think.GROW_SECONDS", 0.0)
    with serving(TWO) as running:
        events, _ = traced(running, "vote(n=4)")
    live: dict[str, Any] = {}
    ended = 0
    for event in events:
        for step in event.get("steps", []):
            told = live.setdefault(step["branch"], {"text": "", "tokens": 0, "logp": 0.0})
            for field in told:
                told[field] += step[field]
        if event["event"] == "extend":
            told = live.pop(event["branch"])
            ended += 1
            assert event["text"].startswith(told["text"])
            assert len(told["text"]) > 3
            assert 0 < told["tokens"] <= event["end"] - event["start"]
            assert 0 >= told["logp"] >= event["logp"] - 1e-9
    assert ended == 4
    assert not live


def test_growth_is_told_seldom_and_only_to_who_asks() -> None:
    with serving(TWO) as running:
        events, _ = traced(running, "vote(n=8)")
        growths = [event for event in events if event["event"] == "grow"]
        assert len(growths) <= 3  # of 19 passes in a few hundredths of a second
        with running.client.chat.completions.create(
            model="scripted", messages=ASKED, stream=True,
            extra_body={"anabranch": {"strategy": "vote(n=4)"}},
        ) as stream:  # fmt: skip
            assert all(chunk.choices for chunk in stream)


def test_numbers_that_json_cannot_write_become_null(server: Running) -> None:
    async def noted() -> tuple[str, Any] | None:
        begin(Call(Account(), "id", metrics=Metrics(), stopping=asyncio.Event()))
        plan = plan_of(Extension(strategy="single"), None, None)
        assert plan is not None
        thinking = Thinking(plan, server.hub.models["scripted"], ASKED, None, 1)
        thinking.note("score", branch="0", options=["x"], scores=[-math.inf])
        return thinking._events.get_nowait()

    kind, event = asyncio.run(noted()) or ("", {})
    assert kind == "trace"
    assert json.loads(json.dumps(event, allow_nan=False))["scores"] == [None]

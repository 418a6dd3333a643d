"""Who may ask, how much, and whose turn it is."""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import http.client
import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from typer.testing import CliRunner

from anabranch import serve
from anabranch.cli.main import app as cli
from anabranch.engine.scheduler import FairShare, Grant, Waiting
from anabranch.errors import InputError, ResourceError
from anabranch.program.engine import Engine
from anabranch.serve.admission import Admission
from anabranch.serve.app import create_app
from anabranch.serve.calls import Call, begin
from anabranch.serve.errors import Refusal
from anabranch.serve.hub import Hub
from anabranch.serve.keys import Account, Allowance, Key, Keyring, new_key, read_keys
from anabranch.serve.metrics import Metrics
from anabranch.serve.settings import Settings
from tests.scripted import scripted
from tests.serving import Running, serving

TWO = {"So the answer is 4.": 0.6, "Answer: 5": 0.4}
ASKED: Any = [{"role": "user", "content": "What is 2 + 2?"}]
HASH = "sha256:" + "0" * 64


def endless(prompt: str, reply: str) -> Mapping[str, float]:
    """Never comes to an end."""
    return {"a": 0.5, "b": 0.5}


def keys_in(folder: Path, **quotas: Mapping[str, object]) -> tuple[Path, dict[str, str]]:
    """A file with keys by name, and the keys."""
    path = folder / "keys.toml"
    keys = {}
    for name, told in quotas.items():
        keys[name] = new_key(path, name)
        with path.open("a") as file:
            file.writelines(f"{field} = {json.dumps(value)}\n" for field, value in told.items())
    return path, keys


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, str]]]:
    path, keys = keys_in(tmp_path_factory.mktemp("keys"), alice={})
    with serving(TWO, keys=path) as running:
        yield running, keys


def get(
    server: Running, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """A raw response."""
    netloc = urlsplit(server.url).netloc
    with contextlib.closing(http.client.HTTPConnection(netloc, timeout=10)) as connection:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        response = connection.getresponse()
        return response.status, response.headers, response.read()


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_holds_no_key_and_is_its_owners(tmp_path: Path) -> None:
    path, keys = keys_in(tmp_path, alice={}, bob={"tokens_per_day": 9})
    text = path.read_text()
    assert not any(key in text for key in keys.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(key.name, key.tokens_per_day) for key in read_keys(path)] == [
        ("alice", None),
        ("bob", 9),
    ]
    ring = Keyring(read_keys(path))
    found = [ring.find(key) for key in (keys["alice"], keys["bob"], keys["bob"][:-1], "", None)]
    assert [account and account.name for account in found] == ["alice", "bob", None, None, None]
    for name in ("alice", "ALICE"):  # folders are named after keys, on any file system
        with pytest.raises(InputError, match="a key of this name"):
            new_key(path, name)
    with pytest.raises(InputError, match="letters"):
        new_key(path, 'x"\n')
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[key]]\nname = 'a'",
        f"[[key]]\nname = 'a'\nhash = '{HASH}'\nrunning = 0",
        f"[[key]]\nname = 'a'\nhash = '{HASH}'\nextra = 1",
        "[[key]]\nname = 'a'\nhash = 'sha256:xyz'",
        f"[[key]]\nname = 'a'\nhash = '{HASH}'\n" * 2,
        "key = [",
        "\0",
    ],
)
def test_a_broken_file_never_leaves_the_server_open(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InputError):
        create_app(Settings(keys=path), Hub({}))


def test_a_file_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--new-key"):
        create_app(Settings(keys=tmp_path / "none"), Hub({}))


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = keys_in(tmp_path, alice={})
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(ResourceError, match="no space left"):
        new_key(path, "bob")
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="too large"):
        new_key(Path("/dev/zero"), "bob")


def test_the_command_makes_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    done = CliRunner().invoke(cli, ["serve", "--keys", str(path), "--new-key", "carol"])
    account = Keyring(read_keys(path)).find(done.stdout.strip())
    assert account is not None
    assert account.name == "carol"
    assert CliRunner().invoke(cli, ["serve", "--new-key", "carol"]).exit_code == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_without_keys_only_this_machine_is_listened_to(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="--new-key NAME"):
        create_app(Settings(host=host), Hub({}))
    path, _ = keys_in(tmp_path, alice={})
    create_app(Settings(host=host, keys=path), Hub({}))


# ---- the door ------------------------------------------------------------------------------------


def test_no_route_but_health_answers_without_a_key(two: tuple[Running, dict[str, str]]) -> None:
    server, _ = two
    told = create_app(Settings(), Hub({})).openapi()["paths"]
    paths = {(m.upper(), re.sub(r"\{.*?\}", "x", path)) for path in told for m in told[path]}
    assert ("POST", "/v1/chat/completions") in paths
    paths |= {("GET", "/"), ("GET", "/openapi.json"), ("GET", "/nothing"), ("GET", "/health/"),
              ("GET", "//health"), ("OPTIONS", "/v1/models"), ("GET", "/page/main.js")}  # fmt: skip
    for method, path in paths:
        status, headers, body = get(server, path, method)
        if path == "/health":
            assert status == 200
        else:
            assert (status, path) == (401, path)
            assert headers["www-authenticate"].startswith("Basic")
            assert method == "HEAD" or json.loads(body)["error"]["code"] == "invalid_api_key"
    document = server.app.openapi()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "basic"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation["security"]) == (path != "/health")


def test_browsers_ask_where_a_page_is_opened_and_not_for_its_scripts(
    two: tuple[Running, dict[str, str]],
) -> None:
    server, _ = two
    for mode, kind in (("navigate", "Basic"), ("cors", "Bearer"), ("no-cors", "Bearer")):
        status, headers, _ = get(server, "/", **{"Sec-Fetch-Mode": mode})
        assert (status, headers["www-authenticate"].split()[0]) == (401, kind)


def test_keys_come_as_bearer_or_password(two: tuple[Running, dict[str, str]]) -> None:
    server, keys = two
    good = keys["alice"]
    basic = base64.b64encode(f"anyone:{good}".encode()).decode()
    for told in (f"Bearer {good}", f"bearer {good}", f"Basic {basic}"):
        assert get(server, "/v1/models", authorization=told)[0] == 200
    for told in ("", "Bearer", f"Bearer {good}x", good, "Basic !!", "Basic /w==", f"Basic {good}"):
        assert get(server, "/v1/models", authorization=told)[0] == 401
    reply = server.client_of(good).chat.completions.create(model="scripted", messages=ASKED)
    assert reply.choices[0].message.content in TWO
    with pytest.raises(openai.AuthenticationError):
        server.client.models.list()


def test_pages_of_other_sites_cannot_use_a_browsers_password(
    two: tuple[Running, dict[str, str]],
) -> None:
    server, keys = two
    basic = "Basic " + base64.b64encode(f":{keys['alice']}".encode()).decode()
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        got = get(server, "/v1/models", authorization=basic, sec_fetch_site=site)[0]
        assert got == status
    bearer = f"Bearer {keys['alice']}"
    assert get(server, "/v1/models", authorization=bearer, sec_fetch_site="cross-site")[0] == 200


def test_an_open_server_wants_to_be_called_by_its_own_name() -> None:
    with serving(TWO) as server:
        port = urlsplit(server.url).port
        for host in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}", f"LOCALHOST:{port}"):
            assert get(server, "/v1/models", host=host)[0] == 200
        for host in ("evil.example", f"127.0.0.1.evil.example:{port}", ""):
            assert get(server, "/v1/models", host=host)[0] == 403
            assert get(server, "/health", host=host)[0] == 200


def test_request_ids_come_back(two: tuple[Running, dict[str, str]]) -> None:
    server, _ = two
    assert get(server, "/health", x_request_id="mine-1")[1]["x-request-id"] == "mine-1"
    made = [get(server, "/health", x_request_id=told)[1]["x-request-id"] for told in ("", "a b")]
    assert len(set(made)) == 2
    assert all(name.startswith("req-") for name in made)


# ---- what keys share -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["scripted", "scripted:vote-4"])
@pytest.mark.parametrize("share", [False, True])
def test_prefixes_are_a_keys_own_unless_shared(tmp_path: Path, model: str, share: bool) -> None:
    path, keys = keys_in(tmp_path, alice={}, bob={}, carol={"scope": "alice"})
    with serving(TWO, keys=path, share_cache=share) as server:

        def cached(name: str) -> int:
            reply = server.client_of(keys[name]).chat.completions.create(
                model=model, messages=ASKED
            )
            assert reply.usage is not None
            assert reply.usage.prompt_tokens_details is not None
            return reply.usage.prompt_tokens_details.cached_tokens or 0

        assert cached("alice") == 0
        assert cached("alice") > 0
        assert (cached("bob") > 0) == share
        assert cached("carol") > 0


def test_no_route_makes_a_program_that_is_nobodys() -> None:
    """`new_run` gives a program its key's scope and share; a bare `Run` would have neither."""
    folder = Path(next(iter(serve.__path__)))
    for path in folder.glob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        made = any(isinstance(func, ast.Name) and func.id == "Run" for func in calls)
        assert made == (path.name == "calls.py"), f"{path.name}: use new_run instead of Run"


@pytest.mark.parametrize("whose", ["one", "many"])
def test_a_short_request_is_not_held_up_by_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    path, keys = keys_in(tmp_path, many={}, one={})
    passes: list[tuple[int, bool]] = []
    with serving(endless, keys=path) as server:
        core = server.lm.engine.core
        assert isinstance(core.policy, FairShare)
        plan, begun = core.policy.plan, core.policy.begun

        def noted(waiting: Sequence[Waiting], rows: int) -> list[Grant]:
            grants, new = plan(waiting, rows), {w.ticket for w in waiting if w.had < begun}
            if 0 < len(new) < len(waiting):
                turn = any(grant.ticket in new for grant in grants)
                passes.append((sum(grant.rows for grant in grants), turn))
            return grants

        monkeypatch.setattr(core.policy, "plan", noted)
        with server.client_of(keys["many"]).chat.completions.create(
            model="scripted", messages=ASKED, n=128, stream=True
        ) as many:
            next(iter(many))
            groups = {request.group for request in list(core.requests.values())}
            assert groups == {"many"}
            server.client_of(keys[whose]).chat.completions.create(
                model="scripted", messages=ASKED, max_tokens=20
            )
    # Its prompt and its first tokens, each in a short pass, none without it; what others of its own
    # key have written already is there.
    assert len(passes) >= (10 if whose == "one" else 5)
    assert all(rows <= 32 and turn for rows, turn in passes)


# ---- quotas --------------------------------------------------------------------------------------


def test_tokens_that_are_used_up_are_said_with_when_to_come_back(tmp_path: Path) -> None:
    path, keys = keys_in(tmp_path, alice={"tokens_per_day": 40}, bob={})
    with serving(TWO, keys=path) as server:
        alice = server.client_of(keys["alice"])
        for model in ("scripted", "scripted:vote-4"):
            with pytest.raises(openai.RateLimitError) as refused:  # noqa: PT012
                for _ in range(3):
                    alice.chat.completions.create(model=model, messages=ASKED)
            assert refused.value.code == "quota_exceeded"
            left = 86_400 - time.time() % 86_400
            assert abs(int(refused.value.response.headers["retry-after"]) - left) < 5
        assert alice.models.list().data
        server.client_of(keys["bob"]).chat.completions.create(model="scripted", messages=ASKED)


def test_requests_under_way_count_against_the_tokens(tmp_path: Path) -> None:
    path, keys = keys_in(tmp_path, alice={"tokens_per_minute": 100})
    with serving(endless, keys=path) as server:
        alice = server.client_of(keys["alice"])
        stream = alice.chat.completions.create(model="scripted", messages=ASKED, stream=True)
        for _, _ in zip(range(120), stream, strict=False):
            pass
        with pytest.raises(openai.RateLimitError):
            alice.chat.completions.create(model="scripted", messages=ASKED, max_tokens=1)
        stream.close()


def test_an_allowance_begins_anew_with_each_span() -> None:
    now = 130.0
    allowance = Allowance(10, 60, lambda: now)
    assert allowance.wait() == 0
    allowance.charge(12)
    assert allowance.wait() == 51  # until 180, rounded up
    now = 179.9
    assert allowance.wait() == 1
    now = 180.0
    assert allowance.wait() == 0
    allowance.charge(9)
    assert allowance.wait() == 0
    allowance.charge(1)
    assert allowance.wait() > 0


def test_a_key_has_its_own_number_of_requests(tmp_path: Path) -> None:
    path, keys = keys_in(tmp_path, alice={}, bob={"running": 1, "waiting": 0})
    with serving(endless, keys=path) as slow:
        bob, alice = slow.client_of(keys["bob"]), slow.client_of(keys["alice"])
        holding = bob.chat.completions.create(model="scripted", messages=ASKED, stream=True)
        next(iter(holding))
        with pytest.raises(openai.RateLimitError) as refused:
            bob.chat.completions.create(model="scripted", messages=ASKED)
        assert refused.value.response.headers["retry-after"] == "2"
        alice.chat.completions.create(model="scripted", messages=ASKED, max_tokens=2)
        holding.close()
        slow.until_idle()
        bob.chat.completions.create(model="scripted", messages=ASKED, max_tokens=2)


def account(name: str, **quotas: Any) -> Account:
    """One of its own."""
    return Account(Key(name=name, hash=HASH, **quotas))


def test_places_go_to_who_holds_the_fewest() -> None:
    async def main() -> list[str]:
        admission = Admission(2, 100)
        order: list[str] = []

        async def work(owner: Account) -> None:
            begin(Call(owner, "id", metrics=Metrics(), stopping=asyncio.Event()))
            async with admission.place():
                order.append(owner.name)
                await asyncio.sleep(0.001 * len(order))

        a, b, c = account("a"), account("b"), account("c", running=1)
        async with asyncio.TaskGroup() as group:
            for owner in (a, a, a, a, a, b, c, c, c, b):
                group.create_task(work(owner))
        assert (admission.running, admission.waiting) == (0, 0)
        assert not any(each.calls for each in (a, b, c))
        return order

    order = asyncio.run(main())
    assert order[:2] == ["a", "a"]
    assert order.index("b") == 2  # before the third of a, who came earlier
    assert order.index("c") <= 4
    assert sorted(order) == [*"aaaaabbccc"]


def test_who_gives_up_waiting_leaves_no_trace() -> None:
    async def main() -> None:
        admission = Admission(1, 2)
        owner = account("a", waiting=2)
        inside, leave = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begin(Call(owner, "id", metrics=Metrics(), stopping=asyncio.Event()))
            async with admission.place():
                inside.set()
                await leave.wait()

        first = asyncio.create_task(work())
        await inside.wait()
        second, third = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        assert admission.waiting == 2
        with pytest.raises(Refusal, match="waiting"):
            await work()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert admission.waiting == 1
        # Called up and cancelled in one turn of the loop: the place must come back.
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        third.cancel()
        await asyncio.gather(third, return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(main())


def test_a_place_that_becomes_free_as_its_heir_leaves_comes_back() -> None:
    async def main() -> None:
        admission = Admission(1, 2)
        tasks: list[asyncio.Task[None]] = []

        async def work(dismissed: int | None = None) -> None:
            begin(Call(account("a"), "id", metrics=Metrics(), stopping=asyncio.Event()))
            async with admission.place():
                await asyncio.sleep(0.01)
                if dismissed is not None:
                    tasks[dismissed].cancel()

        tasks += [asyncio.create_task(each) for each in (work(1), work(), work())]
        async with asyncio.timeout(10):
            done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [NoneType, asyncio.CancelledError, NoneType]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(main())


# ---- what a name can do --------------------------------------------------------------------------


def test_a_judge_loads_only_models_that_the_server_allows() -> None:
    def asked(server: Running, model: str) -> str:
        judge = f'reward(model="{model}")'
        return str(
            server.client.chat.completions.create(
                model="scripted",
                messages=ASKED,
                extra_body={"anabranch": {"strategy": "beam(width=2)", "judge": judge, "seed": 1}},
            ).model_extra
        )

    loaded: list[str] = []
    other = scripted(TWO)
    gate = threading.Event()
    with serving(TWO, loadable=["good"], wait=lambda: gate.wait(10)) as server:

        def load(model: str) -> Engine:
            loaded.append(model)
            return other

        server.lm.engine.loader = load
        gate.set()
        while not server.hub.ready:
            time.sleep(0.005)
        assert "cannot load this model" in asked(server, "/etc/passwd")
        assert loaded == []
        assert "cannot load this model" not in asked(server, "good")
        assert loaded == ["good"]
        assert isinstance(other.core.policy, FairShare)

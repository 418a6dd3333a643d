"""The command itself: its settings, how it stops, and what a killed server leaves behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from anabranch.cli.serve import read_settings
from anabranch.errors import InputError
from anabranch.serve.app import create_app
from anabranch.serve.hub import Hub
from anabranch.serve.server import Server
from anabranch.serve.settings import Settings
from tests.serving import serving

ROOT = Path(__file__).parent.parent
ASKED: Any = [{"role": "user", "content": "What is 2 + 2?"}]
MAIN = """
import sys
import anabranch
from anabranch.cli.main import app
from tests.scripted import scripted_lm

anabranch.load = lambda *_, **__: scripted_lm(lambda prompt, reply: {"a": 0.5, "b": 0.5})
sys.argv = ["anabranch", "serve", *sys.argv[1:]]
app()
"""


class Process:
    """`anabranch serve` over a model that never comes to an end."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "--port", str(self.port), *arguments],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0
        )
        for _ in range(600):
            if self.answers("/health"):
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        raise AssertionError("it does not answer")

    def answers(self, path: str) -> Any:
        """The body of a good response, else None."""
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection,
        ):
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status == 200:
                return json.loads(response.read())
        return None

    def end(self) -> list[dict[str, Any]]:
        """Wait for the end; what was logged."""
        _, text = self.process.communicate(timeout=20)
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts servers, and leaves none."""
    made: list[Process] = []

    def start(*arguments: str) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    yield start
    for server in made:
        server.client.close()
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def config(where: Path, **settings: Any) -> str:
    """A file of settings."""
    path = where / "serve.toml"
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    return str(path)


def test_a_stopped_server_ends_what_is_under_way_by_saying_so(tmp_path: Path, started: Any) -> None:
    server = started("--config", config(tmp_path, grace=0.3, models=["made-up"], records=""))
    stream = server.client.chat.completions.create(model="made-up", messages=ASKED, stream=True)
    next(iter(stream))
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(openai.APIError, match="being stopped") as told:
        for _ in stream:
            pass
    assert told.value.code == "stopping"
    assert 0.2 < time.monotonic() - began < 5
    assert server.answers("/health") is None
    logged = server.end()
    assert server.process.returncode in (0, -signal.SIGTERM)
    (line,) = [line for line in logged if line["message"] == "request" and line["tokens"]]
    assert line["finish"] == "error"


def test_what_ends_in_time_is_not_cut_off(tmp_path: Path, started: Any) -> None:
    server = started("--config", config(tmp_path, grace=20, models=["made-up"], records=""))
    stream = server.client.chat.completions.create(
        model="made-up", messages=ASKED, stream=True, max_tokens=300
    )
    next(iter(stream))
    server.process.send_signal(signal.SIGINT)
    assert [*stream][-1].choices[0].finish_reason == "length"
    server.end()


def test_records_outlive_a_killed_server(tmp_path: Path, started: Any) -> None:
    path = tmp_path / "records.db"
    options = ("--config", config(tmp_path, models=["made-up"], records=str(path)))
    server = started(*options)
    for seed in range(3):
        server.client.chat.completions.create(
            model="made-up", messages=ASKED, max_tokens=5, seed=seed
        )
    while len(server.answers("/v1/records")["data"]) < 3:
        time.sleep(0.01)
    stream = server.client.chat.completions.create(model="made-up", messages=ASKED, stream=True)
    next(iter(stream))
    server.process.kill()
    server.process.wait()
    again = started(*options)
    assert [row["seed"] for row in again.answers("/v1/records")["data"]] == [2, 1, 0]
    again.client.chat.completions.create(model="made-up", messages=ASKED, max_tokens=5, seed=9)
    while again.answers("/v1/records")["data"][0]["seed"] != 9:
        time.sleep(0.01)


def test_who_waits_for_a_place_is_told_too() -> None:
    def endless(prompt: str, reply: str) -> dict[str, float]:
        return {"a": 0.5, "b": 0.5}

    with serving(endless, running=1, grace=0.1) as server:
        holding = server.client.chat.completions.create(
            model="scripted", messages=ASKED, stream=True
        )
        next(iter(holding))
        for stream in (False, True):
            server.app.state.stopping.set()
            with pytest.raises(openai.InternalServerError) as told:
                server.client.chat.completions.create(
                    model="scripted", messages=ASKED, stream=stream
                )
            assert (told.value.status_code, told.value.code) == (503, "stopping")


# ---- settings ------------------------------------------------------------------------------------


def test_the_example_in_the_docs_holds(tmp_path: Path) -> None:
    told = read_settings(ROOT / "docs" / "serve.toml", {})
    text = (ROOT / "docs" / "serve.toml").read_text()
    for name in Settings.model_fields:
        assert f"\n{name} = " in text or f"\n# {name} = " in text, f"{name} is not in it"
    assert told.port == Settings().port


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    more = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command.split(), "-keyout", str(key), "-out", str(cert), *more],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("needs the openssl command")
    return cert, key


def test_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serving({"4": 1.0}, tls_cert=cert, tls_key=key) as server:
        port = int(server.url.rpartition(":")[2])
        trusted = ssl.create_default_context(cafile=cert)
        with contextlib.closing(
            http.client.HTTPSConnection("127.0.0.1", port, context=trusted)
        ) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200


def test_certificates_that_do_not_fit_are_said(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    for settings in ({"tls_cert": cert}, {"tls_cert": key, "tls_key": cert}, {"tls_key": key}):
        told = Settings.model_validate(settings)
        with pytest.raises(InputError, match=r"tls_cert|certificate"):
            Server(create_app(told, Hub({})), told)

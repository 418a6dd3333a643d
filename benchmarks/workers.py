"""Engines under measurement, each in a process of its own: start, ask, interleave, end."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
INSTALL = (
    "python -m venv benchmarks/.peers && "
    "benchmarks/.peers/bin/pip install -r benchmarks/requirements.txt"
)
PATIENCE = 10.0
"""Seconds: a task that took longer once is not repeated with that engine."""

Reply = dict[str, Any]


class WorkerError(Exception):
    """An engine that could not be started, or that could not do a task; says why."""


class Worker:
    """One engine with one model, as `peers/protocol.py` says."""

    def __init__(self, module: str, model: Path, threads: int, **options: Any) -> None:
        """Start and load, with what else it must be told. Raises WorkerError."""
        ours = module == "anabranch"
        python = sys.executable if ours else str(peers_python())
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as it runs)
        self._process = subprocess.Popen(
            [python, "-m", f"peers.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        try:
            loaded = self._send({"model": str(model), "threads": threads, **options})
            self.about: Reply = loaded["about"]
        except BaseException:
            self.close()
            raise

    def ask(self, task: str, **arguments: Any) -> Reply:
        """Do a task. Raises WorkerError."""
        return self._send({"task": task, **arguments})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _send(self, request: Reply) -> Reply:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            raise WorkerError((self._errors.read().strip() or "it ended").splitlines()[-1])
        reply: Reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


def environment() -> dict[str, str]:
    """That of a child which finds `peers` and, where we do by a relative path, `anabranch`."""
    given = os.environ.get("PYTHONPATH", "")
    paths = [str(HERE), *(os.path.abspath(path) for path in given.split(os.pathsep) if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def peers_python() -> Path:
    """The peers' interpreter. Raises WorkerError saying how to install it."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        raise WorkerError(f"not installed: {INSTALL}")
    return python


def requantized(model: Path, kind: str | None) -> Path:
    """The model in another format, made once by llama.cpp and kept. Raises WorkerError."""
    if kind is None:
        return model
    python = str(peers_python())
    target = PEERS / "models" / f"{model.stem}-{model.stat().st_size}-{kind}.gguf"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        command = [python, "-m", "peers.requantize", str(model), str(target), kind]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise WorkerError((done.stderr.strip() or "requantize failed").splitlines()[-1])
    return target


def interleave(
    workers: Mapping[str, Worker], repeats: int, task: str, turns: list[Reply]
) -> dict[str, list[Reply]]:
    """Each turn's task for every engine in succession, so that all see the same machine.

    An engine that cannot do it is left out, with a line that says why; one that takes longer than
    `PATIENCE` is asked once.

    Args:
        turns: arguments of the task for each repeat: prompts that nobody has seen.
    """
    replies: dict[str, list[Reply]] = {name: [] for name in workers}
    for arguments in turns[:repeats]:
        for name in list(replies):
            got = replies[name]
            if got and got[-1]["seconds"] > PATIENCE:
                continue
            try:
                got.append(workers[name].ask(task, **arguments))
            except WorkerError as error:
                say(f"{name} has no {task}: {error}")
                del replies[name]
    return replies


def medians(replies: Mapping[str, list[Reply]]) -> dict[str, float]:
    """Median seconds of each engine."""
    return {
        name: statistics.median(reply["seconds"] for reply in got) for name, got in replies.items()
    }


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)

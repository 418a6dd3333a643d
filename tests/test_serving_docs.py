"""docs/serving.md does what it says: its examples run, its tables name what there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anabranch.serve.keys import new_key
from anabranch.serve.wire import EFFORTS
from tests.serving import serving

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
MODEL = "qwen2.5-coder-0.5b"


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """An answer to everything."""
    full = "The answer is 42."
    return {full[len(reply) :]: 1.0} if full.startswith(reply) else {"": 1.0}


def blocks(language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def here(code: str, url: str) -> str:
    """The same for the test's server and model."""
    return code.replace("http://127.0.0.1:8000", url).replace(MODEL, "scripted")


def test_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning, *examples = blocks("python")
    keys = tmp_path / "keys.toml"
    monkeypatch.setenv("ANABRANCH_KEY", new_key(keys, "alice"))
    with serving(rule, keys=keys, folder=tmp_path / "files") as running:
        for code in examples:
            names: dict[str, Any] = {}
            exec(compile(here(beginning, running.url), "serving.md", "exec"), names)
            exec(compile(here(code, running.url), "serving.md", "exec"), names)
            assert capsys.readouterr().out.strip()
            for client in ("client", "api"):
                if client in names:
                    names[client].close()
        assert len(examples) == 8


COMMAND = """#!{python}
import sys
sys.path[:0] = {path}
import anabranch
from anabranch.cli.main import app
from tests.scripted import scripted_lm
from tests.test_serving_docs import rule

anabranch.load = lambda *_, **__: scripted_lm(rule)
app()
"""


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_a_newcomers_first_commands(tmp_path: Path) -> None:
    """In a shell as they stand, but for what is installed, the weights and the port."""
    (install,) = (block for block in blocks("sh") if "pip" in block)
    assert install.startswith("pip install '.[serve]' openai\n")
    commands = [block for block in blocks("sh") if "8000" in block]
    assert len(commands) == 2
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = tmp_path / "anabranch"
    path = [str(ROOT), *(place for place in sys.path if place)]
    command.write_text(COMMAND.format(python=sys.executable, path=path))
    command.chmod(0o700)
    script = "set -em\n" + "\n".join(commands).replace("8000", str(port)) + "\nkill %1; wait\n"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ANABRANCH_SERVE_PORT": str(port),
            "ANABRANCH_SERVE_RECORDS": str(tmp_path / "records.db"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    healthy, _, reply = done.stdout.partition("}")
    assert healthy == '{"status":"ok"', done.stderr
    assert json.loads(reply)["choices"][0]["message"]["content"] == "The answer is 42."
    assert (tmp_path / "keys.toml").stat().st_mode & 0o077 == 0
    assert '"key": "alice"' in (tmp_path / "serve.log").read_text()


def test_table_of_efforts() -> None:
    for effort, told in EFFORTS.items():
        row = f"| {effort} | `{told[0]}` | {told[1]:,} |" if told else f"| {effort} | none | |"
        assert row in PAGE

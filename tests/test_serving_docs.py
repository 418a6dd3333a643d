"""docs/serving.md does what it says: its examples run, its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anabranch.serve.wire import EFFORTS
from tests.serving import Running, serving
from tests.test_serve import ask

PAGE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
MODEL = "qwen2.5-coder-0.5b"


def rule(prompt: str, reply: str) -> Mapping[str, float]:
    """An answer to everything."""
    full = "The answer is 42."
    return {full[len(reply) :]: 1.0} if full.startswith(reply) else {"": 1.0}


def blocks(language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def here(code: str, running: Running) -> str:
    """The same for the test's server and model."""
    return code.replace("http://127.0.0.1:8000", running.url).replace(MODEL, "scripted")


def test_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beginning, *examples = blocks("python")
    with serving(rule, folder=tmp_path) as running:
        for code in examples:
            names: dict[str, Any] = {}
            exec(compile(here(beginning, running), "serving.md", "exec"), names)
            exec(compile(here(code, running), "serving.md", "exec"), names)
            assert capsys.readouterr().out.strip()
            for client in ("client", "api"):
                if client in names:
                    names[client].close()
        assert len(examples) == 7


def test_curl() -> None:
    (code,) = (block for block in blocks("sh") if "curl" in block)
    with serving(rule) as running:
        *_, url, header, content, data, body = shlex.split(here(code, running))
        assert (header, content, data) == ("-H", "Content-Type: application/json", "-d")
        status, told = ask(running, url.removeprefix(running.url), json.loads(body))
    assert (status, told["choices"][0]["message"]["content"]) == (200, "The answer is 42.")


def test_table_of_efforts() -> None:
    for effort, told in EFFORTS.items():
        row = f"| {effort} | `{told[0]}` | {told[1]:,} |" if told else f"| {effort} | none | |"
        assert row in PAGE

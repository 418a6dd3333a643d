"""The README does what it says: its examples run, its commands are those of the command line."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

import anabranch
import anabranch.lm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MODEL = "smollm2-135m"


def blocks(language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch, model_path: Callable[[str], Path]) -> None:
    """Let examples load the test model, whatever they name, so that they run in seconds."""
    load = anabranch.lm.load
    path = model_path(MODEL)
    monkeypatch.setattr(anabranch.lm, "load", lambda *_, **options: load(path, **options))


@pytest.mark.model
@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme(
    code: str, small_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.model
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(
    path: Path, small_model: None, own_methods: None, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.model
def test_the_example_of_the_package(small_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (anabranch.__doc__ or "").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    exec(compile(code, "anabranch", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_one_command_installs_and_solves_and_one_installs_and_tests() -> None:
    commands = "\n".join(blocks("sh"))
    assert re.search(r'^pip install \. && anabranch solve ".+"$', commands, re.MULTILINE)
    assert re.search(r"^pip install -e '\.\[dev\]' && pytest$", commands, re.MULTILINE)


@pytest.mark.parametrize(("file", "page"), [("strategies", "page"), ("tasks", "page_of_tasks")])
def test_the_lists_are_what_is_registered(file: str, page: str) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "strategies.py"))[page]
    written = (ROOT / "docs" / f"{file}.md").read_text(encoding="utf-8")
    assert written == made(), "run `python docs/strategies.py`"

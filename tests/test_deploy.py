"""What `deploy/` and the docs tell the command is something that it knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from anabranch.cli.main import app
from anabranch.cli.serve import PREFIX
from anabranch.serve.settings import Settings

ROOT = Path(__file__).parent.parent
FILES = ["deploy/Dockerfile", "deploy/anabranch.service", "docs/serve.toml", "docs/serving.md"]


@pytest.mark.parametrize("name", FILES)
def test_flags_and_variables_are_known(name: str) -> None:
    text = (ROOT / name).read_text()
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    for line in re.findall(r"anabranch serve .*", text):
        told = set(re.findall(r"(?<= )--[a-z][a-z-]*", line))
        assert told <= known, line
    for variable in re.findall(rf"{PREFIX}([A-Z_]+)", text):
        assert variable.lower() in Settings.model_fields


def test_the_image_takes_in_what_it_copies() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    let_in = re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text())
    copied = [
        name for line in re.findall(r"(?m)^COPY (?!--)(.*) \S+$", text) for name in line.split()
    ]
    assert copied
    assert set(copied) == set(let_in)
    assert all((ROOT / name).exists() for name in copied)
    assert text.rindex("\nUSER anabranch") > text.rindex("\nFROM")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "anabranch.service"
    text = (ROOT / "deploy/anabranch.service").read_text()
    unit.write_text(text.replace("/opt/anabranch/bin/anabranch", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert "anabranch.service" not in done.stdout + done.stderr

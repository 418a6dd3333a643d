"""The command line's frame, and `pull`, `models` and `doctor`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text
from typer.testing import CliRunner

import anabranch
from anabranch.backends.base import F32, Quantized
from anabranch.cli import doctor as doctor_module
from anabranch.cli import start, terminal
from anabranch.cli.main import app
from anabranch.errors import AnabranchError, DownloadError, InputError, ResourceError
from anabranch.models import registry
from anabranch.models.download import Artifact, HubFile, Part, Progress
from anabranch.models.registry import KnownModel

CONTENT = b"weights of a tiny model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
TINY = KnownModel(
    "tiny-1b",
    "A tiny model",
    "MIT",
    Artifact(
        len(CONTENT),
        DIGEST,
        HubFile("someone/tiny", "tiny.gguf"),
        (Part("tiny", "1.0", "tiny/tiny.gguf", len(CONTENT), DIGEST),),
    ),
)


def run_cli(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env=environment, prog_name="anabranch")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in which only `tiny-1b` is known; fetching it writes it."""

    def fetch(artifact: Artifact, target: Path, *, progress: Progress) -> None:
        progress(0, artifact.size, "downloading")
        progress(9, artifact.size, "downloading")
        progress(artifact.size, artifact.size, "checking")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(CONTENT)

    monkeypatch.setattr(registry, "_KNOWN", (TINY,))
    monkeypatch.setattr(registry, "fetch", fetch)
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.delenv("ANABRANCH_OFFLINE", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


# --- the frame ----------------------------------------------------------------------------------


def test_version() -> None:
    result = run_cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"anabranch {anabranch.__version__}\n")


def test_help_tells_commands_and_exit_codes() -> None:
    result = run_cli("--help")
    assert result.exit_code == 0
    for word in ("pull", "models", "doctor", "2 bad input", "130 interrupted"):
        assert word in " ".join(result.stdout.split())


@pytest.mark.parametrize("arguments", [("pull",), ("no-such-command",), ("models", "--no-such")])
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    result = run_cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError, 2), (DownloadError, 3), (ResourceError, 4), (AnabranchError, 1)],
)
def test_our_errors_are_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: type[AnabranchError], code: int
) -> None:
    def fail(*args: object, **options: object) -> Path:
        raise error("it went wrong", fix="do it right")

    monkeypatch.setattr(registry, "pull", fail)
    result = run_cli("pull", "tiny-1b")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: it went wrong; do it right\n"


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "pull", interrupted)
    result = run_cli("pull", "tiny-1b")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "pull", lambda *args, **options: 1 / 0)
    result = run_cli("pull", "tiny-1b")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_module_entry_with_a_reader_that_leaves(unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "anabranch", "models"],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 1)


def test_importing_the_command_line_loads_no_backend() -> None:
    script = "import sys, anabranch.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    backends = {"anabranch.backends.native", "anabranch.backends.reference", "anabranch._native"}
    assert "anabranch.cli.models" in loaded.stdout, loaded.stderr
    assert not backends & {*loaded.stdout.split()}


# --- pull and models ----------------------------------------------------------------------------


def test_pull_prints_the_path_and_nothing_else(cache: Path) -> None:
    result = run_cli("pull", "tiny-1b")
    path = cache / "models" / "tiny-1b.gguf"
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert result.stderr.splitlines()[:2] == ["downloading", "checking"]
    assert "23 B in" in result.stderr
    again = run_cli("pull", "tiny-1b")
    assert (again.stdout, again.stderr) == (f"{path}\n", "")


def test_pull_with_a_bar_in_a_terminal() -> None:
    result = run_cli("pull", "tiny-1b", FORCE_COLOR="1")
    assert result.exit_code == 0
    assert result.stdout.endswith("tiny-1b.gguf\n")


def test_pull_offline_and_unknown() -> None:
    assert run_cli("pull", "tiny-1b", "--offline").exit_code == 3
    result = run_cli("pull", "tiny-2b")
    assert result.exit_code == 2
    assert "did you mean tiny-1b?" in result.stderr


def test_pull_verify_replaces_a_damaged_file(cache: Path) -> None:
    run_cli("pull", "tiny-1b")
    path = cache / "models" / "tiny-1b.gguf"
    path.write_bytes(CONTENT.swapcase())
    assert run_cli("pull", "tiny-1b", "--verify").exit_code == 0
    assert path.read_bytes() == CONTENT


def test_models_as_json(cache: Path) -> None:
    entry = {
        "name": "tiny-1b",
        "title": "A tiny model",
        "license": "MIT",
        "size_bytes": len(CONTENT),
        "sha256": DIGEST,
        "here": False,
        "path": None,
        "sound": None,
    }
    assert json.loads(run_cli("models", "--json").stdout) == [entry]
    run_cli("pull", "tiny-1b")
    path = str(cache / "models" / "tiny-1b.gguf")
    here = entry | {"here": True, "path": path, "sound": True}
    assert json.loads(run_cli("models", "--json", "--verify").stdout) == [here]


def test_models_in_a_pipe_are_aligned_and_never_wrapped(cache: Path) -> None:
    run_cli("pull", "tiny-1b")
    result = run_cli("models", COLUMNS="20")
    assert result.stdout.splitlines() == [
        "name     size  licence  here  what it is / where it lies",
        f"tiny-1b  23 B  MIT      yes   {cache / 'models' / 'tiny-1b.gguf'}",
    ]


def test_models_in_a_terminal_fit_it(cache: Path) -> None:
    run_cli("pull", "tiny-1b")
    path = cache / "models" / "tiny-1b.gguf"
    result = run_cli("models", FORCE_COLOR="1", COLUMNS="60")
    lines = Text.from_ansi(result.stdout).plain.splitlines()
    assert lines[1].startswith("tiny-1b")
    assert max(map(len, lines)) <= 60
    last = lines[0].index("what it is")
    assert "".join(line[last:].strip() for line in lines[1:]) == str(path)


def test_models_verify_tells_damage(cache: Path) -> None:
    run_cli("pull", "tiny-1b")
    (cache / "models" / "tiny-1b.gguf").write_bytes(CONTENT.swapcase())
    result = run_cli("models", "--verify")
    assert result.exit_code == 3
    assert "damaged" in result.stdout
    assert "anabranch pull tiny-1b --verify" in result.stderr
    assert json.loads(run_cli("models", "--verify", "--json").stdout)[0]["sound"] is False


def test_bar_counts_bytes_but_loading_in_percent() -> None:
    console = Console(width=120, force_terminal=True, record=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    bar = Bar(*columns, console=console, auto_refresh=False)
    report = terminal._moving_bar(bar)
    report(50_000_000, 100_000_000, "downloading")
    (task,) = bar.tasks
    assert (task.description, task.fields["figures"]) == ("downloading", "50 MB of 100 MB")
    assert task.percentage == 50
    report(30, 120, "loading")
    assert (task.description, task.fields["figures"]) == ("loading", "25%")


# --- doctor -------------------------------------------------------------------------------------


class FakeBackend:
    """Multiplies the first 64 outputs, which are those that doctor looks at."""

    factor = 1.0

    def features(self) -> dict[str, object]:
        return {"isa": "avx9", "available": ["avx9", "portable"], "threads": 2}

    def pack(self, parts: list[Quantized]) -> SimpleNamespace:
        (w,) = parts
        assert w.offset is not None
        head = Quantized(w.q[:64], w.scale[:64], w.offset[:64], w.bits, w.group)
        return SimpleNamespace(nbytes=w.q.size // 2, head=head.dequantize())

    def linear(self, x: F32, weight: SimpleNamespace, out: F32) -> None:
        out[0, :64] = weight.head @ x[0] * self.factor


class FakeModel:
    """Writes a fixed number of tokens whatever it is asked."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.closed = tokens, False

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def generate(self, prompt: str, max_tokens: int, **sampling: object) -> SimpleNamespace:
        return SimpleNamespace(tokens=(1,) * min(self.tokens, max_tokens))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> type[FakeBackend]:
    """A native backend, and a self-test that lasts no time."""
    module = ModuleType("anabranch.backends.native")
    module.NativeBackend = FakeBackend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anabranch.backends.native", module)
    monkeypatch.setattr(doctor_module, "_SELF_TEST_SECONDS", 0.0)
    monkeypatch.setattr(FakeBackend, "factor", 1.0)
    return FakeBackend


def diagnose(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    result = run_cli("doctor", "--json", *arguments)
    found = json.loads(result.stdout)
    assert found["ok"] is (result.exit_code == 0)
    return result.exit_code, {check["name"]: check for check in found["checks"]}


@pytest.mark.usefixtures("native")
def test_doctor_without_a_model(cache: Path) -> None:
    code, checks = diagnose()
    assert code == 0
    everything = "software processor threads memory cache downloads models kernels"
    assert " ".join(checks) == everything
    assert checks["models"]["status"] == "warn"
    assert "anabranch pull tiny-1b" in checks["models"]["fix"]
    assert checks["processor"]["detail"] == "avx9 is used, of avx9, portable"
    assert checks["cache"]["values"]["path"] == str(cache)
    assert checks["kernels"]["values"]["bytes_per_second"] > 0
    assert checks["kernels"]["values"]["relative_error"] < 1e-5


@pytest.mark.usefixtures("native")
def test_doctor_measures_the_smallest_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run_cli("pull", "tiny-1b")
    lm, asked = FakeModel(tokens=5), []
    monkeypatch.setitem(
        vars(anabranch), "load", lambda *names, **options: asked.append((names, options)) or lm
    )
    code, checks = diagnose()
    assert code == 0
    assert asked == [(("tiny-1b",), {"offline": True, "kv_memory": 64 << 20})]
    assert checks["speed"]["values"]["tokens"] == 5
    assert checks["speed"]["values"]["tokens_per_second"] > 0
    assert lm.closed


def test_doctor_finds_wrong_kernels(native: type[FakeBackend]) -> None:
    native.factor = 1.05
    code, checks = diagnose()
    assert code == 1
    assert checks["kernels"]["status"] == "fail"


@pytest.mark.usefixtures("native")
def test_doctor_says_what_a_model_that_fails_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> object:
        raise ResourceError("the model does not fit")

    run_cli("pull", "tiny-1b")
    monkeypatch.setitem(vars(anabranch), "load", fail)
    result = run_cli("doctor")
    assert result.exit_code == 1
    assert "fail speed" in result.stdout
    assert "the model does not fit" in result.stdout


def test_doctor_without_the_native_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anabranch.backends.native", None)
    code, checks = diagnose()
    assert code == 1
    assert checks["kernels"]["status"] == "fail"
    assert "pip install" in checks["kernels"]["fix"]
    assert checks["memory"]["status"] == "ok"


@pytest.mark.usefixtures("native")
def test_doctor_on_a_poor_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_module, "available_memory", lambda: 5)
    monkeypatch.setattr(doctor_module, "_ROOM_BYTES", 1 << 62)
    monkeypatch.setattr(doctor_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / "not" / "made" / "yet"))
    code, checks = diagnose()
    assert code == 0
    for name in ("memory", "cache", "downloads"):
        assert checks[name]["status"] == "warn"
        assert checks[name]["fix"]
    monkeypatch.setattr(doctor_module.os, "access", lambda path, mode: False)
    monkeypatch.setenv("ANABRANCH_OFFLINE", "1")
    code, checks = diagnose()
    assert code == 1
    assert checks["cache"]["status"] == "fail"
    assert "ANABRANCH_OFFLINE" in checks["downloads"]["detail"]


@pytest.mark.usefixtures("native")
def test_doctor_in_a_pipe_is_plain_and_never_wrapped() -> None:
    result = run_cli("doctor", COLUMNS="20")
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith(f"ok   software   anabranch {anabranch.__version__}, Python")
    assert np.isin(
        [line[:5].strip() for line in result.stdout.splitlines()], ["ok", "warn", ""]
    ).all()


def test_commands_that_people_wait_for_import_no_others() -> None:
    script = (
        "import sys, anabranch.cli.start as start\n"
        "sys.argv = ['anabranch', sys.argv[1], '-h']\n"
        "try: start.main()\n"
        "except SystemExit: print(*sys.modules)"
    )
    for command in start.QUICK:
        done = subprocess.run(
            [sys.executable, "-c", script, command], capture_output=True, text=True, check=True
        )
        assert f"Usage: anabranch {command}" in done.stdout
        loaded = set(done.stdout.splitlines()[-1].split())
        assert not loaded & {"anabranch.bench", "anabranch.tasks", "anabranch.cli.doctor"}

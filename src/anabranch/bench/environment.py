"""Where and how something was measured."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import anabranch
from anabranch.machine import cores, total_memory

PACKAGES = (
    *("numpy", "tokenizers", "llguidance", "jinja2"),
    *("sympy", "math-verify", "z3-solver", "pydantic-monty"),
)
"""Those that answers may depend on."""


def environment() -> dict[str, Any]:
    """Versions, commit, machine and command line."""
    return {
        "anabranch": anabranch.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "memory": total_memory(),
        "command": sys.argv,
    }


def commit() -> str | None:
    """The commit this package runs from, "-dirty" where files differ; None outside a checkout."""
    folder = Path(anabranch.__file__).parent
    try:
        told = [
            subprocess.run(
                ["git", *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
                cwd=folder,
            ).stdout.strip()
            # An installed package may lie inside somebody else's checkout: that does not track it.
            for arguments in (
                ["ls-files", "--error-unmatch", "__init__.py"],
                ["describe", "--always", "--dirty"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[1] or None


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

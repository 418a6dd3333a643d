"""What every test file shares: deterministic properties, and where real models are."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Toys' matrices are too small to share out: on a busy machine numpy's threads mostly wait for each
# other. Read when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from anabranch.models import registry
from anabranch.program.registry import REGISTRIES

# A suite started in the background inherits that Ctrl-C is ignored; the tests of Ctrl-C want it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """A model's file by registry name: from the folder `ANABRANCH_TEST_MODELS` (`<name>.gguf`) if
    that is set, else from the model cache, downloaded on first use."""

    def find(name: str) -> Path:
        folder = os.environ.get("ANABRANCH_TEST_MODELS")
        if folder and (path := Path(folder) / f"{name}.gguf").exists():
            return path
        if not (path := registry.locate(name)) and registry.is_offline():
            pytest.skip(f"wants the weights of {name}: pull them, or unset ANABRANCH_OFFLINE")
        return path or registry.pull(name)

    return find


@pytest.fixture
def own_methods() -> Iterator[None]:
    """What a test registers is forgotten at its end."""
    for named in REGISTRIES.values():
        named.discover()  # files are imported once: what they register must not be forgotten
    before = {kind: dict(named._entries) for kind, named in REGISTRIES.items()}
    yield
    for kind, entries in before.items():
        REGISTRIES[kind]._entries = entries

"""The models of a grid: local files and names, and the simulated solver."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import anabranch
from anabranch.bench.simulated import SIMULATED
from anabranch.errors import InputError, unknown_name
from anabranch.lm import LM, is_url
from anabranch.models.registry import known


def check_model(text: str) -> None:
    """Raise InputError unless there is such a model. Nothing is fetched or loaded."""
    names = [model.name for model in known()]
    if _is_simulated(text):
        SIMULATED.parse(text)
    elif (
        text not in names
        and not is_url(text)
        and not (text and os.path.exists(os.path.expanduser(text)))
    ):
        nearest = unknown_name("model", text, [*names, *_simulated()])
        raise InputError(
            "unknown model",
            got=text,
            allowed=f"{nearest.allowed}, or a path to a .gguf file or a safetensors folder, "
            "or the URL of an endpoint",
            fix=nearest.fix,
        )


def load_model(
    text: str, *, progress: Callable[[int, int, str], None] | None = None, **options: Any
) -> LM:
    """A model by its text.

    Args:
        progress: as in `anabranch.load`.
        options: likewise, for models that have weights.

    Raises:
        InputError, ModelError, ResourceError: as `anabranch.load`.
    """
    if _is_simulated(text):
        lm: LM = SIMULATED.parse(text).make()
        return lm
    return anabranch.load(text, progress=progress, **options)


def parameters(lm: LM) -> int | None:
    """How many a token is multiplied with; None for a model without weights.

    A table that tokens are only looked up in does not count.
    """
    config = lm.engine.core.decoder.config
    if config.architecture in ("scripted", "remote"):
        return None
    shapes = config.weight_shapes()
    if not config.tied:
        del shapes["embed"]
    return sum(map(math.prod, shapes.values()))


def kernel(lm: LM) -> dict[str, Any]:
    """Which code computes it: backend, instruction set, threads."""
    backend = lm.engine.core.decoder.backend
    features: Callable[[], dict[str, Any]] = getattr(backend, "features", dict)
    return {"backend": type(backend).__name__, **features()}


def _simulated() -> list[str]:
    return [entry.name for entry in SIMULATED.all()]


def _is_simulated(text: str) -> bool:
    return text.partition("(")[0].strip() in _simulated() and not os.path.exists(text)

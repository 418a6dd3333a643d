"""What commands that think have in common: their options, and loading the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import anabranch
from anabranch.cli.terminal import show_progress

if TYPE_CHECKING:
    from anabranch.lm import LM

DEFAULT_MODEL = "qwen2.5-coder-0.5b"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name from `anabranch models`, a GGUF file, a folder, or an endpoint's URL.",
    ),
]
System = Annotated[str | None, typer.Option(help="Instructions that replace our own.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same words, to the bit.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores it may use.")]
KV = Annotated[str, typer.Option(help="How keys and values are kept: f32, or bf16 in half of it.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never reach for the network.")]
KeyEnv = Annotated[str, typer.Option(help="The environment variable with an endpoint's key.")]


def load_model(name: str, *, quiet: bool = False, **options: Any) -> LM:
    """Load a model, its progress shown on stderr unless `quiet`; options as `anabranch.load`."""
    if quiet:
        return anabranch.load(name, **options)
    with show_progress() as progress:
        return anabranch.load(name, progress=progress, **options)

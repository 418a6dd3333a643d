"""`anabranch serve`: models over HTTP."""

from __future__ import annotations

import contextlib
import functools
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from platformdirs import user_data_path

import anabranch
from anabranch.cli.app import app
from anabranch.cli.options import KV, Offline, Threads
from anabranch.errors import InputError

if TYPE_CHECKING:
    from anabranch.serve.settings import Settings

LISTS = ("models", "loadable")
PREFIX = "ANABRANCH_SERVE_"


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Model to serve; may be repeated.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 8000.")] = None,
    keys: Annotated[Path | None, typer.Option(help="File of API keys.")] = None,
    new_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Make a key, print it once, keep its hash in --keys."),
    ] = None,
    threads: Threads = None,
    kv: KV = "f32",
    offline: Offline = False,
) -> None:
    """Serve models to OpenAI's clients. Flags win over ANABRANCH_SERVE_*, these over the file."""
    try:
        from anabranch.serve.app import create_app
        from anabranch.serve.hub import Hub
        from anabranch.serve.logs import set_up
        from anabranch.serve.server import Server
    except ModuleNotFoundError as error:
        raise InputError(
            f"serving needs {error.name}", fix="pip install 'anabranch[serve]'"
        ) from None
    settings = read_settings(config, {"models": model, "host": host, "port": port, "keys": keys})
    if new_key is not None:
        print(_made_key(settings, new_key))
        return
    options: dict[str, Any] = {"threads": threads, "kv": kv, "offline": offline}
    loaders = {
        _served_name(name): functools.partial(anabranch.load, name, **options)
        for name in settings.models
    }
    hub = Hub(loaders, settings.loadable, code_tools=settings.code_tools)
    server = Server(create_app(settings, hub), settings)
    set_up(settings.log_level)
    with contextlib.suppress(KeyboardInterrupt):  # it has ended by then
        server.run()
    if not server.started:
        raise typer.Exit(1)  # the log says why


def read_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """Settings from all their sources. Raises InputError."""
    from pydantic import ValidationError

    from anabranch.serve.settings import Settings

    told: dict[str, Any] = {"records": user_data_path("anabranch", appauthor=False) / "records.db"}
    if config is not None:
        try:
            told |= tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{config} cannot be read: {error}") from None
    for name in Settings.model_fields:
        if (value := os.environ.get(PREFIX + name.upper())) is not None:
            told[name] = value.split(",") if name in LISTS else value
    told |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"setting {where}: {first['msg']}", allowed=", ".join(Settings.model_fields)
        ) from None


def _made_key(settings: Settings, name: str) -> str:
    from anabranch.serve.keys import new_key

    if settings.keys is None:
        raise InputError("no file of keys is named", fix="add --keys FILE")
    return new_key(settings.keys, name)


def _served_name(model: str) -> str:
    """What clients call a model: its name, or its file's without the ending."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name

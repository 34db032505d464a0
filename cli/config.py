"""``localv4 config``: the settings in force and where each comes from."""

import json
from dataclasses import fields
from pathlib import Path

import typer

from localv4.cli import options
from localv4.settings import config_file

__all__ = ["config"]


def config(ctx: typer.Context, as_json: options.JsonFlag = False) -> None:
    """Print every setting with its source: a variable, config.toml, or the default."""
    settings, output = options.start(ctx, {})
    path = config_file()
    rows = {
        field.name: (getattr(settings, field.name), settings.sources[field.name])
        for field in fields(settings)
        if field.name in settings.sources
    }
    if as_json:
        values = {
            name: {"value": str(value) if isinstance(value, Path) else value, "source": source}
            for name, (value, source) in rows.items()
        }
        file = None if path is None else str(path)
        output.line(json.dumps({"config_file": file, "settings": values}, indent=2))
        return
    for name, (value, source) in rows.items():
        output.line(f"{name:<13} {'(automatic)' if value is None else value!s:<24}  {source}")
    if path is None:
        output.line("\nfile: none, as there is no home folder; LOCALV4_CONFIG may name one")
    else:
        output.line(f"\nfile: {path}{'' if path.is_file() else ', not there'}")

"""``localv4 config``: the settings in force, where each comes from, and changes to config.toml."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.names import complete_setting
from localv4.cli.output import Output, one_line
from localv4.cli.tables import Table
from localv4.config_file import change_config
from localv4.errors import InvalidInput, LocalV4Error
from localv4.hub import cache_folder, is_offline, token_file
from localv4.models import locate
from localv4.settings import asked_tier, config_file, first_variable, load_settings
from localv4.sizes import format_bytes

__all__ = ["config"]

_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SIZES = ("memory", "session_limit")
_UNSET = {"model": "(built-in)", "sessions_dir": "(none)", "log_file": "(none)"}
_VALUE_COLUMNS = 20  # of a usual value; sources stand behind it

_Rows = dict[str, tuple[object, str]]
_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The setting.", autocompletion=complete_setting)
]

config = Table()


@config.callback(invoke_without_command=True)
def _show(
    ctx: typer.Context,
    path: Annotated[bool, typer.Option("--path", help="Print only where config.toml is.")] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Print every setting with its source: a variable, config.toml, or the default.

    A flag of a command goes before the variable LOCALV4_NAME, that before config.toml. What the
    hub's library takes from its own variables is listed below them.

    Examples
    --------
    localv4 config
    localv4 config --json
    localv4 config set memory 24GiB
    localv4 config unset memory
    """
    if ctx.invoked_subcommand is not None:
        return
    settings, output = options.start(ctx, {}, quiet, verbose)
    file = config_file()
    if path:
        output.line(str(_existing(file)))
        return
    rows = {
        field.name: (getattr(settings, field.name), settings.sources[field.name])
        for field in fields(settings)
        if field.name in settings.sources
    }
    if as_json:
        output.line(json.dumps(_report(file, rows), indent=2))
    else:
        _print(file, rows, output)


@config.command("set")
def _set(
    ctx: typer.Context,
    name: _Name,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As its flag takes it.")],
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Write a setting into config.toml; its other lines, comments too, stay as they are.

    Examples
    --------
    localv4 config set memory 24GiB
    localv4 config set think off
    """
    _change(ctx, name, value, quiet, verbose)


@config.command("unset")
def _unset(
    ctx: typer.Context, name: _Name, quiet: options.Quiet = False, verbose: options.Verbose = 0
) -> None:
    """Take a setting out of config.toml, so that the default holds again.

    Examples
    --------
    localv4 config unset memory
    """
    _change(ctx, name, None, quiet, verbose)


def _change(ctx: typer.Context, name: str, value: str | None, quiet: bool, verbose: int) -> None:
    _, output = options.start(ctx, {}, quiet, verbose)
    file = _existing(config_file())
    changed = change_config(file, name, value)
    now = "is not set" if value is None else f"is {value}"
    output.note(one_line(f"{name} {now} in {file}{'' if changed else ', as before'}"))
    if name == "model" and value is not None and not _is_known(value):
        output.warning(f"there is no model {value} here; localv4 list has those there are")
    source = load_settings().sources[name]
    if value is not None and source != str(file):
        output.warning(f"{source} is set too, and goes before config.toml")


def _is_known(name: str) -> bool:
    """Whether a name is a model's that is here, or could be fetched."""
    try:
        locate(name)
    except LocalV4Error:
        return False
    return True


def _existing(file: Path | None) -> Path:
    if file is None:
        raise InvalidInput("there is no home folder; let LOCALV4_CONFIG name a file for settings")
    return file


def _hub_rows() -> _Rows:
    """Return what the hub's library takes from variables of its own, and which were set."""
    token = first_variable(*_TOKEN_VARIABLES)
    file = token_file()
    return {
        "hub_cache": (cache_folder(), first_variable(*_CACHE_VARIABLES) or "default"),
        "hub_offline": (is_offline(), first_variable(*_OFFLINE_VARIABLES) or "default"),
        "hub_token": (bool(token or file), token or str(file or "default")),
    }


def _report(file: Path | None, rows: _Rows) -> dict[str, Any]:
    hub = _hub_rows()
    return {
        "config_file": None if file is None else str(file),
        "settings": {name: _entry(*row) for name, row in rows.items()},
        "hub": {name.removeprefix("hub_"): _entry(*row) for name, row in hub.items()},
        "tier": _entry(asked_tier(), "default" if asked_tier() is None else "LOCALV4_TIER"),
    }


def _entry(value: object, source: str) -> dict[str, object]:
    return {"value": str(value) if isinstance(value, Path) else value, "source": source}


def _print(file: Path | None, rows: _Rows, output: Output) -> None:
    _print_rows(rows, output)
    output.line("\nfrom variables of the hub's library:")
    _print_rows(_hub_rows(), output)
    if file is None:
        output.line("\nfile: none, as there is no home folder; LOCALV4_CONFIG may name one")
    else:
        output.line(f"\nfile: {file}{'' if file.is_file() else ', not there'}")


def _print_rows(rows: _Rows, output: Output) -> None:
    """Print a line for each; where a terminal is too narrow, the source stands below."""
    for name, (value, source) in rows.items():
        start = f"{name:<13}  {one_line(_shown(name, value)):<{_VALUE_COLUMNS}}"
        columns = output.answer_columns
        if columns is None or len(start) + 2 + len(source) <= columns:
            output.line(f"{start}  {one_line(source)}")
        else:
            output.line(start.rstrip())
            output.line(f"{'':<13}  {one_line(source)}")


def _shown(name: str, value: object) -> str:
    match value:
        case None:
            return _UNSET.get(name, "(automatic)")
        case bool():
            return "yes" if value else "no"
        case int() if name in _SIZES:
            return format_bytes(value)
    return str(value)

"""What the user chose: flags, then ``LOCALV4_*``, then config.toml, then defaults.

The only reader (and writer) of ``os.environ`` in the project. Every value keeps its source, so that
``localv4 config`` can say where it came from. Knows nothing of checkpoints or of the engine.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from localv4.aliases import find_alias
from localv4.config_file import read_config
from localv4.errors import InvalidInput
from localv4.setting_values import (
    SETTING_NAMES,
    Numerics,
    Profile,
    Think,
    nearest,
    parse_path,
    parse_setting,
)

__all__ = [
    "Numerics",
    "Profile",
    "Settings",
    "Think",
    "asked_tier",
    "cache_folder",
    "config_file",
    "environment_with",
    "first_variable",
    "history_file",
    "load_settings",
    "session_folder",
    "terminal_is_dumb",
    "text_editor",
    "words_to_complete",
]


@dataclass(frozen=True)
class Settings:
    """The settings in force and where each came from.

    Attributes
    ----------
    model
        Folder, repo id or alias; None for the built-in model.
    memory
        Hard budget in bytes; None to choose from what is available.
    threads
        Compute threads; None to choose for this CPU.
    context
        Most tokens a session may hold; None for the engine's choice.
    numerics
        ``trained`` or ``float32``.
    think
        Thinking effort; None for the checkpoint's own default.
    profile
        Chat format; None to detect it from the checkpoint.
    cache_dir
        Folder for compiled kernels and the built-in model.
    sessions_dir
        Folder for saved sessions; None for a user without a home folder who named none.
    session_limit
        Most bytes that saved sessions may take together.
    log_file
        File that a command's log is added to; None for none.
    history
        Whether what is typed in a chat is kept for the next one.
    color
        False with ``NO_COLOR`` or ``TERM=dumb``: no escape codes even on a terminal.
    sources
        For each setting: ``default``, its flag, its environment variable, or the file's path;
        for the thinking that a model's name implies, that name and where it was given.
    warnings
        Sentences the user should see once, such as a misspelt environment variable.
    """

    model: str | None
    memory: int | None
    threads: int | None
    context: int | None
    numerics: Numerics
    think: Think | None
    profile: Profile | None
    cache_dir: Path
    sessions_dir: Path | None
    session_limit: int
    log_file: Path | None
    history: bool
    color: bool
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


_TIER_VARIABLE = "LOCALV4_TIER"
_CONFIG_VARIABLE = "LOCALV4_CONFIG"
# How typer's completion is called.
_COMPLETE_VARIABLE = "_LOCALV4_COMPLETE"
_TYPED_VARIABLES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
_NAME_CACHE = "let LOCALV4_CACHE_DIR name a folder for it"
_SESSION_LIMIT_BYTES = 20 * 2**30


def _variable(name: str) -> str:
    return f"LOCALV4_{name.upper()}"


def config_file() -> Path | None:
    """Path of config.toml: ``LOCALV4_CONFIG``, or in the user's folder for settings.

    None for a user without a home folder, which is usual in a container.

    Raises
    ------
    InvalidInput
        If ``LOCALV4_CONFIG`` begins with the home folder of nobody.
    """
    named = os.environ.get(_CONFIG_VARIABLE)
    if named:
        try:
            return parse_path(named)
        except InvalidInput as error:
            raise InvalidInput(f"{_CONFIG_VARIABLE}: {error}") from None
    folder = _user_folder("config")
    return None if folder is None else folder / "config.toml"


def cache_folder() -> Path:
    """Folder for compiled kernels and the built-in model, not necessarily there yet."""
    return load_settings().cache_dir


def session_folder() -> Path:
    """Folder for saved sessions, not necessarily there yet.

    Raises
    ------
    InvalidInput
        There is no home folder, and none was named: a temporary one would not keep them.
    """
    folder = load_settings().sessions_dir
    if folder is None:
        raise InvalidInput(
            "there is no home folder to keep sessions in; let LOCALV4_SESSIONS_DIR name one for "
            "them"
        )
    return folder


def history_file() -> Path | None:
    """File for what was typed in chats, not necessarily there yet; None without a home folder."""
    folder = _user_folder("state")
    return None if folder is None else folder / "history"


def terminal_is_dumb() -> bool:
    """Return whether the terminal says of itself that it can only show text."""
    return os.environ.get("TERM") in ("dumb", "unknown")


def text_editor() -> str | None:
    """Return the command that the user edits texts with, or None."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or None


def asked_tier() -> str | None:
    """Return the tier of vector instructions that ``LOCALV4_TIER`` asks for, or None."""
    return os.environ.get(_TIER_VARIABLE) or None


def first_variable(*names: str) -> str | None:
    """Return the first of these environment variables that is set and not empty, or None."""
    return next((name for name in names if os.environ.get(name)), None)


def words_to_complete() -> list[str] | None:
    """Return what was typed, if a shell's completion called this program; else None."""
    if not os.environ.get(_COMPLETE_VARIABLE):
        return None
    return os.environ.get(first_variable(*_TYPED_VARIABLES) or "", "").split()


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables changed, for one of its own."""
    return {**os.environ, **changes}


def load_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Return the settings in force for these command line flags.

    Parameters
    ----------
    flags
        Setting name to value; None values count as not given.

    Raises
    ------
    InvalidInput
        If config.toml cannot be read or has an unknown key, or a value is of no use.
    """
    layers: list[dict[str, tuple[object, str]]] = [
        {
            name: (value, _flag(name, value))
            for name, value in (flags or {}).items()
            if value is not None
        },
        {
            name: (os.environ[_variable(name)], _variable(name))
            for name in SETTING_NAMES
            if os.environ.get(_variable(name))
        },
        _config_layer(),
    ]
    _imply_thinking(layers)
    values: dict[str, object] = {"model": None, "memory": None, "threads": None, "context": None}
    values |= {"numerics": "trained", "think": None, "profile": None}
    values |= {"log_file": None, "history": True}
    values["session_limit"] = _SESSION_LIMIT_BYTES
    sources = dict.fromkeys(SETTING_NAMES, "default")
    for layer in reversed(layers):
        for name, (value, source) in layer.items():
            try:
                values[name] = parse_setting(name, value)
            except InvalidInput as error:
                raise InvalidInput(f"{source}: {error}") from None
            sources[name] = source
    warnings = _misspelt_variables()
    if "cache_dir" not in values:
        values["cache_dir"], warning = _default_cache_dir()
        warnings += warning
    if "sessions_dir" not in values:
        user_folder = _user_folder("data")
        values["sessions_dir"] = None if user_folder is None else user_folder / "sessions"
    return Settings(
        **values,  # type: ignore[arg-type]  # each parser gives its field's type
        color=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        sources=MappingProxyType(sources),
        warnings=warnings,
    )


def _config_layer() -> dict[str, tuple[object, str]]:
    path = config_file()
    return {name: (value, str(path)) for name, value in read_config(path).items()}


def _imply_thinking(layers: list[dict[str, tuple[object, str]]]) -> None:
    """Add the thinking that the model's name implies, in the layer where the model is named.

    What is asked there, or above, goes before it; what is asked below does not.
    """
    layer = next((layer for layer in layers if "model" in layer), {})
    name, source = layer.get("model", (None, ""))
    alias = find_alias(name) if isinstance(name, str) else None
    # A folder of that name goes before the alias.
    if alias is None or alias.think is None or os.path.isfile(f"{name}/config.json"):  # noqa: PTH113
        return
    layer.setdefault("think", (alias.think, f"model {name} ({source})"))


def _flag(name: str, value: object) -> str:
    return f"--{'no-' if value is False else ''}{name.replace('_', '-')}"


def _default_cache_dir() -> tuple[Path, tuple[str, ...]]:
    """Return the folder, and a warning where the user has no home folder to hold it."""
    user_folder = _user_folder("cache")
    if user_folder is not None:
        return user_folder, ()
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"localv4-{os.getuid()}"
    _claim(folder)
    return folder, (f"there is no home folder, so the cache is {folder}; {_NAME_CACHE}",)


def _user_folder(kind: Literal["cache", "config", "data", "state"]) -> Path | None:
    # Imported where needed: it costs 25 ms, and a start may name every folder.
    import platformdirs

    find = {
        "cache": platformdirs.user_cache_dir,
        "config": platformdirs.user_config_dir,
        "data": platformdirs.user_data_dir,
        "state": platformdirs.user_state_dir,
    }[kind]
    try:
        folder = Path(find("localv4", appauthor=False))
    except RuntimeError:  # there is no home folder; older versions return ~/... then
        return None
    return folder if folder.is_absolute() else None


def _claim(folder: Path) -> None:
    """Make a folder where anybody may write, and refuse one that another user made first.

    Compiled kernels are kept there, and whoever can write them can run anything as this user.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InvalidInput(
            f"there is no home folder, and {folder} can't be made ({error.strerror}); {_NAME_CACHE}"
        ) from None
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & 0o022:
        raise InvalidInput(
            f"there is no home folder, and others may write to {folder}; {_NAME_CACHE}"
        )


def _misspelt_variables() -> tuple[str, ...]:
    known = [_CONFIG_VARIABLE, _TIER_VARIABLE, *map(_variable, SETTING_NAMES)]
    return tuple(
        f"the environment variable {name} means nothing to localv4{nearest(name, known)}"
        for name in sorted(os.environ)
        if name.startswith("LOCALV4_") and name not in known
    )

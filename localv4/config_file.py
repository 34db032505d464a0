"""config.toml: settings that the user keeps, read, and changed one line at a time.

A change keeps every other line, comments too: TOML in Python's own library is only read. That the
line was the right one is proved by reading the result. Knows nothing of where the file is.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localv4.errors import InvalidInput
from localv4.replacing import replacing
from localv4.setting_values import SETTING_NAMES, nearest, parse_setting

__all__ = ["change_config", "read_config"]

_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[{]+)"""


def read_config(path: Path | None) -> Mapping[str, object]:
    """Return the settings in a file, as it has them; none if there is no file.

    Raises
    ------
    InvalidInput
        If it cannot be read, is not TOML, or has a key that is no setting.
    """
    return {} if path is None else _parse(_read(path), path)


def change_config(path: Path, name: str, value: str | None) -> bool:
    """Give a setting another value in a file, or take it out with None.

    The file is replaced as a whole, and made if it is not there.

    Returns
    -------
    bool
        Whether the file had to change.

    Raises
    ------
    InvalidInput
        If the setting can't have this value, the file can't be read, or its line is written in a
        way that isn't understood here.
    OSError
        If the file can't be written.
    """
    if value is not None or name not in SETTING_NAMES:
        parse_setting(name, value)
    before = _read(path)
    table = _parse(before, path)
    wanted = {key: kept for key, kept in table.items() if key != name}
    if value is not None:
        wanted[name] = int(value) if name in ("threads", "context") else value
    if wanted == table:
        return False
    text = _changed(before, name, wanted.get(name))
    try:
        content = text.encode("utf-8")
        is_right = tomllib.loads(text) == wanted
    except (ValueError, RecursionError):  # TOML's errors are ValueErrors, and so are UTF-8's
        is_right = False
    if not is_right:
        raise InvalidInput(f"{name} in {path} can't be changed safely; edit that file by hand")
    _write(path, content)
    return True


def _read(path: Path) -> str:
    """Return a file's text; the empty text if there is no file."""
    try:
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):  # /dev/null is a home folder of some
        return ""
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}; check the path and its permissions"
        ) from None
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise InvalidInput(f"{path} is not UTF-8 text: {byte}; correct or remove it") from None


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, error) from None
    except (ValueError, RecursionError):
        # Not errors of TOML itself, but of what Python makes of it.
        raise InvalidInput(
            f"{path} holds a number too long or lists nested too deeply; correct or remove it"
        ) from None
    for name in table:
        if name not in SETTING_NAMES:
            raise InvalidInput(f"{path}: unknown setting {name!r}{nearest(name, SETTING_NAMES)}")
    return table


def _not_toml(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{path} is not valid TOML: {error}; correct or remove it")


def _changed(text: str, name: str, value: object) -> str:
    """Return a text with the line of a setting replaced, added at the end, or left out."""
    # A JSON string is a TOML string: both escape the same characters in the same way.
    written = json.dumps(value, ensure_ascii=False)
    line = re.compile(
        rf"^([ \t]*{name}[ \t]*=[ \t]*){_VALUE}([ \t]*(?:#[^\r\n]*)?\r?\n?)", re.MULTILINE
    )
    if value is None:
        return line.sub("", text, count=1)
    replaced, n_lines = line.subn(lambda found: f"{found[1]}{written}{found[2]}", text, count=1)
    if n_lines:
        return replaced
    gap = "\n" if text and not text.endswith("\n") else ""
    return f"{text}{gap}{name} = {written}\n"


def _write(path: Path, content: bytes) -> None:
    path = path.resolve()  # a link, as people with a repository of settings have, stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except OSError as error:
        error.filename = str(path)  # not that of the partial file
        raise

"""What a setting may be: its name, and what makes a value of a text.

Knows nothing of where settings come from.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from localv4.errors import InvalidInput
from localv4.sizes import parse_bytes, shown

__all__ = [
    "SETTING_NAMES", "Numerics", "Profile", "Think", "nearest", "parse_path", "parse_setting",
]  # fmt: skip

Numerics = Literal["trained", "float32"]
Profile = Literal["preview", "official"]
Think = Literal["off", "low", "high", "max"]


def parse_setting(name: str, value: object) -> object:
    """Return the value of a setting as `Settings` holds it.

    Raises
    ------
    InvalidInput
        If there is no such setting, or it can't have this value.
    """
    if name not in _PARSERS:
        raise InvalidInput(f"there is no setting {shown(name)}{nearest(name, SETTING_NAMES)}")
    return _PARSERS[name](value)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the one it is like, or all there are."""
    known = list(known)
    match = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {match[0]}?" if match else f"; known are {', '.join(known)}"


def parse_path(value: object) -> Path:
    """Return the path of a text that may begin with ``~``.

    Raises
    ------
    InvalidInput
        If it is none, or begins with the home folder of nobody.
    """
    # Not Path.expanduser: of an unknown user it makes a RuntimeError.
    path = Path(os.path.expanduser(_text(value)))  # noqa: PTH111
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise InvalidInput(f"there is no home folder {path.parts[0]}; give the whole path")
    return path


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{shown(value)} is not a text")
    return value


def _model(value: object) -> str:
    if value == "":
        raise InvalidInput("the name of the model is empty; give one, or leave it out")
    return _text(value)


def _budget(value: object) -> int:
    n_bytes = _size(value)
    if n_bytes < _LEAST_BUDGET_BYTES:
        raise InvalidInput(f"{shown(value)} is {n_bytes} bytes; for {n_bytes} GiB say {n_bytes}GiB")
    return n_bytes


def _size(value: object) -> int:
    return parse_bytes(cast(int | str, value))


def _count(value: object) -> int:
    try:
        count = int(value) if isinstance(value, str) else value
    except ValueError:
        count = None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidInput(f"{shown(value)} is not a whole number above zero; give 1 or more")
    return count


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise InvalidInput(f"{shown(value)} is no choice; give one of {', '.join(choices)}")
        return str(value)

    return parse


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("on", "off"):
        raise InvalidInput(f"{shown(value)} is no choice; give on or off")
    return value == "on"


_LEAST_BUDGET_BYTES = 2**20  # Python alone takes more: a unit was forgotten
_PARSERS: Mapping[str, Callable[[object], object]] = MappingProxyType(
    {
        "model": _model,
        "memory": _budget,
        "threads": _count,
        "context": _count,
        "numerics": _choice("trained", "float32"),
        "think": _choice("off", "low", "high", "max"),
        "profile": _choice("preview", "official"),
        "cache_dir": parse_path,
        "sessions_dir": parse_path,
        "session_limit": _size,
        "log_file": parse_path,
        "history": _switch,
    }
)
SETTING_NAMES = tuple(_PARSERS)

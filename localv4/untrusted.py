"""Files of a checkpoint, opened and read as what they are: input from a stranger.

A checkpoint may hold a named pipe where a file is expected, and Python's ``json`` accepts duplicate
keys, NaN and numbers of any length, and lets ``RecursionError`` and ``UnicodeDecodeError`` out.
Here all of it becomes a :class:`DamagedCheckpoint` that names the file. Knows nothing of what is
read.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from localv4.errors import DamagedCheckpoint

__all__ = ["open_regular", "parse_object", "read_object"]


_FEW_OBJECTS = 1000  # characters for each


class _RefusedError(ValueError):
    """Something ``json`` would let through."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {key[:80]!r} appears twice")
            seen.add(key)
    return members


def _parse_many_objects(text: str) -> dict[str, Any] | None:
    """Parse without the hook, which would be called for each of 69,187 tensors; None if in doubt.

    Parsed so, an object loses keys that appear twice. A key has a colon, so where there are no
    more colons than keys none was lost: strings that hold some only make it look so.
    """
    if text.count("{") * _FEW_OBJECTS < len(text):
        return None
    value = json.loads(text, parse_constant=_no_constant)
    if not isinstance(value, dict):
        return None
    inner = sum([len(member) for member in value.values() if isinstance(member, dict)])
    return value if text.count(":") == len(value) + inner else None


def _no_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is not a JSON number")


def parse_object(text: str | bytes, source: str) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    text
        The document; bytes must be UTF-8.
    source
        What to call it in a message, such as ``.../config.json``.

    Raises
    ------
    DamagedCheckpoint
        If it is not UTF-8, not JSON, not an object, nested too deeply, or holds a key twice.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = _parse_many_objects(text)
        if value is None:
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DamagedCheckpoint(
            f"{source} is not UTF-8 text (byte {error.start}); download it again"
        ) from None
    except RecursionError:
        raise DamagedCheckpoint(f"{source} is nested too deeply; download it again") from None
    except ValueError as error:
        raise DamagedCheckpoint(
            f"{source} is not valid JSON ({str(error)[:200]}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise DamagedCheckpoint(
            f"{source} holds a JSON {type(value).__name__} where an object is needed; "
            "download it again"
        )
    return value


def open_regular(path: Path) -> BinaryIO | None:
    """Open a regular file for reading; None if there is no such file.

    Symbolic links are followed: the hub's cache is made of them.

    Raises
    ------
    DamagedCheckpoint
        If it is there but cannot be opened, or is not a regular file.
    """
    try:
        # O_NONBLOCK: a named pipe must be refused, not waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DamagedCheckpoint(
            f"{path} cannot be opened ({reason}); check the path and its permissions"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedCheckpoint(f"{path} is not a regular file; download it again")
    return os.fdopen(descriptor, "rb")


def read_object(path: Path, limit_bytes: int) -> dict[str, Any] | None:
    """Read one JSON object from a regular file of at most `limit_bytes`; None if there is no file.

    Raises
    ------
    DamagedCheckpoint
        If the file is larger than the limit, or :func:`open_regular` or :func:`parse_object`
        refuses it.
    """
    file = open_regular(path)
    if file is None:
        return None
    with file:
        try:
            content = file.read(limit_bytes + 1)
        except OSError as error:
            raise DamagedCheckpoint(f"{path} cannot be read ({error}); check the disk") from None
    if len(content) > limit_bytes:
        raise DamagedCheckpoint(
            f"{path} is larger than the {limit_bytes:,} bytes such a file may have; "
            "download it again"
        )
    return parse_object(content, str(path))

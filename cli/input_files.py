"""Text and JSON that a user gives: read up to a limit, and every error names the place.

Knows nothing of what is in it.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from localv4.errors import InvalidInput
from localv4.sizes import format_bytes

__all__ = ["decoded", "parse_json", "read_file", "read_stdin"]

_MOST_BYTES = 64 * 2**20  # ten times the text of the longest context


def read_file(path: Path, flag: str, limit_bytes: int | None = None) -> str:
    """Return the text of a file.

    Raises
    ------
    InvalidInput
        If it cannot be read, is larger than the limit, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            return _limited(file, str(path), limit_bytes or _MOST_BYTES)
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"{path} cannot be read: {reason}; check {flag}") from None


def read_stdin() -> str:
    """Return the text of standard input, empty where it is closed; errors as `read_file`."""
    if sys.stdin is None:
        return ""
    return _limited(sys.stdin.buffer, "standard input", _MOST_BYTES)


def decoded(content: bytes, source: str) -> str:
    """Return UTF-8 as text, without a byte order mark.

    Raises
    ------
    InvalidInput
        If it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{source} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at "
            f"{error.start}; convert it first, for example with iconv"
        ) from None


def parse_json(text: str, place: str) -> Any:  # noqa: ANN401 (any JSON)
    """Parse JSON as strictly as it is defined.

    Parameters
    ----------
    text
        One JSON value.
    place
        What to call it in an error, such as ``prompts.jsonl line 3``.

    Raises
    ------
    InvalidInput
        If it is something else, holds a key twice, a number that is none, or half a character.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite
        )
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidInput(f"{place} is nested too deeply; write plain JSON") from None
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{place} holds half a character (a lone surrogate); write it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        if "\n" not in text:
            where = f"column {error.colno}"
        raise InvalidInput(f"{place} is not JSON: {error.msg} at {where}; correct it") from None
    except ValueError as error:
        raise InvalidInput(f"{place} is not JSON: {str(error)[:200]}; correct it") from None
    return value


def _limited(file: BinaryIO, source: str, limit_bytes: int) -> str:
    content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise InvalidInput(
            f"{source} is larger than {format_bytes(limit_bytes)}, more than is read; shorten it"
        )
    return decoded(content, source)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {key[:80]!r} appears twice")
        members[key] = value
    return members


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:80]} is too large a number")
    return number

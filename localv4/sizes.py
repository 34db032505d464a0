"""Sizes in bytes as people write and read them: "24GiB" to a number and back.

Knows nothing of what the bytes are for.
"""

import operator
import re
from typing import SupportsIndex

from localv4.errors import InvalidInput

__all__ = ["format_bytes", "parse_bytes", "shown", "up"]

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power}
    _UNITS |= {f"{_letter}i": 1024**_power, f"{_letter}ib": 1024**_power}
_MOST = 2**63 - 1
_MOST_DIGITS = 40
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(size: SupportsIndex | str) -> int:
    """Bytes of ``24GiB``, ``1.5G``, ``500MB`` or a plain number of bytes.

    ``GiB`` and ``Gi`` are powers of 1024, ``GB`` and ``G`` powers of 1000; case does not matter.

    Raises
    ------
    InvalidInput
        If it is not a size, less than one byte, or 8 EiB and more.
    """
    n_bytes = _parse(size) if isinstance(size, str) else _whole(size)
    if n_bytes is None:
        raise InvalidInput(f"{shown(size)} is not a size; write it like 24GiB, 500MB or 1073741824")
    if n_bytes < 1:
        raise InvalidInput(f"{shown(size)} is not a size above zero; write it like 24GiB")
    if n_bytes > _MOST:
        raise InvalidInput(f"{shown(size)} is more than any machine has; write it like 24GiB")
    return n_bytes


def _parse(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or len(match[1]) > _MOST_DIGITS:
        return None
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def _whole(size: object) -> int | None:
    """Return any integer as an int, NumPy's too; True is a slip, not a size."""
    try:
        return None if isinstance(size, bool) else operator.index(size)  # type: ignore[arg-type]
    except TypeError:
        return None


def shown(value: object) -> str:
    """Return a value as a message shows it: its ``repr``, unless that is very long."""
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return "a huge number"  # Python refuses to print the longest
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-20:]}"


def format_bytes(n_bytes: int) -> str:
    """Write a size with three digits and a binary unit, such as ``149 GiB`` or ``1.50 KiB``."""
    if abs(n_bytes) < 1024:
        return f"{n_bytes} B"
    value = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        # 999.5 would round to a fourth digit.
        if abs(value) < 999.5 or unit == "TiB":
            break
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def up(n_bytes: int, multiple: int) -> int:
    """Return the next multiple from a number of bytes up."""
    return -(-n_bytes // multiple) * multiple

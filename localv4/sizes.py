"""Sizes in bytes as people write and read them: "24GiB" to a number and back.

Knows nothing of what the bytes are for.
"""

import re

from localv4.errors import InvalidInput

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power}
    _UNITS |= {f"{_letter}i": 1024**_power, f"{_letter}ib": 1024**_power}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(size: int | str) -> int:
    """Bytes of ``24GiB``, ``1.5G``, ``500MB`` or a plain number of bytes.

    ``GiB`` and ``Gi`` are powers of 1024, ``GB`` and ``G`` powers of 1000; case does not matter.

    Raises
    ------
    InvalidInput
        If it is not a size, or less than one byte.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        n_bytes = size
    else:
        match = _SIZE.fullmatch(size) if isinstance(size, str) else None
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise InvalidInput(f"{size!r} is not a size; write it like 24GiB, 500MB or 1073741824")
        n_bytes = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if n_bytes < 1:
        raise InvalidInput(f"{size!r} is not a size above zero; write it like 24GiB")
    return n_bytes


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

"""How a state file is laid out, and how one is read without trusting it.

::

    b"LV4STATE", version, length of the head (8 bytes each)
    head       a JSON object: what a session says of itself, with the conversation's text
    SHA-256    of all before it; zeros up to a multiple of 4,096
    sections   the memory of arrays, one after the other, each with zeros up to a multiple of 4,096
    trailer    a JSON object: the SHA-256 of the head; each section's name, dtype, shape and the
               SHA-256 of each piece of at most 4 MiB
    SHA-256    of the trailer and its length
    length of the trailer (8 bytes), b"LV4-END."

Numbers are little-endian. Where a section lies follows from the shapes before it, so nothing in a
file can say otherwise, and the trailer must begin where the last one ends. Knows nothing of files,
arrays or sessions.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localv4.errors import InvalidInput
from localv4.sizes import up

__all__ = [
    "END",
    "END_MAGIC",
    "HEAD_LIMIT_BYTES",
    "ITEM_BYTES",
    "MAGIC",
    "PIECE_BYTES",
    "START",
    "TRAILER_LIMIT_BYTES",
    "VERSION",
    "Section",
    "aligned",
    "digest_of_trailer",
    "head_block",
    "place",
    "trailer_block",
]

PIECE_BYTES = 4 * 2**20

# Bytes of an element; not bool, whose bytes may hold what is neither true nor false.
ITEM_BYTES = {
    f"{kind}{8 * n_bytes}": n_bytes
    for kind, sizes in (("uint", (1, 2, 4, 8)), ("int", (1, 2, 4, 8)), ("float", (2, 4, 8)))
    for n_bytes in sizes
}

MAGIC, END_MAGIC = b"LV4STATE", b"LV4-END."
VERSION = 1
START = struct.Struct("<8sQQ")
END = struct.Struct("<32sQ8s")
_ALIGNMENT = 4096
HEAD_LIMIT_BYTES = 64 * 2**20
TRAILER_LIMIT_BYTES = 16 * 2**20
_MAX_SECTIONS = 2**16
_MAX_RANK = 16
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Section:
    """Where the memory of one array lies.

    Attributes
    ----------
    name, dtype, shape
        The array's; the dtype is a name of `ITEM_BYTES`.
    offset
        First byte, counted from the start of the file; a multiple of 4,096.
    nbytes
        Bytes without the zeros behind them.
    digests
        SHA-256 of each piece of `PIECE_BYTES`, the last one shorter, in hexadecimal.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    digests: tuple[str, ...] = ()


def aligned(offset: int) -> int:
    """Return the next multiple of 4,096."""
    return up(offset, _ALIGNMENT)


def place(
    arrays: Iterable[tuple[str, str, Sequence[int]]], first_offset: int
) -> tuple[list[Section], int]:
    """Return sections for arrays of these names, dtypes and shapes, and where the last one ends.

    Raises
    ------
    ValueError
        A name, dtype or shape is impossible, or a name comes twice.
    """
    sections: dict[str, Section] = {}
    offset = first_offset
    for name, dtype, shape in arrays:
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or name in sections:
            raise ValueError(f"the name {name[:80]!r} is impossible or comes twice")
        if dtype not in ITEM_BYTES:
            raise ValueError(f"section {name!r} has the dtype {dtype[:80]!r}")
        # NumPy counts the bytes of an empty array as if it were not.
        size = math.prod(max(length, 1) for length in shape[:_MAX_RANK]) * ITEM_BYTES[dtype]
        if len(shape) > _MAX_RANK or size >= 2**63:
            raise ValueError(f"section {name!r} has an impossible shape")
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        sections[name] = Section(name, dtype, tuple(shape), offset, nbytes)
        offset = aligned(offset + nbytes)
    if len(sections) > _MAX_SECTIONS:
        raise ValueError(f"there are {len(sections):,} sections")
    return list(sections.values()), offset


def head_block(head: Mapping[str, Any]) -> bytes:
    """Return the start of a file, up to where the first section begins.

    Raises
    ------
    InvalidInput
        The head is more than 64 MiB, or not a JSON object.
    """
    try:
        # ASCII alone: a lone surrogate in a conversation's text must not prevent a save.
        text = json.dumps(dict(head), allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the head of a session is not JSON ({str(error)[:200]})") from None
    if len(text) > HEAD_LIMIT_BYTES:
        raise InvalidInput(
            f"the session's text takes {len(text):,} bytes, more than the "
            f"{HEAD_LIMIT_BYTES:,} that a session file holds; start a new session"
        )
    block = START.pack(MAGIC, VERSION, len(text)) + text
    block += hashlib.sha256(block).digest()
    return block.ljust(aligned(len(block)), b"\0")


def trailer_block(head: bytes, sections: Iterable[Section]) -> bytes:
    """Return the end of a file that begins with this block.

    Raises
    ------
    InvalidInput
        It would be more than 16 MiB.
    """
    rows = [
        {"name": row.name, "dtype": row.dtype, "shape": row.shape, "digests": row.digests}
        for row in sections
    ]
    content = {"head": hashlib.sha256(head).hexdigest(), "sections": rows}
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    if len(text) > TRAILER_LIMIT_BYTES:
        raise InvalidInput("the session's state is larger than a session file can hold")
    return text + END.pack(digest_of_trailer(text), len(text), END_MAGIC)


def digest_of_trailer(text: bytes) -> bytes:
    """Return what vouches for a trailer and its length."""
    return hashlib.sha256(text + len(text).to_bytes(8, "little")).digest()

"""The head and the trailer of a state file, read as what they are: input from a stranger.

Everything is bounded, verified and held against the rest of the file before it is believed. Does
not read the sections. Follows `localv4.state_layout`.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from localv4.errors import DamagedCheckpoint, DamagedSession, InvalidInput
from localv4.state_layout import (
    END,
    END_MAGIC,
    HEAD_LIMIT_BYTES,
    MAGIC,
    PIECE_BYTES,
    START,
    TRAILER_LIMIT_BYTES,
    VERSION,
    Section,
    aligned,
    digest_of_trailer,
    place,
)
from localv4.untrusted import parse_object

__all__ = ["open_file", "read_head", "read_layout", "refuse_state"]


def open_file(path: Path) -> BinaryIO:
    """Open a state file for reading.

    Raises
    ------
    InvalidInput
        There is no such file.
    DamagedSession
        It cannot be opened, or is not a regular file.
    """
    try:
        # O_NONBLOCK: a named pipe must be refused, not waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(
            f"there is no session file {path}; localv4 sessions lists those that are there"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DamagedSession(
            f"{path} cannot be opened ({reason}); check the path and its permissions"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedSession(f"{path} is not a regular file; remove it")
    return os.fdopen(descriptor, "rb", buffering=0)


def refuse_state(path: Path, what: str) -> NoReturn:
    """Raise what is to be said of a file whose head is sound."""
    raise DamagedSession(
        f"{path} {what}; the conversation's text is intact and opens without its state"
    )


def read_head(path: Path) -> dict[str, Any]:
    """Return the head of a state file, verified; the rest of the file may be anything.

    Raises
    ------
    InvalidInput
        There is no such file.
    DamagedSession
        The head is torn, damaged or of another version.
    """
    with open_file(path) as file, _readable(path):
        return _read_head(file, path)[0]


def read_layout(file: BinaryIO, path: Path) -> tuple[dict[str, Any], dict[str, Section]]:
    """Return the head and the sections of an open state file; no section is read.

    Raises
    ------
    DamagedSession
        The file is torn, damaged, of another version, or contradicts itself; the message says
        whether the head is sound.
    """
    with _readable(path):
        head, block = _read_head(file, path)
        padding = file.read(aligned(len(block)) - len(block))
        if padding.strip(b"\0"):
            refuse_state(path, "is damaged between its head and its state")
        trailer, start = _read_trailer(file, path)
    if trailer.get("head") != hashlib.sha256(block + padding).hexdigest():
        refuse_state(path, "has the head of one session and the state of another")
    sections, end = _sections(trailer, path, len(block + padding))
    if end != start:
        refuse_state(path, f"has a trailer at byte {start:,} where {end:,} is its place")
    return head, {section.name: section for section in sections}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DamagedSession(f"{path} cannot be read ({error}); check the disk") from None


def _read_head(file: BinaryIO, path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the head, and all bytes up to its digest, which leaves the file behind them."""
    start = file.read(START.size)
    if len(start) < START.size or start[: len(MAGIC)] != MAGIC:
        raise DamagedSession(f"{path} is no session file of localv4; remove it")
    _, version, length = START.unpack(start)
    if version != VERSION:
        raise DamagedSession(
            f"{path} has the format {version}, and this localv4 reads format {VERSION}; open it "
            "with the localv4 that wrote it, or remove it"
        )
    if length > HEAD_LIMIT_BYTES:
        raise _bad_head(path)
    text = _read_all(file, length)
    digest = _read_all(file, hashlib.sha256().digest_size)
    if hashlib.sha256(start + text).digest() != digest:
        raise _bad_head(path)
    try:
        return parse_object(text, str(path)), start + text + digest
    except DamagedCheckpoint:
        raise _bad_head(path) from None


def _bad_head(path: Path) -> DamagedSession:
    return DamagedSession(
        f"{path} is truncated or damaged where it holds the conversation's text, which cannot be "
        "trusted; remove it"
    )


def _read_all(file: BinaryIO, n_bytes: int) -> bytes:
    """Read so many bytes, or fewer at the end of the file."""
    parts = bytearray()
    while len(parts) < n_bytes and (part := file.read(n_bytes - len(parts))):
        parts += part
    return bytes(parts)


def _read_trailer(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """Return the trailer and its offset."""
    here, size = file.tell(), file.seek(0, os.SEEK_END)
    # behind the head: so short a file is torn there
    file.seek(max(size - END.size, here))
    ending = _read_all(file, END.size)
    if len(ending) < END.size or not ending.endswith(END_MAGIC):
        refuse_state(path, "ends too early or is damaged at its end")
    digest, length, _ = END.unpack(ending)
    start = size - END.size - length
    if length > TRAILER_LIMIT_BYTES or start < here:
        refuse_state(path, "is damaged at its end")
    file.seek(start)
    text = _read_all(file, length)
    if digest_of_trailer(text) != digest:
        refuse_state(path, "is damaged at its end")
    try:
        return parse_object(text, str(path)), start
    except DamagedCheckpoint:
        refuse_state(path, "has a trailer that is not JSON")


def _sections(trailer: dict[str, Any], path: Path, first_offset: int) -> tuple[list[Section], int]:
    """Return the sections that a trailer lists, and where the last one ends."""
    rows = trailer.get("sections")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        refuse_state(path, "has a trailer that does not list sections")
    try:
        sections, end = place(
            ((row["name"], row["dtype"], row["shape"]) for row in rows), first_offset
        )
    except ValueError as error:
        refuse_state(path, f"contradicts itself ({error})")
    for number, (section, row) in enumerate(zip(sections, rows, strict=True)):
        if len(row["digests"]) != -(-section.nbytes // PIECE_BYTES):
            refuse_state(path, f"lists {len(row['digests']):,} checksums for {section.name!r}")
        sections[number] = replace(section, digests=tuple(row["digests"]))
    return sections, end


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"name", "dtype", "shape", "digests"}
        and isinstance(row["name"], str)
        and isinstance(row["dtype"], str)
        and _is_list_of(int, row["shape"])
        and all(0 <= length < 2**63 for length in row["shape"])
        and _is_list_of(str, row["digests"])
    )


def _is_list_of(kind: type, values: object) -> bool:
    # not isinstance: a JSON true is an int of Python's
    return isinstance(values, list) and all(type(value) is kind for value in values)

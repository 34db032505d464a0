"""Arrays, and what a session says of itself, in one file that is checked byte by byte.

Saving costs about a write and loading about a read: pieces are hashed by a few threads while the
CPU's caches hold them. A file takes its place as a whole (`localv4.replacing`), and once every
section was read no byte of it can have changed unnoticed. Knows nothing of sessions or models;
follows `localv4.state_layout`.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from localv4.errors import InvalidInput, LocalV4Error, OutOfBudget
from localv4.replacing import replacing
from localv4.sizes import format_bytes
from localv4.state_layout import (
    ITEM_BYTES,
    PIECE_BYTES,
    Section,
    aligned,
    head_block,
    place,
    trailer_block,
)
from localv4.state_reading import open_file, read_head, read_layout, refuse_state

__all__ = ["StateFile", "open_state", "read_head", "state_bytes", "write_state"]

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")

_THREADS = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a section; its memory is None where it is only to be verified."""

    section: Section
    number: int
    memory: memoryview | None

    @property
    def offset(self) -> int:
        """Its first byte in the file."""
        return self.section.offset + self.number * PIECE_BYTES

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return min(PIECE_BYTES, self.section.nbytes - self.number * PIECE_BYTES)


def state_bytes(head: Mapping[str, Any], arrays: Arrays) -> int:
    """Return the size of the file that `write_state` would write.

    Raises
    ------
    InvalidInput
        As `write_state`.
    """
    block = head_block(head)
    sections, end = _places(arrays, len(block))
    return _size(block, sections, end)


def write_state(path: Path, head: Mapping[str, Any], arrays: Arrays) -> int:
    """Write a state file in place of what is at `path`, all of it or nothing.

    Parameters
    ----------
    path
        The file; its folder must be there.
    head
        A JSON object of at most 64 MiB: what must be readable without the arrays.
    arrays
        Little-endian integers and floats of any shape under printable names; read-only is fine.
        Nothing may change them meanwhile. Those that are not contiguous are copied.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    InvalidInput
        The head is no JSON or too large, or a name, dtype or shape is not as above.
    OutOfBudget
        The disk has no room for it; the file that was there is untouched.
    LocalV4Error
        The folder or the file cannot be written.
    """
    block = head_block(head)
    sections, end = _places(arrays, len(block))
    n_bytes = _size(block, sections, end)
    try:
        _refuse_full_disk(path, n_bytes)
        with replacing(path) as file:
            _write_all(file, memoryview(block), 0)
            digests = iter(
                _in_threads(lambda piece: _put(file, piece), list(_pieces(arrays, sections)))
            )
            rows = [
                replace(section, digests=tuple(next(digests) for _ in section.digests))
                for section in sections
            ]
            _write_all(file, memoryview(trailer_block(block, rows)), end)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_ROOM:
            raise OutOfBudget(
                f"{path} takes {format_bytes(n_bytes)}, for which there is no room ({reason}); "
                "what was saved before is untouched, free some space and save again"
            ) from None
        raise LocalV4Error(
            f"{path} cannot be saved ({reason}); check its folder, permissions and disk"
        ) from None
    return n_bytes


def _places(arrays: Arrays, first_offset: int) -> tuple[list[Section], int]:
    """Return where arrays go, with room for their digests, and where the last one ends."""
    for name, array in arrays.items():
        dtype = array.dtype
        if dtype.name not in ITEM_BYTES or dtype != np.dtype(dtype.name).newbyteorder("<"):
            raise InvalidInput(
                f"the array {name[:80]!r} is {dtype.str}; a state file holds little-endian "
                f"{', '.join(ITEM_BYTES)}"
            )
    try:
        sections, end = place(
            ((name, array.dtype.name, array.shape) for name, array in arrays.items()), first_offset
        )
    except ValueError as error:
        raise InvalidInput(f"these arrays do not fit a state file: {error}") from None
    return [
        replace(section, digests=(_NO_DIGEST,) * -(-section.nbytes // PIECE_BYTES))
        for section in sections
    ], end


def _size(block: bytes, sections: list[Section], end: int) -> int:
    # every digest takes as much as the one that stands in for it
    return end + len(trailer_block(block, sections))


def _refuse_full_disk(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise OutOfBudget(
            f"{path} takes {format_bytes(n_bytes)}, but its disk has {format_bytes(free)} free; "
            "what was saved before is untouched, free some space and save again"
        )


def _pieces(arrays: Arrays, sections: list[Section]) -> Iterator[_Piece]:
    for section in sections:
        memory = _memory(np.ascontiguousarray(arrays[section.name]))
        yield from _cut(section, memory)


def _cut(section: Section, memory: memoryview | None) -> Iterator[_Piece]:
    for number in range(len(section.digests)):
        first = number * PIECE_BYTES
        part = None if memory is None else memory[first : first + PIECE_BYTES]
        yield _Piece(section, number, part)


def _memory(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def _in_threads(work: Callable[[_Piece], T], pieces: list[_Piece]) -> list[T]:
    """Do the work for all pieces; once this returns or raises, no thread works on any."""
    if len(pieces) < 2:
        return [work(piece) for piece in pieces]
    pool = ThreadPoolExecutor(_THREADS, "localv4-state")
    try:
        return list(pool.map(work, pieces))
    finally:
        pool.shutdown(cancel_futures=True)


def _put(file: int, piece: _Piece) -> str:
    """Write a piece and return its digest."""
    assert piece.memory is not None
    digest = hashlib.sha256(piece.memory).hexdigest()
    _write_all(file, piece.memory, piece.offset)
    return digest


def _write_all(file: int, memory: memoryview, offset: int) -> None:
    while memory:
        n_written = os.pwrite(file, memory, offset)
        memory, offset = memory[n_written:], offset + n_written


def open_state(path: Path) -> "StateFile":
    """Open a state file and verify its head and its trailer; no section is read yet.

    Raises
    ------
    InvalidInput
        There is no such file.
    DamagedSession
        It is torn, damaged or of another version; the message says whether `read_head` still gives
        the head.
    """
    file = open_file(path)
    try:
        head, sections = read_layout(file, path)
    except BaseException:
        file.close()
        raise
    return StateFile(path, file, head, sections)


class StateFile:
    """An open state file, made by `open_state`; also a context manager.

    It stays what it was when opened, whatever takes its place or removes it.

    Attributes
    ----------
    head
        The JSON object.
    sections
        Name to `Section`, in the order of the file.
    """

    def __init__(
        self, path: Path, file: BinaryIO, head: dict[str, Any], sections: dict[str, Section]
    ) -> None:
        self.head = head
        self.sections: Mapping[str, Section] = sections
        self._path = path
        self._file = file

    def read_into(self, arrays: Arrays) -> None:
        """Read sections straight into arrays, by name, and verify them.

        Parameters
        ----------
        arrays
            Contiguous and writable, of the section's dtype and shape. What they hold is of no use
            if this raises.

        Raises
        ------
        DamagedSession
            There is no such section, it has another dtype or shape, or its bytes have changed.
        InvalidInput
            An array is not contiguous or not writable.
        """
        pieces: list[_Piece] = []
        for name, array in arrays.items():
            section = self._section(name)
            if (array.dtype.str, array.shape) != (_dtype(section).str, section.shape):
                refuse_state(
                    self._path,
                    f"holds {name!r} as {section.dtype} {list(section.shape)} where "
                    f"{array.dtype.name} {list(array.shape)} is needed",
                )
            if not (array.flags.c_contiguous and array.flags.writeable):
                raise InvalidInput(f"the array for {name!r} is not contiguous and writable")
            pieces += _cut(section, _memory(array))
            self._check_padding(section)
        _in_threads(self._get, pieces)

    def read(self, name: str) -> NDArray[Any]:
        """Return one section as a new array, verified.

        Raises
        ------
        DamagedSession
            There is no such section, or its bytes have changed.
        """
        section = self._section(name)
        array = np.empty(section.shape, _dtype(section))
        self.read_into({name: array})
        return array

    def verify(self) -> None:
        """Read everything and keep nothing.

        Raises
        ------
        DamagedSession
            A byte has changed.
        """
        for section in self.sections.values():
            self._check_padding(section)
        _in_threads(
            self._get,
            [piece for section in self.sections.values() for piece in _cut(section, None)],
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def _section(self, name: str) -> Section:
        section = self.sections.get(name)
        if section is None:
            refuse_state(self._path, f"has no section {name!r}")
        return section

    def _get(self, piece: _Piece) -> None:
        """Read a piece and verify it."""
        memory = memoryview(bytearray(piece.n_bytes)) if piece.memory is None else piece.memory
        self._read_all(memory, piece.offset)
        if hashlib.sha256(memory).hexdigest() != piece.section.digests[piece.number]:
            refuse_state(
                self._path,
                f"is damaged in {piece.section.name!r}, within {piece.n_bytes:,} bytes from byte "
                f"{piece.offset:,}",
            )

    def _check_padding(self, section: Section) -> None:
        end = section.offset + section.nbytes
        padding = bytearray(aligned(end) - end)
        self._read_all(memoryview(padding), end)
        if padding.strip(b"\0"):
            refuse_state(self._path, f"is damaged behind {section.name!r}")

    def _read_all(self, memory: memoryview, offset: int) -> None:
        try:
            while memory:
                n_read = os.preadv(self._file.fileno(), [memory], offset)
                if not n_read:
                    refuse_state(self._path, f"ends at byte {offset:,}")
                memory, offset = memory[n_read:], offset + n_read
        except OSError as error:
            refuse_state(self._path, f"cannot be read at byte {offset:,} ({error.strerror})")


def _dtype(section: Section) -> np.dtype[Any]:
    return np.dtype(section.dtype).newbyteorder("<")

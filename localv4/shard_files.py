"""Shards opened for reading, and pieces of them read into memory.

Reads go past the page cache where the file system allows it: what is streamed would push out
what others keep there, and would be copied once more.  How many bytes must arrive is decided by
the checkpoint's headers, never by the size that a file has now, so that a file that was cut
short is an error and not silence.  Knows nothing of what the bytes mean.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.sizes import up
from localv4.slots import PAGE

__all__ = ["Piece", "ShardFiles", "closed", "piece_bytes", "split"]

U8 = NDArray[np.uint8]
_log = logging.getLogger(__name__)
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)
_PIECE_BYTES = 2**20  # what a thread reads at a time: several share a large read, and end together


def closed() -> LocalV4Error:
    """Return the error of a read after the end."""
    return LocalV4Error("the engine was closed; load the checkpoint again")


@dataclass(frozen=True, eq=False)
class Piece:
    """Bytes of a shard and the memory they go to.

    Attributes
    ----------
    shard
        File name.
    first
        Offset in the file, a multiple of `PAGE`.
    needed
        Bytes that must arrive.
    target
        uint8, at a multiple of `PAGE`, with room for `needed` rounded up to one.
    """

    shard: str
    first: int
    needed: int
    target: U8


def piece_bytes(offset: int, n_bytes: int) -> int:
    """Return the room that a run of bytes takes: whole pages of the file."""
    return up(offset + n_bytes, PAGE) - offset // PAGE * PAGE


def split(
    shard: str, offset: int, n_bytes: int, target: U8, about: int | None = None
) -> list[Piece]:
    """Divide a run of bytes into pieces; its first byte lands at `target[offset % PAGE]`.

    They are of about so many bytes each, and alike: a small one at the end would keep a thread
    as long as a large one.
    """
    begin, end = offset // PAGE * PAGE, offset + n_bytes
    n_pieces = max(1, round((end - begin) / (about or _PIECE_BYTES)))
    step = up(-(-(end - begin) // n_pieces), PAGE)
    pieces = []
    for first in range(begin, end, step):
        last = min(first + step, end)
        room = target[first - begin : up(last, PAGE) - begin]
        pieces.append(Piece(shard, first, last - first, room))
    return pieces


class ShardFiles:
    """Shards opened for reading; a name that is removed later stays readable.

    Parameters
    ----------
    folder, names
        The files.
    direct
        Read past the page cache if the file system allows it.

    Attributes
    ----------
    direct
        Whether reads go past the page cache.

    Raises
    ------
    DamagedCheckpoint
        A file cannot be opened.
    """

    def __init__(self, folder: Path, names: Iterable[str], direct: bool = True) -> None:
        self.folder = folder
        self._buffered: dict[str, int] = {}
        self._direct: dict[str, int] = {}
        self._lock = threading.Lock()
        self.direct = direct and hasattr(os, "O_DIRECT")
        try:
            for name in names:
                self._open(name)
        except OSError as error:
            self.close()
            raise DamagedCheckpoint(
                f"{error.filename or folder} cannot be opened ({error.strerror or error}); check "
                "the file and the limit on open files"
            ) from None

    def read(self, piece: Piece) -> None:
        """Read a piece.

        Raises
        ------
        DamagedCheckpoint
            The disk fails, or the file ends before the needed bytes.
        """
        target, got, cached = piece.target.data, 0, False
        while got < piece.needed:
            # a direct read begins at a page; one that ended elsewhere is finished without
            direct = self.direct and got % PAGE == 0
            files = self._direct if direct else self._buffered
            try:
                count = self._read_at(files, piece.shard, target[got:], piece.first + got)
            except OSError as error:
                if direct and error.errno in _REFUSED:
                    self._give_up_direct(piece.shard)
                    continue
                raise self._failed(piece, got, error.strerror or str(error)) from None
            if count == 0:
                raise self._failed(piece, got, "the file ends there; it was cut short")
            got += count
            cached |= not direct
        if cached and hasattr(os, "posix_fadvise"):
            # closed meanwhile, or a file system that takes no advice
            with contextlib.suppress(OSError, KeyError):
                os.posix_fadvise(
                    self._buffered[piece.shard], piece.first, got, os.POSIX_FADV_DONTNEED
                )

    def read_small(self, shard: str, offset: int, target: U8) -> None:
        """Fill some memory from any offset, through the page cache.

        Raises
        ------
        DamagedCheckpoint
            As `read`.
        """
        piece, got = Piece(shard, offset, target.size, target), 0
        while got < target.size:
            try:
                count = self._read_at(self._buffered, shard, target.data[got:], offset + got)
            except OSError as error:
                raise self._failed(piece, got, error.strerror or str(error)) from None
            if count == 0:
                raise self._failed(piece, got, "the file ends there; it was cut short")
            got += count

    def __del__(self) -> None:
        """Close what was left open because a thread was reading: none is now."""
        self.close()

    def close(self) -> None:
        """Close the files."""
        for handles in (self._direct, self._buffered):
            while handles:
                os.close(handles.popitem()[1])

    def _open(self, name: str) -> None:
        path, flags = self.folder / name, getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        file = self._buffered[name] = os.open(path, os.O_RDONLY | flags)
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        if self.direct:
            try:
                self._direct[name] = os.open(path, os.O_RDONLY | os.O_DIRECT | flags)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._give_up_direct(name)

    def _give_up_direct(self, name: str) -> None:
        with self._lock:
            if self.direct:
                self.direct = False
                _log.warning(
                    "%s is on a file system without direct reads; reading through the page cache, "
                    "which takes more of the CPU", self.folder / name
                )  # fmt: skip

    def _read_at(self, files: dict[str, int], shard: str, target: memoryview, offset: int) -> int:
        file = files.get(shard)
        if file is None:
            raise closed()
        if hasattr(os, "preadv"):
            return os.preadv(file, [target], offset)
        with self._lock:  # Windows: a position of its own is all that a file has
            os.lseek(file, offset, os.SEEK_SET)
            content = os.read(file, len(target))
        target[: len(content)] = content
        return len(content)

    def _failed(self, piece: Piece, got: int, why: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{self.folder / piece.shard} cannot be read at byte {piece.first + got:,}: {why}; "
            "check the disk and download the file again"
        )

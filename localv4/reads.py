"""Reading pieces of shards into memory, on threads that wait for the disk while others compute.

Reads go past the page cache where the file system allows it: what is streamed would push out
what others keep there, and would be copied once more.  How many bytes must arrive is decided by
the checkpoint's headers, never by the size that a file has now, so that a file that was cut
short is an error and not silence.

Knows nothing of what the bytes mean.
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.slots import PAGE, up

__all__ = [
    "CLOSING_S",
    "Piece",
    "Read",
    "Readers",
    "ShardFiles",
    "Wait",
    "closed",
    "join_for",
    "piece_bytes",
    "split",
]

U8 = NDArray[np.uint8]
_log = logging.getLogger(__name__)
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)
_PIECE_BYTES = 2**22  # what one thread reads at a time, so that several share a large read
CLOSING_S = 0.5
"""How long to wait for a thread that is reading."""
_STALL_S = 5.0


def closed() -> LocalV4Error:
    """Return the error of a read after the end."""
    return LocalV4Error("the engine was closed; load the checkpoint again")


def join_for(threads: Sequence[threading.Thread], seconds: float) -> bool:
    """Wait for threads to end, so long at most; return whether all have ended."""
    until = time.monotonic() + seconds
    for thread in threads:
        # the collector of garbage may have come by on one of them
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


class Wait:
    """A wait for the disk, which says now and then that it is one."""

    EVERY_S = 0.25
    """How long a part of it may keep signals from being seen on systems that need it."""

    def __init__(self) -> None:
        self._started = self._told = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.perf_counter() - self._started

    def goes_on(self) -> None:
        """Note that a part of it was in vain."""
        now = time.perf_counter()
        if now - self._told > _STALL_S:
            self._told = now
            _log.warning(
                "the disk has not answered for %.0f s; still waiting (Ctrl-C stops)",
                now - self._started,
            )


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
    return up(offset + n_bytes) - offset // PAGE * PAGE


def split(shard: str, offset: int, n_bytes: int, target: U8) -> list[Piece]:
    """Divide a run of bytes into pieces; its first byte lands at `target[offset % PAGE]`."""
    begin, end = offset // PAGE * PAGE, offset + n_bytes
    pieces = []
    for first in range(begin, end, _PIECE_BYTES):
        last = min(first + _PIECE_BYTES, end)
        room = target[first - begin : up(last) - begin]
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


class Read:
    """Pieces that are wanted together; made by `Readers.submit`.

    Attributes
    ----------
    key
        The asker's name for it.
    result
        What `finish` returned.
    error
        What went wrong, or None.
    landed
        Whether it was handed over; no thread touches its memory then.
    withdrawn
        Whether it is incomplete because nobody wanted it any more.
    """

    def __init__(
        self,
        key: Any,  # noqa: ANN401 (the asker's)
        pieces: Sequence[Piece],
        finish: Callable[[], Any],
        queue: "SimpleQueue[Read]",
        urgent: bool,
    ) -> None:
        self.key = key
        self.result: Any = None
        self.error: Exception | None = None
        self.landed = False
        self.withdrawn = False
        self._finish = finish
        self._queue = queue
        self._urgent = urgent
        self._waiting = deque(pieces)
        self._left = len(pieces)


class Readers:
    """Threads that read; urgent reads first, and those first that were asked for first.

    Parameters
    ----------
    files
        Where to read.
    n_threads
        How many reads the disk gets at a time.

    Attributes
    ----------
    bytes_read
        Bytes that arrived and were needed.
    """

    def __init__(self, files: ShardFiles, n_threads: int) -> None:
        self.files = files
        self.bytes_read = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._n_pieces = 0  # that were asked for and are not done
        self._lock = threading.Lock()
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        # all that have not landed, in order; one dict, because Ctrl-C may come between any two
        # changes, and a read that nobody knows of would write into memory of another one
        self._reads: dict[Read, None] = {}
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"localv4-reader-{i}", daemon=True)
            for i in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy_s(self) -> float:
        """Seconds in which the disk had something to do."""
        with self._lock:
            running = time.perf_counter() - self._busy_since if self._n_pieces else 0.0
            return self._busy_s + running

    @property
    def outstanding(self) -> int:
        """Reads that have not landed."""
        return len(self._reads)

    def submit(
        self,
        key: Any,  # noqa: ANN401 (the asker's)
        pieces: Sequence[Piece],
        landed: "SimpleQueue[Read]",
        finish: Callable[[], Any] = lambda: None,
        urgent: bool = True,
    ) -> Read:
        """Ask for pieces.

        Parameters
        ----------
        key
            The asker's name for the read.
        pieces
            At least one.
        landed
            Gets the read when all is there, or when it failed.
        finish
            Called on a reading thread when all is there; may raise what `read.error` will be.
        urgent
            Before all that are not.

        Raises
        ------
        LocalV4Error
            After `close`.
        """
        read = Read(key, pieces, finish, landed, urgent)
        with self._lock:
            if self._closing:
                raise closed()
            for _ in pieces:
                self._tokens.put(True)  # for threads that then wait for the lock
            if not self._n_pieces:
                self._busy_since = time.perf_counter()
            self._n_pieces += len(pieces)
            self._reads[read] = None
        return read

    def hurry(self, read: Read) -> None:
        """Make a read urgent that was not."""
        read._urgent = True

    def withdraw(self, read: Read) -> None:
        """Leave out what was not begun of a read, which then lands with an error."""
        with self._lock:
            if not read.landed and read._waiting:
                read.withdrawn = True
                self._leave_out(read, closed())

    def close(self) -> bool:
        """Stop; return whether no thread is held by the disk, which then keeps its memory.

        Reads that were not begun fail; the others land when the disk gives them.
        """
        # without the lock, which this thread may hold: the collector of garbage comes by anywhere
        self._closing = True
        for _ in self._threads:
            self._tokens.put(False)
        return join_for(self._threads, CLOSING_S)

    def _work(self) -> None:
        while self._tokens.get() and not self._closing:
            taken = self._take()
            if taken is None:
                continue
            read, piece = taken
            count, error = 0, None
            try:
                if read.error is None:
                    self.files.read(piece)
                    count = piece.needed
            except Exception as failure:
                error = failure
            self._count(read, count, error)
            del taken, read, piece, error  # an idle thread holds no memory
        self._cancel()

    def _take(self) -> tuple[Read, Piece] | None:
        """Return what to read next; None if there is nothing, as after an interrupted `submit`."""
        with self._lock:
            chosen = None
            for read in self._reads:
                if read._waiting and (chosen is None or read._urgent):
                    chosen = read
                    if read._urgent:
                        break
            return None if chosen is None else (chosen, chosen._waiting.popleft())

    def _cancel(self) -> None:
        """Let all reads fail that were not begun."""
        with self._lock:
            for read in [read for read in self._reads if read._waiting]:
                self._leave_out(read, closed())

    def _leave_out(self, read: Read, error: Exception) -> None:
        """Let a read fail without the pieces that were not begun; with the lock."""
        read.error = read.error or error
        self._done(len(read._waiting))
        read._left -= len(read._waiting)
        read._waiting.clear()
        if not read._left:
            self._land(read)

    def _count(self, read: Read, count: int, error: Exception | None) -> None:
        """Note that a piece is done; whoever does the last one finishes the read."""
        with self._lock:
            self.bytes_read += count
            self._done(1)
            read.error = read.error or error
            read._left -= 1
            last = read._left == 0
        if not last:
            return
        try:
            if read.error is None:
                read.result = read._finish()
        except Exception as failure:
            read.error = failure
        with self._lock:
            self._land(read)

    def _land(self, read: Read) -> None:
        """Hand a read over; with the lock."""
        read._queue.put(read)
        read.landed = True
        del self._reads[read]

    def _done(self, n_pieces: int) -> None:
        """Count pieces that are done; with the lock."""
        self._n_pieces -= n_pieces
        if n_pieces and not self._n_pieces:
            self._busy_s += time.perf_counter() - self._busy_since

"""Threads that read pieces of shards while others compute, and waits for them.

Knows nothing of what the bytes mean.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from localv4.shard_files import Piece, ShardFiles, closed

__all__ = ["CLOSING_S", "Read", "Readers", "Wait", "join_for"]

_log = logging.getLogger(__name__)
CLOSING_S = 0.5
"""How long to wait for a thread that is reading."""
_STALL_S = 5.0


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
    n_threads
        As given.
    bytes_read
        Bytes that arrived and were needed.
    """

    def __init__(self, files: ShardFiles, n_threads: int) -> None:
        self.files = files
        self.n_threads = n_threads
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

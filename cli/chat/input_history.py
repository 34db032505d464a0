"""What was typed in chats, kept in a file for the next one.

Several chats may add to one file at a time. Nothing that is wrong with the file disturbs a chat: it
is warned of once, and from then on the history is in memory alone. The form is that of
prompt_toolkit's own: a line ``# TIME`` before each entry, and its lines behind a ``+``. Knows
nothing of how lines are edited.
"""

import contextlib
import datetime
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from localv4.replacing import replacing

__all__ = ["InputHistory"]

_MOST_ENTRIES = 2000
_MOST_BYTES = 2**22  # of the file, beyond which the oldest entries are dropped
_LONGEST_BYTES = 100_000  # of an entry: what was pasted, not typed
_ENTRY = re.compile(rb"(?:^\+[^\n]*\n)+", re.MULTILINE)
_LOCK_TRIES, _LOCK_WAIT_S = 20, 0.01


class InputHistory:
    """The entries of earlier chats and of this one, oldest first.

    Parameters
    ----------
    path
        The file, made when there is something to keep; None to keep nothing.
    warn
        Told, at most once, in a sentence why nothing is kept.
    """

    def __init__(self, path: Path | None, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self.entries: list[str] = []
        with self._harmless():
            self.entries = self._read()

    def add(self, text: str, keep: bool = True) -> None:
        """Add an entry, unless it is blank or the one before; a very long one is not written.

        Without `keep` it is for this chat alone.
        """
        if not text.strip() or text == next(reversed(self.entries), None):
            return
        self.entries.append(text)
        lines = "".join(f"+{line}\n" for line in text.split("\n"))
        content = f"\n# {datetime.datetime.now()}\n{lines}".encode("utf-8", "replace")
        if not keep or self._path is None or len(content) > _LONGEST_BYTES:
            return
        with self._harmless():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
                # in one piece: where there are no locks, entries of two chats do not mix
                if os.write(descriptor, content) < len(content):
                    raise OSError("the disk is full")

    def _read(self) -> list[str]:
        if self._path is None:
            return []
        try:
            with _locked(self._path, os.O_RDONLY) as descriptor:
                n_bytes = os.fstat(descriptor).st_size
                entries = _entries(os.pread(descriptor, _MOST_BYTES, max(0, n_bytes - _MOST_BYTES)))
                if n_bytes > _MOST_BYTES or len(entries) > _MOST_ENTRIES:
                    with contextlib.suppress(OSError):  # it may be too long for now
                        _trim(self._path, entries)
        except FileNotFoundError:
            return []
        return [text.decode("utf-8", "replace") for text in entries[-_MOST_ENTRIES:]]

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Warn of what fails in the block, and leave the file alone from then on."""
        try:
            yield
        except OSError as error:
            path, self._path = self._path, None
            self._warn(
                f"{path} can't hold the history of inputs ({error.strerror or error}); they are "
                "kept until this chat ends"
            )


def _entries(content: bytes) -> list[bytes]:
    """Return the entries of a file's end; what is none, or not whole, is left out."""
    begin = content.find(b"\n#")
    return [
        found[0][1:-1].replace(b"\n+", b"\n")
        for found in _ENTRY.finditer(content, begin if begin >= 0 else len(content))
    ]


def _trim(path: Path, entries: list[bytes]) -> None:
    """Replace a file by one with the last entries, half as many as there may be."""
    kept: list[bytes] = []
    n_bytes = 0
    for entry in reversed(entries[-_MOST_ENTRIES // 2 :]):
        written = b"\n#\n+" + entry.replace(b"\n", b"\n+") + b"\n"
        n_bytes += len(written)
        if n_bytes > _MOST_BYTES // 2:
            break
        kept.append(written)
    with replacing(path.resolve()) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.write(b"".join(reversed(kept)))


@contextlib.contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """Open a file of which this chat is the only user, unless another one keeps it for long."""
    descriptor = _opened(path, flags)
    try:
        for _ in range(_LOCK_TRIES):
            if not _lock(descriptor):
                time.sleep(_LOCK_WAIT_S)
            elif _is_same(descriptor, path):
                break
            else:  # it was replaced by a shorter one
                replaced, descriptor = descriptor, _opened(path, flags)
                os.close(replaced)
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no file")
    return descriptor


def _lock(descriptor: int) -> bool:
    """Return whether the file is locked now, or cannot be."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

"""The file of ``--output``: a line for each prompt, in their order, to which a later start adds.

A line begins with its prompt's index, id and key, which tell whether it belongs to these prompts.
A failed prompt has a line too, which a later try replaces. Knows nothing of what else is in a line.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from localv4.cli.prompts_file import Entry
from localv4.errors import InvalidInput
from localv4.replacing import replacing

__all__ = ["ResultsFile"]

_ELSE = "name another --output, or remove it to start anew"


class ResultsFile:
    """An open file of results; a context manager.

    Parameters
    ----------
    path
        Made if it is not there.
    entries
        The prompts.

    Raises
    ------
    InvalidInput
        If it cannot be written, is written by another process, or belongs to something else.
    """

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self._path = Path(os.path.realpath(path))
        self._named = path
        self._heads = [f"{entry.head}, ".encode() for entry in entries]
        self._failed: dict[int, bytes] = {}
        self._n_lines = 0
        self._descriptor = self._open()
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ResultsFile":
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Let other processes write it."""
        os.close(self._descriptor)

    def is_done(self, place: int) -> bool:
        """Return whether a prompt, by its place among all, has its answer."""
        return place < self._n_lines and place not in self._failed

    @property
    def n_done(self) -> int:
        """How many prompts have their answers."""
        return self._n_lines - len(self._failed)

    def put(self, place: int, line: str) -> None:
        """Write the line of a prompt, all of it or nothing; places come in their order.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        content = f"{line}\n".encode("utf-8", "replace")  # a model's path may be no UTF-8
        if self._failed.get(place) == content:
            return
        try:
            if place < self._n_lines:
                self._replace(place, content)
            else:
                self._append(content)
        except OSError as error:
            error.filename = str(self._named)
            raise
        self._failed.pop(place, None)
        self._note_failure(place, content)

    def _append(self, content: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        self._n_lines += 1  # first: a stop may come at any moment
        try:
            _write(self._descriptor, content)
        except BaseException:
            self._n_lines -= 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def _replace(self, place: int, content: bytes) -> None:
        """Put another line in the place of one."""
        mode = stat.S_IMODE(os.fstat(self._descriptor).st_mode)
        with self._path.open("rb") as lines, replacing(self._path) as descriptor:
            os.fchmod(descriptor, mode)
            for number, line in enumerate(lines):
                _write(descriptor, content if number == place else line)
        before, self._descriptor = self._descriptor, self._open()
        os.close(before)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a FIFO must not wait
        try:
            descriptor = os.open(self._path, flags, 0o666)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInput(
                f"{self._named} cannot be written: {reason}; check --output"
            ) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidInput(
                    f"{self._named} is no regular file; without --output the lines go to "
                    "standard output"
                )
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _lock(self, descriptor: int) -> None:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"another process writes {self._named}; wait for it, or name another --output"
            ) from None
        except OSError:
            pass  # not every file system has locks

    def _read(self) -> None:
        """Check what is there, and drop a last line that was cut off."""
        whole_bytes = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as lines:
            lines.seek(0)
            for number, line in self._numbered(lines):
                self._check(number, line)
                if not line.endswith(b"\n"):
                    os.ftruncate(self._descriptor, whole_bytes)
                    return
                whole_bytes += len(line)
                self._note_failure(number, line)
                self._n_lines += 1

    def _note_failure(self, place: int, line: bytes) -> None:
        if line.startswith(self._heads[place] + b'"error": '):
            self._failed[place] = line

    def _numbered(self, lines: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(lines):
            if number == len(self._heads):
                raise InvalidInput(
                    f"{self._named} has more lines than there are prompts, {number:,}; {_ELSE}"
                )
            yield number, line

    def _check(self, number: int, line: bytes) -> None:
        """Refuse a line that is not the answer to the prompt in its place."""
        head = self._heads[number]
        if not line.endswith(b"\n"):
            belongs = head.startswith(line) or line.startswith(head)
        else:
            belongs = line.startswith(head) and _is_json(line)
        if not belongs:
            raise InvalidInput(
                f"line {number + 1} of {self._named} is no answer of this model to this prompt "
                f"with these flags; {_ELSE}"
            )


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True

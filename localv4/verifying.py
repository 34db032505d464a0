"""Is every byte of a checkpoint as it was published: files against the checksums they came with.

In the hub's cache a file's blob is named by its checksum; into a plain folder the hub's client
writes them beside the files. Reads every file once, several at a time, and lets the page cache
forget them at once. Knows nothing of what the files mean: headers are checked by `Checkpoint.open`.
"""

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from localv4.checksums import checksum, is_checksum
from localv4.errors import DamagedCheckpoint
from localv4.hub_cache import CachedRepo, blob_of, files_below, shared_content
from localv4.untrusted import open_regular

__all__ = ["Damage", "StoredFile", "remove_damaged", "stored_files", "verify_files"]

_METADATA = Path(".cache", "huggingface", "download")
_METADATA_LIMIT_BYTES = 1000
_OWN_FOLDER = ".cache"  # of the hub's client, not of the repo
_WAIT_S = 0.1
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint.

    Attributes
    ----------
    name
        In the checkpoint's folder.
    path
        Where it is read.
    n_bytes
        Its size; 0 where it can't be reached.
    expected
        Its checksum, 40 or 64 digits; None where nothing tells.
    """

    name: str
    path: Path
    n_bytes: int
    expected: str | None


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was published.

    Attributes
    ----------
    file
        Which.
    found
        Its checksum; None where it can't be read.
    reason
        In words.
    """

    file: StoredFile
    found: str | None
    reason: str


class _StoppedError(Exception):
    """Reading ends, as nobody wants to know any more."""


def stored_files(folder: Path) -> tuple[StoredFile, ...]:
    """List a checkpoint's files with the checksums they came with, by name."""
    found = []
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(f"{_OWN_FOLDER}/"):
            found.append(StoredFile(name, path, _size(path), _expected(folder, path, name)))
    return tuple(found)


def verify_files(
    files: Iterable[StoredFile],
    n_threads: int,
    progress: Callable[[int, int], None] = lambda _done, _read: None,
) -> tuple[Damage, ...]:
    """Read all files that have a checksum and compare; a content with several names is read once.

    Parameters
    ----------
    files
        To read; those without a checksum are left out.
    n_threads
        Files to read at a time.
    progress
        Told ten times a second, in this thread, the files and the bytes read so far. What it
        raises, or a signal meanwhile, ends the reading within a piece of a file.

    Returns
    -------
    tuple of Damage
        What is not as it should be, in the order of the files.
    """
    unique = {_content(file): file for file in files if file.expected is not None}
    reader = _Reader()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="verify")
    try:
        results = [pool.submit(reader.check, file) for file in unique.values()]
        waiting: set[Future[Damage | None]] = {*results}
        while waiting:
            _, waiting = wait(waiting, _WAIT_S, FIRST_COMPLETED)
            progress(len(results) - len(waiting), reader.n_bytes)
        return tuple(damage for result in results if (damage := result.result()) is not None)
    finally:
        reader.stop()
        pool.shutdown(cancel_futures=True)


def remove_damaged(repo: CachedRepo, damages: Iterable[Damage]) -> int:
    """Remove damaged files from the hub's cache, so that the next download gets these alone.

    Only what lies in the cache goes: of a content elsewhere, the link to it.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    OSError
        If one can't be removed.
    """
    freed = 0
    for damage in damages:
        path = damage.file.path
        blob = blob_of(path)
        freed += _remove(path)
        if blob != path and blob.parent == repo.blobs:
            # the client would link a damaged content of the shared store again
            shared = shared_content(blob)
            freed += _remove(blob) + (0 if shared is None else _remove(shared))
    return freed


class _Reader:
    """Reads files in several threads; counts bytes, and stops all of them at once."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._lock = threading.Lock()
        self._is_stopped = False

    def stop(self) -> None:
        """End what is being read, within a piece."""
        self._is_stopped = True

    def check(self, file: StoredFile) -> Damage | None:
        """Read one file and compare; None if it is as it should be."""
        assert file.expected is not None
        try:
            opened = open_regular(file.path)
            if opened is None:
                return Damage(file, None, "its content is not there")
            with opened:
                found = checksum(opened, file.expected, file.n_bytes, self._forget(opened))
        except DamagedCheckpoint as error:
            return Damage(file, None, str(error).partition(";")[0])
        except OSError as error:
            return Damage(file, None, f"it cannot be read ({error.strerror or error})")
        except _StoppedError:
            return None
        if found == file.expected:
            return None
        digits = f"{found[:_SHOWN_DIGITS]}..., not {file.expected[:_SHOWN_DIGITS]}..."
        return Damage(file, found, f"its checksum is {digits}")

    def _forget(self, file: BinaryIO) -> Callable[[int], None]:
        """Return what counts each piece and lets the page cache forget it."""
        start = 0

        def advance(n_bytes: int) -> None:
            nonlocal start
            if hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):
                    os.posix_fadvise(file.fileno(), start, n_bytes, os.POSIX_FADV_DONTNEED)
            start += n_bytes
            with self._lock:
                self.n_bytes += n_bytes
            if self._is_stopped:
                raise _StoppedError

        return advance


def _expected(folder: Path, path: Path, name: str) -> str | None:
    blob = blob_of(path)
    if blob.parent.name == "blobs" and is_checksum(blob.name):
        return blob.name
    # commit, checksum, time; what the client of the hub notes of each file
    with contextlib.suppress(OSError, DamagedCheckpoint):
        file = open_regular(folder / _METADATA / f"{name}.metadata")
        if file is not None:
            with file:
                lines = file.read(_METADATA_LIMIT_BYTES).decode("ascii", "replace").split("\n")
            if len(lines) > 1 and is_checksum(lines[1].strip()):
                return lines[1].strip()
    return None


def _content(file: StoredFile) -> tuple[str | None, str]:
    return file.expected, os.path.realpath(file.path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> int:
    """Remove a file, a link, or a folder that lies in the place of one; return the bytes freed."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path)
        return 0
    path.unlink()
    return found.st_size if stat.S_ISREG(found.st_mode) else 0

"""One file of the hub, fetched into its blob: gone on with, tried again, and checked.

What has come lies in ``<checksum>.incomplete``, which only grows at its end, and stays whatever
ends the download. Only a file of the right bytes gets its name. Knows nothing of the other files
of a repo.
"""

import contextlib
import os
import threading
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from localv4.checksums import checksum
from localv4.errors import DamagedCheckpoint, DownloadFailed
from localv4.hub import HubBusy, RemoteFile, RemoteRepo, open_stream
from localv4.pull_plan import partial_of
from localv4.sizes import format_bytes

__all__ = ["Meter", "Patience", "StoppingError", "fetch_blob"]


class StoppingError(Exception):
    """The download is to end, for reasons of its owner."""


@dataclass(frozen=True)
class Patience:
    """How often a file is tried again without a byte of progress, and after what waits.

    They double from `wait_s` to `longest_s`, unless the hub says how long to wait.
    """

    tries: int = 6
    wait_s: float = 1.0
    longest_s: float = 60.0

    def wait(self, n_failures: int, error: HubBusy) -> float:
        """Return the seconds to wait after so many failures in a row."""
        if error.wait_s is not None:
            return min(error.wait_s, 10 * self.longest_s)
        return float(min(self.wait_s * 2 ** (n_failures - 1), self.longest_s))


@dataclass
class Meter:
    """What the threads of a download count, and when they are to stop.

    Attributes
    ----------
    here
        By path, how many bytes are on the disk.
    checking
        Paths of files that are read again for their checksum.
    received_bytes
        What has come over the network.
    """

    here: dict[str, int] = field(default_factory=dict)
    checking: set[str] = field(default_factory=set)
    received_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def received(self, n_bytes: int) -> None:
        """Count bytes, or stop here."""
        self.go_on()
        with self._lock:
            self.received_bytes += n_bytes

    def go_on(self, _: int = 0) -> None:
        """Stop here if it is time to."""
        if self.stop.is_set():
            raise StoppingError

    def sleep(self, seconds: float) -> None:
        """Wait, but stop when it is time to."""
        if self.stop.wait(seconds):
            raise StoppingError


def fetch_blob(
    repo: RemoteRepo,
    file: RemoteFile,
    blob: Path,
    meter: Meter,
    patience: Patience,
    content: bytes | None = None,
) -> None:
    """Fetch a file into its blob, from where an earlier try ended.

    Parameters
    ----------
    repo, file
        What to fetch.
    blob
        Where to; the caller holds the lock on it.
    meter
        Counts, and stops.
    patience
        With a hub that is busy.
    content
        The file's content, if it is known already.

    Raises
    ------
    DamagedCheckpoint
        If what comes has the wrong length or checksum, twice; it is removed then.
    DownloadFailed
        If the hub refuses, or nothing comes for too long; what came is kept.
    OSError
        If the disk is full, or can't be written.
    """
    partial = partial_of(blob)
    for last_try in (False, True):
        try:
            if content is not None:
                partial.write_bytes(content)
            else:
                _fetch_rest(repo, file, partial, meter, patience)
            _check(repo, file, partial, meter)
        except DamagedCheckpoint:
            partial.unlink(missing_ok=True)
            meter.here[file.path] = 0
            content = None
            if last_try:
                raise
        else:
            partial.replace(blob)
            meter.here[file.path] = file.n_bytes
            return


def _fetch_rest(
    repo: RemoteRepo, file: RemoteFile, partial: Path, meter: Meter, patience: Patience
) -> None:
    """Fetch what a partial lacks, through broken connections."""
    # not O_APPEND: where a file system lies about locks, two writers write the same bytes
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with open(descriptor, "r+b", buffering=0) as target:  # noqa: PTH123 (a descriptor)
        target.seek(0, os.SEEK_END)  # beyond what is listed? then the checksum is wrong, too
        n_failures = 0
        while (here := target.tell()) < file.n_bytes:
            meter.here[file.path] = here
            try:
                _append(repo, file, target, meter)
                broken = HubBusy(f"{repo.repo_id}/{file.path} broke off; try again")
            except HubBusy as error:
                broken = error
            n_failures = 0 if target.tell() > here else n_failures + 1
            if n_failures > patience.tries:
                raise _gave_up(broken, file, here)
            if target.tell() < file.n_bytes:
                meter.sleep(patience.wait(max(n_failures, 1), broken))
        os.fsync(target.fileno())


def _append(repo: RemoteRepo, file: RemoteFile, target: FileIO, meter: Meter) -> None:
    """Write what one answer brings behind what is there."""
    here = target.tell()
    with open_stream(repo, file, here) as stream:
        known = here - stream.start  # a server without ranges begins with what is here already
        for piece in stream.pieces:
            meter.received(len(piece))
            fresh = memoryview(piece)[known : known + file.n_bytes - here]
            known = max(known - len(piece), 0)
            while fresh:
                n_written = target.write(fresh)
                fresh = fresh[n_written:]
                here += n_written
            meter.here[file.path] = here
            if here == file.n_bytes:
                return  # whatever more there is: the checksum judges


def _check(repo: RemoteRepo, file: RemoteFile, partial: Path, meter: Meter) -> None:
    """Read a fetched file again and refuse wrong bytes."""
    meter.checking.add(file.path)
    try:
        with partial.open("rb") as source:
            found = checksum(source, file.checksum, file.n_bytes, meter.go_on)
    finally:
        with contextlib.suppress(KeyError):
            meter.checking.remove(file.path)
    if found != file.checksum:
        raise DamagedCheckpoint(
            f"{repo.repo_id}/{file.path} arrived with checksum {found} where the hub lists "
            f"{file.checksum}; it was removed, so try again"
        )


def _gave_up(error: HubBusy, file: RemoteFile, here: int) -> DownloadFailed:
    what = str(error).rpartition(";")[0]
    return DownloadFailed(
        f"{what}; {format_bytes(here)} of {file.path} are kept, and the same command goes on there"
    )

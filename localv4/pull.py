"""A planned download, carried out: several files at a time, into the hub's own cache.

Each blob is written under the lock that the hub's library takes, so that two downloads at once
share the work. A snapshot's links are made as files become whole, and the revision's name leads to
it when all are. Knows nothing of what the files are for.
"""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from localv4.downloads import Meter, Patience, StoppingError, fetch_blob
from localv4.errors import DownloadFailed, LocalV4Error, OutOfBudget
from localv4.files_state import FilesState
from localv4.hub import lock
from localv4.pull_plan import PlannedFile, PullPlan
from localv4.remote_checkpoint import is_whole, places
from localv4.sizes import format_bytes

__all__ = ["pull"]

_N_WORKERS = 8
_REPORT_S = 0.1
_LOCKED_S = 0.5  # before a file that another process fetches is looked at again
_FAREWELL_S = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def pull(
    plan: PullPlan,
    progress: Callable[[FilesState], None] = lambda _: None,
    *,
    n_workers: int = _N_WORKERS,
    patience: Patience | None = None,
) -> Path:
    """Fetch what a plan lacks and return the checkpoint's folder.

    Whatever ends it, an exception of `progress` too, what came is kept, and the next call goes on
    from there.

    Parameters
    ----------
    plan
        From :func:`localv4.pull_plan.make_plan`.
    progress
        Told the state about ten times a second, in this thread.
    n_workers
        Files that are fetched at a time.
    patience
        With a hub that is busy; None for the usual.

    Raises
    ------
    DownloadFailed
        If the hub fails for too long or refuses, or the cache can't be written.
    DamagedCheckpoint
        If a file has the wrong bytes, twice.
    OutOfBudget
        If the disk is full.
    """
    work = _Work(plan, patience or Patience())
    try:
        workers = [
            threading.Thread(target=work.run, name=f"pull-{number}", daemon=True)
            for number in range(min(n_workers, len(plan.files)))
        ]
        _run(workers, work, progress)
        if work.error is not None:
            raise work.error
        progress(work.state())
        _write_ref(plan)
    except OSError as error:
        raise _disk_error(error, plan) from None
    return plan.snapshot


def _run(
    workers: list[threading.Thread], work: "_Work", progress: Callable[[FilesState], None]
) -> None:
    """Wait for the workers; if anything is raised meanwhile, they stop."""
    try:
        for worker in workers:
            worker.start()
        # at the first error no more is waited for: the others may wait for a silent server
        while work.error is None and (alive := [one for one in workers if one.is_alive()]):
            alive[0].join(_REPORT_S)
            progress(work.state())
    finally:
        work.meter.stop.set()
        # one that waits for a silent server is left behind: it finds out by itself
        end_s = time.monotonic() + _FAREWELL_S
        for worker in workers:
            if worker.ident is not None:
                worker.join(max(end_s - time.monotonic(), 0))


class _Work:
    """What the workers share: the files to do, those that others do, and the first error."""

    def __init__(self, plan: PullPlan, patience: Patience) -> None:
        self.meter = Meter({file.remote.path: file.here_bytes for file in plan.files})
        self.error: BaseException | None = None
        self._plan = plan
        self._patience = patience
        self._lock = threading.Lock()
        self._to_do = deque(plan.files)
        self._elsewhere: deque[PlannedFile] = deque()
        self._n_active = 0
        self._n_waiting = 0
        self._n_done = 0

    def state(self) -> FilesState:
        """Return how far it is."""
        with self._lock:
            is_idle = not self._to_do and not self._n_active
            return FilesState(
                n_done=self._n_done,
                n_files=len(self._plan.files),
                here_bytes=sum(self.meter.here.values()),
                n_bytes=self._plan.n_bytes,
                received_bytes=self.meter.received_bytes,
                n_checking=len(self.meter.checking),
                n_elsewhere=is_idle * (len(self._elsewhere) + self._n_waiting),
            )

    def run(self) -> None:
        """Do one file after the other until there are no more; the body of a worker."""
        try:
            while (file := self._next()) is not None:
                self._do(file)
        except StoppingError:
            pass
        except BaseException as error:
            with self._lock:
                self.error = self.error or error
            self.meter.stop.set()

    def _next(self) -> PlannedFile | None:
        """Return the next file: one that another process had, after a while, only at the end."""
        self.meter.go_on()
        with self._lock:
            if self._to_do:
                return self._to_do.popleft()
            if not self._elsewhere:
                return None
            file = self._elsewhere.popleft()
            self._n_waiting += 1
        self.meter.sleep(_LOCKED_S)
        with self._lock:
            self._n_waiting -= 1
        return file

    def _do(self, file: PlannedFile) -> None:
        """See to it that a file is whole and linked, unless another process is about it."""
        folder = self._plan.folder
        lock_path = self._plan.cache / ".locks" / folder.name / f"{file.remote.checksum}.lock"
        with self._counted(), lock(lock_path) as is_ours:
            if is_ours:
                self._finish(file)
        with self._lock:
            if is_ours:
                self._n_done += 1
            else:
                self._elsewhere.append(file)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._n_active += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_active -= 1

    def _finish(self, file: PlannedFile) -> None:
        remote, plan = file.remote, self._plan
        link, blob = places(plan.repo, remote, plan.folder)
        if is_whole(link, remote):
            return
        if not is_whole(blob, remote):
            blob.parent.mkdir(parents=True, exist_ok=True)
            content = plan.contents.get(remote.path)
            fetch_blob(plan.repo, remote, blob, self.meter, self._patience, content)
        self.meter.here[remote.path] = remote.n_bytes
        link.parent.mkdir(parents=True, exist_ok=True)
        _link(link, blob)


def _link(link: Path, blob: Path) -> None:
    """Let a snapshot's file lead to its blob; where there are no links, be the blob."""
    link.unlink(missing_ok=True)  # it leads nowhere, or is no whole file
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except (NotImplementedError, PermissionError):
        # what the hub's library does then; a folder that can't be written raises here, too
        blob.replace(link)


def _write_ref(plan: PullPlan) -> None:
    """Let the revision's name lead to the commit: it is whole now."""
    if plan.repo.revision == plan.repo.commit:
        return
    ref = plan.folder / "refs" / plan.repo.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_name(f".{ref.name}.{uuid4().hex[:8]}.tmp")
    new.write_text(plan.repo.commit)
    new.replace(ref)


def _disk_error(error: OSError, plan: PullPlan) -> LocalV4Error:
    if error.errno in _FULL:
        return OutOfBudget(
            f"the disk of {plan.cache} is full; what came is kept: free "
            f"{format_bytes(plan.fetch_bytes)} for all of it, and the same command goes on"
        )
    return DownloadFailed(
        f"{error.filename or plan.cache} can't be written ({error.strerror or error}); check who "
        "may write there, or let HF_HOME name another folder"
    )

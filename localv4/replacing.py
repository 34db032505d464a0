"""A file replaced as a whole: at every moment its path leads to the old content or to the new.

The new content is written beside the old one, to a partial file whose writer holds a lock on it. A
writer that was killed leaves its partial behind, but no lock, and that tells it from one at work.
Knows nothing of what is written.
"""

import contextlib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["remove_abandoned", "replacing"]

_SUFFIX = ".partial"
_NEW_S = 60.0  # between its creation and its lock a partial looks abandoned
_OLD_S = 24 * 3600.0


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give the descriptor of an empty file that takes the place of `path` at the end of the block.

    It is readable by its owner alone, and on the disk before it takes the place. If anything is
    raised, it is removed and `path` stays as it was.

    Raises
    ------
    OSError
        The file cannot be made, written out or moved.
    """
    descriptor, name = tempfile.mkstemp(_SUFFIX, f".{path.name}.", path.parent)
    partial = Path(name)
    try:
        _lock(descriptor)
        yield descriptor
        os.fsync(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove partial files whose writers are gone; what cannot be removed stays.

    Where files cannot be locked, a writer counts as gone when it wrote nothing for a day.
    """
    for partial in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if _is_abandoned(partial):
                partial.unlink()


def _is_abandoned(partial: Path) -> bool:
    descriptor = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        age_s = time.time() - os.fstat(descriptor).st_mtime
        is_free = _lock(descriptor)
    finally:
        os.close(descriptor)
    return age_s > _OLD_S if is_free is None else is_free and age_s > _NEW_S


def _lock(descriptor: int) -> bool | None:
    """Return whether the file is ours alone until it is closed; None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync_folder(folder: Path) -> None:
    """See to it that the new name, too, survives a loss of power."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some file systems cannot do this for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

"""Which threads compute: how many, and one caller at a time."""

import os
import threading
from contextlib import AbstractContextManager

from localv4.checks import whole_number

__all__ = ["choose_threads", "computing", "usable_cpus"]

_lock = threading.RLock()


def usable_cpus() -> int:
    """Return on how many CPUs this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(asked: int | None) -> int:
    """Return the number of compute threads to use.

    Parameters
    ----------
    asked
        A wish, or None for all CPUs that this process may run on.

    Raises
    ------
    InvalidInput
        The wish is below 1 or more than the machine has.
    """
    return (
        usable_cpus() if asked is None else whole_number("threads", asked, 1, os.cpu_count() or 1)
    )


def computing() -> AbstractContextManager[object]:
    """Hold the right to run programs: the compute threads serve one caller at a time."""
    return _lock

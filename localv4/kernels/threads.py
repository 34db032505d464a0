"""Which threads compute: how many, and one caller at a time."""

import os
import threading
from contextlib import AbstractContextManager

from localv4.checks import whole_number

__all__ = ["choose_threads", "computing", "usable_cpus"]

_lock = threading.RLock()
_MANY_CPUS = 12  # so many that one less to compute with is hardly noticed


def usable_cpus() -> int:
    """Return on how many CPUs this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(asked: int | None, beside_reads: bool = False) -> int:
    """Return the number of compute threads to use.

    Parameters
    ----------
    asked
        A wish, or None for all CPUs that this process may run on.
    beside_reads
        Weights are read from a disk all the while.  Where there are many CPUs, None leaves one to
        the threads that read: else one of the compute threads has to give way again and again,
        and all others wait for it (benchmarks/README.md, streaming).

    Raises
    ------
    InvalidInput
        The wish is below 1 or more than the machine has.
    """
    if asked is not None:
        return whole_number("threads", asked, 1, os.cpu_count() or 1)
    cpus = usable_cpus()
    return cpus - 1 if beside_reads and cpus >= _MANY_CPUS else cpus


def computing() -> AbstractContextManager[object]:
    """Hold the right to run programs: the compute threads serve one caller at a time."""
    return _lock

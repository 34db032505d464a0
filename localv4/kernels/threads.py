"""Which threads compute: one caller at a time, a chosen number of numba's workers.

numba's fallback threading layer aborts the process when two threads run parallel kernels at
once, and its worker count is a setting of each calling thread.  So every computation runs
inside `computing`, which holds a lock and sets the count.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba

from localv4.checks import whole_number
from localv4.settings import set_library_default

__all__ = ["choose_threads", "computing"]

# libgomp's waiting threads spin for milliseconds by default, which costs a factor of ten as
# soon as another program wants a core.  Here they spin for some microseconds, the time between
# two phases of a program, and then sleep.  It reads this when the first program is run.
set_library_default("OMP_WAIT_POLICY", "PASSIVE")
set_library_default("GOMP_SPINCOUNT", "20000")

_lock = threading.RLock()


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
    most = int(numba.config.NUMBA_NUM_THREADS)
    if asked is None:
        return min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else most)
    return whole_number("threads", asked, 1, most)


@contextmanager
def computing(n_threads: int) -> Iterator[None]:
    """Hold the right to run kernels on `n_threads` threads."""
    with _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(n_threads)
        try:
            yield
        finally:
            numba.set_num_threads(before)

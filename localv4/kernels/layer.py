"""Which of numba's threading layers runs the programs, for reports."""

import numba

from localv4.kernels.threads import computing

__all__ = ["threading_layer"]


def threading_layer() -> str:
    """Return "omp", "tbb" or "workqueue"; starts the workers if nothing has run yet."""
    with computing(1):
        return str(numba.threading_layer())

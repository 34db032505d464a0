"""Sums of float32 rows for use inside other kernels.

Reassociation is allowed here and nowhere else, so LLVM may use vector registers.  The
order is fixed when the function is compiled and depends on the length alone, so it is the
same for every batch, split and thread count.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import reduction

__all__ = ["dot", "total"]

F32 = NDArray[np.float32]


@reduction
def dot(left: F32, right: F32) -> np.float32:
    """Return the dot product of two rows of equal length."""
    result = np.float32(0)
    for i in range(left.size):
        result += left[i] * right[i]
    return result


@reduction
def total(row: F32) -> np.float32:
    """Return the sum of a row."""
    result = np.float32(0)
    for i in range(row.size):
        result += row[i]
    return result

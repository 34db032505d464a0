"""Norm of one query head, without a weight.

Follows forward.md section 4 step 2.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import dot, total

__all__ = ["head_norm"]

F32 = NDArray[np.float32]
_ONE = np.float32(1)


@leaf
def head_norm(row: F32, eps: np.float32, trained: int, scratch: F32) -> None:
    """Normalise a query head in place; with `trained`, BF16 after every operation.

    Parameters
    ----------
    row
        float32 [head_dim].
    eps
        Added to the mean square.
    trained
        Round each step to BF16 as the official code's BF16 tensors do.
    scratch
        Overwritten: float32 [head_dim].
    """
    if not trained:
        mean = dot(row, row) / np.float32(row.size)
        factor = _ONE / np.sqrt(np.float32(mean + eps))
        for i in range(row.size):
            row[i] = row[i] * factor
        return
    for i in range(row.size):
        scratch[i] = round_bf16(np.float32(row[i] * row[i]))
    mean = round_bf16(np.float32(total(scratch) / np.float32(row.size)))
    shifted = round_bf16(np.float32(mean + eps))
    factor = round_bf16(np.float32(_ONE / np.sqrt(shifted)))
    for i in range(row.size):
        row[i] = round_bf16(np.float32(row[i] * factor))

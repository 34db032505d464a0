"""RMS norms over rows: with a weight, and the per-head one of the query without.

Follows forward.md section 1 (RMS) and section 4 step 2.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import parallel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import dot, total

__all__ = ["head_norm", "rms_norm"]

F32 = NDArray[np.float32]


@parallel
def _rms_norm(x: F32, weight: F32, eps: np.float32, trained: bool, out: F32) -> None:
    n_columns = x.shape[1]
    for row in prange(x.shape[0]):
        mean = dot(x[row], x[row]) / np.float32(n_columns)
        factor = np.float32(1) / np.sqrt(np.float32(mean + eps))
        for i in range(n_columns):
            value = weight[i] * np.float32(x[row, i] * factor)
            out[row, i] = round_bf16(value) if trained else value


def rms_norm(x: F32, weight: F32, eps: float, trained: bool) -> F32:
    """Normalise rows by their root mean square and multiply with a weight.

    Parameters
    ----------
    x
        float32 [n_rows, n_columns].
    weight
        float32 [n_columns].
    eps
        Added to the mean square.
    trained
        Round the result to BF16.

    Returns
    -------
    float32 [n_rows, n_columns].
    """
    out = np.empty_like(x)
    _rms_norm(x, weight, np.float32(eps), trained, out)
    return out


@parallel
def _head_norm(queries: F32, eps: np.float32, trained: bool) -> None:
    head_dim = queries.shape[1]
    for head in prange(queries.shape[0]):
        row = queries[head]
        squares = np.empty(head_dim, np.float32)
        for i in range(head_dim):
            square = row[i] * row[i]
            squares[i] = round_bf16(square) if trained else square
        mean = total(squares) / np.float32(head_dim)
        if trained:
            shifted = round_bf16(np.float32(round_bf16(mean) + eps))
            factor = round_bf16(np.float32(np.float32(1) / np.sqrt(shifted)))
        else:
            factor = np.float32(1) / np.sqrt(np.float32(mean + eps))
        for i in range(head_dim):
            value = row[i] * factor
            row[i] = round_bf16(value) if trained else value


def head_norm(queries: F32, eps: float, trained: bool) -> None:
    """Normalise every query head in place; with `trained`, BF16 after every operation.

    Parameters
    ----------
    queries
        float32 [n_rows, head_dim], a row for each token and head.
    eps
        Added to the mean square.
    trained
        Round each step to BF16 as the official code's BF16 tensors do.
    """
    _head_norm(queries, np.float32(eps), trained)

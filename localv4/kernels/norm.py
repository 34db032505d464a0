"""RMS norms over rows: with a weight, and the per-head one of the query without.

Follows forward.md section 1 (RMS) and section 4 step 2.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import dot, total

__all__ = ["head_norm", "rms_norm"]

F32 = NDArray[np.float32]


@leaf
def _rms_norm_row(row: F32, weight: F32, eps: np.float32, trained: bool, out: F32) -> None:
    mean = dot(row, row) / np.float32(row.size)
    factor = np.float32(1) / np.sqrt(np.float32(mean + eps))
    for i in range(row.size):
        value = weight[i] * np.float32(row[i] * factor)
        out[i] = round_bf16(value) if trained else value


@leaf
def _rms_norm(x: F32, weight: F32, eps: np.float32, trained: bool, out: F32) -> None:
    for row in range(x.shape[0]):
        _rms_norm_row(x[row], weight, eps, trained, out[row])


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


@leaf
def _head_norm_row(row: F32, eps: np.float32, trained: bool) -> None:
    squares = np.empty(row.size, np.float32)
    for i in range(row.size):
        square = row[i] * row[i]
        squares[i] = round_bf16(square) if trained else square
    mean = total(squares) / np.float32(row.size)
    if trained:
        shifted = round_bf16(np.float32(round_bf16(mean) + eps))
        factor = round_bf16(np.float32(np.float32(1) / np.sqrt(shifted)))
    else:
        factor = np.float32(1) / np.sqrt(np.float32(mean + eps))
    for i in range(row.size):
        value = row[i] * factor
        row[i] = round_bf16(value) if trained else value


@leaf
def _head_norm(queries: F32, eps: np.float32, trained: bool) -> None:
    for head in range(queries.shape[0]):
        _head_norm_row(queries[head], eps, trained)


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

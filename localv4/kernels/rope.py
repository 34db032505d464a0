"""Rotary embedding of the last columns of rows, adjacent pairs as complex numbers.

The tables come from localv4/rope.py.  Follows forward.md section 4 (rope, inverse).
"""

import math

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.rounding import round_bf16

__all__ = ["rope_table", "rotate"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@leaf
def _rope_table(positions: I64, frequencies: F32, out: F32) -> None:
    for row in range(positions.size):
        for i in range(frequencies.size):
            # the angle is one float32 product; its cosine is taken in float64 and rounded once
            angle = np.float64(np.float32(np.float32(positions[row]) * frequencies[i]))
            out[row, 0, i] = np.float32(math.cos(angle))
            out[row, 1, i] = np.float32(math.sin(angle))


def rope_table(positions: I64, frequencies: F32) -> F32:
    """Return cosines and sines: float32 [n_positions, 2, n_frequencies]."""
    out = np.empty((positions.size, 2, frequencies.size), np.float32)
    _rope_table(positions, frequencies, out)
    return out


@leaf
def _rotate_token(x: F32, table: F32, sign: np.float32, trained: bool) -> None:
    n_pairs = table.shape[1]
    first = x.shape[1] - 2 * n_pairs
    for head in range(x.shape[0]):
        for i in range(n_pairs):
            cosine = table[0, i]
            sine = sign * table[1, i]
            column = first + 2 * i
            real, imaginary = x[head, column], x[head, column + 1]
            even = real * cosine - imaginary * sine
            odd = real * sine + imaginary * cosine
            x[head, column] = round_bf16(even) if trained else even
            x[head, column + 1] = round_bf16(odd) if trained else odd


@leaf
def _rotate(x: F32, table: F32, sign: np.float32, trained: bool) -> None:
    for token in range(x.shape[0]):
        _rotate_token(x[token], table[token], sign, trained)


def rotate(x: F32, table: F32, trained: bool, inverse: bool = False) -> None:
    """Rotate the last 2 * n_frequencies columns of every head in place.

    Parameters
    ----------
    x
        float32 [n_tokens, n_heads, columns].
    table
        float32 [n_tokens, 2, n_frequencies] from `rope_table`.
    trained
        Round the rotated columns to BF16.
    inverse
        Rotate back.
    """
    _rotate(x, table, np.float32(-1 if inverse else 1), trained)

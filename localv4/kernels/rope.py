"""Rotary embedding of the last columns of rows, adjacent pairs as complex numbers.

The frequencies come from localv4/rope.py.  Follows forward.md section 4 (rope, inverse).
"""

import math

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.rounding import round_bf16

__all__ = ["angles", "rotate"]

F32 = NDArray[np.float32]


@leaf
def angles(position: int, frequencies: F32, out: F32) -> None:
    """Write the cosines and sines of a position: float32 [2, n_frequencies]."""
    for i in range(frequencies.size):
        # the angle is one float32 product; its cosine is taken in float64 and rounded once
        angle = np.float64(np.float32(np.float32(position) * frequencies[i]))
        out[0, i] = np.float32(math.cos(angle))
        out[1, i] = np.float32(math.sin(angle))


@leaf
def rotate(row: F32, table: F32, sign: np.float32, trained: int) -> None:
    """Rotate the last columns of a row in place.

    Parameters
    ----------
    row
        float32 [n_columns].
    table
        float32 [2, n_frequencies] from `angles`; twice as many columns are rotated.
    sign
        1, or -1 to rotate back.
    trained
        Round the rotated columns to BF16.
    """
    cosines, sines = table[0], table[1]
    last = row[row.size - 2 * cosines.size :]
    for i in range(cosines.size):
        sine = np.float32(sign * sines[i])
        real, imaginary = last[2 * i], last[2 * i + 1]
        last[2 * i] = np.float32(real * cosines[i]) - np.float32(imaginary * sine)
        last[2 * i + 1] = np.float32(real * sine) + np.float32(imaginary * cosines[i])
    if trained:
        for i in range(last.size):
            last[i] = round_bf16(last[i])

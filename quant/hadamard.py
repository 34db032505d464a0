"""The Hadamard rotation of index queries and keys (spec, forward pass, section 6).

Knows nothing of the indexer. The rotation is orthogonal, so scores keep their values; it spreads
outliers over the columns before they are rounded to FP4.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput
from localv4.quant import bf16
from localv4.quant.arrays import as_float32, last_axis


def hadamard(x: ArrayLike, round_bf16: bool = True) -> NDArray[np.float32]:
    """Rotate the last axis: y_i = n^-0.5 * sum_j (-1)^popcount(i & j) x_j.

    Sylvester order; a float32 butterfly from neighbours outwards, then one float32 multiplication
    and one BF16 rounding. NaN and infinities spread over their row; no warning is raised.

    Parameters
    ----------
    x
        (..., n) float32, n a power of two; read-only and non-contiguous are fine.
    round_bf16
        False leaves out the last rounding, for float32 numerics.

    Returns
    -------
    ndarray of float32, the shape of `x`; a new array

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers, or n is not a power of two.
    """
    values = as_float32(x)
    n = last_axis(values)
    if n < 1 or n & (n - 1):
        raise InvalidInput(f"x has {n} columns, but the rotation needs a power of two such as 128")
    rotated = values
    half = 1
    with np.errstate(all="ignore"):
        while half < n:
            pairs = rotated.reshape(*values.shape[:-1], n // (2 * half), 2, half)
            first, second = pairs[..., 0, :], pairs[..., 1, :]
            rotated = np.stack([first + second, first - second], axis=-2).reshape(values.shape)
            half *= 2
        rotated = rotated * np.float32(n**-0.5)
    return bf16.round(rotated) if round_bf16 else rotated

"""E4M3FN, the 8-bit float of weights and activations (spec, forward pass, section 1).

Sign, 4 exponent bits (bias 7), 3 mantissa bits. The largest value is 448, subnormals step by 2^-9,
there is no infinity, and 0x7F and 0xFF are NaN. Knows nothing of blocks or scales.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.quant.minifloat import Minifloat

FORMAT = Minifloat(exponent_bits=4, mantissa_bits=3, bias=7, largest=448.0, nan_code=0x7F)
TABLE = FORMAT.table()
"""The value of each of the 256 codes, float32, read-only."""
LARGEST = FORMAT.largest


def encode(x: ArrayLike) -> NDArray[np.uint8]:
    """Return the E4M3 codes nearest to `x`.

    Ties go to the even mantissa. Magnitudes above 448, infinities too, saturate at 448 with their
    sign; a NaN becomes 0x7F whatever its sign; -0.0 keeps its sign.

    Parameters
    ----------
    x
        Numbers of any shape, float32; read-only and non-contiguous are fine.

    Returns
    -------
    ndarray of uint8, the shape of `x`

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers.
    """
    return FORMAT.encode(x)


def decode(codes: ArrayLike) -> NDArray[np.float32]:
    """Return the values of E4M3 codes; exact.

    Parameters
    ----------
    codes
        uint8 of any shape; 0x7F and 0xFF give NaN.

    Returns
    -------
    ndarray of float32, the shape of `codes`

    Raises
    ------
    InvalidInput
        If `codes` are not integers of 0..255.
    """
    return FORMAT.decode(codes, TABLE)

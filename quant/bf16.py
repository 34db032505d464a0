"""BF16: the upper half of a float32 (spec, forward pass, section 1).

NumPy has no BF16, so a BF16 tensor is either its bits (uint16, as on disk) or float32 values that
happen to be BF16 numbers. Knows nothing of blocks or scales.

Rounding is to nearest, ties to even mantissa. Infinities stay, values beyond the largest BF16
become infinite as IEEE 754 says, and a NaN stays a NaN: it is made quiet, because cutting the low
half off a NaN whose payload lies there would leave an infinity.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.quant.arrays import as_codes, as_float32

_INFINITY = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_QUIET = np.uint32(0x0040)
_HALF_LESS_ONE = np.uint32(0x7FFF)


def encode(x: ArrayLike) -> NDArray[np.uint16]:
    """Return the BF16 bits nearest to `x`.

    Parameters
    ----------
    x
        Numbers of any shape, float32; read-only and non-contiguous are fine.

    Returns
    -------
    ndarray of uint16, the shape of `x`

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers.
    """
    bits = as_float32(x).view(np.uint32)
    upper = bits >> np.uint32(16)
    with np.errstate(over="ignore"):  # only a NaN can wrap, and its sum is not used
        nearest = (bits + _HALF_LESS_ONE + (upper & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & _MAGNITUDE) > _INFINITY
    return np.where(is_nan, upper | _QUIET, nearest).astype(np.uint16)


def decode(codes: ArrayLike) -> NDArray[np.float32]:
    """Return BF16 bits as float32 values; exact.

    Parameters
    ----------
    codes
        uint16 of any shape.

    Returns
    -------
    ndarray of float32, the shape of `codes`

    Raises
    ------
    InvalidInput
        If `codes` are not integers of 0..65535.
    """
    bits = np.asarray(as_codes(codes, 1 << 16).astype(np.uint32) << np.uint32(16))
    return bits.view(np.float32)


def round(x: ArrayLike) -> NDArray[np.float32]:
    """Return the BF16 numbers nearest to `x`, as float32: the `bf()` of the spec.

    Parameters
    ----------
    x
        Numbers of any shape, float32; read-only and non-contiguous are fine.

    Returns
    -------
    ndarray of float32, the shape of `x`; a new array

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers.
    """
    return decode(encode(x))

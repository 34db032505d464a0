"""UE8M0, the scale byte: a power of two 2^(byte - 127), unsigned (spec, forward pass, section 1).

Byte 0 is 2^-127, a subnormal float32; byte 254 is 2^127; byte 255 is NaN. There is no zero.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput
from localv4.quant.arrays import as_codes, as_float32

NAN_CODE = 255
_MANTISSA = np.uint32(0x007FFFFF)
_SMALLEST = np.uint32(0x00400000)  # 2^-127 as float32 bits: subnormal, so not an exponent field


def _table() -> NDArray[np.float32]:
    bits = np.arange(256, dtype=np.uint32) << np.uint32(23)
    bits[0] = _SMALLEST
    values = bits.view(np.float32)
    values[NAN_CODE] = np.nan
    values.flags.writeable = False
    return values


TABLE = _table()
"""The value of each of the 256 bytes, float32, read-only."""


def encode(x: ArrayLike) -> NDArray[np.uint8]:
    """Return the bytes of powers of two.

    Parameters
    ----------
    x
        float32 of any shape, each 2^-127 .. 2^127 exactly, or NaN.

    Returns
    -------
    ndarray of uint8, the shape of `x`; NaN gives 255

    Raises
    ------
    InvalidInput
        If a value is not such a power of two: zero, negative, infinite or in between.
    """
    values = as_float32(x)
    bits = values.view(np.uint32)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    is_smallest = bits == _SMALLEST
    exponent = bits >> np.uint32(23)  # with the sign above it, so a negative value is over 254
    is_power = ((bits & _MANTISSA) == 0) & (exponent >= 1) & (exponent <= 254)
    wrong = ~(is_power | is_smallest | is_nan)
    if wrong.any():
        first = float(np.atleast_1d(values)[np.atleast_1d(wrong)][0])
        raise InvalidInput(
            f"{first!r} cannot be a UE8M0 scale, which is a power of two from 2^-127 to 2^127; "
            "keep such scales as float32"
        )
    return np.where(is_nan, NAN_CODE, exponent).astype(np.uint8)


def decode(codes: ArrayLike) -> NDArray[np.float32]:
    """Return the values of scale bytes; exact.

    Parameters
    ----------
    codes
        uint8 of any shape; 255 gives NaN.

    Returns
    -------
    ndarray of float32, the shape of `codes`

    Raises
    ------
    InvalidInput
        If `codes` are not integers of 0..255.
    """
    return np.asarray(TABLE[as_codes(codes, 256)])

"""E2M1, the 4-bit float of FP4 expert weights and index keys, and its packing in bytes.

Sign (bit 3), 2 exponent bits, 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. There
is no infinity and no NaN (spec, forward pass, section 1; packing: spec, checkpoint). Knows nothing
of blocks or scales.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput
from localv4.quant.arrays import as_codes, last_axis
from localv4.quant.minifloat import Minifloat

FORMAT = Minifloat(exponent_bits=2, mantissa_bits=1, bias=1, largest=6.0, nan_code=0x7)
TABLE = FORMAT.table()
"""The value of each of the 16 codes, float32, read-only."""
LARGEST = FORMAT.largest


def encode(x: ArrayLike) -> NDArray[np.uint8]:
    """Return the E2M1 codes (0..15, one to a byte) nearest to `x`.

    Ties go to the even mantissa: 0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2, 3.5 -> 4,
    5 -> 4. Magnitudes above 6, infinities too, saturate at 6 with their sign. The format has no
    NaN: a NaN becomes +6 as the conversion instruction of GPUs has it, and what quantises blocks
    marks it in the scale. -0.0 keeps its sign.

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
    """Return the values of E2M1 codes, one to a byte; exact.

    Parameters
    ----------
    codes
        Integers of 0..15, any shape (packed bytes go through `unpack` first).

    Returns
    -------
    ndarray of float32, the shape of `codes`

    Raises
    ------
    InvalidInput
        If `codes` are not integers of 0..15.
    """
    return FORMAT.decode(codes, TABLE)


def pack(codes: ArrayLike) -> NDArray[np.uint8]:
    """Pack two codes to a byte: the low nibble is the even column.

    Parameters
    ----------
    codes
        Integers of 0..15, shape (..., columns), an even number of columns.

    Returns
    -------
    ndarray of uint8, (..., columns // 2)

    Raises
    ------
    InvalidInput
        If a code is outside 0..15 or the number of columns is odd.
    """
    nibbles = as_codes(codes, 16).astype(np.uint8, copy=False)
    columns = last_axis(nibbles, "codes")
    if columns % 2:
        raise InvalidInput(
            f"codes has {columns} columns, but two go into a byte; pass an even number of columns"
        )
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4))


def unpack(packed: ArrayLike) -> NDArray[np.uint8]:
    """Return the codes in packed bytes: the inverse of `pack`.

    Parameters
    ----------
    packed
        uint8, or int8 as safetensors stores it, shape (..., bytes).

    Returns
    -------
    ndarray of uint8 codes 0..15, (..., 2 * bytes)

    Raises
    ------
    InvalidInput
        If `packed` are not integers of 0..255, or a scalar.
    """
    pairs = as_codes(packed, 256, "packed").astype(np.uint8, copy=False)
    codes = np.empty((*pairs.shape[:-1], 2 * last_axis(pairs, "packed")), np.uint8)
    codes[..., 0::2] = pairs & np.uint8(0xF)
    codes[..., 1::2] = pairs >> np.uint8(4)
    return codes

"""What the number formats accept: checks that turn bad input into one clear sentence.

Knows nothing of any format. Nothing here writes to what it was given.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput


def as_float32(values: ArrayLike, name: str = "x") -> NDArray[np.float32]:
    """Return `values` as float32 numbers, without a copy where they are float32 already.

    Other floats and signed integers are rounded to float32 (nearest, ties to even). Unsigned
    integers are refused: here they are the bits of a format, and reading them as numbers would
    go unnoticed.

    Parameters
    ----------
    values
        Numbers of any shape; read-only and non-contiguous arrays are fine.
    name
        What to call them in an error.

    Raises
    ------
    InvalidInput
        If they are not real numbers, or are unsigned integers.
    """
    array = as_array(values, name)
    if array.dtype.kind not in "fi":
        raise InvalidInput(
            f"{name} has dtype {array.dtype}, but numbers are wanted here; pass float32 values "
            "(the bits of a format go through that format's decode first)"
        )
    with np.errstate(all="ignore"):
        return array.astype(np.float32, copy=False)


def as_codes(values: ArrayLike, n_codes: int, name: str = "codes") -> NDArray[np.integer]:
    """Return `values` as unsigned codes below `n_codes`.

    int8 is read as bits (safetensors stores packed FP4 as I8); other integers as numbers.

    Raises
    ------
    InvalidInput
        If they are not integers, or one is outside 0..`n_codes` - 1.
    """
    array = as_array(values, name)
    if array.dtype.kind not in "iu":
        raise InvalidInput(
            f"{name} has dtype {array.dtype}, but codes are wanted here; pass unsigned integers "
            "(numbers go through encode first)"
        )
    if array.dtype == np.int8:
        array = array.view(np.uint8)
    limits = np.iinfo(array.dtype)
    if array.size and (limits.min < 0 or limits.max >= n_codes):
        smallest, largest = int(array.min()), int(array.max())
        if smallest < 0 or largest >= n_codes:
            raise InvalidInput(
                f"{name} holds {smallest if smallest < 0 else largest}, but a code here is "
                f"0..{n_codes - 1}; check that the array belongs to this format"
            )
    return array


def into_blocks(array: NDArray[np.float32], block: int, name: str = "x") -> NDArray[np.float32]:
    """Return `array` (..., columns) as (..., columns // block, block).

    Raises
    ------
    InvalidInput
        If there is no last axis, or it is not a multiple of `block`.
    """
    if block < 1:
        raise InvalidInput(f"a block of {block} columns is impossible; pass a positive block size")
    columns = last_axis(array, name)
    if columns % block:
        raise InvalidInput(
            f"{name} has {columns} columns, which is not a multiple of the block of {block}; "
            "pass whole blocks"
        )
    return array.reshape(*array.shape[:-1], columns // block, block)


def last_axis(array: NDArray[np.generic], name: str = "x") -> int:
    """Return the number of columns, refusing a scalar."""
    if array.ndim == 0:
        raise InvalidInput(f"{name} is a scalar, but rows of columns are wanted; pass an array")
    return int(array.shape[-1])


def as_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return `values` as an array of whatever dtype, refusing ragged lists."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is not a rectangular array of numbers: {error}") from error

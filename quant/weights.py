"""Weights in blocks that share a scale, as the checkpoints store them (spec, checkpoint).

* ``fp8``: E4M3 codes [out, in], one scale for each 128 x 128 tile, edge tiles partial.
* ``fp4``: two E2M1 codes to a byte [out, in / 2], one scale for each row and 32 columns.

Scales are UE8M0 bytes (uint8) or float32 values, told apart by dtype. Knows nothing of activations
or of tensor names.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput
from localv4.quant import e2m1, e4m3, e8m0
from localv4.quant.arrays import as_array, as_codes, as_float32

WeightFormat = Literal["fp8", "fp4"]
FP8_TILE = 128
FP4_BLOCK = 32


def scale_shape(weight_shape: tuple[int, ...], fmt: WeightFormat) -> tuple[int, int]:
    """Return the shape of the scales of a stored weight of `weight_shape`.

    Raises
    ------
    InvalidInput
        If the shape is not a matrix, the format is unknown, or an FP4 row is not whole blocks.
    """
    if len(weight_shape) != 2:
        raise InvalidInput(f"the weight has shape {weight_shape}; pass a matrix [out, in]")
    rows, stored_columns = weight_shape
    if fmt == "fp8":
        return -(-rows // FP8_TILE), -(-stored_columns // FP8_TILE)
    if fmt != "fp4":
        raise InvalidInput(f"{fmt!r} is not a weight format; pass 'fp8' or 'fp4'")
    columns = 2 * stored_columns
    if columns % FP4_BLOCK:
        raise InvalidInput(
            f"the packed FP4 weight has {columns} columns, which is not a multiple of {FP4_BLOCK}; "
            "pass whole blocks"
        )
    return rows, columns // FP4_BLOCK


def weight_format(weight_shape: tuple[int, ...], scales_shape: tuple[int, ...]) -> WeightFormat:
    """Tell which format a stored weight and its scales are in, by their shapes.

    Raises
    ------
    InvalidInput
        If the shapes fit neither format.
    """
    if scales_shape == scale_shape(weight_shape, "fp8"):
        return "fp8"
    whole_blocks = 2 * weight_shape[1] % FP4_BLOCK == 0
    if whole_blocks and scales_shape == scale_shape(weight_shape, "fp4"):
        return "fp4"
    raise InvalidInput(
        f"scales of shape {scales_shape} fit a stored weight of shape {weight_shape} neither as "
        f"{FP8_TILE} x {FP8_TILE} tiles nor as {FP4_BLOCK} columns of packed FP4; "
        "pass the pair that belongs together"
    )


def decode_scales(scale: ArrayLike) -> NDArray[np.float32]:
    """Return scales as float32: uint8 is read as UE8M0 bytes, float32 as it is.

    Raises
    ------
    InvalidInput
        If they are of another dtype.
    """
    array = as_array(scale, "scale")
    if array.dtype == np.uint8:
        return e8m0.decode(array)
    if array.dtype.kind != "f":
        raise InvalidInput(
            f"scale has dtype {array.dtype}; pass UE8M0 bytes as uint8, or float32 values"
        )
    return as_float32(array, "scale")


def decode_weight(weight: ArrayLike, fmt: WeightFormat) -> NDArray[np.float32]:
    """Return the unscaled values of a stored weight, float32 [out, in]; exact."""
    return e4m3.decode(weight) if fmt == "fp8" else e2m1.decode(e2m1.unpack(weight))


def dequantise(weight: ArrayLike, scale: ArrayLike, fmt: WeightFormat) -> NDArray[np.float32]:
    """Return a stored weight's values: code times scale, rounded once to float32.

    With power-of-two scales the product is exact. (The grouped output projection `wo_a` wants
    `bf16.round` of this.)

    Parameters
    ----------
    weight
        "fp8": uint8 E4M3 [out, in]. "fp4": uint8 or int8 packed E2M1 [out, in / 2]. Read-only,
        unaligned and non-contiguous are fine.
    scale
        uint8 UE8M0 or float32, of shape `scale_shape(weight.shape, fmt)`.
    fmt
        The format of `weight`.

    Returns
    -------
    ndarray of float32, [out, in]; NaN where a code or a scale is NaN

    Raises
    ------
    InvalidInput
        If the shapes or dtypes do not fit the format.
    """
    codes = as_codes(weight, 256, "weight")
    scales = decode_scales(scale)
    wanted = scale_shape(codes.shape, fmt)
    if scales.shape != wanted:
        raise InvalidInput(
            f"scale has shape {scales.shape}, but an {fmt} weight of shape {codes.shape} needs "
            f"{wanted}; pass the pair that belongs together"
        )
    values = decode_weight(codes, fmt)
    rows, columns = values.shape
    if fmt == "fp8":
        spread = scales.repeat(FP8_TILE, axis=0)[:rows].repeat(FP8_TILE, axis=1)[:, :columns]
    else:
        spread = scales.repeat(FP4_BLOCK, axis=1)
    with np.errstate(all="ignore"):
        return values * spread

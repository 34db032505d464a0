"""The slow exact twin of a quantised linear: LQ of the spec (forward pass, section 1).

The kernels are judged against this. It says which roundings a linear has and leaves nothing to
the order of a sum: it knows nothing of lanes, threads or tiles.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput
from localv4.quant import bf16, e4m3
from localv4.quant.activations import act_quant
from localv4.quant.arrays import as_codes
from localv4.quant.weights import FP4_BLOCK, FP8_TILE, decode_scales, decode_weight, weight_format

ACTIVATION_BLOCK = 128


def linear(x: ArrayLike, weight: ArrayLike, scale: ArrayLike) -> NDArray[np.float32]:
    """Multiply quantised rows with a stored weight: y = x W^T.

    `x` goes through `act_quant`; then for every block of columns that shares a scale (128 in FP8,
    32 in FP4) the sum of code products, rounded once to float32, is scaled and added to a float32
    accumulator, blocks ascending; y is rounded to BF16. The block sum before its rounding is exact
    (code products are multiples of 2^-18 below 2^18, so float64 holds any sum of 128 of them),
    which makes the result independent of summation order, batch and BLAS.

    An activation scale is a power of two, so its product with a weight scale is exact and it does
    not matter that the spec multiplies FP8 and FP4 sums by the two in a different order.

    Parameters
    ----------
    x
        (..., in) float32, `in` a multiple of 128; read-only and non-contiguous are fine.
    weight
        uint8 E4M3 [out, in], or uint8 or int8 packed E2M1 [out, in / 2].
    scale
        uint8 UE8M0 or float32: [ceil(out / 128), ceil(in / 128)] makes the weight FP8,
        [out, in / 32] makes it FP4.

    Returns
    -------
    ndarray of float32 BF16 values, (..., out). A NaN or an infinity in a row of `x`, or a NaN in a
    row of the weight or its scales, gives NaN in that row or column of y; no warning is raised.

    Raises
    ------
    InvalidInput
        If shapes or dtypes do not fit each other.
    """
    codes, scales = act_quant(x, ACTIVATION_BLOCK)
    stored = as_codes(weight, 256, "weight")
    weight_scales = decode_scales(scale)
    fmt = weight_format(stored.shape, weight_scales.shape)
    weights = decode_weight(stored, fmt).astype(np.float64)
    n_outputs, columns = weights.shape
    if codes.shape[-1] != columns:
        raise InvalidInput(
            f"x has {codes.shape[-1]} columns, but the {fmt} weight has {columns}; "
            "pass rows as long as the weight's"
        )
    n_rows = math.prod(codes.shape[:-1])
    if fmt == "fp8":
        weight_scales = weight_scales.repeat(FP8_TILE, axis=0)[:n_outputs]
    n_rows = math.prod(codes.shape[:-1])
    total = _sum_blocks(
        e4m3.decode(codes).reshape(n_rows, columns).astype(np.float64),
        scales.reshape(n_rows, columns // ACTIVATION_BLOCK),
        weights,
        weight_scales,
        FP8_TILE if fmt == "fp8" else FP4_BLOCK,
    )
    return bf16.round(total).reshape(*codes.shape[:-1], n_outputs)


@np.errstate(all="ignore")
def _sum_blocks(
    inputs: NDArray[np.float64],
    input_scales: NDArray[np.float32],
    weights: NDArray[np.float64],
    weight_scales: NDArray[np.float32],
    block: int,
) -> NDArray[np.float32]:
    """Return the float32 sum over blocks of partial * (input scale * weight scale)."""
    total = np.zeros((len(inputs), len(weights)), np.float32)
    for number in range(weight_scales.shape[1]):
        columns = slice(block * number, block * (number + 1))
        partial = (inputs[:, columns] @ weights[:, columns].T).astype(np.float32)
        input_scale = input_scales[:, columns.start // ACTIVATION_BLOCK, np.newaxis]
        total += partial * (input_scale * weight_scales[:, number])
    return total

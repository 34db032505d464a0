"""The sum order of every matrix product, lane by lane: the twin of localv4.kernels.matmul.

A row of weights times a token is summed over 16 float32 lanes. FP4 and FP8 rows are walked in
superblocks of 256 columns: a lane sums its 16 products from zero, the higher column of each pair
first, and adds that sum times its scale to its accumulator. Rows that need no scale afterwards add
every product to the accumulator. Each product enters by a fused multiply-add, rounded once; at the
end the lanes are added as a tree.

NumPy has no fused multiply-add. In float64 the product of two float32 is exact, and rounding the
sum to odd before it is rounded to float32 makes the two roundings as good as one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localv4.quant import bf16, e2m1, e4m3

F32 = NDArray[np.float32]
Indices = NDArray[np.int64]


class Order(NamedTuple):
    """How a superblock is walked.

    ``columns[step, lane]`` is the column that a lane multiplies in a step, and
    ``scale_blocks[lane]`` the scale that its sum is multiplied with.
    """

    columns: Indices
    scale_blocks: Indices | None


def fp4_order() -> Order:
    """Return the walk of 256 columns with 8 scales."""
    columns = np.full((16, 16), -1, np.int64)
    scale_blocks = np.full(16, -1, np.int64)
    for q, i, d in np.ndindex(4, 2, 2):
        lane = 4 * q + 2 * i + d
        scale_blocks[lane] = 4 * i + q
        for j, n in np.ndindex(2, 4):
            p = 4 * j + n
            c0 = 32 * (4 * i + q) + 8 * (2 * j + d) + n
            columns[2 * p, lane], columns[2 * p + 1, lane] = c0 + 4, c0
    return Order(columns, scale_blocks)


def fp8_order() -> Order:
    """Return the walk of 256 columns with 2 scales."""
    columns = np.full((16, 16), -1, np.int64)
    scale_blocks = np.full(16, -1, np.int64)
    for q, e, d in np.ndindex(2, 2, 4):
        lane = 8 * q + 4 * e + d
        scale_blocks[lane] = q
        for i, h in np.ndindex(4, 2):
            p = 2 * i + h
            c0 = 128 * q + 32 * i + 16 * e + 8 * h + 2 * d
            columns[2 * p, lane], columns[2 * p + 1, lane] = c0 + 1, c0
    return Order(columns, scale_blocks)


ORDERS = {
    "fp4": fp4_order(),
    "fp8": fp8_order(),
    "fp8_as_bf16": fp8_order()._replace(scale_blocks=None),
    "bf16": Order(np.array([[2 * lane + half for lane in range(16)] for half in (0, 1)]), None),
    "f32": Order(np.arange(16)[None], None),
}


@np.errstate(all="ignore")
def fma(left: F32, right: F32, addend: F32) -> F32:
    """Return left * right + addend, rounded once."""
    product = left.astype(np.float64) * right
    total = product + addend
    # Knuth's two-sum: total + error is the exact sum
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (error != 0)
    odd = np.nextafter(total, np.copysign(np.inf, error))
    rounded: F32 = np.where(inexact & even, odd, total).astype(np.float32)
    return rounded


def stored_weights(
    name: str, weights: NDArray[np.generic], scales: NDArray[np.generic] | None
) -> tuple[F32, F32]:
    """Return the values that are multiplied, [rows, columns], and the scales of every row.

    The scales that come after the multiplication are [rows, blocks]; there may be none, [rows, 0].
    """
    none = np.zeros((len(weights), 0), np.float32)
    if name == "f32":
        return weights.astype(np.float32), none
    if name == "bf16":
        return bf16.decode(weights), none
    assert scales is not None
    if name == "fp4":
        # a UE8M0 byte is the exponent field of a float32: 0 is zero and 255 infinity
        factors = (scales.astype(np.uint32) << np.uint32(23)).view(np.float32)
        return e2m1.decode(e2m1.unpack(weights)), factors
    rows, columns = weights.shape
    factors = np.repeat(scales.astype(np.float32), 128, axis=0)[:rows]
    values = e4m3.decode(weights)
    if name == "fp8":
        return values, factors
    with np.errstate(all="ignore"):
        return bf16.round(values * np.repeat(factors, 128, axis=1)[:, :columns]), none


def padded(array: F32, size: int) -> F32:
    """Return `array` with zero columns up to `size`."""
    return np.pad(array, ((0, 0), (0, size - array.shape[1])))


@np.errstate(all="ignore")
def multiply(
    name: str, weights: NDArray[np.generic], scales: NDArray[np.generic] | None, x: F32
) -> F32:
    """Return x W^T, float32 [tokens, rows], before any rounding of the result.

    `x` is float32 [tokens, columns]; weights and scales are as stored (localv4.kernels.matmul).
    """
    order = ORDERS[name]
    values, factors = stored_weights(name, weights, scales)
    size = order.columns.size
    n_superblocks = -(-x.shape[1] // size)
    values, x = padded(values, n_superblocks * size), padded(x, n_superblocks * size)
    n_scales = 0 if order.scale_blocks is None else int(order.scale_blocks.max()) + 1
    factors = padded(factors, n_superblocks * n_scales)

    lanes = np.zeros((len(x), len(values), 16), np.float32)
    for superblock in range(n_superblocks):
        total = lanes if order.scale_blocks is None else np.zeros_like(lanes)
        for columns in superblock * size + order.columns:
            total = fma(values[None][..., columns], x[:, None][..., columns], total)
        if order.scale_blocks is None:
            lanes = total
        else:
            lane_scales = factors[:, superblock * n_scales + order.scale_blocks]
            lanes = fma(total, np.broadcast_to(lane_scales, total.shape), lanes)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]

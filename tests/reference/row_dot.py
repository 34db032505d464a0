"""The sum order of every matrix product, lane by lane: the twin of localv4.kernels.matmul.

A row of weights times a token is summed over 16 float32 lanes, superblock by superblock.

* FP4, FP8 and BF16: in a superblock of 256 columns a lane sums its 16 products from zero, the
  higher column of each pair first, and each by a fused multiply-add. Neighbouring lanes share a
  scale: their sums are added, and the accumulator of the pair becomes fma(sum, scale,
  accumulator). The scale of BF16 is one.
* FP4 with activations rounded to FP8: doubled weights and activations in units of 2^-9 are
  integers. In a superblock of 512 columns lane 4s+z has the scale block 4z+s of 32 columns: its sum
  is exact, is rounded to float32 once, and its scale is the weights' scale times 2^-10 times the
  activations' scale. If sums are apart, an activation is a multiple of 4096 and a rest from -2080
  to 2015, and the sum of the multiples is added first, then that of the rests.
* F32, and FP8 weights that are scaled and rounded to BF16 first: two accumulators, which steps use
  by turns; they are added at the end.

At the end the lanes, or the pairs of lanes, are added as a tree.

NumPy has no fused multiply-add. In float64 the product of two float32 is exact, and rounding the
sum to odd before it is rounded to float32 makes the two roundings as good as one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localv4 import quant
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


def bf16_order() -> Order:
    """Return the walk of 256 columns: the odd and then the even ones of 32; there are no scales."""
    steps = [
        [32 * (step // 2) + 2 * lane + 1 - step % 2 for lane in range(16)] for step in range(16)
    ]
    return Order(np.array(steps), np.zeros(16, np.int64))


ORDERS = {
    "fp4": fp4_order(),
    "fp8": fp8_order(),
    "fp8_as_bf16": fp8_order()._replace(scale_blocks=None),
    "bf16": bf16_order(),
    "f32": Order(np.arange(128).reshape(8, 16), None),
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
    ones = np.ones((len(weights), -(-weights.shape[1] // 256)), np.float32)
    if name == "f32":
        return weights.astype(np.float32), none
    if name == "bf16":
        return bf16.decode(weights), ones
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


def tree_sum(lanes: F32) -> F32:
    """Add the last axis: upper half onto lower half until one is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def lane_products(order: Order, values: F32, x: F32, first: int) -> F32:
    """Sum the products of each lane in one superblock from zero, [tokens, rows, 16]."""
    total = np.zeros((len(x), len(values), 16), np.float32)
    for columns in first + order.columns:
        total = fma(values[None][..., columns], x[:, None][..., columns], total)
    return total


def by_turns(order: Order, values: F32, x: F32) -> F32:
    """Multiply rows with two accumulators."""
    sums = [np.zeros((len(x), len(values), 16), np.float32) for _ in range(2)]
    for first in range(0, values.shape[1], order.columns.size):
        for step, columns in enumerate(first + order.columns):
            left, right = values[None][..., columns], x[:, None][..., columns]
            sums[step % 2] = fma(left, right, sums[step % 2])
    return tree_sum(sums[0] + sums[1])


def scaled(order: Order, values: F32, factors: F32, x: F32) -> F32:
    """Multiply rows whose scales come after the products."""
    assert order.scale_blocks is not None
    blocks = order.scale_blocks[::2]
    n_scales = int(blocks.max()) + 1
    pairs = np.zeros((len(x), len(values), 8), np.float32)
    for superblock in range(values.shape[1] // order.columns.size):
        lanes = lane_products(order, values, x, superblock * order.columns.size)
        sums = lanes[..., ::2] + lanes[..., 1::2]
        scales = factors[:, superblock * n_scales + blocks]
        pairs = fma(sums, np.broadcast_to(scales, sums.shape), pairs)
    return tree_sum(pairs)


def rounded_fp4(values: F32, factors: F32, x: F32, apart: bool) -> F32:
    """Multiply FP4 rows with activations that are rounded to FP8 first."""
    codes, x_scales = quant.act_quant(x, 128)
    # a block without a scale gives no number, whatever its codes are
    units = np.nan_to_num(512 * e4m3.decode(codes)).astype(np.int64)
    upper = (units + 2080) // 4096 * 4096
    parts = [upper, units - upper] if apart else [units]
    doubled = (2 * values).astype(np.int64)
    lanes = np.zeros((len(x), len(values), 16), np.float32)
    for block in range(values.shape[1] // 32):
        lane = 4 * (block % 4) + block // 4 % 4
        columns = slice(32 * block, 32 * block + 32)
        x_scale = x_scales[:, block // 4, None] * np.float32(2.0**-10)
        for part in parts:
            sums = (part[:, columns] @ doubled[:, columns].T).astype(np.float32)
            lanes[..., lane] = fma(sums, factors[None, :, block] * x_scale, lanes[..., lane])
    return tree_sum(lanes)


@np.errstate(all="ignore")
def multiply(
    name: str,
    weights: NDArray[np.generic],
    scales: NDArray[np.generic] | None,
    x: F32,
    quantised: bool = False,
    apart: bool = False,
) -> F32:
    """Return x W^T, float32 [tokens, rows], before any rounding of the result.

    `x` is float32 [tokens, columns], rounded to FP8 first if `quantised`; weights and scales are
    as stored (localv4.kernels.matmul). `apart` is for FP4 with rounded activations.
    """
    order = ORDERS[name]
    values, factors = stored_weights(name, weights, scales)
    size = order.columns.size
    n_superblocks = -(-x.shape[1] // size)
    values, x = padded(values, n_superblocks * size), padded(x, n_superblocks * size)
    if quantised and name != "fp4":
        x = quant.fp8_sim(x, 128)
    if order.scale_blocks is None:
        return by_turns(order, values, x)
    factors = padded(factors, n_superblocks * (int(order.scale_blocks.max()) + 1))
    if quantised and name == "fp4":
        return rounded_fp4(values, factors, x, apart)
    return scaled(order, values, factors, x)

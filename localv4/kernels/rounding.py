"""Rounding of single values and blocks inside kernels: BF16, E4M3, E2M1, power-of-two scales.

The same rules as localv4.quant (which works on whole arrays in NumPy and is the twin),
compiled.  Values stay float32.  Follows forward.md section 1.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf

__all__ = [
    "encode_e2m1",
    "encode_e4m3",
    "fp4_block",
    "fp8_blocks",
    "round_bf16",
    "round_e2m1",
    "round_e4m3",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@leaf
def round_bf16(value: np.float32) -> np.float32:
    """Round a float32 to BF16, ties to even; NaN stays NaN."""
    bits = np.float32(value).view(np.uint32)
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.float32(np.nan)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return np.uint32(rounded).view(np.float32)


@leaf
def _power_of_two_scale(largest: np.float32, reciprocal: np.float32) -> np.float32:
    """Return the smallest power of two that is at least largest * reciprocal, by bits."""
    bits = np.float32(largest * reciprocal).view(np.uint32)
    if bits >= np.uint32(0x7F800000):  # a block with a NaN or an infinity has no scale
        return np.float32(np.nan)
    exponent = bits & np.uint32(0x7F800000)
    if bits & np.uint32(0x007FFFFF):
        exponent = np.uint32(exponent + np.uint32(0x00800000))
    return np.uint32(exponent).view(np.float32)


@leaf
def _round_to_steps(
    value: np.float32, largest: np.float32, least: np.uint32, above: np.uint32
) -> np.float32:
    """Round to a format's steps, ties to even, without a branch; NaN stays NaN.

    Parameters
    ----------
    value
        Any float32; what is beyond `largest`, the format's largest number, becomes it.
    least
        Bits of the smallest normal number; below it the steps do not shrink.
    above
        Places a float32's mantissa has more than the format's, shifted to the exponent.
    """
    bits = np.float32(value).view(np.uint32)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF)).view(np.float32)
    size = largest if size > largest else size
    exponent = np.uint32(max(np.float32(size).view(np.uint32), least) & np.uint32(0x7F800000))
    # a power of two whose last place is the step
    shift = np.uint32(exponent + above).view(np.float32)
    size = np.float32(np.float32(size + shift) - shift)
    magnitude = np.float32(size).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.uint32(magnitude | (bits & np.uint32(0x80000000))).view(np.float32)


@leaf
def round_e4m3(value: np.float32) -> np.float32:
    """Round a float32 to the nearest E4M3 value, ties to even, or to 448."""
    least, above = np.uint32(0x3C800000), np.uint32(20 << 23)
    return _round_to_steps(value, np.float32(448), least, above)


@leaf
def encode_e4m3(value: np.float32) -> np.uint8:
    """Return the code of a float32 that is an E4M3 value already."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(24)) & np.uint32(0x80)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude < np.uint32(0x3C800000):
        return np.uint8(sign | np.uint32(np.abs(value) * np.float32(512)))
    if magnitude > np.uint32(0x7F800000):
        return np.uint8(0x7F)
    return np.uint8(sign | ((magnitude >> np.uint32(20)) - np.uint32(120 << 3)))


@leaf
def round_e2m1(value: np.float32) -> np.float32:
    """Round a float32 to the nearest E2M1 value, ties to even mantissa, or to 6."""
    return _round_to_steps(value, np.float32(6), np.uint32(0x3F800000), np.uint32(22 << 23))


@leaf
def encode_e2m1(value: np.float32) -> np.uint8:
    """Return the code of a float32 that is an E2M1 value already."""
    size = np.abs(value)
    sign = np.uint8(np.float32(value).view(np.uint32) >> np.uint32(28)) & np.uint8(8)
    if size < np.float32(2):
        return np.uint8(sign | np.uint8(size * np.float32(2)))
    if size < np.float32(4):
        return np.uint8(sign | np.uint8(size + np.float32(2)))
    return np.uint8(sign | (np.uint8(6) if size < np.float32(6) else np.uint8(7)))


@leaf
def _larger(largest: np.uint32, value: np.float32) -> np.uint32:
    # magnitudes compare as their bits do; infinities and NaN are the largest
    return max(largest, np.uint32(np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF)))


@leaf
def fp8_blocks(blocks: F32, scales: F32) -> None:
    """Round every row of `blocks` to FP8 in place, unscaled, and write its scale.

    Takes all blocks at once because a slice of memory that a kernel owns costs more than
    rounding it.
    """
    for block in range(blocks.shape[0]):
        largest = np.float32(1e-4).view(np.uint32)
        for i in range(blocks.shape[1]):
            largest = _larger(largest, blocks[block, i])
        scale = _power_of_two_scale(np.uint32(largest).view(np.float32), np.float32(1 / 448))
        inverse = np.float32(np.float32(1) / scale)  # exact, as are products with it
        for i in range(blocks.shape[1]):
            blocks[block, i] = round_e4m3(np.float32(blocks[block, i] * inverse))
        scales[block] = scale


@leaf
def fp4_block(block: F32) -> np.float32:
    """Round a block to FP4 in place, unscaled; return its power-of-two scale."""
    largest = np.float32(6 * 2.0**-126).view(np.uint32)
    for i in range(block.size):
        largest = _larger(largest, block[i])
    scale = _power_of_two_scale(np.uint32(largest).view(np.float32), np.float32(1 / 6))
    inverse = np.float32(np.float32(1) / scale)
    for i in range(block.size):
        block[i] = round_e2m1(np.float32(block[i] * inverse))
    return scale

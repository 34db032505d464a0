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
    "fp8_block",
    "quantise_block",
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
def round_e4m3(value: np.float32) -> np.float32:
    """Round a float32 of magnitude at most 448 to the nearest E4M3 value, ties to even."""
    bits = np.float32(value).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude > np.uint32(0x7F800000):
        return np.float32(np.nan)
    if magnitude < np.uint32(0x3C800000):  # below 2^-6: steps of 2^-9
        shift = np.float32(24576.0)  # 1.5 * 2^14, whose last place is 2^-9
        size = np.float32(np.float32(np.abs(value) + shift) - shift)
        return np.float32(np.copysign(size, value))
    odd = (bits >> np.uint32(20)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFFF) + odd) & np.uint32(0xFFF00000)
    return np.uint32(rounded).view(np.float32)


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
    """Round a float32 of magnitude at most 6 to the nearest E2M1 value, ties to even mantissa."""
    size = np.abs(value)
    if size <= np.float32(0.25):
        size = np.float32(0)
    elif size < np.float32(0.75):
        size = np.float32(0.5)
    elif size <= np.float32(1.25):
        size = np.float32(1)
    elif size < np.float32(1.75):
        size = np.float32(1.5)
    elif size <= np.float32(2.5):
        size = np.float32(2)
    elif size < np.float32(3.5):
        size = np.float32(3)
    elif size <= np.float32(5):
        size = np.float32(4)
    else:
        size = np.float32(6)
    return np.float32(np.copysign(size, value))


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
def _largest(block: F32, floor: np.float32) -> np.float32:
    # magnitudes compare as their bits do; infinities and NaN are the largest
    largest = np.float32(floor).view(np.uint32)
    for value in block:
        largest = max(largest, np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF))
    return np.uint32(largest).view(np.float32)


@leaf
def _clamped(value: np.float32, limit: np.float32) -> np.float32:
    if value > limit:
        return limit
    if value < -limit:
        return np.float32(-limit)
    return value  # also a NaN, which must stay one


@leaf
def fp8_block(block: F32) -> np.float32:
    """Round a block to FP8 in place, unscaled; return its power-of-two scale."""
    scale = _power_of_two_scale(_largest(block, np.float32(1e-4)), np.float32(1 / 448))
    for i in range(block.size):
        block[i] = round_e4m3(_clamped(np.float32(block[i] / scale), np.float32(448)))
    return scale


@leaf
def fp4_block(block: F32) -> np.float32:
    """Round a block to FP4 in place, unscaled; return its power-of-two scale."""
    scale = _power_of_two_scale(_largest(block, np.float32(6 * 2.0**-126)), np.float32(1 / 6))
    for i in range(block.size):
        block[i] = round_e2m1(_clamped(np.float32(block[i] / scale), np.float32(6)))
    return scale


@leaf
def quantise_block(block: F32) -> None:
    """Round a block to FP8 with its power-of-two scale, in place: code times scale."""
    scale = fp8_block(block)
    for i in range(block.size):
        block[i] *= scale

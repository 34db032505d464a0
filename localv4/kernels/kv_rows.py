"""Packing of KV entries and index keys into rows of bytes, and back, exactly.

A KV entry of the trained precision is ``[FP8 codes of the columns without rope | BF16 rope
columns | UE8M0 scales, one per 64 columns, padded to 8]``; an index key is ``[packed FP4 |
UE8M0 scales, one per 32 columns]``.  Under float32 numerics a row is the float32 values.
The attention and indexer kernels unpack what they read, so nothing unpacked is kept.
Follows forward.md sections 4 step 3, 5 and 10.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.fp8_values import BLOCK as ENTRY_BLOCK
from localv4.kernels.fp8_values import decode_e4m3

__all__ = [
    "ENTRY_BLOCK",
    "FP4_FLOOR",
    "FP4_RECIPROCAL",
    "KEY_BLOCK",
    "block_scale",
    "decode_entry",
    "decode_key",
    "e2m1_code",
    "e2m1_value",
    "encode_entry",
    "encode_key",
]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

KEY_BLOCK = 32
FP4_FLOOR = np.float32(6 * 2.0**-126)
FP4_RECIPROCAL = np.float32(1 / 6)
_FP8_FLOOR = np.float32(1e-4)
_FP8_RECIPROCAL = np.float32(1 / 448)
_NAN = np.float32(np.nan)
_ONE = np.float32(1)
_SIXTEENTH = np.uint32(16)


@leaf
def _exponent_byte(scale: np.float32) -> np.uint8:
    return np.uint8(np.float32(scale).view(np.uint32) >> np.uint32(23))


@leaf
def _power_of_two(byte: np.uint8) -> np.float32:
    if byte == np.uint8(255):
        return _NAN
    return np.uint32(np.uint32(byte) << np.uint32(23)).view(np.float32)


@leaf
def e2m1_value(code: np.uint32) -> np.float32:
    """Decode E2M1; below 2 the steps are of a half, got as 1 + steps - 1."""
    bits = np.uint32((code & np.uint32(7)) << np.uint32(22))
    size = np.uint32(bits + np.uint32(126 << 23)).view(np.float32)
    small = np.uint32(bits + np.uint32(127 << 23)).view(np.float32) - np.float32(1)
    size = small if (code & np.uint32(7)) < np.uint32(2) else size
    sign = np.uint32((code & np.uint32(8)) << np.uint32(28))
    return np.uint32(np.float32(size).view(np.uint32) | sign).view(np.float32)


@leaf
def _e4m3_code(value: np.float32) -> np.uint32:
    """Round to E4M3, ties to even, magnitudes above 448 to 448; no branches."""
    bits = np.float32(value).view(np.uint32)
    magnitude = min(bits & np.uint32(0x7FFFFFFF), np.uint32(0x43E00000))
    odd = (magnitude >> np.uint32(20)) & np.uint32(1)
    code = (np.uint32(magnitude + np.uint32(0x7FFFF)) + odd) >> np.uint32(20)
    normal = np.int32(np.int32(code) - np.int32(120 << 3))
    # below 2^-6 the steps are 2^-9, the last place of numbers from 1.5 * 2^14 on
    small = np.float32(np.uint32(magnitude).view(np.float32) + np.float32(24576))
    steps = np.int32(np.float32(small).view(np.int32) & np.int32(15))
    result = steps if magnitude < np.uint32(0x3C800000) else normal
    return np.uint32(np.uint32(result) | ((bits >> np.uint32(24)) & np.uint32(0x80)))


@leaf
def e2m1_code(value: np.float32) -> np.uint32:
    """Round to E2M1, ties to even mantissa, magnitudes above 6 to 6; no branches."""
    bits = np.float32(value).view(np.uint32)
    magnitude = min(bits & np.uint32(0x7FFFFFFF), np.uint32(0x40C00000))
    odd = (magnitude >> np.uint32(22)) & np.uint32(1)
    code = (np.uint32(magnitude + np.uint32(0x1FFFFF)) + odd) >> np.uint32(22)
    normal = np.int32(np.int32(code) - np.int32(126 << 1))
    # below 1 the steps are a half, the last place of numbers from 1.5 * 2^22 on
    small = np.float32(np.uint32(magnitude).view(np.float32) + np.float32(6291456))
    steps = np.int32(np.float32(small).view(np.int32) & np.int32(3))
    result = steps if magnitude < np.uint32(0x3F800000) else normal
    return np.uint32(np.uint32(result) | ((bits >> np.uint32(28)) & np.uint32(8)))


@leaf
def block_scale(block: F32, floor: np.float32, reciprocal: np.float32) -> np.float32:
    """Return the smallest power of two that is at least the largest magnitude * reciprocal.

    A block with a NaN or an infinity has no scale: NaN.
    """
    # magnitudes compare as their bits do; infinities and NaN are the largest
    largest = np.float32(floor).view(np.uint32)
    for i in range(block.size):
        largest = max(largest, np.float32(block[i]).view(np.uint32) & np.uint32(0x7FFFFFFF))
    bits = np.float32(np.uint32(largest).view(np.float32) * reciprocal).view(np.uint32)
    up = np.uint32(bits + np.uint32(0x007FFFFF)) & np.uint32(0x7F800000)
    return _NAN if bits >= np.uint32(0x7F800000) else np.uint32(up).view(np.float32)


@leaf
def _copy(source: F32, target: F32) -> None:
    for i in range(target.size):
        target[i] = source[i]


@leaf
def encode_entry(values: F32, rope_dim: int, trained: int, row: U8) -> None:
    """Pack one entry, float32 [head_dim], into its bytes."""
    if not trained:
        _copy(values, row.view(np.float32))
        return
    plain = values.size - rope_dim
    for first in range(0, plain, ENTRY_BLOCK):
        block = values[first : first + ENTRY_BLOCK]
        codes = row[first : first + ENTRY_BLOCK]
        scale = block_scale(block, _FP8_FLOOR, _FP8_RECIPROCAL)
        inverse = _ONE / scale
        row[plain + 2 * rope_dim + first // ENTRY_BLOCK] = _exponent_byte(scale)
        for i in range(ENTRY_BLOCK):
            codes[i] = np.uint8(_e4m3_code(np.float32(block[i] * inverse)))
    rotated = values[plain:]
    upper = row[plain : plain + 2 * rope_dim].view(np.uint16)
    for i in range(rope_dim):
        upper[i] = np.uint16(np.float32(rotated[i]).view(np.uint32) >> _SIXTEENTH)


@leaf
def decode_entry(row: U8, rope_dim: int, trained: int, out: F32) -> None:
    """Unpack one entry into float32 [head_dim]."""
    if not trained:
        _copy(row.view(np.float32), out)
        return
    plain = out.size - rope_dim
    decode_e4m3(row[:plain], row[plain + 2 * rope_dim :], out[:plain])
    rotated = out[plain:]
    upper = row[plain : plain + 2 * rope_dim].view(np.uint16)
    for i in range(rope_dim):
        rotated[i] = np.uint32(np.uint32(upper[i]) << _SIXTEENTH).view(np.float32)


@leaf
def encode_key(values: F32, trained: int, row: U8) -> None:
    """Pack one index key, float32 [index_head_dim], into its bytes."""
    if not trained:
        _copy(values, row.view(np.float32))
        return
    size = values.size
    for first in range(0, size, KEY_BLOCK):
        block = values[first : first + KEY_BLOCK]
        codes = row[first // 2 : (first + KEY_BLOCK) // 2]
        scale = block_scale(block, FP4_FLOOR, FP4_RECIPROCAL)
        inverse = _ONE / scale
        row[size // 2 + first // KEY_BLOCK] = _exponent_byte(scale)
        for i in range(KEY_BLOCK // 2):
            low = e2m1_code(np.float32(block[2 * i] * inverse))
            high = e2m1_code(np.float32(block[2 * i + 1] * inverse))
            codes[i] = np.uint8(low | np.uint32(high << np.uint32(4)))


@leaf
def decode_key(row: U8, trained: int, out: F32) -> None:
    """Unpack one key into float32 [index_head_dim]."""
    if not trained:
        _copy(row.view(np.float32), out)
        return
    size = out.size
    for first in range(0, size, KEY_BLOCK):
        scale = _power_of_two(row[size // 2 + first // KEY_BLOCK])
        codes = row[first // 2 : (first + KEY_BLOCK) // 2]
        values = out[first : first + KEY_BLOCK]
        for i in range(KEY_BLOCK // 2):
            code = np.uint32(codes[i])
            values[2 * i] = e2m1_value(code & np.uint32(15)) * scale
            values[2 * i + 1] = e2m1_value(code >> np.uint32(4)) * scale

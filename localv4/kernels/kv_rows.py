"""Packing of KV entries and index keys into rows of bytes, and back, exactly.

A KV entry of the trained precision is ``[FP8 codes of the columns without rope | BF16 rope
columns | UE8M0 scales, one per 64 columns, padded to 8]``; an index key is ``[packed FP4 |
UE8M0 scales, one per 32 columns]``.  Under float32 numerics a row is the float32 values.
`decode_entry` and `decode_key` are called by the attention and indexer kernels, so nothing
unpacked is kept.  Follows forward.md sections 4 step 3, 5 and 10.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.rounding import encode_e2m1, encode_e4m3, fp4_block, fp8_block
from localv4.quant import e2m1, e4m3

__all__ = ["decode_entries", "decode_entry", "decode_key", "encode_entries", "encode_keys"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

ENTRY_BLOCK = 64
KEY_BLOCK = 32
_E4M3 = e4m3.decode(np.arange(256, dtype=np.uint8))
_E2M1 = e2m1.decode(np.arange(16, dtype=np.uint8))


@leaf
def _exponent_byte(scale: np.float32) -> np.uint8:
    return np.uint8(np.float32(scale).view(np.uint32) >> np.uint32(23))


@leaf
def _power_of_two(byte: np.uint8) -> np.float32:
    if byte == np.uint8(255):
        return np.float32(np.nan)
    return np.uint32(np.uint32(byte) << np.uint32(23)).view(np.float32)


@leaf
def _write_float(value: np.float32, row: U8, first: int, n_bytes: int) -> None:
    """Write the upper `n_bytes` of a float32, lowest byte first."""
    bits = np.float32(value).view(np.uint32) >> np.uint32(32 - 8 * n_bytes)
    for i in range(n_bytes):
        row[first + i] = np.uint8((bits >> np.uint32(8 * i)) & np.uint32(255))


@leaf
def _read_float(row: U8, first: int, n_bytes: int) -> np.float32:
    """Read what `_write_float` wrote; missing lower bytes are zero."""
    bits = np.uint32(0)
    for i in range(n_bytes):
        bits |= np.uint32(row[first + i]) << np.uint32(8 * i)
    return np.uint32(bits << np.uint32(32 - 8 * n_bytes)).view(np.float32)


@leaf
def _encode_entry(values: F32, rope_dim: int, trained: bool, row: U8) -> None:
    if not trained:
        for i in range(values.size):
            _write_float(values[i], row, 4 * i, 4)
        return
    plain = values.size - rope_dim
    for first in range(0, plain, ENTRY_BLOCK):
        block = values[first : first + ENTRY_BLOCK]
        scale = fp8_block(block)
        row[plain + 2 * rope_dim + first // ENTRY_BLOCK] = _exponent_byte(scale)
        for i in range(ENTRY_BLOCK):
            row[first + i] = encode_e4m3(block[i])
    for i in range(rope_dim):
        _write_float(values[plain + i], row, plain + 2 * i, 2)


@leaf
def encode_entries(values: F32, rope_dim: int, trained: bool, rows: U8) -> None:
    """Pack float32 entries [n, head_dim] (overwritten by scratch) into rows of bytes."""
    for entry in range(values.shape[0]):
        _encode_entry(values[entry], rope_dim, trained, rows[entry])


@leaf
def decode_entry(row: U8, rope_dim: int, trained: bool, out: F32) -> None:
    """Unpack one entry into float32 [head_dim]."""
    if not trained:
        for i in range(out.size):
            out[i] = _read_float(row, 4 * i, 4)
        return
    plain = out.size - rope_dim
    for first in range(0, plain, ENTRY_BLOCK):
        scale = _power_of_two(row[plain + 2 * rope_dim + first // ENTRY_BLOCK])
        for i in range(first, first + ENTRY_BLOCK):
            out[i] = _E4M3[row[i]] * scale
    for i in range(rope_dim):
        out[plain + i] = _read_float(row, plain + 2 * i, 2)


@leaf
def decode_entries(rows: U8, rope_dim: int, trained: bool, out: F32) -> None:
    """Unpack rows [n, entry bytes] into float32 [n, head_dim]."""
    for entry in range(rows.shape[0]):
        decode_entry(rows[entry], rope_dim, trained, out[entry])


@leaf
def _encode_key(values: F32, trained: bool, row: U8) -> None:
    size = values.size
    if not trained:
        for i in range(size):
            _write_float(values[i], row, 4 * i, 4)
        return
    for first in range(0, size, KEY_BLOCK):
        block = values[first : first + KEY_BLOCK]
        row[size // 2 + first // KEY_BLOCK] = _exponent_byte(fp4_block(block))
        for i in range(0, KEY_BLOCK, 2):
            pair = encode_e2m1(block[i]) | (encode_e2m1(block[i + 1]) << np.uint8(4))
            row[(first + i) // 2] = np.uint8(pair)


@leaf
def encode_keys(values: F32, trained: bool, rows: U8) -> None:
    """Pack float32 keys [n, index_head_dim] (overwritten by scratch) into rows of bytes."""
    for key in range(values.shape[0]):
        _encode_key(values[key], trained, rows[key])


@leaf
def decode_key(row: U8, trained: bool, out: F32) -> None:
    """Unpack one key into float32 [index_head_dim]."""
    if not trained:
        for i in range(out.size):
            out[i] = _read_float(row, 4 * i, 4)
        return
    size = out.size
    for first in range(0, size, KEY_BLOCK):
        scale = _power_of_two(row[size // 2 + first // KEY_BLOCK])
        for i in range(first, first + KEY_BLOCK, 2):
            byte = row[i // 2]
            out[i] = _E2M1[byte & np.uint8(15)] * scale
            out[i + 1] = _E2M1[byte >> np.uint8(4)] * scale

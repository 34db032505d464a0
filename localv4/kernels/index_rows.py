"""Index queries and keys, made ready to be multiplied.

Follows forward.md section 6.  With trained numerics both are FP4 numbers.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.entries import finish_row
from localv4.kernels.index_queries import pack_head
from localv4.kernels.index_scoring import RATIO
from localv4.kernels.kv_rows import (
    FP4_FLOOR,
    FP4_RECIPROCAL,
    KEY_BLOCK,
    block_scale,
    e2m1_code,
    e2m1_value,
    encode_key,
)
from localv4.kernels.launch import Program, Task, kernel
from localv4.kernels.rope import rotate
from localv4.kernels.rounding import round_bf16

__all__ = ["KEY_ROWS", "hadamard", "record_index_queries", "record_keys"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

KEY_ROWS = 7  # argument that is put anew when the cache's memory moves
_HEADS = 8  # index heads of one unit


@leaf
def hadamard(row: F32, trained: int) -> None:
    """Transform a row of a power of two columns in place (Sylvester order)."""
    half = 1
    while half < row.size:
        for start in range(0, row.size, 2 * half):
            low, high = row[start : start + half], row[start + half : start + 2 * half]
            for i in range(half):
                one, other = low[i], high[i]
                low[i] = one + other
                high[i] = one - other
        half *= 2
    factor = np.float32(np.float64(row.size) ** -0.5)
    for i in range(row.size):
        row[i] = row[i] * factor
    if trained:
        for i in range(row.size):
            row[i] = round_bf16(row[i])


@leaf
def _simulate_fp4(row: F32) -> None:
    """Round to FP4 with a scale for every 32 columns, in place."""
    for first in range(0, row.size, KEY_BLOCK):
        block = row[first : first + KEY_BLOCK]
        scale = block_scale(block, FP4_FLOOR, FP4_RECIPROCAL)
        inverse = np.float32(1) / scale
        for i in range(KEY_BLOCK):
            code = e2m1_code(np.float32(block[i] * inverse))
            block[i] = np.float32(e2m1_value(code) * scale)


@kernel("f32[2], f32[3], f32[2], f32, i64, u8[2]")
def _index_queries(
    queries: F32,
    tables: F32,
    weights: F32,
    factor: np.float32,
    trained: int,
    packed: U8,
    unit: int,
) -> None:
    n_heads = weights.shape[1]
    width = queries.shape[1] // n_heads
    units = -(-n_heads // _HEADS)
    token, first = unit // units, unit % units * _HEADS
    for head in range(first, min(first + _HEADS, n_heads)):
        row = queries[token, head * width : (head + 1) * width]
        rotate(row, tables[token], np.float32(1), trained)
        hadamard(row, trained)
        weight = np.float32(weights[token, head] * factor)
        if trained:
            _simulate_fp4(row)
            weight = round_bf16(weight)
        weights[token, head] = weight
        if packed.shape[1] > 0:
            pack_head(row, weight, head, packed[token])


def record_index_queries(
    program: Program, queries: F32, tables: F32, weights: F32, trained: bool, packed: U8
) -> Task:
    """Record rotation, Hadamard transform and FP4 rounding of index queries, all in place.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    queries
        float32 [n_tokens, n_heads * index_head_dim].
    tables
        float32 [n_tokens, 2, rope_dim / 2]: cosines and sines of the tokens' positions.
    weights
        float32 [n_tokens, n_heads]: head weights as projected; scaled here.
    trained
        Round to BF16 and FP4.
    packed
        Written, but for its padding, which must be zero: uint8 [n_tokens, `packed_query_bytes`].
    """
    n_tokens, n_heads = weights.shape
    factor = (queries.shape[1] // n_heads) ** -0.5 * n_heads**-0.5
    units = n_tokens * -(-n_heads // _HEADS)
    return program.add(
        _index_queries, units, queries, tables, weights, factor, int(trained), packed
    )


@kernel("f32[2], f32[1], f32, i64[1], i64, f32[1], i64, u8[2]")
def _finish_keys(
    values: F32,
    weight: F32,
    eps: np.float32,
    place: I64,
    n_tokens: int,
    frequencies: F32,
    trained: int,
    rows: U8,
    unit: int,
) -> None:
    key = place[0] // RATIO + unit
    if key >= (place[0] + n_tokens) // RATIO:
        return
    table = np.empty((2, frequencies.size), np.float32)
    finish_row(values[unit], weight, eps, key * RATIO, frequencies, trained, table)
    hadamard(values[unit], trained)
    encode_key(values[unit], trained, rows[key])


def record_keys(
    program: Program,
    values: F32,
    weight: F32,
    eps: float,
    place: I64,
    n_tokens: int,
    frequencies: F32,
    trained: bool,
    rows: U8,
) -> Task:
    """Record norm, rotation, Hadamard transform and packing of the keys that a chunk completes.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    values
        float32 [at least n_keys, index_head_dim], overwritten.
    weight, eps
        Of the norm.
    place
        int64 [1]: position of the chunk's first token when the program runs.
    n_tokens
        Of the chunk.
    frequencies
        float32 [rope_dim / 2].
    trained
        Round to BF16 and pack as FP4.
    rows
        Written: uint8 [.., key bytes], key k in row k; argument `KEY_ROWS` of the task.
    """
    return program.add(
        _finish_keys,
        -(-n_tokens // RATIO),
        values,
        weight,
        eps,
        place,
        n_tokens,
        frequencies,
        int(trained),
        rows,
    )
